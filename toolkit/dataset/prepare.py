"""``toolkit dataset prepare``: the index is written from the annotation files and the archive's directory.

Nothing is extracted or copied. What contradicts itself is refused or counted; an interrupted run leaves the
index that was there.
"""

from __future__ import annotations

import gzip
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from toolkit import console, vocabulary
from toolkit.dataset.annotations import read_annotations
from toolkit.dataset.archive import count_members
from toolkit.dataset.crosscheck import files_below, locate_frames, table_of
from toolkit.dataset.discrepancies import REFUSED, Discrepancies
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
from toolkit.dataset.own import origin
from toolkit.errors import ToolkitError
from toolkit.files import remove_abandoned, replacing, turn
from toolkit.ltdv2 import ANNOTATIONS, ARCHIVE, SplitName
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
        tables.append(table_of(split, read_annotations(path, words.classes), log, words))
    console.note(f"reading the directory of {archive.name}")
    made_of = origin.read(data)
    images, unlisted, prefixes = locate_frames(tables, archive, log, made_of.top if made_of else None)
    refused = {kind: n for kind, n in log.counts.items() if kind in REFUSED}
    if refused and not drop_bad:
        listing = folder / "refused.jsonl"
        log.write(listing)
        raise ToolkitError(
            f"the files of {data} contradict themselves",
            found=", ".join(f"{n:,} x {kind}" for kind, n in refused.items()) + f" (listed in {listing})",
            expected="each image and frame once, and boxes of known images and categories",
            fix=f"{words.remedy}, or drop these entries: toolkit dataset prepare {data} --drop-bad",
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
        members, files = count_members(archive), sum(1 for _ in files_below(folder, folder.name))
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
