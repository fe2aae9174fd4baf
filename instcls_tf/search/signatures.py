"""What is kept of each image to find copies of it: a perceptual hash, mirrored as well, and a tiny grey picture."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from instcls_tf.data.source import Source
from instcls_tf.data.squares import squares_of
from instcls_tf.distributed import collectives
from instcls_tf.errors import UserError
from instcls_tf.evaluation.features import refuse_damage
from instcls_tf.progress import OnProgress, no_progress
from instcls_tf.search.verify import SIDE

HASH_BITS = 64
_TINY = 16


class Signatures(NamedTuple):
    """Of the images that can be read, in the order of their ids."""

    ids: np.ndarray  # [n] int32
    hashes: np.ndarray  # [n, 64] int8 of -1 and 1: the product of two is 64 less twice the bits that differ
    mirrored_hashes: np.ndarray  # [n, 64] int8
    tiny: np.ndarray  # [n, 16, 16] uint8
    sizes: np.ndarray  # [n, 2] int32, height and width in pixels


def hashing() -> Any:
    """The library of perceptual hashes.

    Raises:
      UserError: it is not installed.
    """
    try:
        import imagehash
    except ImportError as error:
        raise UserError("duplicates needs the package ImageHash: pip install 'instcls-tf[find]'") from error
    return imagehash


def signatures_of(source: Source, progress: OnProgress = no_progress) -> Signatures:
    """Reads all images once; the workers share them out, and each gets the whole.

    Args:
      source: the images.
      progress: called with a stage's name, images done and images in all.

    Raises:
      UserError: the library of hashes is missing, or a record file is damaged.
    """
    library = hashing()
    begin, end = collectives.own_bounds(source.num_instances)
    own, count = _empty(end - begin), 0
    for square in squares_of(source, np.arange(begin, end), SIDE):
        hashes = [hash_of(library, pixels) for pixels in (square.pixels, square.pixels[:, ::-1])]
        row = square.instance_id, *hashes, tiny_of(square.pixels), (square.height, square.width)
        for part, value in zip(own, row):
            part[count] = value
        count += 1
        progress(f"hashes of {source.name}", square.instance_id + 1 - begin, end - begin)
    refuse_damage(source)
    return Signatures(*(collectives.all_gather(tf.constant(part[:count]), "signatures").numpy() for part in own))


def _empty(count: int) -> Signatures:
    """To be filled: a list of each image's values would take three times as much."""
    return Signatures(
        np.empty([count], np.int32),
        np.empty([count, HASH_BITS], np.int8),
        np.empty([count, HASH_BITS], np.int8),
        np.empty([count, _TINY, _TINY], np.uint8),
        np.empty([count, 2], np.int32),
    )


def hash_of(library: Any, pixels: np.ndarray) -> np.ndarray:
    """The 64 bits of ImageHash's `phash` (the signs of the lowest frequencies of a cosine transform) as -1 and 1."""
    return np.where(library.phash(Image.fromarray(pixels)).hash.ravel(), 1, -1).astype(np.int8)


def tiny_of(pixels: np.ndarray) -> np.ndarray:
    """The grey picture, uint8 `[16, 16]`."""
    return np.asarray(Image.fromarray(pixels).convert("L").resize((_TINY, _TINY), Image.Resampling.BILINEAR))
