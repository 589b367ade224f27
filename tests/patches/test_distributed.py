"""Replicated and sharded training, in one process: PyTorch's own hooks around layers that a route serves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import patches

pytestmark = pytest.mark.skipif(
    torch.__version__.startswith("1.") or not dist.is_available(),
    reason="sharding of PyTorch 2; PyTorch 1 shards on GPUs alone",
)


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _replicated(net: nn.Sequential) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net)


def _sharded(net: nn.Sequential) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    for layer in (net[0], net[3]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def _sharded_as_before(net: nn.Sequential) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(net, device_id=torch.device("cpu"), use_orig_params=True)


def _trained(wrap: Callable[[nn.Sequential], Any]) -> list[Tensor]:
    """The parameters after two steps; the input asks for its gradient, as where a layer came before."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2)
    net = nn.Sequential(*layers).double()
    model = wrap(net)
    step = torch.optim.SGD(model.parameters(), 0.1)
    for n in range(2):
        x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(n)).double().requires_grad_()
        step.zero_grad()
        model(x).square().mean().backward()
        step.step()
        assert x.grad is not None and x.grad.abs().sum() > 0
    found = (getattr(each, "full_tensor", lambda each=each: each)() for each in net.parameters())
    return [each.detach().clone() for each in found]


@pytest.mark.parametrize("wrap", [_replicated, _sharded, _sharded_as_before])
def test_a_wrapped_model_trains_by_a_route_as_without(wrap: Callable[[nn.Sequential], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one rank shards nothing, and that one way is older
        plain = _trained(wrap)
        with patches.enabled("cpu", route="gemm"):
            served = _trained(wrap)
            report = patches.report()
    for ours, theirs in zip(served, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
    assert report.by_route() == {"gemm": 2 * 2 * 2}
    assert report.fall_throughs == ()
