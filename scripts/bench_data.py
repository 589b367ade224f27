#!/usr/bin/env python3
"""The figures of docs/data.md, measured on synthetic data of LTDv2's real shape.

    python scripts/bench_data.py make build/full       # once: 425,000 images, 2.9 M boxes, 1,069,247 members
    python scripts/bench_data.py run build/full        # every figure, one table; --only NAME for one of them

Whole processes are measured from outside: wall clock, and the peak resident set that the kernel reports.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import chain, groupby, islice, repeat
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MEMBERS, TRAIN, BOXES_PER_IMAGE = 1_069_247, 329_299, 7.73
CLIP, VARIETIES = 120, 64
MONTHS = ["202005", "202006", "202007", "202008", "202009", "202101", "202102", "202103", "202104"]
TURNS = 3


# Data


def make(folder: Path) -> None:
    """A dataset with LTDv2's counts, names and directory; small JPEGs, so that it is 2 GB and not 48."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    jpegs = [_small_jpeg(rng) for _ in range(VARIETIES)]
    names = _names()
    with (folder / "frames.zip").open("wb") as file:
        _write_zip(file, names, jpegs)
    for split, images in _images(names, rng).items():
        _write_coco(folder / split, images, rng, boxes=split != "TestNoLabels.json")
    for path in sorted(folder.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1e6:,.0f} MB")


def _small_jpeg(rng: np.random.Generator) -> bytes:
    coarse = rng.integers(40, 200, (6, 8)).astype(np.uint8)
    image = cv2.resize(coarse, (384, 288), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1].tobytes()


def _names() -> list[str]:
    clips = [
        f"frames/{month}{day:02d}/clip_{clip}_{clip % 24:02d}{clip * 7 % 60:02d}"
        for month in MONTHS
        for day in range(1, 31)
        for clip in range(34)
    ]
    return [f"{clips[i // CLIP]}/image_{i % CLIP:04d}.jpg" for i in range(MEMBERS)]


def _images(names: list[str], rng: np.random.Generator) -> dict[str, list[tuple[int, str]]]:
    """Ids and frames of each split: whole clips, of the month that the id begins with, as in LTDv2.

    The rest of the frames is in no annotation file. September is in the test split alone.
    """
    free: dict[str, list[int]] = {month: [] for month in MONTHS}
    for clip in rng.permutation(len(names) // CLIP).tolist():
        free[_day(names[CLIP * clip])[:6]].append(clip)

    def take(month: str, count: int) -> list[str]:
        clips = sorted(free[month].pop() for _ in range(-(-count // CLIP)))
        return [names[CLIP * clip + i] for clip in clips for i in range(CLIP)][:count]

    months = [month for month in MONTHS if month != "202009"]
    shares = [len(part) for part in np.array_split(np.arange(TRAIN), len(months))]
    trained = [name for month, share in zip(months, shares, strict=True) for name in take(month, share)]
    splits = {"Train.json": [(int(f"{_day(name)}{i:09d}"), name) for i, name in enumerate(trained)]}
    for split, phase in (("Valid.json", "development"), ("TestNoLabels.json", "testing")):
        splits[split] = []
        for month, ids in groupby(sorted(_template(phase)), key=lambda number: str(number)[:6]):
            chosen = list(ids)
            splits[split] += zip(chosen, take(month, len(chosen)), strict=True)
    return splits


def _day(name: str) -> str:
    return name.split("/")[1]


def _template(phase: str) -> list[int]:
    path = ROOT / "submission" / "templates" / f"submission_template_{phase}.json.gz"
    return [int(number) for number in json.loads(gzip.decompress(path.read_bytes()))]


def _write_zip(file: Any, names: list[str], jpegs: list[bytes]) -> None:
    """A stored archive with a ZIP64 end record; zipfile would need a minute and 1.4 GB for it."""
    crcs = [zlib.crc32(data) for data in jpegs]
    directory = bytearray()
    offset = 0
    for i, name in enumerate(names):
        data, crc, raw = jpegs[i % VARIETIES], crcs[i % VARIETIES], name.encode()
        common = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0x52A1, crc, len(data), len(data), len(raw), 0)
        file.write(b"PK\x03\x04" + common + raw + data)
        directory += b"PK\x01\x02\x14\x00" + common + struct.pack("<HHHII", 0, 0, 0, 0, offset) + raw
        offset += 30 + len(raw) + len(data)
    n, size = len(names), len(directory)
    file.write(directory)
    file.write(struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, n, n, size, offset))
    file.write(struct.pack("<IIQI", 0x07064B50, 0, offset + size, 1))
    file.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, size, offset, 0))


CLASSES = ["person", "bicycle", "motorcycle", "vehicle"]
WEATHER = [
    "Temperature",
    "Humidity",
    "Precipitation",
    "Dew Point",
    "Wind Direction",
    "Wind Speed",
    "Sun Radiation Intensity",
    "Min of sunshine latest 10 min",
]


def _write_coco(path: Path, images: list[tuple[int, str]], rng: np.random.Generator, *, boxes: bool) -> None:
    counts = rng.poisson(BOXES_PER_IMAGE, len(images)) if boxes else np.zeros(len(images), int)
    corners = rng.uniform((0, 0), (340, 240), (counts.sum(), 2))
    sizes = rng.uniform(4, 44, (counts.sum(), 2))
    found = zip(
        np.concatenate([corners, sizes], axis=1).round(6).tolist(),
        rng.choice([1, 2, 3, 4], counts.sum(), p=[0.7, 0.08, 0.02, 0.2]).tolist(),
        strict=True,
    )
    encode = msgspec.json.encode
    with path.open("wb") as file:
        file.write(b'{"info": {"description": "synthetic, of the shape of LTDv2"}, "images": [')
        for i, (number, name) in enumerate(images):
            day, time_of_day = _day(name), name.split("/")[2][-4:]
            image = {
                "id": number,
                "file_name": name,
                "width": 384,
                "height": 288,
                "date_captured": f"{day[:4]}-{day[4:6]}-{day[6:]}T{time_of_day[:2]}:{time_of_day[2:]}:00",
                "meta": dict.fromkeys(WEATHER, 12.25),
            }
            file.write((b",\n" if i else b"") + encode(image))
        file.write(b'], "categories": ')
        file.write(encode([{"id": i, "name": c} for i, c in enumerate(["background", *CLASSES])]))
        if boxes:
            file.write(b', "annotations": [')
            serial = 0
            for (number, _), count in zip(images, counts.tolist(), strict=True):
                for (x, y, w, h), label in islice(found, count):
                    serial += 1
                    box = {
                        "id": serial,
                        "image_id": number,
                        "category_id": label,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                        "attributes": {"occluded": False, "rotation": 0.0, "track_id": serial},
                    }
                    file.write((b",\n" if serial > 1 else b"") + encode(box))
            file.write(b"]")
        file.write(b"}")


# Measuring


def measured(command: list[str], **options: Any) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a whole process; raises if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, **options)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: status {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def toolkit(*words: object) -> list[str]:
    return [sys.executable, "-m", "toolkit", *map(str, words)]


def child(name: str, *words: object) -> list[str]:
    return [sys.executable, __file__, name, *map(str, words)]


def prepare(folder: Path) -> Iterator[str]:
    """prepare on the full shape: time, memory, disk."""
    shutil.rmtree(folder / "prepared", ignore_errors=True)
    seconds, megabytes = measured(toolkit("dataset", "prepare", folder), stderr=subprocess.DEVNULL)
    disk = sum(p.stat().st_size for p in (folder / "prepared").iterdir()) / 1e6
    yield f"prepare, full shape: {seconds:.1f} s, {megabytes:,.0f} MB peak, {disk:.0f} MB on disk"
    seconds, _ = measured(toolkit("dataset", "prepare", folder), stderr=subprocess.DEVNULL)
    yield f"prepare again: {seconds:.2f} s"


def first_batch(folder: Path) -> Iterator[str]:
    """From the start of a process to the first batch of the full index, two workers; memory of a worker."""
    from toolkit.dataset.prepare import prepare as prepare_index

    prepare_index(folder)
    output = subprocess.run(
        child("first-batch-child", folder), cwd=ROOT, capture_output=True, text=True, check=True
    )
    yield from output.stdout.splitlines()


def first_batch_child(folder: Path) -> None:
    start = time.perf_counter()
    from toolkit.dataset.loader import start_server

    start_server()
    from ultralytics.cfg import get_cfg

    from toolkit.benchmark.data import training_loader
    from toolkit.dataset.index import load
    from toolkit.dataset.ultralytics import build_dataset, data_dictionary

    index = load(folder)
    dataset = build_dataset(index, "train", get_cfg(), "train", 16, data_dictionary(index, 1))
    loader = training_loader(dataset, 16, 2)
    batches = iter(loader)
    next(batches)
    print(f"first batch, full index, imports included: {time.perf_counter() - start:.1f} s")
    for _ in range(40):
        next(batches)
    for worker in _workers(loader):
        rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
        private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private"))
        print(f"memory that a worker adds (private pages), full index: {private / 1024:.0f} MB")
    loader.close()


def kit(folder: Path) -> Iterator[str]:
    """The starting kit's way on 20,000 frames, against prepare on the same; medians of alternating turns."""
    data = frames(folder)
    found: dict[str, list[float]] = {"unzip": [], "convert": [], "sync": [], "prepare": []}
    for _ in range(TURNS):
        shutil.rmtree(data / "prepared")
        os.sync()
        found["prepare"].append(measured(toolkit("dataset", "prepare", data), stderr=subprocess.DEVNULL)[0])
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            unzip = ["unzip", "-q", str(data / "frames.zip"), "-d", scratch]
            found["unzip"].append(measured(unzip)[0])
            found["convert"].append(measured(child("kit-child", data, scratch))[0])
            start = time.perf_counter()
            os.sync()
            found["sync"].append(time.perf_counter() - start)
    unzip_s, convert, sync, ours = (sorted(seconds)[TURNS // 2] for seconds in found.values())
    yield (
        f"20,000 frames: unzip {unzip_s:.1f} s and conversion {convert:.1f} s, against prepare {ours:.2f} s: "
        f"{(unzip_s + convert) / ours:.1f} x; the disk has theirs {sync:.1f} s later, ours at the end"
    )


def kit_child(data: Path, scratch: Path) -> None:
    """What the organisers' ``coco_to_yolo`` does after ``unzip``, without hydra, which reads its settings.

    It imports PyTorch, pycocotools and matplotlib, indexes the two annotation files that have boxes, and for
    each image makes tensors of its boxes, copies the frame under a flat name and writes a text file beside.
    """
    import matplotlib.pyplot  # noqa: F401
    import torch
    import torchvision  # noqa: F401
    from pycocotools.coco import COCO

    for name, split in (("Train.json", "train"), ("Valid.json", "val")):
        images, labels = scratch / "images" / split, scratch / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        with contextlib.redirect_stdout(None):
            coco = COCO(data / name)
        for number, image in coco.imgs.items():
            side = (image["width"], image["height"]) * 2
            rows = [[v / s for v, s in zip(a["bbox"], side, strict=True)] for a in coco.imgToAnns[number]]
            classes = [a["category_id"] - 1 for a in coco.imgToAnns[number]]
            boxes = torch.as_tensor(np.asarray(rows).reshape(-1, 4), dtype=torch.float32)
            source, flat = scratch / image["file_name"], image["file_name"].replace("/", "_")
            if source.exists():
                shutil.copy(source, images / flat)
                with (labels / flat).with_suffix(".txt").open("w") as file:
                    for label, (x, y, w, h) in zip(classes, boxes.numpy(), strict=True):
                        file.write(f"{label} {x + w / 2} {y + h / 2} {w} {h}\n")


def frames(folder: Path) -> Path:
    """20,000 frames of the real size (about 43 kB), drawn once."""
    from toolkit.dataset.prepare import prepare as prepare_index
    from toolkit.dataset.sample import write_sample

    write_sample(folder / "frames-20000", train=9_600, val=9_600, test=800, scene="street")
    prepare_index(folder / "frames-20000")
    return folder / "frames-20000"


def loader(folder: Path) -> Iterator[str]:
    """Mosaics of 640 px, batch 16, against Ultralytics' own dataset on the extracted files, both warm.

    The best of some turns of each: whatever else runs on the machine only slows a turn down.
    """
    data, plain = frames(folder), folder / "plain"
    if not (plain / "data.yaml").exists():
        measured(toolkit("dataset", "export", data, "--out", plain, "--extract"), stderr=subprocess.DEVNULL)
    for workers in (2, 0):
        for channels in (1, 3):
            rates: dict[str, list[tuple[float, float]]] = {"toolkit": [], "ultralytics": []}
            for _ in range(TURNS):
                for which, found in rates.items():
                    command = child("loader-child", data, plain, which, channels, workers)
                    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                    rate, processor = map(float, output.stdout.split()[-2:])
                    found.append((rate, -processor))
            (ours, our_cpu), (theirs, their_cpu) = (map(max, zip(*f, strict=True)) for f in rates.values())
            yield (
                f"mosaic 640 px, {channels} channel(s), {workers} workers: toolkit {ours:.0f} images/s, "
                f"Ultralytics {theirs:.0f} images/s: {ours / theirs:.2f} x"
            )
            if workers:
                yield (
                    f"    processor time of the workers: toolkit {-our_cpu:.2f} ms an image, "
                    f"Ultralytics {-their_cpu:.2f} ms: {their_cpu / our_cpu:.2f} x"
                )


def loader_child(data: Path, plain: Path, which: str, channels: str, workers: str) -> None:
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_dataloader, build_yolo_dataset

    from toolkit.benchmark.data import BATCHES, epochs, timed_rate, training_loader
    from toolkit.dataset.index import load
    from toolkit.dataset.ultralytics import build_dataset, data_dictionary

    index, args, count = load(data), get_cfg(), int(workers)
    dictionary = data_dictionary(index, int(channels))
    if which == "toolkit":
        ours = training_loader(build_dataset(index, "train", args, "train", 16, dictionary), 16, count)
        loader, batches = ours, epochs(ours.order, ours)
    else:
        dataset = build_yolo_dataset(args, str(plain / "images/train"), 16, dictionary, mode="train")
        loader = build_dataloader(dataset, 16, count, device="cpu")
        batches = chain.from_iterable(repeat(loader))
    next(batches)
    before = _worker_seconds(loader)
    rate = timed_rate(batches, 16, count)
    images = 16 * (BATCHES + 4 + 4 * count)
    print(f"{rate:.1f} {1e3 * (_worker_seconds(loader) - before) / images:.3f}")
    loader.close()


def _workers(loader: Any) -> Any:
    """The processes of a loader, training's or Ultralytics'."""
    return getattr(getattr(loader, "iterator", loader._iterator), "_workers", ())


def _worker_seconds(loader: Any) -> float:
    """Processor time that the loader's workers have used (proc(5), stat, fields 14 and 15)."""
    fields = [
        Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split() for worker in _workers(loader)
    ]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def random_read(folder: Path) -> Iterator[str]:
    """100,000 frames chosen at random, from the archive and from files; the same bytes."""
    from toolkit.dataset.frames import FolderFrames
    from toolkit.dataset.index import load

    data = frames(folder)
    split = load(data).split("train")
    zipped = split.frames()
    extracted = folder / "extracted"
    if not extracted.exists():
        with zipfile.ZipFile(data / "frames.zip") as archive:
            archive.extractall(extracted)
    files = FolderFrames(extracted, split.training.images["name"])
    rows = np.random.default_rng(0).integers(0, len(split), 100_000).tolist()
    for row in range(0, len(split), 7):
        assert np.array_equal(zipped.grey(row), files.grey(row))
    seconds: dict[str, list[float]] = {"archive": [], "folder": []}
    for _ in range(3):
        for name, source in (("archive", zipped), ("folder", files)):
            start = time.perf_counter()
            for row in rows:
                source.read(row)
            seconds[name].append(time.perf_counter() - start)
    a, b = (sorted(found)[1] for found in seconds.values())
    yield f"100,000 random frames, warm: archive {1e5 / a:,.0f}/s, folder {1e5 / b:,.0f}/s: {b / a:.2f} x"


def decoders(folder: Path) -> Iterator[str]:
    """One core: frames of the real size to grey pixels."""
    from toolkit.dataset.index import load

    source = load(frames(folder)).split("train").frames()
    jpegs = [source.read(row) for row in range(0, 9_600, 8)]
    cv2.setNumThreads(1)
    ways: dict[str, Callable[[bytes], Any]] = {
        "OpenCV, grey": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE),
        "OpenCV, colour": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR),
    }
    try:
        import simplejpeg

        ways["simplejpeg, grey"] = lambda data: simplejpeg.decode_jpeg(data, "GRAY")
    except ImportError:
        yield "simplejpeg is not installed: left out"
    try:
        from turbojpeg import TJPF_GRAY, TurboJPEG

        turbo = TurboJPEG(os.environ.get("TURBOJPEG"))
        ways["PyTurboJPEG, grey"] = lambda data: turbo.decode(data, pixel_format=TJPF_GRAY)
    except (ImportError, RuntimeError):
        yield "PyTurboJPEG or its library is not installed: left out"
    best = dict.fromkeys(ways, 0.0)
    for _ in range(3):
        for name, decode in ways.items():
            start = time.perf_counter()
            for data in jpegs:
                decode(data)
            best[name] = max(best[name], len(jpegs) / (time.perf_counter() - start))
    for name, rate in best.items():
        yield f"decode, {name}: {rate:,.0f} frames/s"


FIGURES: dict[str, Callable[[Path], Iterator[str]]] = {
    "prepare": prepare,
    "first-batch": first_batch,
    "kit": kit,
    "loader": loader,
    "random-read": random_read,
    "decoders": decoders,
}
CHILDREN: dict[str, Callable[..., None]] = {
    "first-batch-child": first_batch_child,
    "kit-child": kit_child,
    "loader-child": loader_child,
}


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in CHILDREN:
        words = [Path(word) if "/" in word else word for word in sys.argv[2:]]
        CHILDREN[sys.argv[1]](*words)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["make", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=list(FIGURES), action="append")
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # modules are compiled once, as in any installation
    folder = arguments.folder.resolve()
    if arguments.action == "make":
        make(folder)
        return
    for name in arguments.only or FIGURES:
        for line in FIGURES[name](folder):
            print(line, flush=True)


if __name__ == "__main__":
    main()
