"""``toolkit dataset ...``: the verbs about LTDv2's files."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help="LTDv2's files: fetch, sample, prepare, verify, look at, export.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(help="Folder with the annotation files and the frames.")]
SAMPLE = 5_000
"""Training images below which data is a sample, for trying things out."""

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback()
def _root() -> None:
    pass


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the dataset goes.")],
    train: Annotated[int, typer.Option(help="Training images.")] = 320,
    val: Annotated[int, typer.Option(help="Validation images.")] = 96,
    test: Annotated[int, typer.Option(help="Test images, without annotations.")] = 64,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    scene: Annotated[
        Literal["harbour", "street"],
        typer.Option(help="harbour: a quay as LTDv2's camera sees it; street: few, large objects."),
    ] = "harbour",
) -> None:
    """Draw a small synthetic dataset in LTDv2's own layout.

    Example: [bold]toolkit dataset sample data/demo --train 320 --val 96[/bold]
    Example: [bold]toolkit dataset sample data/harbour --train 4800 --val 1600[/bold]
    """
    from toolkit import console
    from toolkit.dataset.sample import write_sample

    if write_sample(folder, train, val, test, seed, scene):
        console.note(f"wrote {train} + {val} + {test} images to {folder}")
    else:
        console.note(f"{folder} already holds this sample: nothing to do")
    console.note(f"next: `toolkit dataset prepare {quote(str(folder))}`")


@app.command()
def download(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the four files go.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="An existing copy: check and link its files, without the hub too."),
    ] = None,
    revision: Annotated[str, typer.Option(help="Of the dataset on the hub; default: the pinned one.")] = "",
) -> None:
    """Fetch LTDv2 (48 GB); run it again to continue. HF_TOKEN and HF_ENDPOINT (a mirror) are honoured.

    Example: [bold]toolkit dataset download data/ltdv2[/bold]
    """
    from toolkit import console
    from toolkit.dataset import download as hub
    from toolkit.ltdv2 import REVISION

    missing = hub.download(folder, revision=revision or REVISION, source=source)
    done = f"{folder} lacks {', '.join(missing)}" if missing else f"{folder} is complete"
    console.note(f"{done}; next: `toolkit dataset prepare {quote(str(folder))}`")


# Long: the flags of a verb.
@app.command()
def prepare(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="LTDv2's folder; of other data a data.yaml, a COCO file, a folder or a zip archive.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Of other data: the folder that is made; default: data/NAME.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Of other data: its months: date, day, camera, folder, name:2, meta.KEY:4, height=name:2."
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Of other data: person=person,car=vehicle; default: all, as they are.")
    ] = None,
    val_part: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Of other data without a validation split: its share.")
    ] = 0.2,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Of other data: make the folder of this, whatever it was prepared from before."
        ),
    ] = False,
    drop_bad: Annotated[
        bool, typer.Option("--drop-bad", help="Drop duplicates and unknown images or categories, and go on.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the index that training and evaluation read. Extracts nothing, copies nothing.

    Example: [bold]toolkit dataset prepare data/ltdv2[/bold]
    Example: [bold]toolkit dataset prepare x/data.yaml --by camera --classes person=person,car=vehicle[/bold]
    """
    import msgspec

    from toolkit import console, workspace
    from toolkit.dataset.own import writing as own
    from toolkit.dataset.prepare import prepare as prepare_index
    from toolkit.ltdv2 import ANNOTATIONS

    flags = {"--out": out, "--by": by, "--classes": classes, "--replace": replace}
    if own.is_source(folder):
        target = out or own.place_for(folder, workspace.current().root / "data")
        own.bring(folder, target, by=by, classes=classes, val=val_part, replace_other=replace)
        folder = target
    elif named := [f for f, value in flags.items() if value]:
        raise own.no_source(folder, named[0])
    elif not own.is_data_folder(folder):
        raise own.no_source(folder)
    result = prepare_index(folder, drop_bad=drop_bad)
    manifest = result.manifest
    if as_json:
        console.print_json({"unchanged": result.unchanged, **msgspec.to_builtins(manifest)})
        return
    if result.unchanged:
        console.note(f"the index in {result.folder} is up to date: nothing to do")
    for split, images in manifest.images.items():
        console.note(
            f"{split}: {images:,} images, {manifest.boxes[split]:,} boxes, {manifest.clips[split]:,} clips, "
            f"{manifest.vocabulary.counted(len(manifest.by_month[split]))}"
        )
    for split, name in ANNOTATIONS.items():
        if split not in manifest.images and not manifest.vocabulary.is_own:
            console.warn(f"no {name}: the index has no {split} split")
    found = {name for counts in manifest.by_class.values() for name in counts}
    without = [name for name in manifest.vocabulary.classes.values() if name not in found]
    if without and manifest.vocabulary.is_own:  # a small drawn sample lacks some by chance
        console.warn(f"no split has a box of class {', '.join(without)}: nothing is learnt or scored of it")
    if manifest.unlisted_frames:
        console.note(f"{manifest.unlisted_frames:,} frames are in no annotation file (ignored)")
    for kind, count in manifest.discrepancies.items():
        console.warn(f"{count:,} x {kind}, listed in {result.folder / 'discrepancies.jsonl'}")
    if "train" in manifest.images:
        quick = " --preset smoke" if manifest.images["train"] < SAMPLE else ""  # minutes, on a CPU too
        console.note(f"next: `toolkit train --data {quote(str(folder))}{quick}`")


@app.command()
def verify(
    folder: Folder,
    deep: Annotated[bool, typer.Option("--deep", help="Read and decode every frame, compare CRCs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the frames against the index; list all bad ones; exit with 1 if there is one.

    Example: [bold]toolkit dataset verify data/ltdv2 --deep[/bold]
    """
    import msgspec

    from toolkit import console
    from toolkit.dataset.index import load
    from toolkit.dataset.verify import require_sound
    from toolkit.dataset.verify import verify as verify_frames

    index = load(folder)
    result = verify_frames(index, deep=deep)
    if as_json:
        console.print_json(msgspec.to_builtins(result))
    else:
        for bad in [*result.bad, *result.warned]:
            console.out.print(f"{bad.split}\t{bad.reason}", highlight=False, soft_wrap=True, markup=False)
    if result.warned:
        console.warn(
            f"the decoder warned of {len(result.warned):,} of {result.frames:,} frames: their pixels may be "
            "wrong from some row on; they are used"
        )
    require_sound(result, index)
    looked = (
        "all read and decoded: none is bad" if deep else "all there, none decoded (`--deep` decodes them)"
    )
    console.note(f"{result.frames:,} frames checked, {looked}")


@app.command()
def cache(
    folder: Folder,
    split: Annotated[list[str] | None, typer.Option(help="Default: train and val.")] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare with the checksums; bad blocks are written by the next run."),
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Delete the cache.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take.")] = False,
) -> None:
    """Keep decoded frames in one file that training maps into memory. Run it again to continue.

    Example: [bold]toolkit dataset cache data/ltdv2 --split train[/bold]
    """
    from toolkit import console
    from toolkit.dataset import cache as frame_cache
    from toolkit.dataset.index import load
    from toolkit.errors import ToolkitError

    index, names = load(folder), split or ["train", "val"]
    for name in names if remove else []:
        frame_cache.remove(index.split(name))
    if remove:
        return
    if check:
        bad = {name: blocks for name in names if (blocks := frame_cache.check(index.split(name)))}
        if bad:
            raise ToolkitError(
                "the cache is damaged",
                found=", ".join(f"{len(blocks):,} bad blocks of {name}" for name, blocks in bad.items()),
                fix=f"toolkit dataset cache {folder} writes these again",
            )
        console.note("the cache is sound")
        return
    needed, place = frame_cache.plan(index, names), frame_cache.folder(index)
    minutes, seconds = divmod(round(needed.seconds), 60)
    console.note(
        f"the cache takes {needed.size / 1e9:.1f} GB in {place}, {needed.left / 1e9:.1f} GB of it still to "
        f"write: about {f'{minutes} min ' if minutes else ''}{seconds} s"
    )
    if not dry_run:
        frame_cache.build(index, names)


@app.command()
def stats(
    folder: Folder,
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes; default: a folder stats beside the index.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count objects, clips and weather by month, hour and size; write a page with frames of every month.

    Example: [bold]toolkit dataset stats data/ltdv2[/bold]
    """
    import msgspec
    from rich.table import Table

    from toolkit import console, tables
    from toolkit.dataset.index import load, writable_folder
    from toolkit.dataset.stats import describe
    from toolkit.report.dataset import write_report

    index = load(folder)
    counts = describe(index)
    if as_json:
        console.print_json(msgspec.to_builtins(counts))
        return
    by = index.manifest.vocabulary.by
    page = write_report(index, counts, out or writable_folder(folder) / "stats")
    for name, split in counts.items():
        table = Table(title=f"{name}: {split.images:,} images, {split.clips:,} clips, {split.boxes:,} boxes")
        for column in (by, "clips", "images", *split.boxes_by_class_and_month):
            table.add_column(column, justify="right")
        for month, images in split.images_by_month.items():
            boxes = (by_month.get(month, 0) for by_month in split.boxes_by_class_and_month.values())
            counts_of_month = (split.clips_by_month[month].clips, images, *boxes)
            table.add_row(month, *(f"{n:,}" for n in counts_of_month))
        tables.show(table)
    console.note(f"frames of every {by}: {page}")


@app.command()
def export(
    folder: Folder,
    out: Annotated[
        Path | None, typer.Option(help="Where the exported layout goes; default: DIR/yolo or DIR/coco.")
    ] = None,
    layout: Annotated[
        Literal["yolo", "coco"],
        typer.Option("--format", help="yolo: Ultralytics' data.yaml; coco: for FiftyOne or CVAT."),
    ] = "yolo",
    extract: Annotated[
        bool, typer.Option("--extract", help="Write frames out of frames.zip as files (links cannot).")
    ] = False,
    channels: Annotated[
        int,
        typer.Option(min=1, max=3, help="1: grey, as every preset trains; 3: for a model of colour images."),
    ] = 1,
) -> None:
    """Write another tool's layout: Ultralytics' data.yaml, for plain `yolo train`, or COCO.

    Example: [bold]toolkit dataset export data/ltdv2 --format yolo --out data/yolo --extract[/bold]
    """
    from toolkit import console
    from toolkit.dataset.export import export_coco, export_yolo
    from toolkit.dataset.index import load
    from toolkit.errors import CallError

    if channels == 2:
        raise CallError("no images with 2 channels", expected="1 or 3")
    if layout == "coco":
        console.note(f"wrote {export_coco(load(folder), out or folder / 'coco', extract=extract)}")
        return
    written = export_yolo(load(folder), out or folder / "yolo", extract=extract, channels=channels)
    console.note(f"wrote {written}; next: yolo train data={written}")
