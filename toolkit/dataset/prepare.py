"""``toolkit dataset prepare``: the index is written from the annotation files and the archive's directory.

Nothing is extracted or copied. What contradicts itself is refused or counted; an interrupted run leaves the
index that was there.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from toolkit import console, vocabulary
from toolkit.dataset.annotations import Annotations, read_annotations
from toolkit.dataset.archive import count_members, leaves, read_directory
from toolkit.dataset.discrepancies import REFUSED, Discrepancies, Discrepancy
from toolkit.dataset.index import (
    DatasetIndex,
    Manifest,
    fingerprint_of,
    folder_below,
    folders_below,
    frame_cache,
    own_files,
    prepared_folder,
    read_manifest,
    training_paths,
    writable_folder,
)
from toolkit.errors import ToolkitError
from toolkit.files import remove_abandoned, replacing, turn
from toolkit.ltdv2 import ANNOTATIONS, ARCHIVE, MONTH_DIGITS, SplitName
from toolkit.vocabulary import Vocabulary

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` did. ``unchanged`` is true when the index was already that of these inputs."""

    folder: Path
    manifest: Manifest
    unchanged: bool


def prepare(data: Path, *, drop_bad: bool = False) -> Prepared:
    """Write the index of the dataset in ``data``.

    Args:
        data: folder with Train.json, Valid.json, TestNoLabels.json (at least one of them) and frames.zip or
            frames/.
        drop_bad: drop images and boxes of the kinds in :data:`REFUSED` instead of refusing the files.

    Raises:
        ToolkitError: a file is missing, damaged or unsafe, or contradicts itself. The index stays as it was.
    """
    data = Path(data)
    sources = {split: data / name for split, name in ANNOTATIONS.items() if (data / name).exists()}
    if not sources:
        below = folder_below(data)
        raise ToolkitError(
            f"{data} has no annotation files",
            found=f"some in {below}" if below else "",
            expected=" ".join(ANNOTATIONS.values()),
            fix=f"toolkit dataset prepare {below}"
            if below
            else "toolkit dataset download DIR fetches LTDv2, toolkit dataset sample DIR draws a small one",
        )
    archive = _frames_of(data)
    fingerprint = fingerprint_of([*sources.values(), *own_files(data), archive], drop_bad)
    done, _ = _already(data, fingerprint)
    if done and not (os.access(done.folder, os.W_OK) and _older(done.folder, done.manifest)):
        return done
    folder = writable_folder(data)
    if folder.parent != data:
        _say_outside(data, folder)
    with turn(folder):
        done, before = _already(data, fingerprint)
        done = done or _prepare(data, folder, sources, archive, drop_bad, fingerprint, before)
        _remove_older(done.folder, done.manifest)
    return done


def _already(data: Path, fingerprint: str) -> tuple[Prepared | None, Manifest | None]:
    """The index if it is that of these inputs and whole; the manifest of whatever index there is."""
    manifest = None
    with suppress(ToolkitError):
        folder = prepared_folder(data)
        manifest = read_manifest(folder)
        index = DatasetIndex(data, folder / manifest.index, manifest)
        if manifest.fingerprint == fingerprint and _is_whole(index):
            return Prepared(folder, manifest, unchanged=True), manifest
    return None, manifest


def _prepare(
    data: Path,
    folder: Path,
    sources: dict[SplitName, Path],
    archive: Path,
    drop_bad: bool,
    fingerprint: str,
    before: Manifest | None,
) -> Prepared:
    """Write the index to ``folder``, in place of the one that ``before`` describes."""
    import polars as pl

    log = Discrepancies()
    tables, words = [], vocabulary.of_data(data)
    for split, path in sources.items():
        console.note(f"reading {path.name}")
        tables.append(_table(split, read_annotations(path, words.classes), log, words))
    console.note(f"reading the directory of {archive.name}")
    images, unlisted, prefixes = _locate(tables, archive, log)
    refused = {kind: n for kind, n in log.counts.items() if kind in REFUSED}
    if refused and not drop_bad:
        listing = folder / "refused.jsonl"
        log.write(listing)
        raise ToolkitError(
            f"the files of {data} contradict themselves",
            found=", ".join(f"{n:,} x {kind}" for kind, n in refused.items()) + f" (listed in {listing})",
            expected="each image and frame once, and boxes of known images and categories",
            fix=f"download the files again, or drop these entries: toolkit dataset prepare {data} --drop-bad",
        )

    manifest = _summary(images, fingerprint, archive.name, len(unlisted), log, prefixes, words)
    for name in manifest.images:
        _write_training_tables(images.filter(pl.col("split") == name), folder, manifest.index, name)
    with replacing(folder / manifest.index) as temporary:
        _write_parquet(images, temporary)
    log.write(folder / "discrepancies.jsonl")
    with replacing(folder / "unlisted-frames.txt.gz") as temporary:
        text = "".join(f"{name}\n" for name in unlisted)
        temporary.write_bytes(gzip.compress(text.encode(), 1, mtime=0))
    if before is not None:
        _keep_caches(folder, manifest, before)
    # The manifest is the commit; whatever it does not name is an older index.
    with replacing(folder / "manifest.json") as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    (folder / "refused.jsonl").unlink(missing_ok=True)
    return Prepared(folder, manifest, unchanged=False)


def _is_whole(index: DatasetIndex) -> bool:
    """Whether the Parquet file opens and has all rows. Raises ToolkitError if a training table is not."""
    import polars as pl

    for name in index.manifest.images:
        _ = index.split(name).training
    try:
        rows = pl.scan_parquet(index.path).select(pl.len()).collect().item()
    except (OSError, pl.exceptions.PolarsError):
        return False
    return bool(rows == sum(index.manifest.images.values()))


def _say_outside(data: Path, folder: Path) -> None:
    console.note(f"{data} cannot be written: the index goes to {folder}")
    others = [f for f in folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*") if f != folder]
    if others:
        size = sum(file.stat().st_size for other in others for file in other.rglob("*"))
        names = " ".join(map(str, others))
        console.note(
            f"{size / 1e9:.1f} GB were made of other files at this path; delete them if unused: {names}"
        )


def _keep_caches(folder: Path, manifest: Manifest, before: Manifest) -> None:
    """Give the new index the decoded frames (``cache.py``) of the splits that are still the same."""
    stem = Path(manifest.index).stem
    for split in manifest.images:
        if _has_same_frames(folder, split, manifest, before):
            for path in frame_cache(folder, before.index, split):
                with suppress(FileNotFoundError):
                    path.replace(folder / path.name.replace(Path(before.index).stem, stem))


def _older(folder: Path, manifest: Manifest) -> list[Path]:
    """Files of other indexes than the manifest's."""
    stem = Path(manifest.index).stem
    return [path for path in folder.glob("index-*") if not path.name.startswith(stem)]


def _remove_older(folder: Path, manifest: Manifest) -> None:
    for old in _older(folder, manifest):
        if "-grey.npy" in old.name:
            zipped = manifest.frames == ARCHIVE
            why = "the split has other frames now" if zipped else "files in a folder are not compared"
            size = old.stat().st_size / 1e9
            console.warn(f"removing {old.name} ({size:.1f} GB of decoded frames): {why}")
        old.unlink(missing_ok=True)
    remove_abandoned(folder, "index-*")


def _has_same_frames(folder: Path, split: str, manifest: Manifest, before: Manifest) -> bool:
    """Whether two indexes have the same frames in a split, by name, size and checksum; a folder has none."""
    if not manifest.frames == before.frames == ARCHIVE:
        return False
    paths = (training_paths(folder, m.index, split)[0] for m in (manifest, before))
    columns = ("name", "width", "height", "raw_size", "crc")
    with suppress(OSError, ValueError, EOFError):  # a table is lost, cut off or of another version
        ours, theirs = (np.load(path, mmap_mode="r") for path in paths)
        return len(ours) == len(theirs) and all((ours[c] == theirs[c]).all() for c in columns)
    return False


def _write_parquet(table: pl.DataFrame, path: Path) -> None:
    import polars as pl

    try:
        table.write_parquet(path, compression="zstd", row_group_size=65_536)
    except pl.exceptions.ComputeError as error:  # how polars reports a full disk
        raise OSError(str(error)) from error


def _write_training_tables(images: pl.DataFrame, folder: Path, index: str, split: str) -> None:
    """Write :class:`TrainingTables` of one split (``images`` has only its rows)."""
    import polars as pl

    size = images.select("width", "height").to_numpy().astype(np.float64)
    counts = images["label"].list.len().to_numpy().astype(np.int64)
    flat = (
        images.select("x1", "y1", "x2", "y2", "label").explode("x1", "y1", "x2", "y2", "label").drop_nulls()
    )
    corners = flat.select("x1", "y1", "x2", "y2").to_numpy().reshape(-1, 2, 2)
    corners = (corners / np.repeat(size, counts, axis=0)[:, None]).clip(0, 1)
    low, high = corners[:, 0], corners[:, 1]
    keep = (high > low).all(axis=1)
    boxes = np.empty(int(keep.sum()), [("xywh", "<f4", 4), ("label", "u1")])
    boxes["xywh"] = np.concatenate([(low + high) / 2, high - low], axis=1)[keep]
    boxes["label"] = flat["label"].to_numpy()[keep]

    starts = np.concatenate(([0], np.cumsum(keep)))[np.concatenate(([0], np.cumsum(counts)))]
    names = images["file_name"].cast(pl.Binary).to_numpy().astype(np.bytes_)
    fields = {"width": "<u2", "height": "<u2", "offset": "<i8", "size": "<i4", "raw_size": "<i4"}
    fields |= {"method": "u1", "crc": "<u4"}
    types = [("name", names.dtype), ("box", "<i8"), ("boxes", "<i4"), *fields.items()]
    table = np.empty(len(images), types)
    table["name"], table["box"], table["boxes"] = names, starts[:-1], np.diff(starts)
    for field in fields:
        table[field] = images[field].to_numpy()
    for path, content in zip(training_paths(folder, index, split), (table, boxes), strict=True):
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, content)


def _frames_of(data: Path) -> Path:
    """frames.zip or frames/. Of both the archive, unless it is cut off or holds fewer frames."""
    archive, folder = data / ARCHIVE, data / "frames"
    if archive.exists() and folder.is_dir():
        members, files = count_members(archive), sum(1 for _ in _files(folder, folder.name))
        if members >= files:
            return archive
        has = f"holds {members:,} members" if members else "is cut off or no zip archive"
        console.warn(f"{archive} {has}, {folder} {files:,} files: the frames are read from the folder")
        return folder
    for path in (archive, folder):
        if path.exists():
            return path
    below = next((f for f in folders_below(data) if (f / ARCHIVE).is_file() or (f / "frames").is_dir()), None)
    raise ToolkitError(
        f"{data} has no frames",
        found=f"some in {below}" if below else "",
        expected="frames.zip or frames/ beside the annotation files",
        fix=f"move or link them to {data}" if below else "toolkit dataset download DIR fetches them",
    )


def _table(split: SplitName, annotations: Annotations, log: Discrepancies, words: Vocabulary) -> pl.DataFrame:
    """Images of one file with their boxes as list columns; discrepancies logged, refused rows left out."""
    import polars as pl

    a, file = annotations, annotations.path.name
    if not a.file_names or not (len(a.labels) or split == "test"):
        raise ToolkitError(
            f"{a.path} has no {'annotations' if a.file_names else 'images'}",
            expected="images, and the boxes in them unless they are the test split",
            fix="download the file again: toolkit dataset download DIR",
        )
    if outside := [name for name in a.file_names if leaves(name.encode())]:
        raise ToolkitError(
            f"{annotations.path} is refused: {len(outside):,} frames have a path that is absolute, goes up "
            "or holds a zero byte",
            found=repr(outside[0]),
            expected="paths below the data folder",
        )
    images = pl.DataFrame(
        {
            "image_id": a.image_ids,
            "file_name": a.file_names,
            "width": a.widths,
            "height": a.heights,
            "date": a.dates,
            "meta": a.metas,
        },
        schema_overrides={"file_name": pl.String, "date": pl.String, "meta": pl.String},
    ).with_columns(
        pl.lit(split).alias("split"),
        pl.Series("month", _months(a, words), pl.Int32),
        pl.col("file_name").str.replace(r"^frames/", "").str.replace(r"/?[^/]*$", "").alias("clip"),
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
    images = _once(images, "file_name", "duplicate frame", file, log)

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
    report("box outside its frame", good & ~empty & ((x1 < 0) | (y1 < 0) | (x2 > widths) | (y2 > heights)))
    boxes = (
        pl.DataFrame(
            {
                "image_id": a.box_image_ids[good],
                "x1": x1[good],
                "y1": y1[good],
                "x2": x2[good],
                "y2": y2[good],
                "label": a.labels[good].astype(np.uint8),
            }
        )
        .group_by("image_id", maintain_order=True)
        .agg("x1", "y1", "x2", "y2", "label")
    )
    columns = ("x1", "y1", "x2", "y2", "label")
    return images.join(boxes, on="image_id", how="left", maintain_order="left").with_columns(
        pl.col(c).fill_null([]) for c in columns
    )


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


def _locate(
    tables: list[pl.DataFrame], archive: Path, log: Discrepancies
) -> tuple[pl.DataFrame, pl.Series, list[str]]:
    """All splits in the order of the frames' bytes, with where those are; the names of unlisted frames; what
    lies before the frames' names in a folder."""
    import polars as pl

    images, both = pl.concat(tables), "two of the annotation files"
    images = _once(images, "image_id", "duplicate image id", both, log)
    images = _once(images, "file_name", "duplicate frame", both, log)
    prefixes = [""]
    if archive.is_dir():
        paths = sorted(_files(archive, archive.name))
        columns: dict[str, npt.NDArray[Any]] = {"offset": np.arange(len(paths))}
        columns |= {c: np.zeros(len(paths), np.int64) for c in ("size", "raw_size", "method", "crc")}
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
    where = pl.DataFrame({"member": names, **columns}, schema_overrides={"member": pl.String}).with_columns(
        ("frames/" + pl.col("member").str.replace(r"^(.*/)?frames/", "")).alias("file_name")
    )
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
            found=f"members such as {names[0]}" if names else "no files",
            expected=f"paths such as {images['file_name'][0]}"
            if len(images)
            else "images in the annotations",
        )
    for split, name, number in missing.select("split", "file_name", "image_id").iter_rows():
        log.add([Discrepancy("frame missing", ANNOTATIONS[split], frame=name, image_id=str(number))])
    unlisted = where.join(images, on="file_name", how="anti")["file_name"]
    return located.sort("offset", maintain_order=True), unlisted, prefixes


def _files(folder: Path, name: str) -> Iterator[bytes]:
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
                        yield from _files(below, path)
    except OSError as error:
        raise ToolkitError(f"cannot read {folder}", found=error.strerror or str(error)) from error


def _summary(
    images: pl.DataFrame,
    fingerprint: str,
    frames: str,
    unlisted: int,
    log: Discrepancies,
    prefixes: list[str],
    words: Vocabulary,
) -> Manifest:
    import polars as pl

    by_split = images.group_by("split").agg(
        pl.len().alias("images"), pl.col("label").list.len().sum().alias("boxes"), pl.col("clip").n_unique()
    )
    months = images.group_by("split", "month").len().sort("month").iter_rows()
    classes = images.select("split", "label").explode("label").drop_nulls().group_by("split", "label").len()
    by_month: dict[str, dict[str, int]] = {}
    by_class: dict[str, dict[str, int]] = {}
    named = words.names_of_parts()
    for split, month, n in months:
        by_month.setdefault(split, {})[named.get(month, str(month))] = n
    for split, label, n in classes.sort("label").iter_rows():
        by_class.setdefault(split, {})[words.classes[label]] = n
    counts = {row["split"]: row for row in by_split.iter_rows(named=True)}
    order = [split for split in ANNOTATIONS if split in counts]
    return Manifest(
        fingerprint=fingerprint,
        index=f"index-{fingerprint[:12]}.parquet",
        frames=frames,
        images={s: counts[s]["images"] for s in order},
        boxes={s: counts[s]["boxes"] for s in order},
        clips={s: counts[s]["clip"] for s in order},
        by_month={s: by_month[s] for s in order},
        by_class={s: by_class.get(s, {}) for s in order},
        unlisted_frames=unlisted,
        discrepancies=dict(sorted(log.counts.items())),
        prefixes=tuple(prefixes),
        vocabulary=words,
    )
