"""A module's forward and backward pass as two CUDA graphs: recorded once, replayed by one call each.

On a quick card a training step of a small model waits for the host, which launches some thousand kernels by
Python. A graph launches what it recorded at once. ``torch.cuda.make_graphed_callables`` does nearly this, but
the gradients that it hands to autograd lie where its next replay writes, and autograd keeps them as they are:
the gradients of several batches, added up for one update, would be the last ones, twice. It also asks for the
gradient of every output, while a loss reads of some no more than the shape.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from . import variables

WARM_UP = 3
"""Passes before the recording, as PyTorch advises: libraries begin work with what must not be recorded."""

FIRST_BLOCK = 0.99
"""Of the bytes that the passes have in use at once, the part that the graphs take first, in one piece.

Otherwise every large tensor that finds no gap gets a piece of its own, and between them gaps stay: by a model
of PyTorch's allocator that was given the sizes of a pass of YOLOv8n, b16, 640 px, 3338 MiB are taken for 2915
in use, and 2938 with such a piece. On an H200 the graphs of a step that had 2230 MiB in use took 2280, 2238,
2250 and 2272 with 0.95, 0.98, 1.0 and 1.01 of it, those of one that had 2176 took 2254 and 2200 with 0.98 and
0.99.
"""

Recorded = tuple[Any, Callable[[], object]]
"""What a call returned while it was recorded, and what writes that anew."""


class UnexpectedGradient(RuntimeError):
    """An output has a gradient that had none when the graph was recorded."""


def failures() -> tuple[type[Exception], ...]:
    """What a recording may end in that does not come about.

    PyTorch's errors, memory that does not suffice among them; those of Triton, which compiles and launches
    kernels of a pass, and derives its errors from ``Exception``; and those of the compilers that it calls.
    """
    triton = sys.modules.get("triton.errors")  # who has not imported it, has none of its errors
    own = (triton.TritonError,) if triton else ()
    return RuntimeError, subprocess.CalledProcessError, *own


def available() -> bool:
    """Whether graphs can be recorded: on cards of NVIDIA's; nobody has tried those of HIP. Not before the
    PyTorch that copies many tensors by one call (2.1).
    """
    return torch.cuda.is_available() and torch.version.hip is None and hasattr(torch, "_foreach_copy_")


def allowed() -> bool:
    """Whether the environment lets graphs serve.

    Raises:
        ValueError: it says what nobody understands.
    """
    return variables.GRAPH.choose("graph", "auto", variables.GRAPHS) == "auto"


def recording() -> bool:
    """Whether a graph is being recorded on the current stream: nothing can be measured or waited for then."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class GraphedModule:
    """A module in training mode, replayed for inputs like those that it was recorded with.

    A replay computes what was recorded: neither changed hyperparameters of the module nor parameters put in
    the place of others reach it, while new values of parameters and buffers do. Of each forward pass the
    backward pass has to come before the next forward pass. Second derivatives do not exist. Recording begins
    PyTorch's statistics of the most memory in use anew.

    Args:
        module: on a CUDA device. Its parameters, buffers and random generators are left as they are.
        example: an input, as all will be; of several, all of them. The first one leads the others. From now
            on the graphs read here, and each call overwrites it.
        loss: a number (a tensor without dimensions) of what the call returns. It tells which outputs need
            a gradient, and is itself not recorded.
        call: what computes of the inputs, with the module's parameters; None: the module.

    Attributes:
        bytes: of the device that the graphs keep to themselves, for as long as this lives.
        inputs: the example. An input that lies there already is not copied.

    Raises:
        RuntimeError: the module does what a graph cannot hold, such as waiting for the card.
        torch.cuda.OutOfMemoryError: graphs keep the memory of a step to themselves, and less would be left
            for all else (validation, inputs of other sizes) than they take.
        triton.errors.TritonError, subprocess.CalledProcessError: a kernel does not compile, or cannot be
            launched. :func:`failures` names all of these.
    """

    def __init__(
        self,
        module: nn.Module,
        example: Tensor | Sequence[Tensor],
        loss: Callable[[Any], Tensor],
        call: Callable[..., Any] | None = None,
    ) -> None:
        self._module, self._call = module, call or module
        self._parameters = [each for each in module.parameters() if each.requires_grad]
        examples = (example,) if isinstance(example, Tensor) else tuple(example)
        self.inputs = [each.detach() for each in examples]
        device = self.inputs[0].device
        self._forwards = 0
        self._pool: Any = None
        self._buffers = _beside_copies(module)
        with as_before(module, device), _without_cached_casts():
            self._warm_up(loss)
            held = reserved(device)
            self._outputs = self._record_forward()
            self._gradients = self._record_backward()
            self.bytes = reserved(device) - held
        _check_what_is_left(self.bytes, device)
        # What optimizers and checkpoints see as gradients; a replay writes elsewhere.
        self._held = [torch.empty_like(each) for each, _ in self._gradients]
        # Of a function none of whose inputs wants a gradient, autograd wants none either.
        self._anchor = torch.zeros((), device=device, requires_grad=True)

    def accepts(self, *inputs: Tensor) -> bool:
        """Whether inputs are like those that were recorded with, and the module in training mode."""
        return (
            len(inputs) == len(self.inputs)
            and all(map(_alike, inputs, self.inputs))
            and self._module.training
            and torch.is_grad_enabled()
        )

    def __call__(self, *inputs: Tensor) -> Any:
        """What the call returns for inputs that :meth:`accepts` takes.

        It lies where the next call writes. A backward pass adds to the gradients of the parameters.
        """
        found = _Replay.apply(self, self._anchor, *inputs)
        return trees.tree_unflatten(list(found), self._form)

    def _warm_up(self, loss: Callable[[Any], Tensor]) -> None:
        """Run passes, and find out which outputs need a gradient and which parameters get one."""
        device = self.inputs[0].device
        with _aside(device):
            for _ in range(WARM_UP):
                before = _in_use(device)
                outputs, form = trees.tree_flatten(self._call(*self.inputs))
                forward = _most_in_use(device)
                apart = [each.detach().requires_grad_(each.requires_grad) for each in outputs]
                wanting = [index for index, each in enumerate(apart) if each.requires_grad]
                slopes = torch.autograd.grad(
                    loss(trees.tree_unflatten(apart, form)), [apart[i] for i in wanting], allow_unused=True
                )
                self._used = [i for i, slope in zip(wanting, slopes, strict=True) if slope is not None]
                _in_use(device)
                found = torch.autograd.grad(
                    [outputs[i] for i in self._used],
                    self._parameters,
                    [slope for slope in slopes if slope is not None],
                    allow_unused=True,
                )
                self._served = [index for index, each in enumerate(found) if each is not None]
                backward = _most_in_use(device) - sum(each.nbytes for each in slopes if each is not None)
                self._most = max(forward, backward) - before
                self._form, self._smooth = form, [each.requires_grad for each in outputs]
                del outputs, apart, slopes, found

    def _record_forward(self) -> list[Tensor]:
        (outputs, _), self._replay_forward = self._record(self._forward_pass)
        self._live: list[Tensor] = outputs
        self._incoming = [torch.zeros_like(outputs[index]) for index in self._used]
        return [each.detach() for each in outputs]

    def _forward_pass(self) -> tuple[list[Any], Any]:
        # Free again at once: what follows is cut out of it. PyTorch would fill a tensor, to be deterministic.
        torch.UntypedStorage(int(FIRST_BLOCK * self._most), device=self.inputs[0].device)  # type: ignore[no-untyped-call]
        for buffers, copies in self._buffers:
            torch._foreach_copy_(copies, buffers)
        return trees.tree_flatten(self._call(*self.inputs))

    def _record_backward(self) -> list[tuple[nn.Parameter, Tensor]]:
        parameters = [self._parameters[index] for index in self._served]
        found, self._replay_backward = self._record(
            lambda: torch.autograd.grad([self._live[i] for i in self._used], parameters, self._incoming)
        )
        self._live = []  # what autograd kept goes with them; the graph has its addresses
        return list(zip(parameters, found, strict=True))

    def _record(self, call: Callable[[], Any]) -> Recorded:
        """Record a call; the first recording makes the memory that the next one shares."""
        graph, stream = torch.cuda.CUDAGraph(), _side_stream(self.inputs[0].device)
        # What cuBLAS computes in is to be of the graph's memory, and of that alone.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            # Other threads, those that pin batches for instance, may call CUDA meanwhile.
            with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
                answer = call()
        except BaseException:
            _release_generator(self.inputs[0].device)
            raise
        finally:
            torch._C._cuda_clearCublasWorkspaces()
        self._pool = graph.pool()
        return answer, graph.replay

    def forward(self, inputs: Sequence[Tensor]) -> tuple[int, list[Tensor]]:
        """Replay the forward pass: its number, and its outputs."""
        self._forwards += 1
        for place, each in zip(self.inputs, inputs, strict=True):
            if each.data_ptr() != place.data_ptr():
                place.copy_(each)
        self._replay_forward()
        return self._forwards, self._outputs

    def take_back(self) -> None:
        """Put the buffers back to what they were before the newest forward pass, to make it again."""
        if self._forwards:
            for buffers, copies in self._buffers:
                torch._foreach_copy_(buffers, copies)

    def without_gradient(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Those that did not depend on a parameter when they were recorded."""
        return [each for each, smooth in zip(outputs, self._smooth, strict=True) if not smooth]

    def backward(self, number: int, slopes: Sequence[Tensor | None]) -> None:
        """Replay the backward pass of a forward pass, and add to the parameters' gradients.

        Raises:
            RuntimeError: another forward pass came between.
            UnexpectedGradient: an output has a gradient that had none; the parameters' are as before.
        """
        if number != self._forwards:
            raise RuntimeError("the backward pass of a graph comes before its next forward pass")
        unused = [i for i, slope in enumerate(slopes) if slope is not None and i not in self._used]
        if unused:
            found = f"outputs {unused} have a gradient, and had none when the graph was recorded"
            raise UnexpectedGradient(found)
        for index, place in zip(self._used, self._incoming, strict=True):
            slope = slopes[index]
            if slope is None:
                place.zero_()
            else:
                place.copy_(slope)
        self._replay_backward()
        self._add_up()

    def _add_up(self) -> None:
        places, values, waiting, further = [], [], [], []
        for (parameter, value), held in zip(self._gradients, self._held, strict=True):
            if parameter.grad is None:
                parameter.grad = held
                places.append(held)
                values.append(value)
            else:
                waiting.append(parameter.grad)
                further.append(value)
        with torch.no_grad():
            if places:
                torch._foreach_copy_(places, values)
            if waiting:
                torch._foreach_add_(waiting, further)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graphed: GraphedModule, anchor: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.graphed, ctx.inputs = graphed, len(inputs)
        ctx.set_materialize_grads(False)
        ctx.number, outputs = graphed.forward(inputs)
        found = tuple(each.detach() for each in outputs)
        ctx.mark_non_differentiable(*graphed.without_gradient(found))
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[None, ...]:
        ctx.graphed.backward(ctx.number, slopes)
        none: tuple[None, ...] = (None,) * (2 + ctx.inputs)
        return none


def _alike(given: Tensor, held: Tensor) -> bool:
    return (
        given.shape == held.shape
        and given.dtype == held.dtype
        and given.device == held.device
        and given.stride() == held.stride()
        and not given.requires_grad
    )


def _beside_copies(module: nn.Module) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Buffers of a module and copies of them, those of one dtype together: one call copies them."""
    found: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for buffer in module.buffers():
        buffers, copies = found.setdefault(buffer.dtype, ([], []))
        buffers.append(buffer)
        copies.append(buffer.clone())
    return list(found.values())


@contextmanager
def as_before(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Put buffers and random generators back at the end."""
    kept = [(each, each.clone()) for each in module.buffers()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


@contextmanager
def _without_cached_casts() -> Iterator[None]:
    """Autocast without its cache: a graph would keep the weights that were cast before it was recorded."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """A stream of its own, as warming up before a recording asks for."""
    if device.type != "cuda":
        yield
        return
    stream = _side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@cache
def _side_stream(device: torch.device) -> Any:
    """One for warming up and recording: cuBLAS keeps a workspace, 32 MiB on Hopper, for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def reserved(device: torch.device | None = None) -> int:
    """Bytes of a device, the current one if none is named, that PyTorch has taken and something is in."""
    if device is not None and device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def _in_use(device: torch.device) -> int:
    """Bytes of a device that tensors are in; :func:`_most_in_use` counts from here."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _most_in_use(device: torch.device) -> int:
    """The most of them at once since."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _release_generator(device: torch.device) -> None:
    """End what a recording that failed leaves behind: PyTorch's generator of random numbers then refuses to
    serve ("Offset increment outside graph capture"), until a recording has ended as it should.
    """
    something = torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with suppress(RuntimeError), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        something.add_(1)


def _check_what_is_left(taken: int, device: torch.device) -> None:
    if device.type == "cuda" and (free := torch.cuda.mem_get_info(device)[0]) < taken:
        left = f"{free / 2**30:.1f} GiB would be left beside the {taken / 2**30:.1f} of the graphs"
        raise torch.cuda.OutOfMemoryError(left)
