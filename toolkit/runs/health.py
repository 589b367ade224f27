"""Red flags: named rules with thresholds over what the supervisor has seen of a run.

Each rule is a pure function of a :class:`History` and its own :class:`Rule`. Thresholds and actions are
configuration: ``[health.<rule>]`` in toolkit.toml.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import msgspec

from toolkit import settings
from toolkit.dataset.frames import BAD_FRAMES
from toolkit.errors import ToolkitError
from toolkit.machine.sensors import Sensors
from toolkit.runs.heartbeat import Beat, Phase

if TYPE_CHECKING:
    from toolkit.workspace import Workspace

GIB = 2**30

UNTRAINED = 200
"""Batches of a run in which its loss may rise tenfold and mean well: an untrained model that has no box near
an object has none to be wrong about."""


class Action(Enum):
    """What a rule does when it applies."""

    NOTE = "note"
    RESTART = "restart"  # stop and resume from the newest checkpoint
    ROLL_BACK = "roll back"  # resume from a checkpoint before the trouble, with a lower learning rate
    GIVE_UP = "give up"  # save, stop, report


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A threshold.

    Attributes:
        limit: the threshold, in the unit that :class:`Rules` names.
        action: what to do beyond it.
        seconds: how long it must hold.
    """

    limit: Annotated[float, msgspec.Meta(ge=0)]
    action: Action
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0


@dataclass(frozen=True)
class Observation:
    """What the supervisor saw at one moment.

    Attributes:
        at: seconds of watched time, see :class:`History`.
        beat: the newest heartbeat of the trainer that runs now; None before its first.
        sensors: of the GPU that trains; None without one.
        disk_free: bytes.
    """

    at: float
    beat: Beat | None
    sensors: Sensors | None
    disk_free: int


@dataclass(frozen=True)
class Verdict:
    """A rule that applies, what it wants done, and the numbers."""

    rule: str
    action: Action
    detail: str


class History:
    """Observations of one trainer process, with a clock that only counts time that was watched.

    A gap longer than :attr:`MAX_GAP` between two looks (the machine slept, the container was paused, a
    clock was set) counts as that much and no more: nobody watched, so nobody can say that nothing moved.
    """

    MAX_GAP = 10.0
    FULL = 600.0
    """Seconds for which every observation is kept; before that, one a minute."""

    def __init__(self) -> None:
        self._old: list[Observation] = []
        self._recent: deque[Observation] = deque()
        self.last_progress = 0.0
        self._now = 0.0
        self._clock: float | None = None

    @property
    def now(self) -> float:
        """Seconds of watched time since the trainer was started."""
        return self._now

    @property
    def observations(self) -> list[Observation]:
        """All that are kept, oldest first."""
        return [*self._old, *self._recent]

    @property
    def newest(self) -> Observation | None:
        """The last look."""
        return self._recent[-1] if self._recent else None

    @property
    def beat(self) -> Beat | None:
        """The newest heartbeat."""
        return self._recent[-1].beat if self._recent else None

    def add(self, clock: float, beat: Beat | None, sensors: Sensors | None, disk_free: int) -> None:
        """Record a look at ``clock`` (seconds of any clock)."""
        if self._clock is not None:
            self._now += min(max(clock - self._clock, 0.0), self.MAX_GAP)
        self._clock = clock
        before = self.beat
        if beat is not None and (before is None or beat.count != before.count):
            self.last_progress = self._now
        self._recent.append(Observation(self._now, beat, sensors, disk_free))
        while self._recent[0].at < self._now - self.FULL:
            aged = self._recent.popleft()
            if not self._old or aged.at - self._old[-1].at >= 60.0:
                self._old.append(aged)

    def recent(self, seconds: float) -> list[Observation]:
        """Observations of the last ``seconds``; none while there are not that many seconds yet."""
        start = self._now - seconds
        if start < 0:
            return []
        kept = self._recent if seconds <= self.FULL else self.observations
        return [observation for observation in kept if observation.at >= start]

    def before(self, seconds: float) -> list[Observation]:
        """Observations of the ten minutes (:attr:`FULL`) that ended ``seconds`` ago."""
        end = self._now - seconds
        return [observation for observation in self.observations if end - self.FULL <= observation.at < end]


def _without_progress(history: History, phases: tuple[Phase | None, ...], limit: float) -> str | None:
    phase = history.beat.phase if history.beat else None
    silent = history.now - history.last_progress
    if phase in phases and silent > limit:
        return f"no sign of life for {silent:.0f} s, limit {limit:.0f} s"
    return None


def _hang(history: History, rule: Rule) -> str | None:
    beat = history.beat
    usual = beat.step_seconds[1] if beat else 0.0
    return _without_progress(history, ("training",), max(rule.limit, 20 * usual))


def _hang_starting(history: History, rule: Rule) -> str | None:
    return _without_progress(history, (None, "starting"), rule.limit)


def _hang_validating(history: History, rule: Rule) -> str | None:
    return _without_progress(history, ("validating", "finished"), rule.limit)


def _not_finite(history: History, rule: Rule) -> str | None:
    beat = history.beat
    if beat is None or beat.skipped_in_a_row < rule.limit:
        return None
    return f"{beat.skipped_in_a_row} updates in a row had a loss or gradient that is not finite"


def _often_not_finite(history: History, rule: Rule) -> str | None:
    first = next((beat for observation in history.before(0.0) if (beat := _training(observation))), None)
    last = history.beat
    if first is None or last is None or last.phase != "training":
        return None
    updates, skipped = last.updates - first.updates, last.skipped_updates - first.skipped_updates
    if skipped < 20 or skipped <= rule.limit * updates:
        return None
    return f"{skipped} of the last {updates} updates had a loss or gradient that is not finite"


def _loss_jump(history: History, rule: Rule) -> str | None:
    losses = []
    for observation in history.recent(rule.seconds):
        beat = observation.beat
        if beat is None or beat.phase != "training" or beat.total_loss is None:
            return None
        losses.append(beat.total_loss)
    # The running median itself looks back on a number of batches, which a quick card trains within seconds.
    medians = [
        beat.median_loss
        for observation in history.before(rule.seconds)
        if (beat := observation.beat) is not None and beat.phase == "training" and beat.median_loss
        if beat.epoch * beat.batches + beat.batch >= UNTRAINED
    ]
    if not losses or not medians:
        return None
    factor = min(losses) / statistics.median(medians)
    return f"loss {factor:.1f} times its usual median, limit {rule.limit:g}" if factor > rule.limit else None


def _sustained(
    history: History,
    rule: Rule,
    value: Callable[[Observation], float | None],
    beyond: Callable[[float, float], bool],
) -> float | None:
    """The newest value if every observation of the rule's time is beyond its limit."""
    values = [value(observation) for observation in history.recent(rule.seconds)]
    if not values or not all(v is not None and beyond(v, rule.limit) for v in values):
        return None
    return values[-1]


def _above(value: float, limit: float) -> bool:
    return value > limit


def _training(observation: Observation) -> Beat | None:
    beat = observation.beat
    return beat if beat is not None and beat.phase == "training" and beat.step_seconds[1] else None


def _gpu_idle(history: History, rule: Rule) -> str | None:
    busy = _sustained(
        history,
        rule,
        lambda o: o.sensors.busy if o.sensors and _training(o) else None,
        lambda value, limit: value <= limit,
    )
    return None if busy is None else f"GPU {busy:.0f} % busy for {rule.seconds:.0f} s"


def _temperature(history: History, rule: Rule) -> str | None:
    degrees = _sustained(history, rule, lambda o: o.sensors.temperature if o.sensors else None, _above)
    return None if degrees is None else f"GPU at {degrees:.0f} C, limit {rule.limit:.0f} C"


def _gpu_memory(history: History, rule: Rule) -> str | None:
    sensors = history.newest.sensors if history.newest else None
    if sensors is None or not sensors.memory_total or sensors.memory_used is None:
        return None
    used, budget = sensors.memory_used / GIB, rule.limit * sensors.memory_total / GIB
    return f"{used:.1f} GiB of GPU memory in use, budget {budget:.1f} GiB" if used > budget else None


def _memory_growth(history: History, rule: Rule) -> str | None:
    sizes = [
        (observation.at, (beat.memory + beat.gpu_memory) / GIB)
        for observation in history.observations
        if (beat := _training(observation))
    ]
    less = [i for i, (_, size) in enumerate(sizes) if size < sizes[-1][1] - rule.limit]
    if not less:
        return None
    since = sizes[less[-1] :]
    (start, first), (end, last) = since[0], since[-1]
    if end - start < rule.seconds:
        return None
    # PyTorch keeps what one crowded batch or the first validation took: a leak grows all the time.
    quarters = [start + part * (end - start) / 4 for part in range(1, 4)]
    passed = [first, *(next(size for at, size in since if at >= quarter) for quarter in quarters), last]
    if any(after - before < rule.limit / 16 for before, after in pairwise(passed)):
        return None
    minutes = (end - start) / 60
    return f"memory has grown by {last - first:.1f} GiB in {minutes:.0f} minutes, limit {rule.limit:g} GiB"


def _slow(history: History, rule: Rule) -> str | None:
    def speed(observation: Observation) -> float | None:
        beat = _training(observation)
        return None if beat is None else beat.images_per_second

    rates = [rate for rate in map(speed, history.observations) if rate is not None]
    if len(rates) < 10:
        return None
    median = statistics.median(rates)
    rate = _sustained(history, rule, speed, lambda value, limit: value < limit * median)
    return None if rate is None else f"{rate:.1f} images/s, median of the run {median:.1f}"


def _starving(history: History, rule: Rule) -> str | None:
    wait = _sustained(history, rule, lambda o: b.loader_wait if (b := _training(o)) else None, _above)
    return None if wait is None else f"{wait:.0%} of the time is spent waiting for the loader"


def _disk(history: History, rule: Rule) -> str | None:
    free = history.newest.disk_free / GIB if history.newest else float("inf")
    return f"{free:.1f} GiB free, limit {rule.limit:g} GiB" if free < rule.limit else None


def _bad_frames(history: History, rule: Rule) -> str | None:
    beat = history.beat
    if beat is None:
        return None
    # A bad frame is met in about four mosaics in a row, which makes the counts of an allowed part spread by
    # twice the root of what is expected: three times that is no chance. A handful is no percentage yet.
    allowed = rule.limit * beat.frames
    if beat.bad_frames <= max(allowed + 6 * math.sqrt(allowed), 10):
        return None
    return (
        f"{beat.bad_frames:,} of {beat.frames:,} frames did not decode and were replaced, "
        f"limit {rule.limit:.0%}: check the data with `toolkit dataset verify --deep`"
    )


@dataclass(frozen=True)
class Flag:
    """What belongs to a red flag beside its :class:`Rule`, which a user may change.

    Attributes:
        check: whether it applies, and the numbers.
        unit: of its limit, in words.
        least, most: limits with which it says something: with others it would end a healthy trainer, or
            never apply to a part that somebody wrote in percent.
    """

    check: Callable[[History, Rule], str | None]
    unit: str
    least: float = 0.0
    most: float = math.inf


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All red flags, each declared once: what is not here is not checked, and what is here is."""

    hang: Annotated[
        Rule, Flag(_hang, "seconds without a batch in training, or 20 usual batches if that is longer", 1)
    ] = Rule(120.0, Action.RESTART)
    hang_starting: Annotated[
        Rule, Flag(_hang_starting, "seconds without a sign of life before the first batch", 1)
    ] = Rule(900.0, Action.RESTART)
    hang_validating: Annotated[
        Rule, Flag(_hang_validating, "seconds without a sign of life in validation", 1)
    ] = Rule(300.0, Action.RESTART)
    not_finite: Annotated[Rule, Flag(_not_finite, "updates in a row with a NaN or an infinity", 1)] = Rule(
        10.0, Action.ROLL_BACK
    )
    often_not_finite: Annotated[
        Rule, Flag(_often_not_finite, "part of the updates of ten minutes that were such, at least 20", 0, 1)
    ] = Rule(0.2, Action.ROLL_BACK)
    loss_jump: Annotated[
        Rule,
        Flag(_loss_jump, f"loss by its median of the ten minutes before, from batch {UNTRAINED} on", 1),
    ] = Rule(10.0, Action.ROLL_BACK, seconds=20.0)
    gpu_idle: Annotated[Rule, Flag(_gpu_idle, "percent of the time that the GPU is busy", 0, 100)] = Rule(
        0.0, Action.NOTE, seconds=60.0
    )
    hot: Annotated[Rule, Flag(_temperature, "degrees Celsius of the GPU")] = Rule(
        80.0, Action.NOTE, seconds=60.0
    )
    too_hot: Annotated[Rule, Flag(_temperature, "degrees Celsius of the GPU")] = Rule(
        95.0, Action.GIVE_UP, seconds=5.0
    )
    gpu_memory: Annotated[Rule, Flag(_gpu_memory, "part of the card's memory in use", 0, 1)] = Rule(
        5 / 6, Action.NOTE
    )
    memory_growth: Annotated[
        Rule, Flag(_memory_growth, "GiB more of trainer, loader and its part of the GPU, bit by bit")
    ] = Rule(4.0, Action.RESTART, seconds=60.0)
    slow: Annotated[Rule, Flag(_slow, "images a second as a part of the run's own median", 0, 1)] = Rule(
        0.5, Action.NOTE, seconds=60.0
    )
    starving: Annotated[Rule, Flag(_starving, "part of the time spent waiting for the loader", 0, 1)] = Rule(
        0.5, Action.NOTE, seconds=60.0
    )
    disk: Annotated[Rule, Flag(_disk, "GiB free where the run is written")] = Rule(2.0, Action.NOTE)
    bad_frames: Annotated[
        Rule, Flag(_bad_frames, "part of the frames that did not decode, by more than chance", 0, 1)
    ] = Rule(BAD_FRAMES, Action.GIVE_UP)

    def frames_allowed(self) -> float:
        """Part of the frames that may be bad; all of them where the rule does not give a run up."""
        return self.bad_frames.limit if self.bad_frames.action is Action.GIVE_UP else 1.0

    def __post_init__(self) -> None:
        for name, flag in flags(type(self)).items():
            limit = getattr(self, name).limit
            if not flag.least <= limit <= flag.most:
                most = f" to {flag.most:g}" if math.isfinite(flag.most) else " or more"
                raise ValueError(f"Expected a limit of {flag.least:g}{most} for {name}, got {limit:g}")


@cache
def flags(rules: type[msgspec.Struct] = Rules) -> dict[str, Flag]:
    """The :class:`Flag` of every field.

    Raises:
        TypeError: a field is declared without one, and would never be checked.
    """
    found = {}
    for name, kind in get_type_hints(rules, include_extras=True).items():
        _, *extras = get_args(kind) or (kind,)
        if not extras or not isinstance(extras[0], Flag):
            raise TypeError(f"{name} is declared without a Flag")
        found[name] = extras[0]
    return found


def check(history: History, rules: Rules) -> list[Verdict]:
    """Every rule that applies now, the most drastic first."""
    verdicts = []
    for name, flag in flags(type(rules)).items():
        rule: Rule = getattr(rules, name)
        detail = flag.check(history, rule)
        if detail is not None:
            verdicts.append(Verdict(name, rule.action, detail))
    severity = list(Action)
    return sorted(verdicts, key=lambda verdict: -severity.index(verdict.action))


class Noted:
    """The red flags that somebody was told of, so that each is told once while it lasts.

    What must apply for some seconds ends with every validation and applies again that many seconds later: it
    is over when it did not apply for twice that time of training.
    """

    def __init__(self) -> None:
        self._absent: dict[str, float] = {}
        self._looked = 0.0

    def news(self, history: History, verdicts: list[Verdict], rules: Rules) -> list[Verdict]:
        """The verdicts of the newest look that were not told before, or were over since."""
        passed, self._looked = history.now - self._looked, history.now
        if history.beat is not None and history.beat.phase != "training":
            passed = 0.0
        new = [verdict for verdict in verdicts if verdict.rule not in self._absent]
        absent = {rule: seconds + passed for rule, seconds in self._absent.items()}
        lasting = {rule: s for rule, s in absent.items() if s < 2 * getattr(rules, rule).seconds}
        self._absent = lasting | {verdict.rule: 0.0 for verdict in verdicts}
        return new


def hang_is_near(history: History, rules: Rules) -> bool:
    """Whether half of the time after which training or validation counts as hanging has passed in silence."""
    for rule_function, rule in ((_hang, rules.hang), (_hang_validating, rules.hang_validating)):
        if rule_function(history, msgspec.structs.replace(rule, limit=rule.limit / 2)) is not None:
            return True
    return False


def of(place: Workspace, data: Path | None = None) -> Rules:
    """The rules that hold in a workspace, for this data.

    Raises:
        ToolkitError: see :func:`load`; the file is named.
    """
    for path in place.settings_files(data):
        load(settings.content(path).get("health", {}), f"{path} cannot be used ([health])")
    return load(place.defaults(data).health)


def load(
    table: Mapping[str, Any], what: str = "a health rule cannot be used ([health] in toolkit.toml)"
) -> Rules:
    """Rules from ``[health]`` of a toolkit.toml: a rule that is named keeps the defaults it does not mention.

    Args:
        table: names, and what is set of each.
        what: how an error begins.

    Raises:
        ToolkitError: a name, an action or a type is not known.
    """
    merged = msgspec.to_builtins(Rules())
    for name, values in table.items():
        if name not in merged or not isinstance(values, Mapping):
            raise ToolkitError(what, found=f"no health rule {name}", expected=", ".join(merged))
        merged[name] |= values
    try:
        return msgspec.convert(merged, Rules)
    except msgspec.ValidationError as error:
        raise settings.refusal(what, merged, error, Rules) from error


def table() -> str:
    """The defaults as a table of Markdown, for the documentation."""
    rules = Rules()
    rows = ["| flag | limit | of what | held for | action |", "|---|---|---|---|---|"]
    for name, flag in flags().items():
        rule: Rule = getattr(rules, name)
        held = f"{rule.seconds:g} s" if rule.seconds else "at once"
        rows.append(f"| `{name}` | {rule.limit:.3g} | {flag.unit} | {held} | {rule.action.value} |")
    return "\n".join(rows)
