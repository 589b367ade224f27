"""What a planned run will use, where each setting comes from, and the time and memory to expect."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec

from toolkit.console import duration
from toolkit.dataset import index
from toolkit.dataset.chosen import ChosenImages
from toolkit.dataset.joined import open_split
from toolkit.dataset.pixels import Pixels
from toolkit.errors import ToolkitError
from toolkit.machine.checks import GIB
from toolkit.runs import health, heartbeat
from toolkit.runs.folder import RunFiles, read_summary
from toolkit.runs.plan import TrainingPlan, count_images, read_plan
from toolkit.settings import DEFAULT_PRESET, Defaults, declared
from toolkit.training import choices, deciding
from toolkit.training.arguments import TOPICS
from toolkit.training.cautions import cautions
from toolkit.training.options import CHANGEABLE, Options
from toolkit.training.preset import configuration, load_preset
from toolkit.workspace import Workspace

WITHOUT_DATA = 1000
"""Images that the time is said for when there is no data to count."""


class Setting(msgspec.Struct, frozen=True):
    """One of Ultralytics' training arguments.

    Attributes:
        name, value: as Ultralytics has them.
        source: "flag", "toolkit.toml", "preset", "preset NAME" (which it builds on), "default" (Ultralytics'
            own), or "run" of one that goes on.
        note: what becomes of it on this machine.
    """

    name: str
    value: object
    source: str
    note: str = ""


class Estimate(msgspec.Struct, frozen=True):
    """A number and where it comes from.

    Attributes:
        value: seconds or bytes.
        source: what it rests on.
        low, high: what it may as well be, if anything is known about that.
    """

    value: float
    source: str
    low: float | None = None
    high: float | None = None


class DryRun(msgspec.Struct, frozen=True):
    """Everything ``toolkit train --dry-run`` prints.

    Attributes:
        plan: what the run would use.
        files: that set something, the one that wins last.
        sources: where each option that was given, or has a word for otherwise, and each table of toolkit.toml
            comes from.
        settings: by topic.
        missing: why there is no data to train with; empty if there is.
        images: that the run uses of each split.
        frames: where those of the training come from, and whether they stay decoded in memory.
        time: for the whole run; without data for :data:`WITHOUT_DATA` training images.
        memory: on the device; on a CPU in RAM.
    """

    plan: TrainingPlan
    files: tuple[Path, ...]
    sources: dict[str, str]
    settings: dict[str, tuple[Setting, ...]]
    missing: str
    images: dict[str, int]
    frames: str
    time: Estimate
    memory: Estimate

    def lines(self) -> Iterator[str]:
        """For a person."""
        plan, source = self.plan, self.sources
        ranks = f", {plan.ranks} ranks" if plan.ranks > 1 else ""
        yield f"run          {plan.run}"
        if self.missing:
            yield f"data         missing: {self.missing}"
        else:
            images = ", ".join(f"{n:,} {name}" for name, n in self.images.items())
            yield f"data         {plan.data}: {images} ({source['data']})"
            yield f"pixels       {self.frames}"
        for title, words in choices.lines(plan, source).items():
            yield f"{title:<12} {words}"
        if not plan.chooses:
            came = source.get("train_on", "run")
            yield f"train on     train and val ({came}): nothing is left to choose by"
        came = source["channels"] if plan.views.is_plain else "as many as frames"
        channels = f"{plan.channels} channel{'s' if plan.channels > 1 else ''} ({came})"
        yield f"model        {plan.model} ({source['model']}), {channels}"
        patches = "on" if plan.patches else "off"
        yield f"device       {plan.device} ({source['device']}){ranks}, patches {patches}"
        yield f"preset       {plan.preset} ({source['preset']})"
        if self.files:
            yield f"settings     {', '.join(map(str, self.files))}"
        for topic, settings in self.settings.items():
            yield topic
            for setting in settings:
                value = f"{setting.value!s:<10} {setting.source}"
                yield f"  {setting.name:<18} {value}{f'; {setting.note}' if setting.note else ''}"
        for sentence in cautions(plan, self.images.get("train", 0)):
            yield f"caution      {sentence}"
        if self.images:
            in_epoch = -(-self.images["train"] // plan.number("batch"))
            all_batches = in_epoch * plan.number("epochs")
            in_all = "" if plan.arguments.get("time") else f", {all_batches:,} in all"
            yield f"batches      {in_epoch:,} an epoch{in_all}"
        chosen = f"by {plan.select_by}" if plan.chooses else "of the last epoch"
        if plan.frequency.every > 1:
            chosen += f", validated every {plan.frequency.every} epochs and after the last"
        scored = f"scored every {plan.scored_every} epochs" if plan.scored_every > 1 else "every epoch scored"
        yield f"best.pt      {chosen}{f', {scored}' if plan.score_every else ''}"
        extra = f" or {plan.saving.batches:,} batches" if plan.saving.batches else ""
        every = f"every {duration(plan.saving.seconds)}{extra} ({source['saving']})"
        yield f"checkpoints  {every}, and on SIGTERM and Ctrl-C"
        trackers = ", ".join(plan.trackers)
        yield f"logging      results.csv{f', {trackers} (toolkit.toml)' if trackers else ''}"
        yield "red flags"
        for name in plan.rules.__struct_fields__:
            rule = getattr(plan.rules, name)
            held = f" for {rule.seconds:g} s" if rule.seconds else ""
            yield f"  {name:<18} {rule.limit:.4g}{held}: {rule.action.value}; {source[f'health.{name}']}"
        whole = f" for {WITHOUT_DATA:,} training images" if self.missing else ""
        yield f"time         {_spread(self.time)}{whole}: {self.time.source}"
        yield f"memory       {self.memory.value / GIB:.1f} GiB: {self.memory.source}"


def dry_run(place: Workspace, options: Options, resume: bool = False) -> DryRun:
    """What ``toolkit train`` would do, with times and memory of an earlier run that is like it, or measured.

    Raises:
        ToolkitError: the options ask for what is not there. Data that is missing or not prepared is no error.
    """
    missing = ""
    if not resume and options.data is None:
        try:
            place.data_dir()
        except ToolkitError as error:
            missing, options = error.line(), msgspec.structs.replace(options, data=place.root)
    opened = cache(index.load)
    plan = (deciding.plan_resume if resume else deciding.plan)(place, options, opened)
    frames: index.DatasetIndex | None = None
    images: dict[str, int] = {}
    origin = ""
    if not missing:
        try:
            frames = opened(plan.data)
        except ToolkitError as error:
            missing = error.line()
        else:
            images, origin = count_images(plan, frames), _origin(plan, frames)
    defaults = place.defaults(plan.data)
    expected = _of_earlier_run(plan, place.runs, frames, images) or _measured(plan, frames, images)
    if hours := plan.arguments.get("time"):
        expected = (Estimate(3600 * float(hours), "its argument time ends it"), expected[1])  # type: ignore[arg-type]
    sources = _sources(options, defaults, resume)
    settings = _settings(plan, sources, "run" if resume else "default")
    return DryRun(
        plan, place.settings_files(plan.data), sources, settings, missing, images, origin, *expected
    )


def _origin(plan: TrainingPlan, frames: index.DatasetIndex) -> str:
    """Where the frames of the training come from, and whether they stay decoded in memory."""
    split, options = open_split(frames, plan.source("train")), configuration(plan)
    rows = plan.subset("train").rows(split)
    chosen = ChosenImages(split, rows, options.fraction, options.classes, bool(options.single_cls))
    return Pixels(split, plan.views, int(options.imgsz), True, len(chosen), plan.ranks).origin


def _sources(options: Options, defaults: Defaults, resume: bool) -> dict[str, str]:
    """Where each setting comes from that can be given in more than one place."""
    sources: dict[str, str] = {}
    if not resume:
        preset = load_preset(options.preset or defaults.preset or DEFAULT_PRESET)
        for source, layer in deciding.layers(options, defaults, preset):
            sources |= dict.fromkeys(layer, source)
            sources |= preset.sources if source == "preset" else {}
        sources |= {name: preset.sources.get(name, "preset") for name in preset.levers}
    elif given := options.arguments.keys() & set(CHANGEABLE):
        sources |= dict.fromkeys(given, "flag")
    for name in declared(Options):
        if getattr(options, name) != getattr(Options(), name):
            sources[name] = "flag"
        elif resume:
            continue
        elif getattr(defaults, name, None) is not None:
            sources[name] = "toolkit.toml"
    others = {name: option.otherwise for name, option in declared(Options).items() if option.otherwise}
    sources = {name: "run" if resume else source for name, source in others.items()} | sources
    sources["saving"] = "default" if defaults.saving == Defaults().saving else "toolkit.toml"
    for name in health.Rules.__struct_fields__:
        sources[f"health.{name}"] = "toolkit.toml" if name in defaults.health else "default"
    return sources


def _settings(plan: TrainingPlan, sources: dict[str, str], planned: str) -> dict[str, tuple[Setting, ...]]:
    """Every argument that trains a detector; those of the plan are from ``sources``, or else ``planned``."""
    values = vars(configuration(plan))
    updates = max(round(values["nbs"] / values["batch"]), 1)
    notes: dict[str, str] = {"epochs": "until the time is over"} if values["time"] else {}
    notes |= {"nbs": f"an update every {updates} batches" if updates > 1 else "an update every batch"}
    if plan.device == "cpu" and values["amp"]:
        notes["amp"] = "off on a CPU"
    if values["workers"] > (os.cpu_count() or 1):
        notes["workers"] = f"{os.cpu_count()} on this machine"

    def setting(name: str) -> Setting:
        source = sources.get(name) or (planned if name in plan.arguments else "default")
        return Setting(name, values[name], source, notes.get(name, ""))

    return {topic: tuple(map(setting, names.split())) for topic, names in TOPICS.items()}


def _of_earlier_run(
    plan: TrainingPlan, runs: Path, frames: index.DatasetIndex | None, images: dict[str, int]
) -> tuple[Estimate, Estimate] | None:
    if frames is None:
        return None
    for path in sorted(runs.glob("*/summary.json"), key=lambda p: p.stat().st_mtime_ns, reverse=True):
        files = RunFiles(path.parent)
        summary, beat = read_summary(files), heartbeat.read(files)
        if summary is None or beat is None or not summary.images_per_second:
            continue
        try:
            earlier = read_plan(files)
            validated = count_images(earlier, frames)["val"]
        except ToolkitError:
            continue
        if not _alike(plan, earlier):
            continue
        epochs, name = plan.number("epochs"), files.run.name
        training = images["train"] * epochs / summary.images_per_second
        validations = plan.frequency.validations(epochs)
        validation = beat.validation_seconds * images["val"] / validated
        usual = beat.step_seconds[1]
        low, high = (
            seconds / usual if usual else 1.0 for seconds in (beat.step_seconds[0], beat.step_seconds[2])
        )
        source = f"run {name} made {summary.images_per_second:.1f} images/s on this device"
        source += f", validation {duration(validation)} a time; the range is that of half of its batches"
        if plan.device == "cpu":
            memory = Estimate(beat.memory, f"RAM of the trainer of run {name}, without its loader")
        else:
            memory = Estimate(summary.gpu_memory, f"GPU memory reserved in run {name}")
        middle, low, high = (training * factor + validations * validation for factor in (1.0, low, high))
        return Estimate(middle, source, low, high), memory
    return None


def _alike(plan: TrainingPlan, other: TrainingPlan) -> bool:
    """Whether a batch of the two is the same work."""
    same = ("data", "model", "channels", "views", "device", "patches", "score_every")
    keys = ("imgsz", "batch", "amp", "mosaic", "workers")
    return all(getattr(plan, name) == getattr(other, name) for name in same) and all(
        plan.arguments.get(key) == other.arguments.get(key) for key in keys
    )


def _measured(
    plan: TrainingPlan, frames: index.DatasetIndex | None, images: dict[str, int]
) -> tuple[Estimate, Estimate]:
    """From a few batches that are trained now, and a few images that are loaded."""
    from toolkit.training import probe

    tried, processes = probe.run(plan), probe.loader_processes(plan)
    batch, epochs = plan.number("batch"), plan.number("epochs")
    part = batch // plan.ranks
    if frames is None:
        images, epochs, loading = {"train": WITHOUT_DATA, "val": 0}, 1, {"train": 0.0, "val": 0.0}
        how = "loading and validation come on top"
    else:
        loading = {split: probe.loading_seconds(plan, frames, split) for split in images}
        how = f"loading an image {loading['train'] * 1e3:.1f} ms in each of {max(processes, 1)} processes"
    wait = loading["train"] * part / max(processes, 1)
    beside = processes > 0 and plan.device != "cpu"  # a GPU computes while the processors load
    validation = images["val"] * (tried.forward + loading["val"] / max(processes, 1))
    passes = plan.frequency.validations(epochs) + (epochs // plan.scored_every if plan.scored_every else 0)
    low, middle, high = (
        epochs * -(-images["train"] // batch) * (max(step, wait) if beside else step + wait)
        + passes * validation
        for step in tried.batch_seconds(part)
    )
    source = (
        f"measured now: {len(tried.seconds)} batches of {tried.images} on {plan.device} took "
        f"{min(tried.seconds):.2f} to {max(tried.seconds):.2f} s in the network (the range), {how}"
    )
    if frames is not None:
        source += f", validation {validation:.1f} s a time"
    return Estimate(middle, source, low, high), Estimate(tried.memory, _memory_source(plan, tried.images))


def _memory_source(plan: TrainingPlan, tried: int) -> str:
    part = plan.number("batch") // plan.ranks
    if plan.device == "cpu":
        return f"RAM of the trainer and its loader; measured now with a batch of {tried}, in proportion"
    import torch

    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB
    if tried < part:
        return (
            f"a batch of {part} does not fit on the GPU of {total:.1f} GiB; in proportion to one of {tried}, "
            f"which does: choose a smaller --batch"
        )
    return f"reserved now by batches of {part} on the GPU of {total:.1f} GiB"


def _spread(time: Estimate) -> str:
    if time.low is None or time.high is None:
        return duration(time.value)
    low, high = duration(time.low), duration(time.high)
    return duration(time.value) if low == high else f"{duration(time.value)} ({low} to {high})"
