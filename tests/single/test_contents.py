"""Images are known again by their bytes, whatever they are called and wherever they lie."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest

from instcls_tf.data import contents
from instcls_tf.data import prepare as prepare_module
from instcls_tf.data.labelled import take
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from instcls_tf.pretraining.growth import note_of_copies
from tests.images import write_images

NAMES = ["a.png", "b/c.png", "b/d.jpg"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "photos", NAMES)
    prepare(f"folder:{folder / 'photos'}", str(folder / "records"), shard_megabytes=1)
    return folder


def digest_of(content: bytes) -> list[int]:
    return np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint64).tolist()


def hashes_of(source) -> list[list[int]]:
    return contents.hashes_of(source, 0, source.num_instances).tolist()


def test_the_hash_is_that_of_the_bytes_of_a_file_in_a_folder_and_in_records(root):
    of_folder = [digest_of((root / "photos" / name).read_bytes()) for name in NAMES]
    of_records = [of_folder[i] for i in prepare_module._order(len(NAMES))]
    assert of_records != of_folder
    folder, records = open_source(f"folder:{root / 'photos'}"), open_source(f"records:{root / 'records'}")
    for whole, expected in ((folder, of_folder), (records, of_records)):
        assert hashes_of(whole) == expected
        assert contents.hashes_of(whole, 1, 3).tolist() == expected[1:]
        assert hashes_of(take(whole, np.array([0, 2]))) == [expected[0], expected[2]]


def test_more_images_than_are_read_at_once(root, monkeypatch):
    monkeypatch.setattr(contents, "_AT_ONCE", 2)
    monkeypatch.setattr(contents, "_RECORDS_AT_ONCE", 2)
    expected = [digest_of((root / "photos" / name).read_bytes()) for name in NAMES]
    assert hashes_of(open_source(f"folder:{root / 'photos'}")) == expected
    of_records = [expected[i] for i in prepare_module._order(len(NAMES))]
    assert hashes_of(open_source(f"records:{root / 'records'}")) == of_records


def test_digits_are_known_by_their_pixels():
    digits = open_source("digits")
    assert hashes_of(take(digits, np.array([5, 9]))) == [digest_of(digits.images[i].tobytes()) for i in (5, 9)]


def test_what_cannot_be_read_is_known_to_nobody(tmp_path):
    write_images(tmp_path, ["a.png", "d.png"])
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "c.png")  # reading it would wait for ever
    hashes = contents.hashes_of(open_source(f"folder:{tmp_path}"), 0, 4)
    assert [hash_of.any() for hash_of in hashes] == [True, False, False, True]
    assert contents.known_ids(hashes, hashes).tolist() == [0, -1, -1, 3]


def random_hashes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**63, [count, 2], dtype=np.uint64)


def test_moved_new_and_gone():
    before = random_hashes(6)
    now = np.concatenate([random_hashes(1, seed=1), before[[4, 0, 5]], random_hashes(1, seed=2)])
    assert contents.known_ids(before, now).tolist() == [-1, 4, 0, 5, -1]


def test_half_of_a_hash_is_not_enough():
    before = np.array([[1, 2], [3, 4]], np.uint64)
    assert contents.known_ids(before, np.array([[1, 4], [2, 1], [3, 4]], np.uint64)).tolist() == [-1, -1, 1]


def test_copies_follow_each_other_and_one_more_is_new():
    before = random_hashes(3)[[0, 1, 0, 2]]
    now = random_hashes(3)[[1, 0, 0, 0]]
    assert contents.known_ids(before, now).tolist() == [1, 0, 2, -1]


def test_copies_are_counted_and_told():
    hashes = random_hashes(5)[[0, 1, 0, 2, 0, 1, 3, 4]]
    assert contents.copies_among(hashes) == 3
    assert contents.copies_among(hashes[:2]) == contents.copies_among(hashes[:0]) == 0
    hashes[[0, 2, 3, 6, 7]] = 0  # cannot be read, and are no copies of each other
    assert contents.copies_among(hashes) == 1
    assert note_of_copies(hashes[:4], "runs/a") == ""
    assert note_of_copies(hashes, "runs/a") == (
        "1 of 8 images is a copy of another, byte for byte, and each is a class of its own: python -m"
        " scripts.duplicates --workdir=runs/a lists them"
    )


@pytest.mark.parametrize("counts", [(0, 3), (3, 0), (0, 0)])
def test_an_empty_set_knows_nothing(counts):
    before, now = random_hashes(counts[0]), random_hashes(counts[1], seed=1)
    assert contents.known_ids(before, now).tolist() == [-1] * counts[1]


def test_many_images_against_a_dictionary():
    random = np.random.default_rng(0)
    values = random_hashes(500)
    before, now = values[random.integers(0, 400, 800)], values[random.integers(100, 500, 700)]
    places: dict[bytes, list[int]] = {}
    for index, value in enumerate(before):
        places.setdefault(value.tobytes(), []).append(index)
    expected = [places[value.tobytes()].pop(0) if places.get(value.tobytes()) else -1 for value in now]
    assert contents.known_ids(before, now).tolist() == expected


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = str(tmp_path / "contents.npy")
    contents.write(path, random_hashes(3))
    np.testing.assert_array_equal(contents.read(path), random_hashes(3))
    (tmp_path / "contents.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"contents\.npy: cannot read the hashes of the images"):
        contents.read(path)


def test_another_array_is_no_list_of_hashes(tmp_path):
    np.save(tmp_path / "contents.npy", np.zeros([3, 3], np.uint64))
    with pytest.raises(UserError, match="wanted two 64-bit numbers of each image"):
        contents.read(str(tmp_path / "contents.npy"))


def test_hashes_that_cannot_be_written_are_one_sentence(tmp_path, monkeypatch):
    def short(file, array):
        raise OSError("6 requested and 2 written")  # as NumPy says it, without a number

    monkeypatch.setattr(np, "save", short)
    with pytest.raises(UserError, match=r"contents\.npy: cannot be written \(6 requested and 2 written\)$"):
        contents.write(str(tmp_path / "contents.npy"), np.zeros([3, 2], np.uint64))
    assert list(tmp_path.iterdir()) == []
