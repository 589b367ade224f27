"""The Triton route on a graphics card; on machines without one, test_triton_route.py covers it by
interpretation.
"""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn

from patches.convolution.problem import ConvProblem
from patches.convolution.triton_kernels import TritonRoute

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")


def draw(rng: random.Random, dtype: torch.dtype) -> ConvProblem:
    """A problem of the kinds that detectors have: few kernels and strides, any channels and sizes."""
    groups = rng.choice([1, 1, 1, 2, 8])
    kernel = rng.choice([1, 3, 5])
    return ConvProblem(
        batch=rng.randint(1, 4),
        channels_in=groups * rng.choice([1, 3, 8, 16, 20, 64]),
        height=rng.randint(8, 50),
        width=rng.randint(8, 50),
        channels_out=groups * rng.choice([1, 4, 16, 33, 64, 130]),
        kernel=(kernel, kernel),
        stride=rng.choice([(1, 1), (2, 2)]),
        padding=(kernel // 2, kernel // 2),
        dilation=(1, 1),
        groups=groups,
        bias=rng.random() < 0.3,
        dtype=dtype,
        device="cuda",
        channels_last=rng.random() < 0.4,
    )


def tensors(p: ConvProblem) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    def make(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", dtype=p.dtype)

    return (
        make(p.batch, p.channels_in, p.height, p.width).to(memory_format=p.memory_format),
        make(p.channels_out, p.channels_in // p.groups, *p.kernel),
        make(p.channels_out) if p.bias else None,
        make(p.batch, p.channels_out, *p.output_size).to(memory_format=p.memory_format),
    )


def in_float64(p: ConvProblem, *leaves: Tensor | None) -> list[Tensor | None]:
    """Output and gradients of input, weight and bias; the last of the leaves is the output's gradient."""
    *wide, grad = [None if t is None else t.double().requires_grad_() for t in leaves]
    out = nn.functional.conv2d(*wide, p.stride, p.padding, p.dilation, p.groups)
    out.backward(grad)
    return [out.detach(), *(None if t is None else t.grad for t in wide)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_problems_agree_with_float64(dtype: torch.dtype) -> None:
    from patches.convolution.triton_kernels.ahead import compile_ahead

    torch.manual_seed(0)
    rng, route = random.Random(0), TritonRoute()
    problems = [draw(rng, dtype) for _ in range(60)]
    compile_ahead(problems)
    for p in problems:
        x, weight, bias, grad = tensors(p)
        got = (route.forward(p, x, weight, bias), *route.backward(p, grad, x, weight, (True, True, p.bias)))
        expected = in_float64(p, x, weight, bias, grad)
        # Without cancellation: a sum that happens to be nearly zero has an error of its terms' size.
        sizes = in_float64(p, x.abs(), weight.abs(), None if bias is None else bias.abs(), grad.abs())
        for ours, truth, size in zip(got, expected, sizes, strict=True):
            if truth is not None and size is not None:
                assert ours is not None
                # Sums are fp32's; what is stored in half precision is rounded once more.
                rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
                assert (ours.double() - truth).norm() <= 1e-6 * size.norm() + rounding * truth.norm(), p


def test_a_gradient_has_the_same_bits_every_time() -> None:
    p = ConvProblem(8, 32, 80, 80, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, True, torch.float32, "cuda", False)
    x, weight, _, grad = tensors(p)
    route = TritonRoute()
    first = route.backward(p, grad, x, weight, (True, True, True))
    for _ in range(20):
        again = route.backward(p, grad, x, weight, (True, True, True))
        assert all(
            torch.equal(a, b) for a, b in zip(first, again, strict=True) if a is not None and b is not None
        )


class Routed(torch.autograd.Function):
    """A convolution by the route, for a model in a test."""

    @staticmethod
    def forward(ctx, p: ConvProblem, route: TritonRoute, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.p, ctx.route = p, route
        ctx.save_for_backward(x, weight)
        return route.forward(p, x, weight, None)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, None, Tensor | None, Tensor | None]:  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        return None, None, *ctx.route.backward(ctx.p, grad, x, weight, (True, True, False))[:2]


class RoutedConv(nn.Conv2d):
    """``nn.Conv2d`` by the route."""

    route = TritonRoute()

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        shape = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        p = ConvProblem(
            batch, channels, height, width, self.out_channels, *shape, False, x.dtype, "cuda", False
        )
        return Routed.apply(p, self.route, x, self.weight)


def test_a_graph_of_a_whole_training_step_replays_it() -> None:
    torch.manual_seed(0)
    layers = [(3, 16, 3, 2, 1), (16, 32, 3, 2, 1), (32, 32, 3, 1, 32), (32, 20, 1, 1, 1)]
    model = nn.Sequential(
        *(
            nn.Sequential(RoutedConv(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o), nn.SiLU())
            for i, o, k, s, g in layers
        )
    ).cuda()
    twin = copy.deepcopy(model)
    image = torch.randn(4, 3, 64, 64, device="cuda")

    def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = net(image).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (model, twin)]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step(model, optimizers[0])
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step(model, optimizers[0])
    losses = []
    for number in range(8):
        eager = step(twin, optimizers[1]).item()
        if number >= 3:
            graph.replay()
            losses.append((recorded.item(), eager))
    for replayed, eager in losses:
        assert abs(replayed - eager) <= 1e-5 * abs(eager), losses
    assert losses[-1][0] < losses[0][0]


def test_shapes_with_the_same_variant_share_one_compiled_kernel() -> None:
    from patches.convolution.triton_kernels import ahead, gather, weight

    kernels = (gather.gather_gemm, weight.weight_gradient)
    for kernel in kernels:
        kernel.device_caches.clear()
    route, wanted, launches = TritonRoute(), set(), 0
    for batch, height, width, channels in [
        (8, 80, 80, 64),
        (5, 80, 80, 64),
        (8, 64, 52, 64),
        (3, 100, 36, 192),
    ]:
        shape = ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        p = ConvProblem(batch, channels, height, width, 64, *shape, False, torch.float32, "cuda", False)
        x, w, _, grad = tensors(p)
        route.forward(p, x, w, None)
        route.backward(p, grad, x, w, (True, True, False))
        made = [each for each in ahead.launches(p) if each.kernel in kernels]
        wanted |= {ahead.variant(each) for each in made}
        launches += len(made)
    compiled = sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())
    assert compiled == len(wanted) < launches
