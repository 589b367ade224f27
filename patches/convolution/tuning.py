"""Which route serves which problem: measured on this card, remembered (``planfile``), not measured again.

The plan holds the verdicts of the self-tests, one a route and dtype, and for each problem what every route
costs and the one that serves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..graphs import recording
from ..stopwatch import Stopwatch
from . import selftest
from .planfile import Card, Choice, PlanFile
from .problem import ConvProblem, Gradients, Route
from .selftest import SelfTestResult

NEIGHBOUR = 2.0
"""A problem that differs only in batch and image size takes the choice of a measured one whose number of
pixels is within this factor: the last batch of an epoch is not worth a measurement."""

TUNING_SECONDS = 180.0
"""Longest time that one process measures; later problems take the nearest choice, or PyTorch's kernels."""

WORTH = 2.0
"""A route whose single call takes so many times what the best takes is not timed again."""

CLOSE = 1.03
"""Routes within this factor of the fastest are as fast, by what repeated measurements differ; of them the one
that needs the least memory serves."""

AGREEMENT = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 5e-2, torch.float64: 1e-9}
"""Largest relative difference between two routes; beyond it, one of the two is wrong. PyTorch's own kernels
round a weight gradient once an image: 1.9e-2 after 256 images in bf16."""


Tensors = tuple[Tensor, Tensor, "Tensor | None", Tensor]
"""Input, weight, bias and output gradient."""

Results = tuple[Tensor, Gradients]
"""Output, and the gradients."""

Test = tuple[str, torch.dtype]
"""A route or one of :data:`selftest.EXAMINERS`, and the dtype in which it is tested."""


class Cost(NamedTuple):
    """What forward + backward take: the median of their seconds, and the most bytes held at a time."""

    seconds: float
    extra_bytes: int


class Planner:
    """Chooses routes on one device, testing and measuring what the plan does not know.

    Args:
        device: "cuda" or "cpu".
        routes: by name. "native" is among them: it is tested like the others, and serves what no
            trusted route can. A route taken out of the mapping is not chosen again.
        note: told what a person should know.
        card: what the plan is keyed by; the device's own when None.
        examine: the self-test of a route on a device in a dtype.

    Attributes:
        beside: what else is tested where routes are.
        spent: seconds of measuring so far.
        watch: what the waiting was for.
    """

    def __init__(
        self,
        device: str,
        routes: Mapping[str, Route],
        note: Callable[[str], None],
        card: Card | None = None,
        examine: Callable[[str, str, str], SelfTestResult] = selftest.run,
    ) -> None:
        self.beside: tuple[str, ...] = ()
        self.watch = Stopwatch()
        self.device, self.routes, self._note, self._examine = device, routes, note, examine
        card = card or Card.here(device)
        self.file = PlanFile(card.path(), card, note)
        self._told: set[str] = set()
        self.spent = 0.0

    def choose(self, problem: ConvProblem) -> Route:
        """The route for a problem: remembered, a neighbour's, or measured now."""
        known = self._known(problem)
        if known is None and self.spent < TUNING_SECONDS and not recording():
            known = self.tune(problem).route
        if known is None:
            known = self._nearest(problem, math.inf)
        if known is None or known not in self.routes:
            known = next(self._candidates(problem), "native")
        return self.routes.get(known, self.routes["native"])

    def _candidates(self, problem: ConvProblem) -> Iterator[str]:
        """The trusted routes that serve a problem, PyTorch's own kernels first."""
        supporting = [name for name, route in self.routes.items() if route.supports(problem)]
        nobody = True
        for name in supporting:
            if self.trusted(name, problem.dtype):
                nobody = False
                yield name
        dtype = _name(problem.dtype)
        if nobody and f"none {dtype}" not in self._told:
            self._told.add(f"none {dtype}")
            self._note(
                f"no convolution route passed its self-test in {dtype} on this card: PyTorch's own kernels "
                "serve, and what they compute may be wrong; the doctor of this package says more"
            )

    def trusted(self, name: str, dtype: torch.dtype) -> bool:
        """Whether a route passed its self-test in a dtype on this card; tests it if nobody has."""
        test = _test_name(name, dtype)
        verdict = self.file.verdicts.get(test)
        if verdict is None:
            self._test([(name, dtype)])
            verdict = self.file.verdicts[test]
        if not verdict.passed and test not in self._told:
            self._told.add(test)
            use = "serves only what no other route can" if name == "native" else "is not used"
            again = (
                "it is tested again at the next start"
                if verdict.transient
                else f"to test it again, delete {self.file.path}"
            )
            self._note(
                f"the {_title(name)} failed its self-test in {_name(dtype)} on this card and "
                f"{use}: {verdict.reason} ({again})"
            )
        return verdict.passed

    def _test(self, wanted: Iterable[Test]) -> None:
        """Test what nobody has tested, all at once: each test is a process that mostly waits."""
        tests = self._untested(wanted)
        if not tests:
            return
        device = self.device if self.device == "cpu" else f"cuda:{torch.cuda.current_device()}"
        with self.watch.during("self-tests"), self.file.testing():
            tests = self._untested(tests)
            for name, dtype in tests:
                self._note(f"testing the {_title(name)} in {_name(dtype)} on this card, once")
            with ThreadPoolExecutor(max(1, len(tests))) as pool:
                verdicts = pool.map(lambda test: self._examine(test[0], device, _name(test[1])), tests)
                found = {_test_name(*test): each for test, each in zip(tests, verdicts, strict=True)}
            self.file.remember({}, found)

    def _untested(self, wanted: Iterable[Test]) -> list[Test]:
        return [each for each in dict.fromkeys(wanted) if _test_name(*each) not in self.file.verdicts]

    def _wanted(self, problem: ConvProblem) -> list[Test]:
        """What must be tested before a problem can be measured."""
        supporting = [name for name, route in self.routes.items() if route.supports(problem)]
        return [(name, problem.dtype) for name in (*supporting, *self.beside)]

    def step_name(self, problems: Iterable[ConvProblem]) -> str:
        """The name in the file of a training step that has these problems, by what the library does in it."""
        text = json.dumps(sorted({_key(each) for each in problems}))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def get_ready(self, problems: Iterable[ConvProblem]) -> None:
        """Before problems are measured: run every test that they want, and compile what they will launch.

        All of it at once, and how many problems there are to measure is said.
        """
        unknown = [each for each in dict.fromkeys(problems) if self._known(each) is None]
        if unknown:
            index = None if self.device == "cpu" else torch.cuda.current_device()
            with ThreadPoolExecutor(1) as pool:
                compiling = pool.submit(self._compile, unknown, index)
                self._test(test for each in unknown for test in self._wanted(each))
                compiling.result()
            self._note(f"measuring {len(unknown)} kinds of convolution on this card, once")

    def get_tested(self, dtype: torch.dtype) -> None:
        """Run the self-tests of what serves a usual convolution in a dtype, and of what stands beside it."""
        self._test(self._wanted(selftest.problems_of(self.device, dtype)[0]))

    def _compile(self, problems: Iterable[ConvProblem], index: int | None) -> None:
        """Compile what the Triton routes will launch on a GPU, but for what their self-test compiles."""
        route, served = self.routes.get("triton"), []
        for each in problems:
            verdict = self.file.verdicts.get(_test_name("triton", each.dtype))
            if route is not None and route.supports(each) and (verdict is None or verdict.passed):
                served.append(each)
        if len(served) > 1 and index is not None:
            from .triton_kernels.ahead import beyond, compile_ahead

            with self.watch.during("compiling for the model"), torch.cuda.device(index):
                dtypes = dict.fromkeys(each.dtype for each in served)
                tested = (each for dtype in dtypes for each in selftest.problems_of("cuda", dtype))
                compile_ahead(beyond(served, tested))

    def tune(self, problem: ConvProblem) -> Choice:
        """Measure every trusted route on a problem and remember which serves, unless that has been done."""
        self.file.refresh()
        choice = self.file.choices.get(_key(problem))
        if choice is None or choice.route not in self.routes or not self.trusted(choice.route, problem.dtype):
            self._test(self._wanted(problem))
            names = list(self._candidates(problem))
            start = time.monotonic()
            choice = self._measure(problem, names)
            self.spent += time.monotonic() - start
            with self.watch.during("writing the plan"):
                self.file.remember({_key(problem): choice}, {})
        return choice

    def _known(self, problem: ConvProblem) -> str | None:
        choice = self.file.choices.get(_key(problem))
        if choice is not None and choice.route in self.routes and self.trusted(choice.route, problem.dtype):
            return choice.route
        return self._nearest(problem, NEIGHBOUR)

    def _nearest(self, problem: ConvProblem, factor: float) -> str | None:
        """The choice for the measured problem that differs least, and only in its number of pixels."""
        family, pixels = _family(problem), _pixels(problem)
        distances = [
            (max(pixels, other.pixels) / min(pixels, other.pixels), other.route)
            for other in self.file.choices.values()
            if other.family == family
            and other.route in self.routes
            and self.routes[other.route].supports(problem)
            and self.trusted(other.route, problem.dtype)
        ]
        distance, name = min(distances, default=(math.inf, None))
        return name if distance <= factor else None

    def _measure(self, problem: ConvProblem, names: list[str]) -> Choice:
        """Judge and time trusted routes.

        The judge is the first route that another one agrees with: a route that is wrong on this problem
        cannot have all others rejected. Where no two agree, it is the first that works.
        """
        costs: dict[str, Cost] = {}
        refused: dict[str, str] = {}
        for judge in names:
            found, complaints = self._measure_by(judge, problem, names)
            if len(found) > len(costs):
                costs, refused = found, complaints
            elif not costs:
                refused.update(complaints)
            if len(costs) > 1:
                break
        short = [name for name, complaint in refused.items() if selftest.lacks_memory(complaint)]
        for name, complaint in refused.items():
            if name not in short:
                self._note(f"route {name} is not used for {problem}: {complaint}")
        if short and "memory" not in self._told:
            self._told.add("memory")
            self._note(
                f"not enough memory to measure {', '.join(short)} for {problem}; what is chosen without is "
                "not remembered (said once)"
            )
        return Choice(
            _best(costs) if costs else names[0] if names else "native",
            {name: cost.seconds for name, cost in costs.items()},
            {name: cost.extra_bytes for name, cost in costs.items()},
            _family(problem),
            _pixels(problem),
            transient=bool(short) or self._awaits_a_test(problem),
        )

    def _awaits_a_test(self, problem: ConvProblem) -> bool:
        """Whether a route for this problem is left out until the next start."""
        return any(
            self.file.verdicts[_test_name(name, problem.dtype)].transient
            for name, route in self.routes.items()
            if route.supports(problem)
        )

    def _measure_by(
        self, judge: str, problem: ConvProblem, names: list[str]
    ) -> tuple[dict[str, Cost], dict[str, str]]:
        """What the routes cost that agree with ``judge``, and what is wrong with the others."""
        costs: dict[str, Cost] = {}
        refused: dict[str, str] = {}
        try:
            with torch.inference_mode():
                tensors = _tensors(problem)
                with _ieee_products(self.device):
                    expected = _results(self.routes[judge], problem, tensors)
                once: dict[str, float] = {}
                for name in names:
                    with _trial(self.watch, "judging", name, refused):
                        if name != judge:
                            with _ieee_products(self.device):
                                results = _results(self.routes[name], problem, tensors)
                            _check(problem, results, expected, judge)
                            del results
                        once[name] = _seconds(self.routes[name], problem, tensors, self.device)
                    _double(tensors, expected)
                worth = WORTH * min(once.values(), default=math.inf)
                for name, seconds in once.items():
                    with _trial(self.watch, "measuring", name, refused):
                        costs[name] = _cost(self.routes[name], problem, tensors, self.device, seconds, worth)
        except Exception as error:
            refused[judge] = f"{type(error).__name__}: {error}"
        finally:
            if self.device == "cuda":
                torch.cuda.empty_cache()
        return costs, refused


@contextlib.contextmanager
def _trial(watch: Stopwatch, what: str, name: str, refused: dict[str, str]) -> Iterator[None]:
    """Count what is done with a route; an error inside is what is wrong with it."""
    try:
        with watch.during(f"{what} {name}"):
            yield
    except Exception as error:
        refused[name] = f"{type(error).__name__}: {error}"


def _best(costs: Mapping[str, Cost]) -> str:
    """The route with the least memory among the fastest."""
    limit = CLOSE * min(cost.seconds for cost in costs.values())
    return min(
        (name for name, cost in costs.items() if cost.seconds <= limit),
        key=lambda name: (costs[name].extra_bytes, costs[name].seconds),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _title(name: str) -> str:
    """What a self-test tries, in words."""
    return name if name in selftest.EXAMINERS else f"convolution route {name}"


def _test_name(route: str, dtype: torch.dtype) -> str:
    """The name of a self-test in the file."""
    return f"{route} {_name(dtype)}"


def _key(problem: ConvProblem) -> str:
    """The problem's name in the file; with TF32 or deterministic algorithms the library does other work."""
    if problem.device != "cuda":
        return str(problem)
    library = torch.backends.cudnn
    tf32 = problem.dtype == torch.float32 and library.allow_tf32
    return str(problem) + " tf32" * tf32 + " deterministic" * library.deterministic


@contextlib.contextmanager
def _ieee_products(device: str) -> Iterator[None]:
    """Without TF32, which is less exact by design and would look like a mistake."""
    if device == "cpu":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _family(problem: ConvProblem) -> str:
    return _key(replace(problem, batch=1, height=1, width=1))


def _pixels(problem: ConvProblem) -> int:
    return problem.batch * problem.height * problem.width


def _tensors(problem: ConvProblem) -> Tensors:
    """Random numbers; the process's random state is left alone.

    Small ones, so that a weight gradient is about 1 and :func:`_double` takes nothing out of fp16's range.
    """
    generator = torch.Generator(problem.device).manual_seed(0)
    small = float(problem.batch * math.prod(problem.output_size)) ** -0.25

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=problem.device, dtype=problem.dtype)

    stored = problem.memory_format
    x = normal(problem.batch, problem.channels_in, problem.height, problem.width).mul_(small)
    weight = normal(*problem.weight_shape)
    bias = normal(problem.channels_out).mul_(small) if problem.bias else None
    grad = normal(problem.batch, problem.channels_out, *problem.output_size).mul_(small)
    return x.to(memory_format=stored), weight, bias, grad.to(memory_format=stored)


def _results(route: Route, problem: ConvProblem, tensors: Tensors) -> Results:
    x, weight, bias, grad = tensors
    needs = (True, True, problem.bias)
    return route.forward(problem, x, weight, bias), route.backward(problem, grad, x, weight, needs)


def _double(tensors: Tensors, expected: Results) -> None:
    """Change the question: memory that holds an earlier route's answer must not pass for the next one's."""
    x, _, bias, grad = tensors
    out, (grad_x, grad_weight, grad_bias) = expected
    for tensor, factor in (
        (x, 2),
        (bias, 2),
        (grad, 2),
        (out, 2),
        (grad_x, 2),
        (grad_weight, 4),
        (grad_bias, 2),
    ):
        if tensor is not None:
            tensor.mul_(factor)


def _check(problem: ConvProblem, found: Results, expected: Results, judge: str) -> None:
    """Raise ValueError where a route and its judge disagree."""
    names = ("output", "input gradient", "weight gradient", "bias gradient")
    values, truths = (found[0], *found[1]), (expected[0], *expected[1])
    for name, value, truth in zip(names, values, truths, strict=True):
        if truth is None:
            continue
        if value is None or value.shape != truth.shape:
            raise ValueError(f"the {name} has the wrong form")
        difference = float((value.float() - truth.float()).norm() / truth.float().norm().clamp_min(1e-30))
        if not difference <= AGREEMENT[problem.dtype]:
            raise ValueError(f"the {name} differs from that of {judge} by {difference:.1e}")


def _cost(
    route: Route,
    problem: ConvProblem,
    tensors: Tensors,
    device: str,
    once: float = math.inf,
    worth: float = math.inf,
) -> Cost:
    """Of forward + backward; about 20 ms of measuring, more where one call takes longer.

    Args:
        route, problem, tensors, device: what computes what, and where.
        once: seconds of an earlier call.
        worth: a route whose calls took longer, both of them, is not timed again.
    """
    extra_bytes = 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    once = min(once, _seconds(route, problem, tensors, device))
    if device == "cuda":
        extra_bytes = torch.cuda.max_memory_allocated() - before
    if once > worth:
        return Cost(once, extra_bytes)
    loops = max(1, min(100, round(0.006 / max(once, 1e-6))))
    timed = (_seconds(route, problem, tensors, device, loops) for _ in range(3))
    return Cost(statistics.median(timed), extra_bytes)


def _seconds(route: Route, problem: ConvProblem, tensors: Tensors, device: str, loops: int = 1) -> float:
    """Of a call, by the clock."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(loops):
        _results(route, problem, tensors)
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / loops
