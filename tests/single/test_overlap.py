"""Sources that have images in common, whatever they are called."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from instcls_tf.data.decoding import BadImages
from instcls_tf.data.overlap import common_files, overlapping
from instcls_tf.data.prepare import prepare
from instcls_tf.data.records import Shards
from instcls_tf.data.sources import open_source
from tests.images import write_images


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six photographs, twice as files and once as records, with a link to each of them."""
    folder = tmp_path_factory.mktemp("overlap")
    names = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in range(3)]
    write_images(folder / "photos", names)
    write_images(folder / "others", names)
    prepare(f"folder:{folder}/photos", str(folder / "records"), shard_megabytes=1)
    (folder / "link").symlink_to(folder / "records")
    return folder


def test_files_are_the_same_whatever_leads_to_them(root):
    photos = open_source(f"folder:{root}/photos")
    assert common_files(photos, open_source(f"folder:{root}/photos/train/a")) == [
        f"{root}/photos/train/a/{i}.png" for i in range(3)
    ]
    assert overlapping(photos, open_source(f"folder:{root}/photos/")) == f"{root}/photos/train/a/0.png"
    assert overlapping(photos, open_source(f"folder:{root}/photos", "test")) is None
    assert overlapping(photos, open_source(f"folder:{root}/others")) is None


def test_records_are_the_same_whatever_leads_to_them(root):
    train = open_source(f"records:{root}/records")
    for again in ("records/", "./records", "link"):
        name = overlapping(train, open_source(f"records:{root}/{again}"))
        assert name == f"{train.shards.paths[0]} (records 0 to 5)"
    assert overlapping(train, open_source(f"records:{root}/records", "test")) is None
    assert overlapping(train, open_source(f"folder:{root}/photos")) is None


def of_ranges(*ranges: tuple[str, int, int]) -> Shards:
    paths, skips, counts = zip(*ranges)
    return Shards(paths, np.array(skips, np.int64), np.array(counts, np.int64), BadImages())


@pytest.mark.parametrize(
    ("ranges", "common"),
    [
        ([("/a", 0, 50), ("/b", 0, 50)], ["/a (records 25 to 49)", "/b (records 0 to 9)"]),
        ([("/b", 9, 1)], ["/b (records 9 to 9)"]),
        ([("/a", 0, 25), ("/b", 10, 5), ("/c", 0, 9)], []),
        ([("/a", 40, 0), ("/b", 40, 2)], []),
    ],
)
def test_parts_have_the_records_in_common_that_both_take(root, ranges, common):
    """As `train[:50%]` and `train[25%:]` of TFDS."""
    whole = open_source(f"records:{root}/records")
    one = dataclasses.replace(whole, shards=of_ranges(("/a", 25, 25), ("/b", 0, 10)))
    other = dataclasses.replace(whole, shards=of_ranges(*ranges))
    assert common_files(one, other) == common_files(other, one) == common


def test_the_digits_are_the_same_as_themselves(root):
    digits = open_source("digits")
    assert overlapping(digits, open_source("digits")) == "digits"
    assert overlapping(digits, open_source("digits", "test")) is None
    assert overlapping(digits, open_source(f"folder:{root}/photos")) is None
