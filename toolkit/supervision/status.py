"""What a run is doing, gathered from its files, for ``toolkit monitor`` and ``toolkit runs``."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from toolkit import console
from toolkit.errors import ToolkitError, reason
from toolkit.machine import sensors
from toolkit.machine.checks import GIB
from toolkit.provenance import origin_of
from toolkit.runs import checkpoints, events, health, heartbeat, results
from toolkit.runs.folder import RunFiles, RunState, all_runs, named, read_summary, state_of
from toolkit.runs.plan import read_plan
from toolkit.workspace import RunRecord, own_evaluation

EVENTS_SHOWN = 6


class Snapshot(msgspec.Struct, frozen=True):
    """A run at one moment.

    Attributes:
        name: of the run.
        state: what it is doing.
        reason: why it ended, unless it finished.
        beat: newest heartbeat; null before the first.
        silent_seconds: age of the heartbeat by the wall clock.
        seconds_left: to the end of training: low, middle, high; null while unknown, and of a run that stands.
        checkpoint: images of the run, epoch after epoch, before the newest checkpoint; null without one.
        map50, map50_95: of the best epoch so far on the validation split, by Ultralytics' validator.
        global_map_bal: the challenge's score of the best epoch so far, if the run is scored.
        gpu_busy, temperature, vram_used, vram_total: percent, degrees Celsius, bytes; null without a sensor.
        counts: number of events of each kind.
        recent: the last events, oldest first.
    """

    name: str
    state: RunState
    reason: str = ""
    beat: heartbeat.Beat | None = None
    silent_seconds: float | None = None
    seconds_left: tuple[float, float, float] | None = None
    checkpoint: int | None = None
    map50: float | None = None
    map50_95: float | None = None
    global_map_bal: float | None = None
    gpu_busy: float | None = None
    temperature: float | None = None
    vram_used: int | None = None
    vram_total: int | None = None
    counts: dict[str, int] = {}
    recent: tuple[events.Event, ...] = ()

    def line(self) -> str:
        """The snapshot in one line of text."""
        beat = self.beat
        why = f" ({self.reason})" if self.reason else ""
        if beat is None:
            return f"{self.name}: {self.state}{why}"
        parts = [f"{self.name}: {beat.phase if self.state == 'running' else self.state}{why}"]
        parts.append(f"epoch {min(beat.epoch + 1, beat.epochs)}/{beat.epochs}")
        parts.append(f"batch {beat.batch:,}/{beat.batches:,}")
        parts.append(f"{beat.images_per_second:.1f} images/s")
        parts += [f"{name.removesuffix('_loss')} {number(value, '.3f')}" for name, value in beat.loss.items()]
        parts.append(f"mAP@0.5 {number(self.map50, '.4f')}")
        if self.global_map_bal is not None:
            parts.append(f"global_map_bal {self.global_map_bal:.4f}")
        if self.gpu_busy is not None:
            parts.append(f"GPU {self.gpu_busy:.0f} %")
        if self.temperature is not None:
            parts.append(f"{self.temperature:.0f} C")
        if self.vram_used is not None and self.vram_total:
            parts.append(f"{self.vram_used / GIB:.1f}/{self.vram_total / GIB:.1f} GiB")
        parts.append(f"loader wait {beat.loader_wait:.0%}")
        if self.seconds_left is not None:
            low, middle, high = (console.duration(seconds) for seconds in self.seconds_left)
            parts.append(f"{middle} left ({low} to {high})")
        if self.counts:
            parts.append(f"{sum(self.counts.values())} events")
        return ", ".join(parts)


class RunLine(msgspec.Struct, frozen=True):
    """A row of ``toolkit runs``.

    Attributes:
        name, preset, model: of the run.
        state: what it is doing, or that its files cannot be read.
        reason: what is damaged.
        epochs, epochs_planned: done and wanted.
        map50: best on the validation split, by Ultralytics' validator.
        global_map_bal: the challenge's score on the validation split, by `toolkit evaluate` or else the best
            of the scored epochs.
        flags: how often each red flag was raised, the most frequent first.
        bytes: size of the folder.
        begun: when it was begun, ISO 8601.
    """

    name: str
    state: RunState | Literal["damaged"]
    preset: str = ""
    model: str = ""
    epochs: int = 0
    epochs_planned: int = 0
    map50: float | None = None
    global_map_bal: float | None = None
    flags: dict[str, int] = {}
    bytes: int = 0
    begun: str = ""
    reason: str = ""


def find(runs: Path, name: str | None) -> RunFiles:
    """The run called ``name``; without a name the one that is being trained, else the newest that is whole.

    Raises:
        ToolkitError: there is no such run.
    """
    if name is not None:
        files = named(runs, name)
        if not files.plan.is_file():
            known = ", ".join(files.run.name for files in all_runs(runs)) or f"none in {runs}"
            raise ToolkitError(f"no run {name}", found=known, fix="`toolkit runs` lists them")
        return files
    found = list(all_runs(runs))
    if not found:
        raise ToolkitError("no run to watch", found=f"none in {runs}", fix="start one: toolkit train")
    for wanted in (RunFiles.is_locked, lambda files: describe(files).state != "damaged"):
        chosen = next(filter(wanted, found), None)
        if chosen is not None:
            return chosen
    return found[0]


class Watch:
    """Looks at one run again and again."""

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        plan = read_plan(files)
        self.title = f"{Path(plan.model).stem}, preset {plan.preset}, device {plan.device}"
        self._sensors = sensors.reader(plan.device)

    def look(self) -> Snapshot:
        """The run as it is now."""
        files, summary = self.files, read_summary(self.files)
        state = state_of(files)
        beat = heartbeat.read(files)
        silent = None
        with suppress(OSError):
            silent = max(time.time() - files.heartbeat.stat().st_mtime, 0.0)
        reading = self._sensors() or sensors.Sensors()
        past = events.read(files.events)
        map50 = map50_95 = balanced = None
        with suppress(ToolkitError):  # `toolkit runs` names what is damaged; here there is more to see
            map50, map50_95, balanced = _best(files)
        return Snapshot(
            name=files.run.name,
            state=state,
            reason=summary.reason if summary and state not in ("running", "finished") else "",
            beat=beat,
            silent_seconds=silent,
            seconds_left=beat.seconds_left() if beat and state == "running" else None,
            checkpoint=next((each.images for each in checkpoints.listed(files.checkpoints)), None),
            map50=map50,
            map50_95=map50_95,
            global_map_bal=balanced,
            gpu_busy=reading.busy,
            temperature=reading.temperature,
            vram_used=reading.memory_used,
            vram_total=reading.memory_total,
            counts=events.count(past),
            recent=tuple(past[-EVENTS_SHOWN:]),
        )


def describe(files: RunFiles) -> RunLine:
    """The row of a run in ``toolkit runs``."""
    try:
        return _describe(files)
    except (ToolkitError, OSError, LookupError, TypeError, ValueError) as error:
        return RunLine(files.run.name, "damaged", bytes=_size(files.run), reason=str(error))


def _describe(files: RunFiles) -> RunLine:
    plan = read_plan(files)
    beat = heartbeat.read(files)
    summary = read_summary(files)
    map50, _, score = _best(files)
    evaluated = _evaluated(files)
    counts = events.count(events.read(files.events))
    return RunLine(
        name=files.run.name,
        state=state_of(files),
        preset=plan.preset,
        model=Path(plan.model).stem,
        epochs=beat.epoch if beat else summary.epochs if summary else 0,
        epochs_planned=plan.number("epochs"),
        map50=map50,
        global_map_bal=score if evaluated is None else evaluated,
        flags={kind: number for kind, number in counts.items() if kind in health.flags()},
        bytes=_size(files.run),
        begun=time.strftime("%Y-%m-%dT%H:%M", time.localtime(RunRecord.read(files.run).begun)),
    )


def _best(files: RunFiles) -> tuple[float | None, float | None, float | None]:
    """From results.csv: mAP@0.5 and mAP@0.5:0.95 of the epoch with the best of the latter, and the best
    global_map_bal.

    Raises:
        ToolkitError: the file is no text.
    """
    epochs = results.read(files.results)
    validated = [epoch for epoch in epochs if epoch.validated]
    if not validated:
        return None, None, None
    best = max(validated, key=lambda epoch: (epoch.map50_95, epoch.map50))
    scored = [epoch.global_map_bal for epoch in validated if not math.isnan(epoch.global_map_bal)]
    return best.map50, best.map50_95, max(scored, default=None)


def _evaluated(files: RunFiles) -> float | None:
    """The score of `toolkit evaluate`; None where it is of another split, undefined, or not there.

    Raises:
        ToolkitError: the file has no score.
    """
    path = own_evaluation(files.run) / "scores.json"
    try:
        found = json.loads(path.read_bytes())["global_map_bal"]  # not by msgspec: earlier files have NaN
        score = math.nan if found is None else float(found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolkitError(f"cannot read {path}", found=reason(error), expected="global_map_bal") from error
    origin = origin_of(path)
    return score if origin and origin.split == "val" and not math.isnan(score) else None


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # a checkpoint that was just replaced
            total += path.lstat().st_size
    return total


def number(value: float | None, form: str) -> str:
    """``value`` formatted, or a dash where there is none."""
    return "-" if value is None else format(value, form)
