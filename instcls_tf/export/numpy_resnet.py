"""A ResNet in NumPy, built from the names and shapes of torchvision's weights alone.

It is what exports are compared with where PyTorch is not installed. Nothing here comes from `encoder.networks`, so that
a mistake there does not hide one in the export.
"""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]
_EPSILON = 1e-5


def features(arrays: Arrays, images: np.ndarray) -> np.ndarray:
    """The average-pooled output of the last stage, BN in inference mode.

    Args:
      arrays: torchvision's names to weights.
      images: float32 `[b, 3, h, w]`, mean and deviation taken out.

    Returns:
      float32 `[b, F]`.
    """
    stride = 2 if arrays["conv1.weight"].shape[-1] == 7 else 1  # a small stem has 3 x 3 and no pooling
    x = np.maximum(_norm(_conv(images, arrays["conv1.weight"], stride), arrays, "bn1"), 0)
    if stride == 2:
        x = _max_pool(x)
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in arrays:
            x = _block(x, arrays, f"layer{stage}.{block}", stride=2 if stage > 1 and block == 0 else 1)
            block += 1
    return x.mean(axis=(2, 3))


def _block(x: np.ndarray, arrays: Arrays, name: str, stride: int) -> np.ndarray:
    is_bottleneck = f"{name}.conv3.weight" in arrays
    strides = (1, stride, 1) if is_bottleneck else (stride, 1)  # v1.5: the stride is in the 3 x 3
    y = x
    for place, own in enumerate(strides, start=1):
        y = _norm(_conv(y, arrays[f"{name}.conv{place}.weight"], own), arrays, f"{name}.bn{place}")
        if place < len(strides):
            y = np.maximum(y, 0)
    if f"{name}.downsample.0.weight" in arrays:
        x = _norm(_conv(x, arrays[f"{name}.downsample.0.weight"], stride), arrays, f"{name}.downsample.1")
    return np.maximum(x + y, 0)


def _conv(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """[b, c, h, w] with [o, c, k, k], padded by k // 2."""
    size = weight.shape[-1]
    windows = _windows(np.pad(x, [(0, 0), (0, 0), (size // 2, size // 2), (size // 2, size // 2)]), size, stride)
    batch, _, height, width = windows.shape[:4]
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch * height * width, -1)
    product = columns @ weight.reshape(len(weight), -1).T
    return product.reshape(batch, height, width, -1).transpose(0, 3, 1, 2)


def _windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """[b, c, h, w, size, size] without copying."""
    # NumPy's types know no tuple of axes.
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))  # type: ignore[call-overload]
    return view[:, :, ::stride, ::stride]


def _norm(x: np.ndarray, arrays: Arrays, name: str) -> np.ndarray:
    scale = arrays[f"{name}.weight"] / np.sqrt(arrays[f"{name}.running_var"] + np.float32(_EPSILON))
    shift = arrays[f"{name}.bias"] - arrays[f"{name}.running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def _max_pool(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    return _windows(padded, 3, 2).max(axis=(4, 5))
