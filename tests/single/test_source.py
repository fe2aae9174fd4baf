"""What all sources answer: digests that stay what they were, names, and whether a run needs a manifest of their ids."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.data.decoding import Reading
from instcls_tf.data.labelled import take
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import open_source
from tests.images import write_images

NAMES = ["train/a/0.png", "train/a/é.png", "train/b/2.png"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "photos", NAMES)
    prepare(f"folder:{folder / 'photos'}", str(folder / "records"), shard_megabytes=1)
    return folder


def identity(folder, path: str) -> bytes:
    status = os.stat(folder / path)
    return f"{path} {status.st_size} {status.st_mtime_ns}\n".encode()


def content(text: str, *parts: bytes) -> str:
    return hashlib.sha256(text.encode() + b"".join(parts)).hexdigest()


def ids(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=8).digest()


def test_digests_are_those_of_the_features_that_are_on_disk(root):
    """Written out, so that no change of the code makes every cached feature and every worker's answer another."""
    digits = open_source("digits")
    assert digits.ids_digest() == ids(b"1437")
    names = "('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')"
    assert digits.content_digest() == content(f"digits 1437 {names}", digits.images.tobytes())

    reading = "Reading(max_pixels=120000000, background='white')"
    folder = open_source(f"folder:{root / 'photos'}")
    files = sorted(name.removeprefix("train/") for name in NAMES)
    assert folder.ids_digest() == ids(b"3", *(file.encode() + b"\0" for file in files))
    parts = [identity(root / "photos" / "train", file) for file in files]
    assert folder.content_digest() == content(f"folder:{root / 'photos'} 3 ('a', 'b') {reading}", *parts)

    records = open_source(f"records:{root / 'records'}")
    shard = "train-00000.tfrecord"
    size = (root / "records" / shard).stat().st_size  # so that exchanged files are seen
    assert records.ids_digest() == ids(b"3", f"{shard} 0 3 {size}\0".encode())
    assert records.content_digest() == content(
        f"records:{root / 'records'} 3 ('a', 'b') {reading}", identity(root / "records", shard)
    )


@pytest.mark.parametrize("dataset", ["folder:~/photos", "records:~/records"])
def test_home_is_expanded_behind_a_prefix(root, monkeypatch, dataset):
    monkeypatch.setenv("HOME", str(root))
    source = open_source(dataset)
    assert source.name == dataset and source.num_instances == 3
    if source.random_access:
        assert source.loader()(tf.constant(0, tf.int64)).shape == [20, 24, 3]
    else:
        assert len(list(source.records(0, 3))) == 3


def test_a_folder_whose_name_is_no_text_has_a_digest(tmp_path):
    photos = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    write_images(Path(photos), NAMES)
    source = open_source(f"folder:{photos}")
    head = f"folder:{photos} 3 ('a', 'b') {source.reading}".encode("utf-8", "surrogateescape")
    parts = [identity(Path(photos), f"train/{path}").removeprefix(b"train/") for path in source.paths]
    assert source.content_digest() == hashlib.sha256(head + b"".join(parts)).hexdigest()


@pytest.mark.parametrize("kind", ["folder:{}/photos", "records:{}/records"])
def test_images_that_are_read_in_another_way_are_others(root, kind):
    readings = [Reading(), Reading(background="black"), Reading(max_pixels=1000)]
    sources = [open_source(kind.format(root), reading=reading) for reading in readings]
    assert len({source.content_digest() for source in sources}) == 3
    assert len({source.ids_digest() for source in sources}) == 1


def test_parts_of_sources_differ_from_the_whole_and_from_each_other(root):
    for dataset in ("digits", f"records:{root / 'records'}"):
        whole = open_source(dataset)
        parts = [whole, take(whole, np.array([0, 1])), take(whole, np.array([1, 2]))]
        for digests in ({part.content_digest() for part in parts}, {part.ids_digest() for part in parts}):
            assert len(digests) == 3


def test_only_files_have_names_and_a_manifest(root, tmp_path):
    folder, records = open_source(f"folder:{root / 'photos'}"), open_source(f"records:{root / 'records'}")
    assert folder.name_of(np.int32(2)) == "b/2.png"
    assert folder.manifest_path("run") == os.path.join("run", "manifest.tsv")
    # A record's id must not be taken for the place of a file of records.
    for source in (records, open_source("digits"), take(records, np.array([0, 2]))):
        assert source.name_of(np.int32(0)) == 0
        assert source.manifest_path("run") is None
        assert source.write_manifest(str(tmp_path)) == ()
        assert not any(source.changes)
    assert not any(tmp_path.iterdir())
