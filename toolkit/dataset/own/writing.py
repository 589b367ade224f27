"""A dataset that was read, as a data folder: LTDv2's files, links to the frames, ``dataset.json``."""

from __future__ import annotations

import math
import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import msgspec

from toolkit import console, vocabulary
from toolkit.dataset.index import folder_below
from toolkit.dataset.own import folder, origin, splitting
from toolkit.dataset.own import parts as partition
from toolkit.dataset.own.origin import Origin
from toolkit.dataset.own.reading import PICTURES, Image, read
from toolkit.dataset.own.tree import inner
from toolkit.errors import ToolkitError
from toolkit.files import real, turn_to_make
from toolkit.ltdv2 import ANNOTATIONS, ARCHIVE, SplitName
from toolkit.vocabulary import LTDV2, Vocabulary

MOST_CLASSES = 250
"""The evaluator keeps labels in a byte."""

NO_OBJECTS = frozenset(
    ("dontcare", "ignore", "ignored", "ignoreregion", "ignoredregion", "ignoredregions", "void")
)
"""How datasets call boxes that mark what is not to be judged, without spaces and in small letters."""


def is_source(path: Path) -> bool:
    """Whether this is data of one's own, yet to be brought: some of what ``read`` reads, no data folder."""
    if not path.is_dir():
        return path.suffix.lower() in (".yaml", ".yml", ".json", ".zip")
    return not is_data_folder(path) and any(
        any(inner(path).glob(pattern)) for pattern in ("*.y*ml", "*.json", "*/*.json")
    )


def is_data_folder(path: Path) -> bool:
    """Whether this has LTDv2's files, or some below, or was prepared: ``prepare`` says what it lacks."""
    return any((path / name).exists() for name in (*ANNOTATIONS.values(), vocabulary.FILE)) or bool(
        folder_below(path)
    )


def no_source(place: Path, flag: str = "") -> ToolkitError:
    """Why there is nothing to prepare, or why a flag for data of one's own has nothing to work on."""
    expected = (
        f"LTDv2's files ({', '.join(ANNOTATIONS.values())}), a data.yaml, a COCO file with its images, "
        "a folder with either, or a zip archive"
    )
    look = f"to look for objects in it: toolkit predict best.pt {quote(str(place))}"
    if not place.exists():
        return ToolkitError(f"no dataset {place}", found="nothing there", expected=expected)
    if not place.is_dir():
        kind = (mimetypes.guess_type(place.name)[0] or "").partition("/")[0]
        return ToolkitError(
            f"{place} is no dataset",
            found=f"a file {place.suffix}".rstrip(),
            expected=expected,
            fix=look if kind in ("image", "video") else "",
        )
    if flag and is_data_folder(place):
        made_of = origin.read(place)
        if made_of is not None:
            return ToolkitError(
                f"{flag} is for a source",
                found=f"{place}, which was prepared from one",
                fix=f"name the source: toolkit dataset prepare {quote(made_of.source)} "
                f"--out {quote(str(place))} {flag} ...",
            )
        words = f"LTDv2's files, or data that is prepared, in {place}"
        return ToolkitError(f"{flag} is for other data", found=words, fix=f"leave {flag} out")
    deeper = [each for pattern in ("data.y*ml", "*.json") for each in sorted(place.rglob(pattern))]
    if deeper:
        below = deeper[0].parent
        return ToolkitError(
            f"{place} is no dataset",
            found=f"{deeper[0].relative_to(place)} further down",
            expected="a data.yaml or COCO files in it, or in a folder of it",
            fix=f"name that: {quote(str(below.parent if below.name == 'annotations' else below))}",
        )
    pictures = sum(each.suffix.lower() in PICTURES for each in place.rglob("*"))
    return ToolkitError(
        f"{place} is no dataset",
        found=f"{pictures:,} pictures and no annotations",
        expected=expected,
        fix=look if pictures else "toolkit dataset download DIR fetches LTDv2",
    )


def name_of(path: Path) -> str:
    """A name for the data folder: the source's, or of a data.yaml or annotations/ that of its folder."""
    whole = path.absolute()
    plain = whole.is_dir() or whole.suffix.lower() == ".zip"
    parent = whole.parent.parent if whole.parent.name == "annotations" else whole.parent
    return whole.stem if plain else parent.name or whole.stem


def place_for(source: Path, folder: Path) -> Path:
    """Where a source goes by default: ``folder``/NAME, or NAME-prepared where that is the source's own."""
    place = folder / name_of(source)
    root = source if source.is_dir() else source.absolute().parent
    whole, around = real(place), real(root)
    inside = whole == around or (not source.is_dir() and around.is_relative_to(whole))
    return place.with_name(f"{place.name}-prepared") if inside else place


def bring(
    source: Path,
    data: Path,
    *,
    by: str | None = None,
    classes: str | None = None,
    val: float = 0.2,
    replace_other: bool = False,
) -> Vocabulary:
    """Read a dataset and write a data folder, which ``prepare`` makes an index of. No image is copied.

    Args:
        source: see :func:`toolkit.dataset.own.reading.read`.
        data: the folder; new, empty, or one that this made before.
        by: see :data:`toolkit.dataset.own.parts.WAYS`.
        classes: ``person=person,car=vehicle``, the source's names and what they become; others are left out.
            All keep their names by default.
        val: share of each part's images that validates, in whole clips, where the source has no such split.
        replace_other: make it of this source with these settings, whatever it was made of before.

    Raises:
        ToolkitError: the source is no dataset; classes or parts are not there; or the folder is another's, or
            was made of another source or with other settings.
    """
    wanted = Origin(
        str(real(source)), (by or "").strip(), re.sub(r"\s*([,=])\s*", r"\1", classes or "").strip(), val
    )
    _refuse(data, wanted, replace_other)
    with turn_to_make(data):
        _refuse(data, wanted, replace_other)  # another process may have made it meanwhile
        return _bring(source, data, wanted, by, classes)


def _refuse(data: Path, wanted: Origin, replace_other: bool) -> None:
    """Refuse a folder that holds something else than what is wanted."""
    if folder.is_taken(data):
        raise ToolkitError(
            f"{data} is not empty",
            expected="a new folder, or one that was prepared before",
            fix="name a new one: --out DIR",
        )
    if not replace_other:
        origin.refuse_another(data, wanted)


def _bring(source: Path, data: Path, wanted: Origin, by: str | None, classes: str | None) -> Vocabulary:
    console.note(f"reading {source}")
    found = read(source)
    names, becomes = _classes(found.classes, classes)
    _warn_of_no_objects(becomes)
    parts, way = partition.name_parts(found.images, by)
    parts = partition.apart(parts, names.values())
    codes = {name: number for number, name in enumerate(partition.order(parts), 1)}
    val = wanted.val
    if any(image.split == "val" for image in found.images):
        wanted = msgspec.structs.replace(wanted, val=0)
    if len(codes) == 1 and by is None:
        console.note("one part: neither dates nor folders differ; --by tells parts by something else")
    words = Vocabulary(names, codes, way, str(source))
    files = {vocabulary.FILE: origin.encode(words, msgspec.structs.replace(wanted, top=found.top))}
    for split, content in _annotations(found.images, parts, names, becomes, val):
        files[ANNOTATIONS[split]] = msgspec.json.encode(content) + b"\n"
    root = found.root.absolute()
    if root.is_file():
        links = {ARCHIVE: root}
    else:
        links = {f"{folder.FRAMES}/{image.name}": root / image.name for image in found.images}
    folder.write(data, folder.Content(files, links))
    return words


def _classes(found: list[str], text: str | None) -> tuple[dict[int, str], dict[str, str]]:
    """Label -> name, and the source's name -> the name that it becomes."""
    if text is None:
        becomes = {name: name for name in found}
    else:
        by_lower: dict[str, list[str]] = {}
        for name in found:
            by_lower.setdefault(name.lower(), []).append(name)
        becomes = {}
        for pair in text.split(","):
            name, _, target = (each.strip() for each in pair.partition("="))
            if name.lower() not in by_lower or not (target or "=" not in pair):
                raise ToolkitError(
                    f"--classes {pair.strip()} cannot be used",
                    found=f"classes {', '.join(found)}",
                    expected="pairs such as car=vehicle of the source's classes",
                )
            for each in by_lower[name.lower()]:
                becomes[each] = target or name
    targets = list(dict.fromkeys(becomes.values()))
    if "global" in targets:
        raise ToolkitError(
            "a class is called global, as the scores over all images are",
            fix="rename it, such as --classes global=other, and name the others beside it",
        )
    if text is not None and set(targets) <= set(LTDV2.classes.values()):
        return dict(LTDV2.classes), becomes  # weights trained on either can be used on the other
    if len(targets) > MOST_CLASSES:
        raise ToolkitError(f"{len(targets):,} classes", expected=f"at most {MOST_CLASSES}")
    return dict(enumerate(targets, 1)), becomes


def _warn_of_no_objects(becomes: Mapping[str, str]) -> None:
    """Say that a class which marks what is not to be judged counts like any other."""
    named = [name for name, target in becomes.items() if re.sub(r"\W|_", "", target.lower()) in NO_OBJECTS]
    if named:
        others = ",".join(f"{a}={b}" if a != b else a for a, b in becomes.items() if a not in named)
        console.warn(
            f"class {', '.join(named)} is trained on and counts in the mean like any other; to leave it out: "
            f"--classes {quote(others)} --replace"
        )


def _numbers(images: Sequence[Image]) -> list[int]:
    """The source's ids where each is another number, else 1, 2, 3, ..."""
    known = [image.number for image in images if image.number is not None]
    if len(known) == len(images) == len(set(known)):
        return known
    return list(range(1, len(images) + 1))


def _annotations(
    images: list[Image],
    parts: Sequence[str],
    names: Mapping[int, str],
    becomes: Mapping[str, str],
    val: float,
) -> Iterator[tuple[SplitName, dict[str, Any]]]:
    """The COCO file of each split that has images."""
    images, numbers = splitting.split(images, parts, val), _numbers(images)
    clips = [clip for clip, _ in splitting.places([image.name for image in images])]
    labels = {name: label for label, name in names.items()}
    for split in ANNOTATIONS:
        rows = [i for i, image in enumerate(images) if image.split == split]
        boxes: list[dict[str, Any]] = [
            {"image_id": numbers[i], "category_id": labels[becomes[kind]], "bbox": box}
            for i in rows
            for kind, *box in images[i].boxes
            if kind in becomes
        ]
        if rows:
            yield (
                split,
                {
                    "images": [_listed(images[i], numbers[i], parts[i], clips[i]) for i in rows],
                    "annotations": [
                        {"id": n, **box, "area": math.prod(box["bbox"][2:]), "iscrowd": 0}
                        for n, box in enumerate(boxes, 1)
                    ],
                    "categories": [{"id": label, "name": name} for label, name in names.items()],
                },
            )


def _listed(image: Image, number: int, part: str, clip: str) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": f"{folder.FRAMES}/{image.name}",
        "width": image.width,
        "height": image.height,
        "date_captured": _iso(image.date),
        "part": part,
        "clip": clip,
        "meta": image.meta,
    }


def _iso(date: str) -> str:
    """``20210114`` as ``2021-01-14``; other texts as they are."""
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if re.fullmatch(r"\d{8}", date) else date
