"""A gallery of synthetic images: how long it takes to make, how large it is, and how fast a browser draws it."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, TypeVar

import numpy as np

from instcls_tf.errors import UserError
from instcls_tf.gallery import layout, neighbours, pages
from instcls_tf.gallery.settings import PCA, GallerySettings

Made = TypeVar("Made")

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Software draws where there is no GPU; a browser that is root's own refuses its sandbox.
_HEADLESS = ("--headless", "--no-sandbox", "--enable-unsafe-swiftshader", "--window-size=1280,900", "--dump-dom")
_BROWSER_SECONDS = 300
_CLUSTERS, _WIDTH, _COARSE = 100, 128, 8


def measure_gallery(num_instances: int, folder: str) -> dict[str, Any]:
    """Writes a gallery of images in 100 clusters, features of 128 numbers, and has Chromium draw it.

    One search for the nearest serves for both lists of an image; a run's gallery makes one for its features and one for
    its class weights.

    Args:
      num_instances: images.
      folder: where the gallery is written, in a folder that is removed afterwards.

    Returns:
      `map_seconds` (PCA), `nearest_seconds`, `duplicates_seconds`, `write_seconds`, `cpu_seconds` of all that, over all
      threads; `bytes`, `files`, and of `browser`
      (None where there is no Chromium): `renderer`, `first_draw_ms` from the beginning of loading, `frame_ms` and
      `slowest_frame_ms` of a frame while the whole map is moved, `near_frame_ms` 8 times nearer; medians of 60 and 30.
    """
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        centres = random.normal(size=[_CLUSTERS, _WIDTH])
        labels = random.integers(0, _CLUSTERS, num_instances).astype(np.int32)
        vectors = (centres[labels] + random.normal(size=[num_instances, _WIDTH])).astype(np.float32)
        thumbnails = _thumbnails(os.path.join(scratch, "thumbnails"), labels, random)
        cpu_before = time.process_time()
        placed, map_seconds = _timed(lambda: layout.lay_out(vectors, PCA, 0))
        nearest, nearest_seconds = _timed(lambda: neighbours.nearest_others(vectors, GallerySettings.neighbors))
        twins, duplicates_seconds = _timed(lambda: neighbours.near_duplicates(nearest, thumbnails))
        exhibit = pages.Exhibit(
            title=f"{num_instances:,} synthetic images",
            about=placed.sentence,
            names=[f"cluster_{label:03d}/image_{i:08d}.jpg" for i, label in enumerate(labels.tolist())],
            places=placed.places,
            thumbnails=thumbnails,
            lists=[pages.Others(key, key, "", nearest.places, nearest.cosines) for key in ("nearest", "weights")],
            ranks=neighbours.outlier_ranks(nearest),
            twins=twins,
            labels=labels,
            class_names=tuple(f"cluster_{label:03d}" for label in range(_CLUSTERS)),
        )
        output = os.path.join(scratch, "gallery")
        size, write_seconds = _timed(lambda: pages.write_gallery(output, exhibit))
        return {
            "num_instances": num_instances,
            "map_seconds": map_seconds,
            "nearest_seconds": nearest_seconds,
            "duplicates_seconds": duplicates_seconds,
            "write_seconds": write_seconds,
            "cpu_seconds": round(time.process_time() - cpu_before, 1),
            "bytes": size,
            "files": sum(len(names) for _, _, names in os.walk(output)),
            "browser": _drawn(output),
        }


def _thumbnails(path: str, labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Smooth noise around the colours of a cluster: about as many bytes as photographs take."""
    size = GallerySettings.thumbnail_size
    pixels = np.memmap(path, np.uint8, "w+", shape=(len(labels), size, size, 3))
    colours = random.integers(0, 256, [_CLUSTERS, _COARSE, _COARSE, 3])
    for first in range(0, len(labels), 1024):
        coarse = colours[labels[first : first + 1024]]
        coarse = (coarse + random.integers(-40, 40, coarse.shape)).clip(3, 252).astype(np.uint8)
        fine = coarse.repeat(size // _COARSE, axis=1).repeat(size // _COARSE, axis=2)
        pixels[first : first + 1024] = fine + random.integers(0, 6, fine.shape, np.uint8) - 3
    return pixels


def _timed(work: Callable[[], Made]) -> tuple[Made, float]:
    started = time.monotonic()
    made = work()
    return made, round(time.monotonic() - started, 2)


def _drawn(output: str) -> dict[str, Any] | None:
    """What the page itself measures in a browser."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        return None
    address = Path(os.path.abspath(output), "index.html").as_uri() + "#measure"
    done = subprocess.run([browser, *_HEADLESS, address], capture_output=True, timeout=_BROWSER_SECONDS)
    found = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout.decode(errors="replace"))
    if found is None:
        raise UserError(f"{browser}: ended with status {done.returncode} and without a drawn map")
    measured = json.loads(html.unescape(found[1]))
    return {
        "renderer": measured["renderer"],
        "first_draw_ms": round(measured["first"]),
        "frame_ms": round(statistics.median(measured["frames"]), 1),
        "slowest_frame_ms": round(max(measured["frames"]), 1),
        "near_frame_ms": round(statistics.median(measured["near"]), 1),
    }
