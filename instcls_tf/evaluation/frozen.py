"""A frozen encoder: its features in inference mode, and the proof that nothing in it moved."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import tensorflow as tf


class EncoderMovedError(RuntimeError):
    """A variable of an encoder that was to stay frozen has changed: the result would not be a linear evaluation."""


def frozen_features(backbone: tf.keras.Model, images: tf.Tensor) -> tf.Tensor:
    """Features `[b, F]`; in inference mode, because BN would otherwise look at the batch and move its statistics."""
    return backbone(images, training=False)


@contextlib.contextmanager
def stays_frozen(encoder: tf.keras.Model) -> Iterator[None]:
    """Checks at its end that every variable, BN's moving statistics included, is bit for bit what it was.

    Raises:
      EncoderMovedError: names the first variable that changed.
    """
    before = _fingerprints(encoder)
    yield
    for (name, then), (_, now) in zip(before, _fingerprints(encoder)):
        if then != now:
            raise EncoderMovedError(f"the frozen encoder's variable {name} changed during the linear evaluation")


def _fingerprints(encoder: tf.keras.Model) -> list[tuple[str, bytes]]:
    return [(v.name, hashlib.sha256(v.numpy().tobytes()).digest()) for v in encoder.variables]
