"""Hashes and tiny pictures of images: of those that can be read, and without a copy of them all in Python's objects."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
from PIL import Image

from instcls_tf.data.decoding import BadImages
from instcls_tf.data.sources import open_source
from instcls_tf.data.squares import Square
from instcls_tf.search import signatures


def test_unreadable_images_have_no_signature(tmp_path):
    for name in "abc":
        Image.new("RGB", (9, 7), (50, 60, 70)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    made = signatures.signatures_of(open_source(f"folder:{tmp_path}"))
    assert made.ids.tolist() == [0, 2]
    assert made.sizes.tolist() == [[7, 9], [7, 9]]
    assert [(part.dtype, part.shape[1:]) for part in made] == [
        (np.int32, ()), (np.int8, (64,)), (np.int8, (64,)), (np.uint8, (16, 16)), (np.int32, (2,)),
    ]  # fmt: skip


def test_they_are_filled_into_their_arrays(monkeypatch):
    count = 500
    monkeypatch.setattr(
        signatures,
        "squares_of",
        lambda source, ids, side: (Square(place, np.zeros([8, 8, 3], np.uint8), 80_000, 8) for place in ids.tolist()),
    )
    monkeypatch.setattr(signatures, "hash_of", lambda library, pixels: np.ones([64], np.int8))
    source = SimpleNamespace(num_instances=count, name="dark", bad=BadImages())
    tracemalloc.start()
    made = signatures.signatures_of(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.ids.tolist() == [*range(count)] and made.sizes.tolist() == [[80_000, 8]] * count
    assert peak < 3.5 * sum(part.nbytes for part in made)
