"""Tiny data sets in Pascal VOC layout: a red or a green rectangle or two on grey noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30)}

# (class, xmin, ymin, xmax, ymax, difficult); pixels count from 1, the last one included.
Item = tuple[str, float, float, float, float, int]


def write_voc(root: Path, splits: dict[str, int], width: int = 48, height: int = 36) -> None:
    """Writes `splits` (name -> number of images) of `width` x `height` pixels."""
    random = np.random.default_rng(0)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir()
    for split, count in splits.items():
        names = [f"{split}_{index}" for index in range(count)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for index, name in enumerate(names):
            labels = [list(COLOURS)[(index // 2 + place) % 2] for place in range(1 + index % 2)]
            items = [_random_item(random, label, place, width, height) for place, label in enumerate(labels)]
            picture = random.integers(90, 140, [height, width, 3], np.uint8)
            for label, xmin, ymin, xmax, ymax, _ in items:
                picture[ymin - 1 : ymax, xmin - 1 : xmax] = COLOURS[label]
            Image.fromarray(picture).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            write_annotation(root / "Annotations" / f"{name}.xml", items, width, height)


def _random_item(random: np.random.Generator, label: str, place: int, width: int, height: int) -> Item:
    """A square in the left (place 0) or the right half, so that none covers another."""
    side = int(random.integers(10, 16))
    xmin, ymin = (int(random.integers(1, length - side)) for length in (width // 2, height))
    xmin += place * width // 2
    return label, xmin, ymin, xmin + side - 1, ymin + side - 1, 0


def write_annotation(path: Path, items: list[Item], width: int, height: int) -> None:
    """One XML file, as label tools write it."""
    objects = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
        for label, xmin, ymin, xmax, ymax, difficult in items
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>{size}{objects}</annotation>")
