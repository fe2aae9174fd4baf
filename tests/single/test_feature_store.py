"""Stored features: computed once, found again, refused when they could hold code."""

from __future__ import annotations

import dataclasses
import errno
import glob
import os
import re
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf import files
from instcls_tf.config import PretrainConfig
from instcls_tf.data.folder import FolderSource
from instcls_tf.data.sources import DigitsSource, open_source
from instcls_tf.distributed import workers
from instcls_tf.encoder import networks
from instcls_tf.errors import UserError
from instcls_tf.evaluation import feature_store, features
from instcls_tf.evaluation.feature_store import Stored, load_features, stored_features, write_output
from instcls_tf.progress import Progress
from tests.images import write_images

CONFIG = PretrainConfig(
    dataset="digits", image_size=8, encoder="resnet18", width_multiplier=0.0625, stem="small", embedding_size=6
)
STORED = Stored(
    np.arange(12, dtype=np.float32).reshape(4, 3), np.ones([4, 2], np.float32), np.array([0, 1, 1, 0]), np.arange(4)
)


@pytest.fixture(scope="module")
def source() -> DigitsSource:
    whole = open_source("digits")
    return dataclasses.replace(whole, images=whole.images[:50], labels=whole.labels[:50])


@pytest.fixture(scope="module")
def encoder() -> tf.keras.Model:
    return networks.make_encoder(CONFIG)


def test_features_that_another_machine_shows_late(tmp_path, source, encoder, monkeypatch):
    """A network file system trusts that a folder is not there, until the one above is listed."""
    settings = {"image_size": 8, "center_crop_fraction": 1.0, "progress": Progress(visible=False)}
    first, listed = stored_features(str(tmp_path), encoder, source, "train", **settings), []
    listdir, isdir, found = os.listdir, os.path.isdir, glob.glob
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listdir(path))
    is_seen = lambda path: f"{tmp_path}/features" in listed or not path.startswith(f"{tmp_path}/features/")  # noqa: E731
    monkeypatch.setattr(os.path, "isdir", lambda path: is_seen(path) and isdir(path))
    monkeypatch.setattr(glob, "glob", lambda pattern: found(pattern) if is_seen(pattern) else [])
    monkeypatch.setattr(workers, "rank_0_says", lambda yes, name: True)
    again = stored_features(str(tmp_path), encoder, source, "train", **settings)
    np.testing.assert_array_equal(again.backbone, first.backbone)


def test_features_are_computed_once_per_checkpoint_and_dataset(tmp_path, source, encoder, monkeypatch):
    passes = []
    stream = features.stream
    monkeypatch.setattr(features, "stream", lambda *args, **kwargs: passes.append(1) or stream(*args, **kwargs))

    def stored(encoder=encoder, source=source, **changes):
        settings = {"image_size": 8, "center_crop_fraction": 1.0, **changes}
        return stored_features(str(tmp_path), encoder, source, "train", progress=Progress(visible=False), **settings)

    first = stored()
    expected = features.extract(encoder.get_layer("backbone"), source, image_size=8)
    passes.clear()
    np.testing.assert_allclose(first.backbone, expected.vectors, atol=1e-6)
    np.testing.assert_allclose(first.projection, encoder.get_layer("projection")(first.backbone), atol=1e-5)
    np.testing.assert_array_equal(first.labels, source.labels)
    np.testing.assert_array_equal(first.ids, np.arange(50))
    np.testing.assert_array_equal(stored().backbone, first.backbone)
    assert passes == []
    stored(source=dataclasses.replace(source, images=255 - source.images))
    assert len(passes) == 1
    stored(image_size=9)
    assert len(passes) == 2
    centre = stored(center_crop_fraction=0.5)
    assert len(passes) == 3
    expected = features.extract(encoder.get_layer("backbone"), source, image_size=8, center_crop_fraction=0.5)
    np.testing.assert_allclose(centre.backbone, expected.vectors, atol=1e-6)
    assert np.abs(centre.backbone - first.backbone).max() > 1e-3
    passes.clear()
    kernel = encoder.trainable_variables[0]
    kernel.assign_add(tf.ones_like(kernel))
    moved = stored()
    assert len(passes) == 1
    assert np.abs(moved.backbone - first.backbone).max() > 1e-3


def test_images_that_a_source_leaves_out_have_no_row(tmp_path, source, encoder, monkeypatch):
    def without_seven(model, source, **_):
        ids = np.delete(np.arange(50), 7)
        yield features.Batch(ids, source.labels[ids], [np.repeat(ids[:, np.newaxis], 2, 1), ids[:, np.newaxis]])

    monkeypatch.setattr(features, "stream", without_seven)
    settings = {"image_size": 8, "center_crop_fraction": 1.0, "progress": Progress(visible=False)}
    stored = stored_features(str(tmp_path), encoder, source, "train", **settings)
    np.testing.assert_array_equal(stored.ids, np.delete(np.arange(50), 7))
    np.testing.assert_array_equal(stored.backbone[:, 0], stored.ids)
    np.testing.assert_array_equal(stored.labels, source.labels[stored.ids])


def test_images_that_can_be_read_by_now_are(tmp_path, encoder, monkeypatch):
    """Such as those that a newer decoder understands; while none is, nothing is computed again."""
    write_images(tmp_path / "photos", [f"{name}/{i}.jpg" for name in "ab" for i in range(3)])
    (tmp_path / "photos" / "b" / "1.jpg").write_bytes(b"torn")
    settings = {"image_size": 8, "center_crop_fraction": 1.0, "progress": Progress(visible=False)}
    passes = []
    stream = features.stream
    monkeypatch.setattr(features, "stream", lambda *args, **kwargs: passes.append(1) or stream(*args, **kwargs))
    monkeypatch.setattr(FolderSource, "content_digest", lambda self: "as before")

    def stored():
        source = open_source(f"folder:{tmp_path}/photos")
        return stored_features(str(tmp_path / "run"), encoder, source, "train", **settings)

    assert stored().ids.tolist() == stored().ids.tolist() == [0, 1, 2, 3, 5]
    assert len(passes) == 1
    write_images(tmp_path / "photos", ["b/1.jpg"])
    found = stored()
    assert found.ids.tolist() == list(range(6)) and len(found.backbone) == 6
    assert len(stored().ids) == 6 and len(passes) == 2
    assert len(list((tmp_path / "run" / "features").iterdir())) == 1


def test_digest_of_a_folder_sees_a_changed_file(tmp_path):
    write_images(tmp_path, ["a/0.jpg", "a/1.jpg"])
    dataset = f"folder:{tmp_path}"
    before = open_source(dataset).content_digest()
    assert open_source(dataset).content_digest() == before
    (tmp_path / "a/1.jpg").write_bytes((tmp_path / "a/0.jpg").read_bytes())
    assert open_source(dataset).content_digest() != before


def test_a_pass_that_ends_early_leaves_nothing(tmp_path, source, encoder, monkeypatch):
    stream = features.stream

    def interrupted(*args, **kwargs):
        yield next(stream(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "stream", interrupted)
    settings = {"image_size": 8, "center_crop_fraction": 1.0, "progress": Progress(visible=False)}
    with pytest.raises(KeyboardInterrupt):
        stored_features(str(tmp_path), encoder, source, "train", **settings)
    assert list((tmp_path / "features").iterdir()) == []


def full(descriptor: int, begin: int, size: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_without_room_is_one_sentence(tmp_path, source, encoder, monkeypatch):
    """Writing to a mapped file that has no place on the disk would end the process."""
    monkeypatch.setattr(os, "posix_fallocate", full)
    settings = {"image_size": 8, "center_crop_fraction": 1.0, "progress": Progress(visible=False)}
    with pytest.raises(UserError) as refusal:
        stored_features(str(tmp_path), encoder, source, "train", **settings)
    sentence = r"/features/train-\w+/backbone\.npy: cannot write these features \(No space left on device\)"
    assert re.fullmatch(re.escape(str(tmp_path)) + sentence, str(refusal.value))
    assert list((tmp_path / "features").iterdir()) == []


def test_a_file_that_ends_early_is_one_sentence(tmp_path, source, encoder, monkeypatch):
    def short(path, array):
        raise OSError("50 requested and 12 written")  # as NumPy says it, without a number

    monkeypatch.setattr(np, "save", short)
    settings = {"image_size": 8, "center_crop_fraction": 1.0, "progress": Progress(visible=False)}
    with pytest.raises(UserError, match=r"labels\.npy: cannot write these features \(50 requested and 12 written\)$"):
        stored_features(str(tmp_path), encoder, source, "train", **settings)
    assert list((tmp_path / "features").iterdir()) == []


def test_features_are_on_the_disk_before_they_are_mapped(tmp_path, source, encoder, monkeypatch):
    reserved = []
    reserve = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: reserved.append(args[1:]) or reserve(*args))
    settings = {"image_size": 8, "center_crop_fraction": 1.0, "progress": Progress(visible=False)}
    stored = stored_features(str(tmp_path), encoder, source, "train", **settings)
    (entry,) = (tmp_path / "features").iterdir()
    assert reserved == [(0, (entry / f"{kind}.npy").stat().st_size) for kind in ("backbone", "projection")]
    assert stored.backbone.nbytes < reserved[0][1] <= stored.backbone.nbytes + 128


def test_what_killed_processes_had_begun_is_removed(tmp_path, source, encoder):
    """Only theirs: another machine, or a container, has processes of the same numbers."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = files.machine()
    others = [f".writing-{here}-{os.getppid()}-abc", f".writing-else{here}-{gone.pid}-abc", ".writing-abc_1"]
    for name in (f".writing-{here}-{gone.pid}-x_1", *others):
        (tmp_path / "features" / name).mkdir(parents=True)
        (tmp_path / "features" / name / "backbone.npy").write_bytes(b"some")
    settings = {"image_size": 8, "center_crop_fraction": 1.0, "progress": Progress(visible=False)}
    stored_features(str(tmp_path), encoder, source, "train", **settings)
    left = [path.name for path in (tmp_path / "features").iterdir() if path.name.startswith(".")]
    assert sorted(left) == sorted(others)


def test_files_that_were_cut_are_refused(tmp_path):
    write_output(STORED, str(tmp_path / "whole.npz"), ["a", "b", "c", "d"])
    whole = (tmp_path / "whole.npz").read_bytes()
    spoilt = bytearray(whole)
    spoilt[120:160] = bytes(40)  # within the first array
    for content in (whole[: len(whole) // 2], bytes(spoilt)):
        (tmp_path / "cut.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"cut\.npz: "):
            load_features(str(tmp_path / "cut.npz"))


@pytest.mark.parametrize("name", ["one.npz", "folder"])
def test_written_features_are_read_again(tmp_path, name, monkeypatch):
    monkeypatch.setattr(feature_store, "_SHARD_BYTES", 20)
    names = write_output(STORED, str(tmp_path / name), ["a", "b", "c", "d"])
    assert len(names) == (1 if name == "one.npz" else 3 + 2 + 2 + 2 + 1)
    for kind in ("backbone", "projection"):
        vectors, labels = load_features(str(tmp_path / name), kind)
        np.testing.assert_array_equal(vectors, getattr(STORED, kind))
        np.testing.assert_array_equal(labels, STORED.labels)
    with pytest.raises(UserError, match=r"exists already, name a new file or folder$"):
        write_output(STORED, str(tmp_path / name), ["a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError("12 requested and 4 written"), r" cannot be written \(12 requested and 4 written\)$"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), r" cannot be written \(No space left on device\)$"),
        (KeyboardInterrupt("ended"), "^ended$"),
    ],
)
def test_a_folder_that_cannot_be_completed_is_not_there(tmp_path, monkeypatch, error, sentence):
    save = np.save

    def some(path, array):
        if "labels" in path:
            raise error
        save(path, array)

    monkeypatch.setattr(np, "save", some)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt, match=sentence):
        write_output(STORED, str(tmp_path / "new" / "x"), ["a", "b", "c", "d"])
    assert list((tmp_path / "new").iterdir()) == []


def test_too_large_for_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "_LARGEST_NPZ_BYTES", 10)
    with pytest.raises(UserError, match=r"too large for one file, name a folder \(without .npz\)$"):
        write_output(STORED, str(tmp_path / "x.npz"), ["a", "b", "c", "d"])
    assert list(tmp_path.iterdir()) == []


def test_names_are_counted_before_they_are_in_memory(tmp_path, monkeypatch):
    """A text array takes 4 bytes times the longest name for each image."""
    long = "x" * 2**20
    with pytest.raises(UserError, match=r"too large for one file, name a folder \(without .npz\)$"):
        write_output(STORED, str(tmp_path / "x.npz"), [long] * 1100)
    monkeypatch.setattr(feature_store, "_SHARD_BYTES", 40)
    write_output(STORED, str(tmp_path / "x"), ["a", "bcdef", "c", "d"])
    parts = [np.load(path) for path in sorted((tmp_path / "x").glob("paths-*.npy"))]
    assert [part.tolist() for part in parts] == [["a", "bcdef"], ["c", "d"]]
    assert len({part.dtype for part in parts}) == 1


def test_an_image_without_a_label_cannot_be_judged():
    np.testing.assert_array_equal(STORED.of_kind("projection", "some").vectors, STORED.projection)
    with pytest.raises(UserError, match=r"^--dataset=some: image 2 of the split has no label$"):
        STORED._replace(labels=np.array([0, 1, -1, 0])).of_kind("backbone", "some")


class Evil:
    """Would write a file while it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_refused_and_not_run(tmp_path):
    evil = np.array([Evil(tmp_path / "owned")], dtype=object)
    np.savez(tmp_path / "bad.npz", backbone=evil, labels=np.zeros(1, int))
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "backbone.npy", evil)
    (tmp_path / "pickle.npz").write_bytes(b"\x80\x04K\x01.")
    for name in ("bad.npz", "folder", "pickle.npz"):
        with pytest.raises(UserError, match="pickled objects"):
            load_features(str(tmp_path / name))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"backbone": np.zeros([2, 3])}, "has no array 'labels'"),
        ({"labels": np.zeros(2, int)}, "has no array 'backbone'"),
        ({"backbone": np.zeros([2, 3]), "labels": np.zeros(3, int)}, "wanted backbone [N, F] and integer labels [N]"),
        ({"backbone": np.zeros([2, 3]), "labels": np.zeros(2)}, "wanted backbone [N, F] and integer labels [N]"),
        ({"backbone": np.zeros([2, 3]), "labels": np.array([0, -1])}, "has images without labels"),
        ({"backbone": np.zeros([0, 3]), "labels": np.zeros(0, int)}, "holds no images"),
    ],
)
def test_files_that_are_not_features(tmp_path, arrays, sentence):
    path = str(tmp_path / "x.npz")
    np.savez(path, **arrays)
    with pytest.raises(UserError) as refusal:
        load_features(path)
    assert str(refusal.value).startswith(f"{path}: {sentence}")


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.npz: cannot read features \(No such file or directory\)$"):
        load_features(str(tmp_path / "none.npz"))
    with pytest.raises(UserError, match=r"has no backbone\.npy$"):
        load_features(str(tmp_path))


def test_images_that_cannot_be_read_have_a_key_and_no_row(tmp_path, encoder):
    write_images(tmp_path, ["train/a/1.jpg", "train/a/2.jpg", "train/b/3.jpg"])
    (tmp_path / "train" / "b" / "4.jpg").symlink_to(tmp_path / "nowhere.jpg")
    folder = open_source(f"folder:{tmp_path}")
    assert folder.content_digest() == open_source(f"folder:{tmp_path}").content_digest()
    vectors, labels = features.extract(features.pixels, folder, image_size=8)
    assert vectors.shape == (3, 192) and labels.tolist() == [0, 0, 1]
