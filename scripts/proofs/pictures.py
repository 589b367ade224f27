"""Pictures of bright rectangles on dark noise, with labels as Ultralytics reads them."""

from __future__ import annotations

from pathlib import Path

SIDE = 64
"""Pixels."""

PICTURES = 16


def labelled(folder: Path, polygons: bool = False) -> Path:
    """A data set of one or two rectangles a picture, as boxes or as polygons; its data.yaml."""
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for n in range(PICTURES):
        picture = random.integers(0, 90, (SIDE, SIDE, 3), np.uint8)
        lines = []
        for _ in range(1 + n % 2):
            width, height = random.integers(16, 30, 2)
            left, top = random.integers(0, SIDE - width), random.integers(0, SIDE - height)
            picture[top : top + height, left : left + width] = random.integers(180, 255, (height, width, 3))
            right, bottom = left + width, top + height
            box = (left + right) / 2, (top + bottom) / 2, width, height
            corners = left, top, right, top, right, bottom, left, bottom
            numbers = corners if polygons else box
            lines.append(" ".join(["0", *(f"{number / SIDE:.6f}" for number in numbers)]))
        cv2.imwrite(str(folder / "images" / f"{n}.png"), picture)
        (folder / "labels" / f"{n}.txt").write_text("\n".join(lines) + "\n")
    data = folder / "data.yaml"
    data.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [thing]\n")
    return data


def classified(folder: Path) -> Path:
    """A data set of bright and of dark pictures; its folder."""
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, brightest in (("bright", 255), ("dark", 60)):
            (folder / split / name).mkdir(parents=True)
            for n in range(PICTURES // 4):
                picture = random.integers(0, brightest, (SIDE, SIDE, 3), np.uint8)
                cv2.imwrite(str(folder / split / name / f"{n}.png"), picture)
    return folder
