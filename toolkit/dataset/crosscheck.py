"""Annotation files and frames held against each other: one table, and a log of what contradicts itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toolkit.dataset.annotations import Annotations
from toolkit.dataset.archive import leaves, read_directory
from toolkit.dataset.discrepancies import Discrepancies, Discrepancy
from toolkit.errors import ToolkitError
from toolkit.ltdv2 import ANNOTATIONS, MONTH_DIGITS, SplitName
from toolkit.vocabulary import Vocabulary

if TYPE_CHECKING:
    import polars as pl

COLUMNS = ("x1", "y1", "x2", "y2", "label")
"""Lists of an image: corners of its boxes, pixels, and their labels."""

SIX_DECIMALS = 1e-6
"""Part of a frame's side by which a box at its edge may lie outside: YOLO's text files round to it."""


def table_of(
    split: SplitName, annotations: Annotations, log: Discrepancies, words: Vocabulary
) -> pl.DataFrame:
    """Images of one file with their boxes as list columns; discrepancies logged, refused rows left out.

    Raises:
        ToolkitError: the file lists no images, or no boxes for a split that has some; or a frame's path
            leaves the data folder.
    """
    import polars as pl

    _refuse_unusable(split, annotations, words)
    images = _images(split, annotations, log, words)
    boxes = _boxes(annotations, images, log, words)
    return images.join(boxes, on="image_id", how="left", maintain_order="left").with_columns(
        pl.col(c).fill_null([]) for c in COLUMNS
    )


def _refuse_unusable(split: SplitName, annotations: Annotations, words: Vocabulary) -> None:
    a = annotations
    if not a.file_names or not (len(a.labels) or split == "test"):
        raise ToolkitError(
            f"{a.path} has no {'annotations' if a.file_names else 'images'}",
            expected="images, and the boxes in them unless they are the test split",
            fix=words.remedy,
        )
    if outside := [name for name in a.file_names if leaves(name.encode())]:
        raise ToolkitError(
            f"{a.path} is refused: {len(outside):,} frames have a path that is absolute, goes up "
            "or holds a zero byte",
            found=repr(outside[0]),
            expected="paths below the data folder",
        )


def _images(
    split: SplitName, annotations: Annotations, log: Discrepancies, words: Vocabulary
) -> pl.DataFrame:
    """The images of one file, each id and each frame once."""
    import polars as pl

    a, file = annotations, annotations.path.name
    images = pl.DataFrame(
        {
            "image_id": a.image_ids,
            "file_name": a.file_names,
            "width": a.widths,
            "height": a.heights,
            "date": a.dates,
            "meta": a.metas,
            "clip": a.clips,
        },
        schema_overrides=dict.fromkeys(("file_name", "date", "meta", "clip"), pl.String),
    ).with_columns(
        pl.lit(split).alias("split"),
        pl.Series("month", _months(a, words), pl.Int32),
    )
    undated = images.filter(
        ~(pl.col("month").is_between(1000_00, 9999_99) & (pl.col("month") % 100).is_between(1, 12))
    )
    log.add(
        Discrepancy("image id without a month", file, frame=name, image_id=str(number))
        for name, number in undated.select("file_name", "image_id").iter_rows()
        if not words.is_own
    )
    images = _once(images, "image_id", "duplicate image id", file, log)
    return _once(images, "file_name", "duplicate frame", file, log)


def _boxes(
    annotations: Annotations, images: pl.DataFrame, log: Discrepancies, words: Vocabulary
) -> pl.DataFrame:
    """The good boxes of one file as lists, a row an image that has some."""
    import polars as pl

    a, file = annotations, annotations.path.name
    ids = images["image_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    at = np.searchsorted(ids, a.box_image_ids, sorter=order).clip(max=max(len(ids) - 1, 0))
    known = ids[order[at]] == a.box_image_ids if len(ids) else np.zeros(len(a.labels), bool)
    labelled = np.isin(a.labels, list(words.classes))

    def report(kind: str, rows: npt.NDArray[np.bool_], detail: bool = True) -> None:
        log.add(
            Discrepancy(
                kind,
                file,
                image_id=str(a.box_image_ids[i]),
                annotation_id=str(a.annotation_ids[i]) if a.annotation_ids[i] >= 0 else "",
                detail=f"box {a.boxes[i].tolist()}" if detail else f"category {a.labels[i]}",
            )
            for i in np.flatnonzero(rows).tolist()
        )

    report("unknown image", ~known)
    report("unknown category", ~labelled, detail=False)
    good = known & labelled
    given = np.flatnonzero(good & (a.annotation_ids >= 0))
    first = np.unique(a.annotation_ids[given], return_index=True)[1]
    twice = np.zeros(len(good), bool)
    twice[np.delete(given, first)] = True
    report("duplicate annotation id", twice)

    x1, y1, w, h = a.boxes.T
    x2, y2 = x1 + w, y1 + h
    row = order[at] if len(ids) else at
    widths, heights = (images[c].to_numpy()[row] if len(ids) else row for c in ("width", "height"))
    empty = (w <= 0) | (h <= 0)
    report("box without area", good & empty)
    wide, tall = widths * SIX_DECIMALS, heights * SIX_DECIMALS
    outside = (x1 < -wide) | (y1 < -tall) | (x2 > widths + wide) | (y2 > heights + tall)
    report("box outside its frame", good & ~empty & outside)
    corners = {"x1": x1[good], "y1": y1[good], "x2": x2[good], "y2": y2[good]}
    boxes = {"image_id": a.box_image_ids[good], **corners, "label": a.labels[good].astype(np.uint8)}
    return pl.DataFrame(boxes).group_by("image_id", maintain_order=True).agg(COLUMNS)


def _months(annotations: Annotations, words: Vocabulary) -> npt.NDArray[np.int32]:
    """(images,) YYYYMM of LTDv2's ids; of other data the number of each image's part, 0 for none."""
    if words.is_own:
        return np.array([words.parts.get(part, 0) for part in annotations.parts], np.int32)
    return (annotations.image_ids // MONTH_DIGITS).clip(max=2**31 - 1).astype(np.int32)


def _once(images: pl.DataFrame, column: str, kind: str, file: str, log: Discrepancies) -> pl.DataFrame:
    """Drop and log every row whose value of ``column`` an earlier row has."""
    import polars as pl

    first = pl.col(column).is_first_distinct()
    twice = images.filter(~first)
    log.add(
        Discrepancy(kind, file, frame=name, image_id=str(number))
        for name, number in twice.select("file_name", "image_id").iter_rows()
    )
    return images.filter(first) if len(twice) else images


def locate_frames(
    tables: list[pl.DataFrame], archive: Path, log: Discrepancies, top: str | None = None
) -> tuple[pl.DataFrame, pl.Series, list[str]]:
    """All splits in the order of the frames' bytes, with where those are; the names of unlisted frames; what
    lies before the frames' names in a folder.

    Args:
        tables: of all splits, see :func:`table_of`.
        archive: the archive or the folder of the frames.
        log: takes what contradicts itself.
        top: of data other than LTDv2, the folder of the archive that the names are relative to; what that
            archive holds beside the frames is not counted. None: LTDv2, whose names begin at ``frames/``.
    """
    import polars as pl

    images, both = pl.concat(tables), "two of the annotation files"
    images = _once(images, "image_id", "duplicate image id", both, log)
    images = _once(images, "file_name", "duplicate frame", both, log)
    where, prefixes = _files_of(archive, top)
    names = where["member"]
    if top is not None:
        where = where.filter(pl.col("file_name").is_in(images["file_name"].implode()))
    first = pl.col("file_name").is_first_distinct()
    log.add(
        Discrepancy("duplicate member", archive.name, frame=name, detail=member)
        for name, member in where.filter(~first).select("file_name", "member").iter_rows()
    )
    where = where.filter(first).drop("member")
    located = images.join(where, on="file_name", how="left").with_columns(
        pl.col("offset").fill_null(-1),
        *(pl.col(c).fill_null(0) for c in ("size", "raw_size", "method", "crc")),
    )
    missing = located.filter(pl.col("offset") < 0)
    if len(missing) == len(located):
        raise ToolkitError(
            f"{archive} holds none of the frames",
            found=f"members such as {names[0]}" if len(names) else "no files",
            expected=f"paths such as {images['file_name'][0]}"
            if len(images)
            else "images in the annotations",
        )
    for split, name, number in missing.select("split", "file_name", "image_id").iter_rows():
        log.add([Discrepancy("frame missing", ANNOTATIONS[split], frame=name, image_id=str(number))])
    unlisted = where.join(images, on="file_name", how="anti")["file_name"]
    return located.sort("offset", maintain_order=True), unlisted, prefixes


def _files_of(archive: Path, top: str | None) -> tuple[pl.DataFrame, list[str]]:
    """The files of an archive or a folder, where they are and which frames they stand for; what lies before
    the frames' names in a folder."""
    import polars as pl

    prefixes = [""]
    if archive.is_dir():
        paths = sorted(files_below(archive, archive.name))
        columns: dict[str, npt.NDArray[Any]] = {"offset": np.arange(len(paths))}
        columns |= {c: np.zeros(len(paths), np.int64) for c in ("size", "raw_size", "method", "crc")}
        if top is None:
            before = [name[: name.rindex(b"frames/")] for name in paths]
            prefixes = sorted(set(map(os.fsdecode, before))) or prefixes
            number = {prefix: i for i, prefix in enumerate(prefixes)}
            columns["size"] = np.array([number[os.fsdecode(each)] for each in before], np.int64)
    else:
        members = read_directory(archive)
        paths = members.names.tolist()
        columns = {"offset": members.offsets, "size": members.sizes, "raw_size": members.raw_sizes}
        columns |= {"method": members.methods, "crc": members.crcs.astype(np.uint32)}
    names = [path.decode(errors="replace") for path in paths]
    where = pl.DataFrame({"member": names, **columns}, schema_overrides={"member": pl.String})
    frame = pl.col("member")
    if top is None:
        frame = "frames/" + frame.str.replace(r"^(.*/)?frames/", "")
    elif not archive.is_dir():
        frame = "frames/" + frame.str.strip_prefix(top)
    return where.with_columns(frame.alias("file_name")), prefixes


def files_below(folder: Path, name: str) -> Iterator[bytes]:
    """Paths of all files below a folder called ``name``, through links to other folders, but not back up."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{name}/{entry.name}"
                if entry.is_file():
                    yield os.fsencode(path)
                elif entry.is_dir():
                    below = Path(entry.path)
                    if not (entry.is_symlink() and folder.resolve().is_relative_to(below.resolve())):
                        yield from files_below(below, path)
    except OSError as error:
        raise ToolkitError(f"cannot read {folder}", found=error.strerror or str(error)) from error
