"""The index: one Parquet file that says what is in LTDv2 and where each frame's bytes are.

``prepare.py`` writes it. ``load`` opens it; a :class:`Split` reads the columns that are asked for and no
others.

Beside the Parquet file lie two .npy files a split: what training needs of it, as tables that every process
maps into memory, so that starting is immediate and workers share one copy (:class:`TrainingTables`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from patches.cache import cache_folder
from submission.errors import NO_JSON
from toolkit import NAME, console, vocabulary
from toolkit.dataset.archive import Members, ZipFrames
from toolkit.dataset.frames import (
    FolderFrames,
    Frames,
)
from toolkit.errors import CallError, ToolkitError, reason
from toolkit.ltdv2 import ANNOTATIONS, FILES
from toolkit.vocabulary import LTDV2, Vocabulary

if TYPE_CHECKING:
    import polars as pl


FORMAT = 3
"""Version of the index. Part of the fingerprint: an index of another version is made anew."""


class Manifest(msgspec.Struct, frozen=True):
    """What an index was made from and what is in it (``manifest.json``).

    Attributes:
        fingerprint: hash of names, sizes and times of the inputs, and of the options.
        index: name of the Parquet file beside the manifest.
        frames: "frames.zip" or "frames", what the frames are read from.
        images, boxes, by_month, by_class: counts by split; months as YYYYMM, classes by name.
        clips: number of clips by split.
        unlisted_frames: frames that no annotation file mentions, normal in LTDv2; ``unlisted-frames.txt.gz``
            beside the manifest names them.
        discrepancies: count of each kind; the list itself is ``discrepancies.jsonl``.
        prefixes: of a folder, what lies between the data folder and the frames' names: "" as LTDv2 has it.
        vocabulary: names of the classes, and of the parts, whose numbers stand in the column ``month``.
    """

    fingerprint: str
    index: str
    frames: str
    images: dict[str, int]
    boxes: dict[str, int]
    clips: dict[str, int]
    by_month: dict[str, dict[str, int]]
    by_class: dict[str, dict[str, int]]
    unlisted_frames: int
    discrepancies: dict[str, int]
    prefixes: tuple[str, ...] = ("",)
    vocabulary: Vocabulary = LTDV2


@dataclass(frozen=True, eq=False)
class TrainingTables:
    """A split as training reads it: two tables mapped from disk, shared by all processes.

    Attributes:
        images: (images,) with the fields ``name`` (UTF-8 bytes), ``width``, ``height``, ``box`` (row of the
            image's first box), ``boxes`` (their number), and ``offset``, ``size``, ``raw_size``, ``method``
            and ``crc`` of the frame's archive member (offset -1: the frame is missing). Of a folder, ``size``
            is the number of the frame's prefix in :attr:`Manifest.prefixes`.
        boxes: (boxes,) with the fields ``xywh``, four float32: centre, width and height of the box clipped to
            its frame, as parts of it; and ``label``, 1 to 4. Boxes that clipping leaves empty are not there.
    """

    images: npt.NDArray[np.void]
    boxes: npt.NDArray[np.void]


def prepared_folder(data: Path) -> Path:
    """Where the index of a data folder is: in :func:`writable_folder`, or an older one inside ``data``."""
    inside, folder = data / "prepared", writable_folder(data)
    has_index = (folder / "manifest.json").is_file()
    return inside if not has_index and (inside / "manifest.json").is_file() else folder


def writable_folder(data: Path) -> Path:
    """Where what is made of a data folder goes: inside it, or to the user's cache if that cannot be written.

    In the cache its name depends on the files as well as on the path, because a container sees every dataset
    at the same path.
    """
    inside = data / "prepared"
    if os.access(inside if inside.is_dir() else data, os.W_OK):
        return inside
    files = [path for path in (data / name for name in FILES) if path.exists()]
    path, content = hashlib.sha256(str(data.resolve()).encode()).hexdigest(), fingerprint_of(files, False)
    return cache_folder(NAME) / f"data-{path[:12]}-{content[:12]}"


def read_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json``. Raises ToolkitError when it is missing or of another version."""
    try:
        return msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)
    except (OSError, *NO_JSON) as error:
        raise ToolkitError(
            f"{folder} holds no index",
            found=f"manifest.json: {reason(error)}",
            fix=f"toolkit dataset prepare {folder.parent}",
        ) from error


def load(data: Path) -> DatasetIndex:
    """Open the index of a data folder; warn when the files it was made from have changed since.

    Raises ToolkitError when ``prepare`` has not run.
    """
    data = Path(data)
    if not data.is_dir():
        raise ToolkitError(f"{data} is no folder", fix="toolkit dataset sample DIR draws a small dataset")
    folder = prepared_folder(data)
    try:
        manifest = read_manifest(folder)
    except ToolkitError as error:
        below = None if any((data / name).exists() for name in ANNOTATIONS.values()) else folder_below(data)
        raise ToolkitError(
            f"{data} is not prepared",
            found=f"LTDv2's files in {below}" if below else error.found,
            fix=f"name that folder, once prepared: toolkit dataset prepare {below}"
            if below
            else f"toolkit dataset prepare {data}",
        ) from error
    if _is_stale(data, manifest):
        _warn_of_stale_index(data)
    return DatasetIndex(data, folder / manifest.index, manifest)


Opener = Callable[[Path], "DatasetIndex"]
"""Gives the index of a data folder: :func:`load`, or ``functools.cache`` of it for one command."""


def _is_stale(data: Path, manifest: Manifest) -> bool:
    """Whether the files are others than the index was made from. False if one of them is gone."""
    annotations = {split: data / name for split, name in ANNOTATIONS.items() if (data / name).exists()}
    if not manifest.images.keys() <= annotations.keys():
        return False
    inputs = [*annotations.values(), *own_files(data), data / manifest.frames]
    try:
        return all(fingerprint_of(inputs, drop_bad) != manifest.fingerprint for drop_bad in (False, True))
    except OSError:
        return False


@cache
def _warn_of_stale_index(data: Path) -> None:
    console.warn(
        f"{data} has changed since its index was made, which is used as it is; toolkit dataset prepare {data}"
    )


@dataclass(frozen=True)
class DatasetIndex:
    """An opened index. Attributes: the data folder, the Parquet file, the manifest."""

    data: Path
    path: Path
    manifest: Manifest

    def split(self, name: str) -> Split:
        """The split ``train``, ``val`` or ``test``. Raises ToolkitError if there is none."""
        if name not in ANNOTATIONS:
            raise CallError(f"no split named {name}", expected="train, val or test")
        if not self.manifest.images.get(name):
            raise ToolkitError(
                f"{self.data} has no {name} split",
                expected=str(self.data / ANNOTATIONS[name]),
            )
        return Split(self, name)


class Split:
    """One split, in the order of the archive. Columns are read on first use; rows agree between columns.

    Boxes are the file's, in float64, neither rounded nor clipped: scoring sees exactly what was written.
    """

    def __init__(self, index: DatasetIndex, name: str) -> None:
        self.index, self.name = index, name

    def __len__(self) -> int:
        return self.index.manifest.images[self.name]

    def table(self, *columns: str) -> pl.DataFrame:
        """Columns of the Parquet file for this split."""
        import polars as pl

        scan = pl.scan_parquet(self.index.path).filter(pl.col("split") == self.name)
        return scan.select(*columns).collect()

    def _numpy(self, column: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = self.table(column).to_series().to_numpy()
        return values.astype(dtype)

    @cached_property
    def image_ids(self) -> npt.NDArray[np.int64]:
        """(images,) int64, 17-digit ids."""
        return self._numpy("image_id", np.int64)

    @cached_property
    def months(self) -> npt.NDArray[np.int32]:
        """(images,) int32, YYYYMM."""
        return self._numpy("month", np.int32)

    @property
    def vocabulary(self) -> Vocabulary:
        """Names of the classes and parts."""
        return self.index.manifest.vocabulary

    @cached_property
    def part_names(self) -> npt.NDArray[np.str_]:
        """(images,) the month as text, YYYYMM; of other data the name of the part."""
        named = self.vocabulary.names_of_parts()
        numbers, inverse = np.unique(self.months, return_inverse=True)
        names = [named.get(number, str(number)) for number in numbers.tolist()]
        return np.array(names, np.str_)[inverse] if names else np.empty(0, np.str_)

    @cached_property
    def part_order(self) -> list[str]:
        """Names of the parts that have images, in the dataset's order: see :attr:`part_names`."""
        named = self.vocabulary.names_of_parts()
        return [named.get(number, str(number)) for number in np.unique(self.months).tolist()]

    @cached_property
    def file_names(self) -> npt.NDArray[np.bytes_]:
        """(images,) UTF-8 bytes of fixed width: LTDv2's paths, ``frames/<day>/<clip>/<image>.jpg``."""
        return self._numpy("file_name", np.bytes_)

    @cached_property
    def clips(self) -> npt.NDArray[np.str_]:
        """(images,) the folder of each frame below ``frames/``, ``20200514/clip_22_2307``."""
        return self._numpy("clip", np.str_)

    @cached_property
    def dates(self) -> npt.NDArray[np.str_]:
        """(images,) ``date_captured`` as text, empty where unknown."""
        return self._numpy("date", np.str_)

    @cached_property
    def widths(self) -> npt.NDArray[np.int32]:
        """(images,) int32, pixels."""
        return self._numpy("width", np.int32)

    @cached_property
    def heights(self) -> npt.NDArray[np.int32]:
        """(images,) int32, pixels."""
        return self._numpy("height", np.int32)

    @cached_property
    def box_offsets(self) -> npt.NDArray[np.int64]:
        """(images + 1,) int64: image ``i`` owns rows ``box_offsets[i]:box_offsets[i + 1]`` of the boxes."""
        import polars as pl

        counts = self.table("label").select(pl.col("label").list.len()).to_series().to_numpy()
        return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))

    @cached_property
    def boxes(self) -> npt.NDArray[np.float64]:
        """(boxes, 4) float64, corners x1, y1, x2, y2 in absolute pixels, x2 = x + width as float64."""
        table = self.table("x1", "y1", "x2", "y2").explode("x1", "y1", "x2", "y2").drop_nulls()
        return np.ascontiguousarray(table.to_numpy().astype(np.float64).reshape(-1, 4))

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """(boxes,) int64, 1 person, 2 bicycle, 3 motorcycle, 4 vehicle."""
        return self.table("label").explode("label").drop_nulls().to_series().to_numpy().astype(np.int64)

    def meta(self) -> pl.DataFrame:
        """The weather numbers of each image, one float64 column a key; null where an image lacks it."""
        import polars as pl

        metas = [msgspec.json.decode(text) for text in self.table("meta").to_series()]
        rows = [
            {k: float(v) for k, v in meta.items() if type(v) in (int, float)} if type(meta) is dict else {}
            for meta in metas
        ]
        keys = dict.fromkeys(key for row in rows for key in row)
        return pl.DataFrame({key: [row.get(key) for row in rows] for key in keys})

    @cached_property
    def training(self) -> TrainingTables:
        """The tables that training reads, mapped into memory. Raises ToolkitError: one is lost or cut off."""
        paths = training_paths(self.index.path.parent, self.index.path.name, self.name)
        try:
            images, boxes = (np.asarray(np.load(path, mmap_mode="r")) for path in paths)
            if len(images) != len(self) or images["boxes"].sum() != len(boxes):
                raise ValueError(
                    f"{len(images):,} images and {len(boxes):,} boxes that do not belong together"
                )
        except (OSError, ValueError, EOFError) as error:  # numpy's EOFError: an empty file
            raise ToolkitError(
                f"the index of {self.index.data} is incomplete",
                found=str(error),
                expected=f"{paths[0].name} and {paths[1].name} as they were written",
                fix=f"toolkit dataset prepare {self.index.data}",
            ) from error
        return TrainingTables(images, boxes)

    def frames(self) -> Frames:
        """The frames of this split, row for row."""
        images = self.training.images
        if self.index.manifest.frames == "frames":
            prefixes = self.index.manifest.prefixes
            return FolderFrames(self.index.data, images["name"], prefixes, images["size"])
        columns = (images[c] for c in ("name", "offset", "size", "raw_size", "method", "crc"))
        return ZipFrames(self.index.data / self.index.manifest.frames, Members(*columns))

    @cached_property
    def present(self) -> npt.NDArray[np.bool_]:
        """(images,) whether the frame exists in the archive or the folder."""
        return np.asarray(self.training.images["offset"] >= 0)

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the tables again instead of receiving copies of them.
        return {"index": self.index, "name": self.name}


def training_paths(folder: Path, index: str, split: str) -> tuple[Path, Path]:
    stem = Path(index).stem
    return folder / f"{stem}-{split}-images.npy", folder / f"{stem}-{split}-boxes.npy"


def frame_cache(folder: Path, index: str, split: str) -> tuple[Path, Path, Path]:
    """The files of a split's decoded frames: finished, what is written of them, unfinished (``cache.py``)."""
    stem = f"{Path(index).stem}-{split}-grey"
    return folder / f"{stem}.npy", folder / f"{stem}.json", folder / f"{stem}.npy.part"


def folder_below(data: Path) -> Path | None:
    """A folder below with annotation files: the hub's layout has them in data/, its cache in snapshots/."""
    return next((f for f in folders_below(data) if any((f / n).exists() for n in ANNOTATIONS.values())), None)


def folders_below(data: Path) -> list[Path]:
    return [
        f
        for f in (data / "data", *sorted(data.glob("snapshots/*/data")), *sorted(data.glob("*/")))
        if f.is_dir()
    ]


def own_files(data: Path) -> list[Path]:
    """``dataset.json``, which data other than LTDv2 has."""
    return [path for path in [data / vocabulary.FILE] if path.is_file()]


def fingerprint_of(paths: list[Path], drop_bad: bool) -> str:
    digest = hashlib.sha256(f"{FORMAT} {drop_bad}".encode())
    for path in paths:
        # Of a folder the days and clips are looked at, not the million files below them.
        for item in [path, *sorted(path.glob("*")), *sorted(path.glob("*/*"))] if path.is_dir() else [path]:
            stat = item.stat() if item.exists() else item.lstat()  # a link to nowhere
            size = 0 if item.is_dir() else stat.st_size
            digest.update(os.fsencode(f"{item.relative_to(path.parent)}\0{size}\0{stat.st_mtime_ns}\n"))
    return digest.hexdigest()
