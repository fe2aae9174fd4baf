"""A set of images with planted copies, for judging what finds duplicates: which copy is of which image is known.

Five kinds of copies, as many of each, of images that are drawn by a seed: encoded anew as a JPEG of quality 60; resized
to 75 or 150 %; cropped to 95 % of both sides at a random place; mirrored; brightened by 30 %. All but the first are
JPEG files of quality 90, so that no copy has the pixels of its original.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from instcls_tf.checks import background_colour
from instcls_tf.data.decoding import DEFAULT_READING
from instcls_tf.data.listing import list_images
from instcls_tf.data.pillow_reading import UnreadableError, read_upright
from instcls_tf.errors import UserError

_CROP = 0.95
_BRIGHTNESS = 1.3


class Planted(NamedTuple):
    """A folder with copies in it."""

    folder: str
    copies: dict[str, tuple[str, str]]  # name of a copy -> its kind, name of its original
    examples: int  # files in all


def _resized(image: Image.Image, random: np.random.Generator) -> Image.Image:
    factor = float(random.choice([0.75, 1.5]))
    return image.resize([max(8, round(side * factor)) for side in image.size], Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, random: np.random.Generator) -> Image.Image:
    width, height = (round(_CROP * side) for side in image.size)
    left, top = random.integers(0, [image.width - width + 1, image.height - height + 1])
    return image.crop((left, top, left + width, top + height))


# What is done to a copy before it is saved as a JPEG.
CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "encoded": lambda image, random: image,
    "resized": _resized,
    "cropped": _cropped,
    "mirrored": lambda image, random: ImageOps.mirror(image),
    "brightened": lambda image, random: ImageEnhance.Brightness(image).enhance(_BRIGHTNESS),
}


def changed_copy(image: Image.Image, kind: str, random: np.random.Generator) -> bytes:
    """The JPEG file of a copy of one of `CHANGES`."""
    file = io.BytesIO()
    CHANGES[kind](image.convert("RGB"), random).save(file, "JPEG", quality=60 if kind == "encoded" else 90)
    return file.getvalue()


def plant(images: str, folder: str, originals: int, copies: int, seed: int = 0) -> Planted:
    """Copies some images of a folder into another one, and puts changed copies of a few of them beside.

    Args:
      images: a folder of images in any nesting.
      folder: receives the files: `CLASS__NAME` of the originals, and `planted_KIND_NUMBER.jpg`.
      originals: how many of the images are taken, drawn by the seed; all if there are fewer.
      copies: how many of them get a copy of each kind; no image gets two.
      seed: of the draws.

    Raises:
      UserError: the folder cannot be read, or there are fewer images than copies.
    """
    try:
        listing = list_images(images)
        paths = [path for place, path in enumerate(listing.paths) if place not in listing.irregular]
    except OSError as error:
        raise UserError(f"--dataset=folder:{images}: cannot be read ({error.strerror})") from error
    wanted = copies * len(CHANGES)
    if min(originals, len(paths)) < wanted:
        raise UserError(f"--dataset=folder:{images}: has {len(paths)} images, wanted at least {wanted} of --images")
    random = np.random.default_rng(seed)
    chosen = sorted(random.choice(len(paths), min(originals, len(paths)), replace=False).tolist())
    os.makedirs(folder)
    names = [paths[place].replace(os.sep, "__") for place in chosen]
    for place, name in zip(chosen, names):
        shutil.copyfile(os.path.join(images, paths[place]), os.path.join(folder, name))
    truth = {}
    drawn = random.choice(len(names), wanted, replace=False).tolist()
    # In the place of what cannot be read; by draws of their own, so that they change no others.
    spare = np.random.default_rng([seed, 1]).permutation(np.setdiff1d(np.arange(len(names)), drawn)).tolist()
    for index, place in enumerate(drawn):
        kind = list(CHANGES)[index % len(CHANGES)]
        name = f"planted_{kind}_{index:03d}.jpg"
        while (image := _read(os.path.join(folder, names[place]))) is None:
            if not spare:
                raise UserError(f"--dataset=folder:{images}: fewer than {wanted} of its images can be read")
            place = spare.pop()
        with open(os.path.join(folder, name), "wb") as file:
            file.write(changed_copy(image, kind, random))
        truth[name] = kind, names[place]
    return Planted(folder, truth, len(names) + len(truth))


def _read(path: str) -> Image.Image | None:
    """An image as a run sees it, upright and on the background; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            background = background_colour(DEFAULT_READING.background)
            return Image.fromarray(read_upright(file, DEFAULT_READING.max_pixels, background))
    except (OSError, UnreadableError):
        return None
