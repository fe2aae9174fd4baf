"""The self-check of an export: images made by a formula, and what the network gave for them when it was exported.

It needs NumPy and a runtime of the format, nothing else of this project:

  python -m instcls_tf.export.self_check exported/photos

The model card holds the vectors. Its images are the same everywhere, since integers make them.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NamedTuple

import numpy as np

from instcls_tf.errors import UserError, shown

CARD_NAME = "model_card.json"
# Folders of a SavedModel where its own tools leave other files alone.
_CARD_PLACES = (CARD_NAME, os.path.join("assets.extra", CARD_NAME))
# Of float32 in another order of sums; a wrong pixel, weight or padding is a hundred times as much.
TOLERANCE = 1e-5


class DifferentError(UserError):
    """An export that computes something else than it did when it was written."""

    status = 1


class Result(NamedTuple):
    """How near a runtime comes to what was exported."""

    format: str
    runtime: str  # with its version
    metric: str  # see `METRICS`
    error: float  # the largest
    tolerance: float
    images: int


def texture(height: int, width: int) -> np.ndarray:
    """An image of slopes and texture that is the same on every machine, uint8 `[height, width, 3]`."""
    y, x, colour = np.ogrid[:height, :width, :3]
    slope = 5 * x * (colour + 1) // 4 + 3 * y
    fine = (x * x + 7 * y * (colour + 2) + x * y) % 61
    return ((slope + fine + 40 * colour) % 256).astype(np.uint8)


def blocks(height: int, width: int, seed: int) -> np.ndarray:
    """An image of about 4 x 5 blocks of one colour each, uint8 `[height, width, 3]`.

    Resized, it has few different values, of which none need lie just between two levels: there, sums in another order
    would be rounded to the other level, and a whole level of one pixel is more than the tolerance.
    """
    y, x, colour = np.ogrid[:height, :width, :3]
    row, column = 4 * y // height, 5 * x // width
    return ((97 * row + 59 * column + 31 * row * column + (83 + 2 * seed) * colour + 17 * seed) % 256).astype(np.uint8)


def image_of(case: dict) -> np.ndarray:
    """The image of a case, uint8 `[1, h, w, 3]`."""
    height, width = case["shape"]
    seed = case.get("blocks")
    return (texture(height, width) if seed is None else blocks(height, width, seed))[None]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest deviation in a row as a fraction of that row's largest number; the worst of all rows.

    An absolute tolerance would say little: features of a network may lie around 0.01 or around 10.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    scale = np.maximum(np.abs(expected).max(axis=-1), np.finfo(np.float32).tiny)
    return float((np.abs(found - expected).max(axis=-1) / scale).max())


def cosine_distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest 1 - cosine of two rows: for formats that round weights to few bits."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return float((1 - (found * expected).sum(axis=-1) / np.maximum(lengths, np.finfo(np.float32).tiny)).max())


RELATIVE_ERROR, COSINE_DISTANCE = "relative error", "1 - cosine"
METRICS = {RELATIVE_ERROR: relative_error, COSINE_DISTANCE: cosine_distance}


def read_card(folder: str) -> dict:
    """The model card of an export.

    Raises:
      UserError: there is none, or it cannot be understood.
    """
    for place in _CARD_PLACES:
        path = os.path.join(folder, place)
        if os.path.isfile(path):
            try:
                with open(path, encoding="utf-8") as file:
                    card = json.load(file)
                if {"format", "self_check", "input", "tolerance"} <= card.keys() and card.get("metric") in METRICS:
                    return card
            except (OSError, ValueError, AttributeError) as error:
                raise UserError(f"{shown(path)}: cannot be read as a model card ({error})") from error
            raise UserError(f"{shown(path)}: is no model card of an export")
    raise UserError(f"{shown(folder)}: holds no export ({CARD_NAME} is missing)")


def run(folder: str, runtime: str = "") -> Result:
    """Repeats the self-check of an export in a runtime of its format.

    Args:
      folder: the export.
      runtime: its name, see `names.RUNTIMES`; empty for the first that is installed.

    Raises:
      UserError: there is no export, no runtime for it, or the runtime does not load it.
    """
    from instcls_tf.export import runtimes

    card = read_card(folder)
    name, version, model = runtimes.open_model(folder, card, runtime)
    error = max(compare(model, card))
    return Result(
        card["format"], f"{name} {version}", card["metric"], error, card["tolerance"], len(card["self_check"])
    )


def compare(model: Any, card: dict) -> list[float]:
    """The errors of a model, one for each output of each case.

    Args:
      model: from uint8 `[1, h, w, 3]` to outputs by name; those that it has not are not compared.
      card: its `self_check` has `shape`, seed of the `blocks` if it is not a texture, and vectors of each image;
        formats without preprocessing are shown images of the right size only.

    Raises:
      UserError: nothing could be compared.
    """
    errors = []
    distance, about = METRICS[card["metric"]], card["input"]
    for case in card["self_check"]:
        height, width = case["shape"]
        if not about["any_size"] and (height, width) != tuple(about["size"]):
            continue
        outputs = model(image_of(case))
        names = [name for name in ("features", "projection") if name in outputs and name in case]
        errors += [distance(outputs[name], np.array([case[name]])) for name in names]
    if not errors:
        raise UserError("the self-check of this export compares nothing")
    return errors


def described(result: Result) -> str:
    """One line for people."""
    verdict = "as exported" if result.error <= result.tolerance else "NOT as exported"
    return (
        f"{result.format} in {result.runtime}: {verdict}, largest {result.metric} {result.error:.1e}"
        f" (at most {result.tolerance:.0e}) over {result.images} image(s)"
    )


def refuse_difference(result: Result) -> None:
    """Ends a check that did not find what was exported.

    Raises:
      DifferentError: the error is above the tolerance.
    """
    if not result.error <= result.tolerance:
        raise DifferentError(described(result))


def main(arguments: list[str]) -> int:
    """The check as a program: one line, and 0 if the export does what it did."""
    try:
        if not 1 <= len(arguments) <= 2:
            raise UserError("wanted the folder of an export, and perhaps the name of a runtime")
        result = run(*arguments)
        refuse_difference(result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    print(described(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
