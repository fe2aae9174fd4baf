"""Whether two images are the same picture, judged by their pixels.

One of the two may be encoded anew, resized, cut by a few per cent at its borders, mirrored, or made brighter or darker.
Both are squares of `SIDE` pixels. One is moved and scaled until it lies on the other (Gauss-Newton on the squared
difference of the two, with gain and offset of the brightness fitted beside: Lucas and Kanade 1981), and then compared
where they overlap, by the structure within small windows (the last factor of SSIM, Wang et al. 2004), which knows no
brightness, and by the colours of all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

SIDE = 64
# Blur in pixels, of what is aligned and of what is compared: nearest neighbours of different grids, and the noise of
# an encoder, must not count.
_ALIGNED_BLUR, _COMPARED_BLUR = 2.0, 1.0
_STEPS = 12
_AS_IT_IS = np.zeros(4, np.float32)
_SURE = 0.95
# After so many steps, pictures that do not go together at least so much will not.
_LOOKED_AT, _HOPELESS = 3, 0.85
# Largest scale, and move as a share of the side, of a copy that was cut at its borders.
_LARGEST_SCALE, _LARGEST_MOVE = 0.15, 0.12
_WINDOW = 7
# SSIM's constant for pixels in 0..255: windows of less contrast are alike.
_FLAT = (0.03 * 255) ** 2
# From here on a channel may have been cut off; brightness is fitted where none was, if that is a share of the image.
_WHITE, _ENOUGH = 245, 0.2
# Deviation of a channel below which an image is of one tone; two of those are alike if their tones differ by less.
_ONE_TONE = 4.0


class Verdict(NamedTuple):
    """How much two images are the same picture."""

    similarity: float  # 1 for the same, around 0 for others
    is_mirrored: bool


def compare(first: np.ndarray, second: np.ndarray, orientations: Sequence[bool] = (False, True)) -> Verdict:
    """How much two images are the same picture, in the best of some orientations.

    Args:
      first, second: uint8 `[SIDE, SIDE, 3]`.
      orientations: whether one of them is mirrored, for each comparison.
    """
    found = [
        Verdict(_similarity(first, second[:, ::-1] if is_mirrored else second), is_mirrored)
        for is_mirrored in orientations
    ]
    return max(found, key=lambda verdict: verdict.similarity)


def _similarity(first: np.ndarray, second: np.ndarray) -> float:
    fixed, moving = (image.astype(np.float32) for image in (first, second))
    if max(fixed.std(axis=(0, 1)).max(), moving.std(axis=(0, 1)).max()) < _ONE_TONE:
        return float(np.abs(fixed.mean(axis=(0, 1)) - moving.mean(axis=(0, 1))).max() < _ONE_TONE)
    place = _align(_grey(fixed, _ALIGNED_BLUR), _grey(moving, _ALIGNED_BLUR))
    if place is None:
        return 0.0
    fixed, moving = (ndimage.gaussian_filter(image, (_COMPARED_BLUR, _COMPARED_BLUR, 0)) for image in (fixed, moving))
    found = _similarity_at(place, fixed, moving)
    # Where much is cut off at white, the borders of that lead the alignment astray.
    return found if found > _SURE else max(found, _similarity_at(_AS_IT_IS, fixed, moving))


def _similarity_at(place: np.ndarray, fixed: np.ndarray, moving: np.ndarray) -> float:
    moved = np.stack([_sampled(moving[..., channel], place) for channel in range(3)], axis=-1)
    inside = _is_inside(place)
    bright, dark = (fixed, moved) if fixed[inside].mean() > moved[inside].mean() else (moved, fixed)
    dark = _brightened(dark, bright, inside)
    colours = _correlation(bright[inside], dark[inside])
    return min(colours, _structure(bright.mean(axis=-1), dark.mean(axis=-1), inside))


def _brightened(dark: np.ndarray, bright: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The darker image `[SIDE, SIDE, 3]` as bright as the other, which has lost what would be brighter than white."""
    whole = inside & (bright.max(axis=-1) < _WHITE)
    whole = whole if whole.sum() > _ENOUGH * inside.sum() else inside
    gain, offset = _brightness(dark[whole].ravel(), bright[whole].ravel())
    return np.clip(gain * dark + offset, 0, 255)


def _grey(image: np.ndarray, blur: float) -> np.ndarray:
    return ndimage.gaussian_filter(image.mean(axis=-1), blur)


# Coordinates of the pixels, -1 to 1 over the square.
_Y, _X = np.meshgrid(*[np.linspace(-1, 1, SIDE, dtype=np.float32)] * 2, indexing="ij")


def _coordinates(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in the moving image, in pixels, each pixel of the fixed one is; `place`: moves and scales along y and x."""
    move_y, move_x, scale_y, scale_x = place
    half = (SIDE - 1) / 2
    return (_Y * (1 + scale_y) + move_y + 1) * half, (_X * (1 + scale_x) + move_x + 1) * half


def _sampled(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(image, _coordinates(place), order=1, mode="nearest")


def _is_inside(place: np.ndarray) -> np.ndarray:
    rows, columns = _coordinates(place)
    return (rows >= 0) & (rows <= SIDE - 1) & (columns >= 0) & (columns <= SIDE - 1)


def _align(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
    """The place `[4]` at which the moving image lies on the fixed one; None if they are soon seen to be two."""
    place = np.zeros(4, np.float32)
    for step_number in range(_STEPS):
        moved = _sampled(moving, place)
        down, right = np.gradient(moved, 2 / (SIDE - 1))
        inside = _is_inside(place)
        if step_number == _LOOKED_AT and _correlation(fixed[inside], moved[inside]) < _HOPELESS:
            return None
        gain, offset = _brightness(moved[inside], fixed[inside])
        slopes = [gain * down, gain * right, gain * down * _Y, gain * right * _X, moved, np.ones_like(moved)]
        columns = np.stack([slope[inside] for slope in slopes], axis=1)  # [P, 6]
        missing = fixed[inside] - gain * moved[inside] - offset
        normal = columns.T @ columns
        step = np.linalg.solve(normal + 1e-3 * np.diag(np.diag(normal) + 1e-6), columns.T @ missing)[:4]
        place = np.clip(place + step, *_LIMITS)
        if np.abs(step).max() < 0.1 / SIDE:
            break
    return place


_LIMITS = np.array([[-2 * _LARGEST_MOVE] * 2 + [-_LARGEST_SCALE] * 2, [2 * _LARGEST_MOVE] * 2 + [_LARGEST_SCALE] * 2])


def _brightness(moved: np.ndarray, fixed: np.ndarray) -> tuple[float, float]:
    """Gain and offset with which one lies nearest to the other."""
    centred = moved - moved.mean()
    gain = float(centred @ (fixed - fixed.mean()) / (centred @ centred + 1e-6))
    return gain, float(fixed.mean() - gain * moved.mean())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, over all pixels and channels together; images of one colour are alike."""
    first, second = (values.ravel() - values.mean() for values in (first, second))
    energy = (first @ first + _FLAT) * (second @ second + _FLAT)
    return float((first @ second + _FLAT) / np.sqrt(energy))


def _structure(first: np.ndarray, second: np.ndarray, inside: np.ndarray) -> float:
    """The mean over windows of how their deviations from the window's mean go together; of contrast, only if low."""

    def mean(values: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(values, _WINDOW)

    means = mean(first), mean(second)
    of_first, of_second = mean(first * first) - means[0] ** 2, mean(second * second) - means[1] ** 2
    together = mean(first * second) - means[0] * means[1]
    similarity = (together + _FLAT / 2) / (np.sqrt(np.maximum(of_first * of_second, 0)) + _FLAT / 2)
    return float(similarity[inside].mean())
