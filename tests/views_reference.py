"""SimCLR's views one by one, by Pillow and loops: torchvision's transforms rewritten from their description.

Every function takes the uniform numbers that decide, in the order in which `instcls_tf.data.augment` draws them.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image, ImageEnhance

NUM_DRAWS = 23 + 7 + 2


def crop_box(height: int, width: int, min_area: float, numbers) -> tuple[int, int, int, int]:
    """RandomResizedCrop: (top, left, height, width) by 22 uniform numbers, those of the place at the end."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for area, aspect in zip(numbers[:10], numbers[10:20]):
        area = height * width * (min_area + (1.0 - min_area) * area)
        aspect = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(numbers[20] * (height - h + 1)), int(numbers[21] * (width - w + 1)), h, w
    h, w = height, width
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """In Pillow's HSV, which counts the circle in 256 steps, as torchvision does it."""
    hue, saturation, value = image.convert("HSV").split()
    hue = Image.fromarray((np.asarray(hue).astype(int) + round(turn * 255)).astype(np.uint8))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def jitter(image: Image.Image, strength: float, numbers) -> Image.Image:
    """ColorJitter(0.8 s, 0.8 s, 0.8 s, 0.2 s) with probability 0.8, then greyscale with 0.2, by seven numbers."""
    apply, *values, hue, order, grey = numbers
    if apply < 0.8:
        low, high = max(0.0, 1.0 - 0.8 * strength), 1.0 + 0.8 * strength
        brightness, contrast, saturation = (low + (high - low) * value for value in values)
        changes = [
            lambda image: ImageEnhance.Brightness(image).enhance(brightness),
            lambda image: ImageEnhance.Contrast(image).enhance(contrast),
            lambda image: ImageEnhance.Color(image).enhance(saturation),
            lambda image: turn_hue(image, 0.2 * strength * (2.0 * hue - 1.0)),
        ]
        for index in list(itertools.permutations(range(4)))[int(order * 24)]:
            image = changes[index](image)
    return image.convert("L").convert("RGB") if grey < 0.2 else image


def jitter_unrounded(image: Image.Image, strength: float, numbers) -> np.ndarray:
    """The same in fractions, clipped after each change: Pillow drops what is behind the point each time."""
    apply, *values, hue, order, grey = numbers
    pixels = np.asarray(image, np.float64)
    luma = np.array([0.299, 0.587, 0.114])
    if apply < 0.8:
        low, high = max(0.0, 1.0 - 0.8 * strength), 1.0 + 0.8 * strength
        brightness, contrast, saturation = (low + (high - low) * value for value in values)

        def turn(pixels):
            hsv = rgb_to_hsv(pixels / 255.0)
            hsv[..., 0] = (hsv[..., 0] + 0.2 * strength * (2.0 * hue - 1.0)) % 1.0
            return 255.0 * hsv_to_rgb(hsv)

        changes = [
            lambda pixels: brightness * pixels,
            lambda pixels: contrast * pixels + (1.0 - contrast) * (pixels @ luma).mean(),
            lambda pixels: saturation * pixels + (1.0 - saturation) * (pixels @ luma)[..., None],
            turn,
        ]
        for index in list(itertools.permutations(range(4)))[int(order * 24)]:
            pixels = np.clip(changes[index](pixels), 0.0, 255.0)
    return np.repeat((pixels @ luma)[..., None], 3, axis=-1) if grey < 0.2 else pixels


def blur(pixels: np.ndarray, probability: float, numbers) -> np.ndarray:
    """A Gaussian of a tenth of the side, weights normalised within the image, by two numbers."""
    if numbers[0] >= probability:
        return pixels
    side = len(pixels)
    sigma, radius = 0.1 + 1.9 * numbers[1], max(1, side // 20)
    distance = np.arange(side)[:, None] - np.arange(side)
    band = np.exp(-(distance**2) / (2.0 * sigma**2)) * (np.abs(distance) <= radius)
    band /= band.sum(axis=1, keepdims=True)
    return np.einsum("ij,kl,jlc->ikc", band, band, pixels, optimize=True)


def view(
    image: np.ndarray, size: int, numbers, *, min_area: float, strength: float, blur_probability: float, jitter=jitter
):
    """One view `[size, size, 3]` of an image `[H, W, 3]` uint8, by 32 uniform numbers."""
    top, left, height, width = crop_box(*image.shape[:2], min_area, numbers[:22])
    picture = Image.fromarray(image[top : top + height, left : left + width])
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    if numbers[22] < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = jitter(picture, strength, numbers[23:30])
    return blur(np.asarray(picture, np.float64), blur_probability, numbers[30:])
