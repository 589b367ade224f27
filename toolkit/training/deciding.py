"""Deciding what a run will use: flags before toolkit.toml before the preset, and what may change later."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from toolkit import console, doctor, ltdv2, vocabulary, workspace
from toolkit.dataset import index
from toolkit.dataset.views import PLAIN, Views
from toolkit.errors import ToolkitError, reason
from toolkit.provenance import sha256
from toolkit.runs import checkpoints, health, needs, reproduction
from toolkit.runs.folder import RunFiles, all_runs, decode_path, named, next_number, state_of
from toolkit.runs.plan import TRACKERS, ULTRALYTICS, TrainingPlan, check_trackers, read_plan
from toolkit.settings import DEFAULT_PRESET, Argument, Defaults, SelectBy, declared, levers
from toolkit.training import choices
from toolkit.training.arguments import check, check_layer, check_numbers, check_settings, is_settled
from toolkit.training.choices import begun_with_another
from toolkit.training.model import check_model
from toolkit.training.options import CHANGEABLE, Options
from toolkit.training.preset import Preset, configuration, load_preset, preset_name

LONGEST_NAME = 200
"""Bytes of a run's name; file systems take 255."""


def plan(place: workspace.Workspace, options: Options, opened: index.Opener = index.load) -> TrainingPlan:
    """Decide what a new run will use: flags before toolkit.toml before the preset.

    Args:
        place: finds the data and toolkit.toml.
        options: the flags.
        opened: gives the index of the data, where it is needed.

    Raises:
        ToolkitError: the data, the model, the preset or the device is not there; the name is taken; the
            machine could not train it.
    """
    from toolkit.machine.device import resolve_device

    data = place.data_dir(options.data)
    defaults = place.defaults(data)
    name = preset_name(options.preset or defaults.preset or DEFAULT_PRESET)
    preset = load_preset(name)
    options = msgspec.structs.replace(options, **{**preset.levers, **levers(defaults), **levers(options)})
    arguments: dict[str, Argument] = dict(ULTRALYTICS)
    for _, layer in layers(options, defaults, preset):
        arguments |= layer
    words = vocabulary.of_data(data)
    check_numbers(arguments, "a flag, toolkit.toml or the preset")
    chosen = {name: arguments[name] for name in ("classes",) if name in arguments}
    check(chosen, "a flag, toolkit.toml or the preset", words.classes)
    if options.patches:
        _check_route()
    model = check_model(options.model or defaults.model or preset.model)
    own = choices.own(options, words)
    own["views"] = views = _views(own.get("views"), model)
    own |= _scored(own, data, opened)
    planned = TrainingPlan(
        data=data.absolute(),
        run=_new_run(place, options.name or defaults.name),
        preset=name,
        model=model,
        channels=_channels(options, defaults, preset, views),
        device=resolve_device(options.device or defaults.device),
        arguments=arguments,
        saving=defaults.saving,
        restarts=defaults.restarts,
        rules=health.of(place, data),
        trackers=_trackers(defaults.logging),
        **own,
    )
    planned = _with_batch(planned)
    needs.refuse_at_start(planned.needs())
    return planned


def _channels(options: Options, defaults: Defaults, preset: Preset, views: Views) -> int:
    """Input channels of the model.

    Raises:
        ToolkitError: nothing has so many, or not what the channels are to show.
    """
    asked = (options.channels, defaults.channels, preset.channels)
    channels = next(given for given in asked if given is not None)
    if channels not in (1, 3):
        raise ToolkitError(f"no training with {channels} channels", expected="1 or 3")
    if views.is_plain:
        return channels
    if options.channels not in (None, views.channels):
        raise ToolkitError(
            f"--frames {views} makes {views.channels} channels",
            found=f"--channels {options.channels}",
            fix="leave --channels out",
        )
    return views.channels


def _scored(own: Mapping[str, Any], data: Path, opened: index.Opener) -> dict[str, Any]:
    """What chooses best.pt, and every how many epochs the challenge's scores are taken, 0 for never.

    Args:
        own: what was said of settings of our own, by the plan's field.
        data: folder with LTDv2's files.
        opened: gives their index.

    Raises:
        ToolkitError: the images that are validated on cannot give those scores, or are trained on.
    """
    select_by: SelectBy = own.get("select_by", "fitness")
    score_every: int = own.get("score_every", 0 if select_by == "fitness" else 1)
    subsets, train_on = own.get("subsets", {}), own.get("train_on", ())
    if score_every and "val" in subsets:
        raise ToolkitError(
            "the challenge's score is one of all months",
            found=f"validation on {subsets['val']} alone",
            fix="leave --score-every and --select-by out, or --val-months",
        )
    if "val" in train_on and select_by != "fitness":
        raise ToolkitError(
            "nothing is left to choose by: the validation split is trained on",
            found=f"--select-by {select_by} with --train-on {','.join(train_on)}",
            fix="leave --select-by out: best.pt is then that of the last epoch",
        )
    if select_by != "fitness":
        _check_selection(data, opened, select_by, score_every)
    return {"select_by": select_by, "score_every": score_every}


def layers(options: Options, defaults: Defaults, preset: Preset) -> list[tuple[str, dict[str, Argument]]]:
    """Ultralytics' training arguments by where they are given, checked; a later one wins.

    Raises:
        ToolkitError: one is given twice in one place, is none of Ultralytics', or the toolkit's to decide.
    """
    given: list[tuple[str, dict[str, Argument]]] = [("preset", dict(preset.arguments))]
    if (options.device or defaults.device) == "auto":
        sizes = (options.imgsz, defaults.imgsz, preset.arguments.get("imgsz"))
        side = next((int(size) for size in sizes if isinstance(size, int)), 640)
        given.append(("doctor", dict(doctor.fitting(side))))
    check_settings(defaults)
    check_layer(options.arguments, options.overrides(), "what was typed")
    given.append(("toolkit.toml", {**defaults.overrides(), **defaults.arguments}))
    given.append(("flag", {**options.overrides(), **options.arguments}))
    return given


def _with_batch(plan: TrainingPlan) -> TrainingPlan:
    """The plan with the images in a batch measured where it wants as many as fit."""
    if is_settled(plan.arguments["batch"]):
        return plan
    from toolkit.training import autobatch

    return replace(plan, arguments={**plan.arguments, "batch": autobatch.settle(plan)})


def plan_resume(
    place: workspace.Workspace, options: Options, opened: index.Opener = index.load
) -> TrainingPlan:
    """Decide how to continue the newest run, or the one that ``options.name`` names, or whose folder it is.

    What the run was started with stays; device, workers, batch and patches may change, and the data may have
    moved. Health rules, checkpoint intervals and trackers are read from toolkit.toml again.

    Raises:
        ToolkitError: there is no such run, it has finished, or the options ask for another run than it is:
            its schedule, its results.csv and its best.pt would then mean two things; so they would with
            other data, which go on where ``options.other_data`` says so. What a new run checks as well.
    """
    files = named(place.runs, options.name) if options.name else _newest_run(place.runs)
    before = read_plan(files)
    _refuse_another_run(files, before, options)
    own = choices.again(files, before, options, vocabulary.of_data(before.data))
    changed = {key: value for key, value in options.overrides().items() if key in CHANGEABLE}
    changed |= _arguments_again(files, options.arguments, before)
    arguments = {**before.arguments, **changed}
    check_numbers(arguments, f"a flag, or {files.plan}")
    data = place.data_of(files.best, options.data).absolute()
    if not options.other_data:
        _check_data(files, data, opened)
    _check_beginning(files, before)
    if before.patches and options.patches:
        _check_route()
    defaults = place.defaults(data)
    planned = replace(
        before,
        data=data,
        run=files.run,
        device=_device_again(files, options.device, before.device),
        patches=before.patches and options.patches,
        arguments=arguments,
        saving=defaults.saving,
        restarts=defaults.restarts,
        rules=health.of(place, data),
        trackers=_trackers(defaults.logging),
        **own,
    )
    planned = _with_batch(planned)
    needs.refuse_at_start(planned.needs())
    return planned


def _refuse_another_run(files: RunFiles, before: TrainingPlan, options: Options) -> None:
    """Raises ToolkitError: the run has finished, or the options ask for what it was not begun with."""
    kept = {
        name: option
        for name, option in declared(Options).items()
        if option.resume == "keeps" and not option.becomes
    }
    for key, option in kept.items():
        value = getattr(options, key)
        begun = before.arguments.get(key) if option.argument else getattr(before, key)
        if value is not None and key == "model":
            value = check_model(value)
        if value is not None and key == "preset":
            value = preset_name(value)
        if value not in (None, begun):
            flag = "--" + key.replace("_", "-")
            known = f"{flag} {begun}" if begun else f"no {flag}"
            raise begun_with_another(flag, files, f"{flag} {value}", known)
    if state_of(files) == "finished":
        raise ToolkitError(f"run {files.run.name} has finished", found=str(files.best), fix="start a new run")


def _arguments_again(
    files: RunFiles, given: Mapping[str, Argument], before: TrainingPlan
) -> dict[str, Argument]:
    """Those of ``name=value`` that change how a run goes on; others must be what it was begun with."""
    check(given, "what was typed", None)
    begun = vars(configuration(before))
    for name, value in given.items():
        if name not in CHANGEABLE and value != begun[name]:
            raise begun_with_another(name, files, f"{name}={value}", f"{name}={begun[name]}")
    return {name: value for name, value in given.items() if name in CHANGEABLE}


def plan_again(place: workspace.Workspace, begun: Mapping[str, Any], options: Options) -> TrainingPlan:
    """The plan that a run was begun with for a new run; only its name and where the data is may differ.

    Args:
        begun: :attr:`toolkit.runs.reproduction.Environment.plan`.

    Raises:
        ToolkitError: it is no plan, its data or its model is not here, or the name is taken.
    """
    try:
        plan = msgspec.convert(begun, type=TrainingPlan, dec_hook=decode_path)
    except msgspec.ValidationError as error:
        raise ToolkitError("this run cannot begin again", reason(error), "a plan of this version") from error
    data = plan.data if options.data is None and plan.data.is_dir() else place.data_dir(options.data)
    run = _new_run(place, options.name)
    return replace(plan, data=data.absolute(), run=run, model=check_model(plan.model))


def _trackers(wanted: Mapping[str, bool]) -> tuple[str, ...]:
    """Those that ``[logging]`` of toolkit.toml switches on; Ultralytics is silent about one not installed."""
    check_trackers(wanted)
    for name, on in wanted.items():
        if on and importlib.util.find_spec(TRACKERS[name]) is None:
            raise ToolkitError(
                f"toolkit.toml wants [logging] to {name}",
                found=f"no module {TRACKERS[name]}",
                fix=f"pip install {TRACKERS[name]}",
            )
    return tuple(name for name, on in wanted.items() if on)


def _check_route() -> None:
    """The route that the environment forces must be one; the patches would say so only in the trainer."""
    from patches import variables
    from patches.convolution.registry import NAMES

    forced = variables.ROUTE.read()
    if forced and forced.value not in ("auto", *NAMES):
        expected = "auto, " + ", ".join(NAMES)
        raise ToolkitError(f"{forced.name} names no route", found=forced.value, expected=expected)


def _views(asked: Views | None, model: str) -> Views:
    """What the channels of a sample are to show: what is asked for, else what the weights were trained with.

    Raises:
        ToolkitError: both, and they are not the same.
    """
    if Path(model).suffix != ".pt":
        return asked or PLAIN
    from toolkit.weights import read_checkpoint, views_of

    known = views_of(read_checkpoint(Path(model)))
    if asked is None:
        return known
    if not known.is_plain and asked != known:
        raise ToolkitError(
            f"{model} was trained with other --frames",
            found=f"--frames {asked}",
            expected=f"--frames {known}",
            fix="leave --frames out, or start from weights of the frame alone",
        )
    return asked


def _check_selection(data: Path, opened: index.Opener, select_by: SelectBy, score_every: int) -> None:
    """Choosing by the challenge's scores needs them in every epoch.

    global_map_bal needs a truth in every month as well: -1 stands for a month without one, and the number
    then says nothing. Of other data it is over the parts that have one, and needs two. The mean of cells
    needs one that is filled.
    """
    from toolkit.evaluation import cells

    if score_every != 1:
        raise ToolkitError(
            f"--select-by {select_by} needs a score in every epoch",
            found=f"--score-every {score_every}",
            fix="leave --score-every out",
        )
    split = opened(data.absolute()).split("val")
    words = split.vocabulary
    if select_by == "cells" and words.is_own:
        raise ToolkitError("--select-by cells is for LTDv2", fix="choose by fitness or global_map_bal")
    counts = cells.counts(split.image_ids, split.box_offsets, split.labels)
    if select_by == "cells":
        cells.require(counts, data / ltdv2.ANNOTATIONS["val"])
        return
    scored = set(split.months[split.training.images["boxes"] > 0].tolist())
    empty = [name for name, number in words.parts.items() if number not in scored]
    if empty and not (words.is_own and len(words.parts) - len(empty) > 1):
        raise ToolkitError(
            "--select-by global_map_bal has nothing to choose by",
            found=f"no true boxes in {', '.join(empty)} in {data / ltdv2.ANNOTATIONS['val']}",
            expected="true boxes in two parts or more"
            if words.is_own
            else f"true boxes in each of the {len(words.parts)} {words.by}s",
            fix="leave --select-by out",
        )
    if not words.is_own and (lacking := cells.lacking(counts)):
        console.warn(f"no {lacking} in validation: global_map_bal hangs on that; --select-by cells does not")


def _device_again(files: RunFiles, flag: str | None, before: str) -> str:
    """The device of a run that goes on; cards come and go between two starts."""
    from toolkit.machine.device import resolve_device

    if flag:
        return resolve_device(flag)
    try:
        return resolve_device(before)
    except ToolkitError as error:
        raise ToolkitError(
            f"run {files.run.name} trained on device {before}, which is not here now",
            error.found,
            error.expected,
            fix=f"go on elsewhere: toolkit train --resume --name {files.run.name} --device cpu (or a number)",
        ) from error


def _check_data(files: RunFiles, data: Path, opened: index.Opener) -> None:
    """A run goes on with the images and boxes that it was begun with, wherever they are now."""
    try:
        begun = reproduction.read(files.best.parent)
        frames = opened(data)
    except ToolkitError:  # of an older version; not prepared, which is said where the images are counted
        return
    file = sha256(frames.path)
    same = reproduction.labels(frames) == begun.labels if begun.labels else file == begun.data
    asked_for = any(line.endswith(f"now {file}") for line in begun.resumed)  # with --other-data, before
    if not same and not asked_for:
        counts = ", ".join(f"{n:,} {split}" for split, n in frames.manifest.images.items())
        raise ToolkitError(
            f"run {files.run.name} was begun with other data",
            found=f"images or boxes in {data} ({counts}) that are not those of its environment.json",
            expected="the data that its results.csv and best.pt are of",
            fix="say with --data where they lie, start a new run, or go on all the same with --other-data",
        )


def _check_beginning(files: RunFiles, plan: TrainingPlan) -> None:
    """Where a run goes on from: a checkpoint or last.pt, else what it began with, which need not be there.

    What can be read of them must be a detector: an older version began runs of other models too.
    """
    from toolkit.weights import check_detector, read_checkpoint

    begun = bool(checkpoints.listed(files.checkpoints)) or files.last.is_file()
    if not begun or not Path(plan.model).is_absolute():
        check_model(plan.model)
        return
    for path in (files.last, Path(plan.model)):
        if path.suffix == ".pt" and path.is_file():
            try:
                model = read_checkpoint(path)
            except ToolkitError:  # not needed: the trainer's own checkpoints are
                continue
            check_detector(model, f"what run {files.run.name} trains")
            return


def _newest_run(runs: Path) -> RunFiles:
    newest = next(all_runs(runs), None)
    if newest is None:
        raise ToolkitError(
            "no run to continue", found=f"nothing begun in {runs}", fix="start one: toolkit train"
        )
    return newest


def check_name(name: str) -> None:
    """A run's name is that of a folder in runs/, and files get longer names beside it.

    Raises:
        ToolkitError: no folder can be called so.
    """
    a_folder = Path(name).name == name and name not in ("", "..")
    if a_folder and name.isprintable() and len(os.fsencode(name)) <= LONGEST_NAME:
        return
    shown = name if len(name) <= 40 else f"{name[:40]}... ({len(name)} characters)"
    raise ToolkitError(
        f"{shown or 'an empty text'} is no name for a run",
        expected=f"at most {LONGEST_NAME} bytes of printable characters without a slash",
    )


def _new_run(place: workspace.Workspace, name: str | None) -> Path:
    if name is None:
        return next_number(place.runs)
    check_name(name)
    run = place.runs / name
    if workspace.is_run(run):
        raise ToolkitError(
            f"run {name} exists already",
            fix=f"choose another --name, or continue it: toolkit train --resume --name {name}",
        )
    return run
