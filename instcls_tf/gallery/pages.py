"""A gallery as files: one page, and beside it its data as local scripts and its thumbnails as sheets of many.

Pages that are opened from the disk may load scripts and pictures that lie beside them, and fetch nothing else. Names
come from files: they are written as JSON in ASCII, without any `<`, and the page makes text of them, never markup.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from instcls_tf import files, stamps
from instcls_tf.errors import UserError, shown
from instcls_tf.gallery.layout import along_a_curve
from instcls_tf.gallery.neighbours import NEAR_COSINE, NEAR_PIXELS, Twins

_ASSETS = ("index.html", "gallery.css", "points.js", "gallery.js")
_FOLDERS = ("data", "sprites")
# What the list of a gallery's data begins with, and all files that a gallery has.
_SET = "GALLERY.set("
_ENTRIES = re.compile("|".join([*map(re.escape, _ASSETS), r"data/(set|(names|lists)-\d+)\.js", r"sprites/\d+\.jpg"]))
# Images whose names and lists are in one file, pixels a side of a sheet, and pairs that the page lists.
_SHARD, _SHEET_PIXELS, _LISTED_PAIRS = 2048, 2048, 2000
_JPEG_QUALITY = 80
_NOBODY = 2**32 - 1


class Others(NamedTuple):
    """One list of other images for each image."""

    key: str
    title: str
    hint: str
    places: np.ndarray  # [n, k] int32, the nearest first; -1: nobody
    cosines: np.ndarray | None = None  # [n, k] float32


class Exhibit(NamedTuple):
    """What a gallery shows of n images; all arrays in one order."""

    title: str
    about: str
    names: list[str]
    places: np.ndarray  # [n, 2] float32 in 0 .. 1
    thumbnails: np.ndarray  # [n, S, S, 3] uint8
    lists: list[Others]
    ranks: np.ndarray  # [n] uint32, see `neighbours.outlier_ranks`
    twins: Twins
    labels: np.ndarray | None = None  # [n] int32, -1 if unknown
    class_names: tuple[str, ...] | None = None


def refuse_unfit(output: str) -> None:
    """Refuses to write a gallery where something else is, or where nothing can be written.

    Raises:
      UserError: names the folder.
    """
    _refuse_others(output)
    parent = os.path.dirname(os.path.realpath(output))
    try:
        os.makedirs(parent, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(dir=parent, prefix=files.scratch_prefix(parent)))
    except OSError as error:
        raise UserError(f"--output={shown(output)}: cannot be written ({error.strerror})") from error


def _refuse_others(output: str) -> None:
    """A gallery is replaced as a whole: nothing else may be where it is, nor inside it."""
    if not files.is_there(output, follow_links=False) or (os.path.isdir(output) and not os.listdir(output)):
        return
    if not _is_set(os.path.join(output, "data", "set.js")):
        raise UserError(f"--output={shown(output)}: exists and is no gallery, name a new folder")
    for folder, folders, names in os.walk(output):
        below = [os.path.relpath(os.path.join(folder, name), output) for name in sorted(names)]
        foreign = [name for name in below if not _ENTRIES.fullmatch(name)]
        foreign += [name for name in sorted(folders) if folder != output or name not in _FOLDERS]
        if foreign:
            raise UserError(
                f"--output={shown(output)}: is a gallery with {shown(foreign[0])}, which is none of its own files, take"
                f" that away or name a new folder"
            )


def _is_set(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(_SET)) == _SET.encode()
    except OSError:
        return False


def write_gallery(output: str, exhibit: Exhibit) -> int:
    """Writes a gallery; one that is there stays until this one is complete.

    Args:
      output: the folder.
      exhibit: what is shown.

    Returns:
      The bytes of all its files.

    Raises:
      UserError: it cannot be written, or what is there is not a gallery alone.
    """
    parent = os.path.dirname(os.path.realpath(output))
    try:
        scratch = tempfile.mkdtemp(dir=parent, prefix=files.scratch_prefix(parent))
        try:
            _write(scratch, exhibit)
            os.chmod(scratch, 0o755)  # mkdtemp's folders are private
            _refuse_others(output)  # what has come since the beginning
            _take_the_name(scratch, os.path.realpath(output))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return sum(
            os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(output) for name in names
        )
    except OSError as error:  # of Pillow without a `strerror`
        raise UserError(f"--output={shown(output)}: cannot be written ({error.strerror or error})") from error


def _take_the_name(scratch: str, output: str) -> None:
    old = f"{scratch}-old"
    try:
        if os.path.lexists(output):
            os.rename(output, old)
        os.rename(scratch, output)
    finally:  # also where a signal comes between
        if files.is_there(old) and not files.is_there(output):
            os.rename(old, output)
        shutil.rmtree(old, ignore_errors=True)


def _write(folder: str, exhibit: Exhibit) -> None:
    for name in _FOLDERS:
        os.mkdir(os.path.join(folder, name))
    assets = resources.files("instcls_tf.gallery") / "assets"
    for name in _ASSETS:
        _write_bytes(os.path.join(folder, name), (assets / name).read_bytes())
    order = along_a_curve(exhibit.places)  # the page's image j is image order[j]
    side = _cells_of_a_side(exhibit.thumbnails)
    _write_sheets(folder, exhibit.thumbnails, order, side)
    for first, images in _shards(order):
        shard = first // _SHARD
        names = [shown(exhibit.names[i]) for i in images.tolist()]
        _write_script(folder, f"names-{shard:05d}", "names", shard, names)
        _write_script(folder, f"lists-{shard:05d}", "lists", shard, _lists(exhibit.lists, images, _page_of(order)))
    _write_script(folder, "set", "set", _set(exhibit, order, side))


def _shards(order: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(0, len(order), _SHARD):
        stamps.stamp("gallery", first, len(order))
        yield first, order[first : first + _SHARD]


def _page_of(order: np.ndarray) -> np.ndarray:
    """Which of the page's images an image is; for image -1 nobody."""
    page = np.empty([len(order) + 1], np.uint32)
    page[order], page[-1] = np.arange(len(order), dtype=np.uint32), _NOBODY
    return page


def _lists(lists: list[Others], images: np.ndarray, page: np.ndarray) -> dict[str, dict]:
    found = {}
    for one in lists:
        cosines = None if one.cosines is None else np.rint(one.cosines[images].clip(-1, 1) * 32767).astype("<i2")
        found[one.key] = {
            "k": one.places.shape[1],
            "ids": _base64(page[one.places[images]].astype("<u4")),
            "cosines": None if cosines is None else _base64(cosines),
        }
    return found


def _set(exhibit: Exhibit, order: np.ndarray, side: int) -> dict[str, Any]:
    page = _page_of(order)
    listed = zip(exhibit.twins.pairs[:_LISTED_PAIRS].tolist(), exhibit.twins.cosines[:_LISTED_PAIRS].tolist())
    pairs = [[int(page[first]), int(page[second]), round(cosine, 4)] for (first, second), cosine in listed]
    labels, classes = exhibit.labels, exhibit.class_names
    return {
        "title": exhibit.title,
        "about": exhibit.about,
        "images": len(order),
        "shard": _SHARD,
        "thumbnail": {"size": exhibit.thumbnails.shape[1], "columns": side, "rows": side},
        "places": _base64(np.rint(exhibit.places[order] * 65535).astype("<u2")),
        "labels": None if labels is None or classes is None else _base64(labels[order].astype("<u4")),
        "classes": None if labels is None or classes is None else [shown(name) for name in classes],
        "ranks": _base64(exhibit.ranks[order].astype("<u4")),
        "outlier_hint": "The images that are least like their most similar other one, the first the least.",
        "duplicates": {
            "count": len(exhibit.twins.pairs),
            "pairs": pairs,
            "hint": f"The cosine of their features is at least {NEAR_COSINE:g}, and their thumbnails agree"
            f" (correlation at least {NEAR_PIXELS:g}); looked for among the nearest of each image.",
        },
        "lists": [{"key": one.key, "title": one.title, "hint": one.hint} for one in exhibit.lists],
    }


def _cells_of_a_side(thumbnails: np.ndarray) -> int:
    return max(1, min(_SHEET_PIXELS // thumbnails.shape[1], math.ceil(math.sqrt(len(thumbnails)))))


def _write_sheets(folder: str, thumbnails: np.ndarray, order: np.ndarray, side: int) -> None:
    for number, first in enumerate(range(0, len(order), side * side)):
        stamps.stamp("thumbnails", first, len(order))
        sheet = Image.fromarray(sheet_of(thumbnails[order[first : first + side * side]], side))
        sheet.save(os.path.join(folder, "sprites", f"{number:05d}.jpg"), quality=_JPEG_QUALITY)


def sheet_of(thumbnails: np.ndarray, side: int) -> np.ndarray:
    """Images beside and below each other: `[m, S, S, 3]` as `[side S, side S, 3]`, black where there are no more."""
    count, size = thumbnails.shape[:2]
    cells = np.zeros([side * side, size, size, 3], np.uint8)
    cells[:count] = thumbnails
    return cells.reshape(side, side, size, size, 3).swapaxes(1, 2).reshape(side * size, side * size, 3)


def _write_script(folder: str, name: str, call: str, *arguments: Any) -> None:
    """A script that hands data to the page, in ASCII and without `<`: nothing in it ends a script or begins markup."""
    text = ", ".join(json.dumps(argument) for argument in arguments).replace("<", "\\u003c")
    _write_bytes(os.path.join(folder, "data", f"{name}.js"), f"GALLERY.{call}({text});\n".encode("ascii"))


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")


def _write_bytes(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
