"""Files of images for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, names: list[str]) -> None:
    """Small JPEG files of noise, each of another size."""
    random = np.random.default_rng(0)
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, [20 + index, 24, 3], np.uint8)).save(path)
