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
from itertools import pairwise
from typing import Annotated, Any

import msgspec

from toolkit.dataset.frames import BAD_FRAMES
from toolkit.errors import ToolkitError
from toolkit.runs.heartbeat import Beat, Phase
from toolkit.sensors import Sensors

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


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rules with their default thresholds.

    Attributes:
        hang: seconds without a batch in training, or 20 times the median batch if that is longer.
        hang_starting: the same before the first batch (imports, first-step compilation).
        hang_validating: the same in validation.
        not_finite: updates in a row with a loss or gradient that is NaN or infinite.
        often_not_finite: part of the updates of ten minutes that were such, if they were 20 or more.
        loss_jump: loss as a multiple of what its running median usually was in the ten minutes before, from
            batch :data:`UNTRAINED` on.
        gpu_idle: percent of time that the GPU is busy.
        hot, too_hot: temperature of the GPU in degrees Celsius.
        gpu_memory: part of the card's memory in use: 5 GB on a card of 6 GB.
        memory_growth: GiB that the trainer, its loader and its part of the GPU have grown by, bit by bit.
        slow: images a second as a part of the run's own median.
        starving: part of the time spent waiting for the loader.
        disk: GiB free where the run is written.
        bad_frames: part of the frames that did not decode and were replaced; `predict` and `evaluate` stop at
            it as well.
    """

    hang: Rule = Rule(120.0, Action.RESTART)
    hang_starting: Rule = Rule(900.0, Action.RESTART)
    hang_validating: Rule = Rule(300.0, Action.RESTART)
    not_finite: Rule = Rule(10.0, Action.ROLL_BACK)
    often_not_finite: Rule = Rule(0.2, Action.ROLL_BACK)
    loss_jump: Rule = Rule(10.0, Action.ROLL_BACK, seconds=20.0)
    gpu_idle: Rule = Rule(0.0, Action.NOTE, seconds=60.0)
    hot: Rule = Rule(80.0, Action.NOTE, seconds=60.0)
    too_hot: Rule = Rule(95.0, Action.GIVE_UP, seconds=5.0)
    gpu_memory: Rule = Rule(5 / 6, Action.NOTE)
    memory_growth: Rule = Rule(4.0, Action.RESTART, seconds=60.0)
    slow: Rule = Rule(0.5, Action.NOTE, seconds=60.0)
    starving: Rule = Rule(0.5, Action.NOTE, seconds=60.0)
    disk: Rule = Rule(2.0, Action.NOTE)
    bad_frames: Rule = Rule(BAD_FRAMES, Action.GIVE_UP)

    def frames_allowed(self) -> float:
        """Part of the frames that may be bad; all of them where the rule does not give a run up."""
        return self.bad_frames.limit if self.bad_frames.action is Action.GIVE_UP else 1.0

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            limit = getattr(self, name).limit
            if not least <= limit <= most:
                between = f"{least:g} to {most:g}" if math.isfinite(most) else f"{least:g} or more"
                raise ValueError(f"Expected a limit of {between} for {name}, got {limit:g}")


_BOUNDS = {
    **dict.fromkeys(("hang", "hang_starting", "hang_validating", "not_finite", "loss_jump"), (1, math.inf)),
    **dict.fromkeys(("often_not_finite", "gpu_memory", "slow", "starving", "bad_frames"), (0, 1)),
    "gpu_idle": (0, 100),
}
"""Limits with which a rule says something: with others it would end a healthy trainer, or never apply to a
part that somebody wrote in percent."""


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


def check(history: History, rules: Rules) -> list[Verdict]:
    """Every rule that applies now, the most drastic first."""
    verdicts = []
    for name, rule_function in _RULES.items():
        rule: Rule = getattr(rules, name)
        detail = rule_function(history, rule)
        if detail is not None:
            verdicts.append(Verdict(name, rule.action, detail))
    severity = list(Action)
    return sorted(verdicts, key=lambda verdict: -severity.index(verdict.action))


def hang_is_near(history: History, rules: Rules) -> bool:
    """Whether half of the time after which training or validation counts as hanging has passed in silence."""
    for rule_function, rule in ((_hang, rules.hang), (_hang_validating, rules.hang_validating)):
        if rule_function(history, msgspec.structs.replace(rule, limit=rule.limit / 2)) is not None:
            return True
    return False


def load(table: Mapping[str, Any]) -> Rules:
    """Rules from ``[health]`` of a toolkit.toml: a rule that is named keeps the defaults it does not mention.

    Raises:
        ToolkitError: a name, an action or a type is not known.
    """
    merged = msgspec.to_builtins(Rules())
    for name, values in table.items():
        if name not in merged or not isinstance(values, Mapping):
            raise ToolkitError(f"no health rule {name}", expected=", ".join(merged))
        merged[name] |= values
    try:
        return msgspec.convert(merged, Rules)
    except msgspec.ValidationError as error:
        raise ToolkitError("a health rule cannot be used", found=str(error)) from error


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


_RULES: dict[str, Callable[[History, Rule], str | None]] = {
    "hang": _hang,
    "hang_starting": _hang_starting,
    "hang_validating": _hang_validating,
    "not_finite": _not_finite,
    "often_not_finite": _often_not_finite,
    "loss_jump": _loss_jump,
    "gpu_idle": _gpu_idle,
    "hot": _temperature,
    "too_hot": _temperature,
    "gpu_memory": _gpu_memory,
    "memory_growth": _memory_growth,
    "slow": _slow,
    "starving": _starving,
    "disk": _disk,
    "bad_frames": _bad_frames,
}
