"""What a gallery takes from a run: which images, their class weights and their thumbnails."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

import instcls_tf
from instcls_tf.config import PretrainConfig
from instcls_tf.data.labelled import take
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from instcls_tf.gallery import command, subject
from instcls_tf.gallery.settings import GallerySettings
from instcls_tf.progress import no_progress
from instcls_tf.run import checkpoint
from instcls_tf.run.workdir import begin_run, load_run, run_flags_path
from tests.encoders import trained_encoder
from tests.images import write_images
from tests.single.test_checkpoint import make_state
from tests.single.test_index import make_run


def test_some_of_many_images_evenly_spread():
    source = open_source("digits")
    ids = np.delete(np.arange(source.num_instances), 5).astype(np.int32)
    assert subject.some_of(source, ids, 2000).ids.tolist() == ids.tolist()
    chosen = subject.some_of(source, ids, 11)
    assert len(set(chosen.ids.tolist())) == 11
    assert (chosen.ids[0], chosen.ids[-1]) == (0, source.num_instances - 1)
    assert np.diff(chosen.ids).min() >= 140 and np.diff(chosen.ids).max() <= 146


def test_images_that_came_after_the_run_have_no_class(tmp_path):
    checkpoint.save(str(tmp_path), 1, *make_state())
    config = PretrainConfig(workdir=str(tmp_path))
    ids = np.array([0, 3, 51, 52, 53, 60])
    assert subject.known_ids(str(tmp_path), config, ids).tolist() == [0, 3, 51, 52]
    assert subject.known_ids(str(tmp_path), config.replace(method="simclr"), ids) is ids
    source = open_source("digits")
    shown = subject.some_of(source, np.array([0, 52]), 10)
    weights = subject.class_weights(checkpoint.newest(str(tmp_path)), shown)
    np.testing.assert_array_equal(weights, make_state()[1]["classifier/rows"].variable.numpy()[[0, 52]])


def test_class_weights_that_have_not_moved_tell_no_neighbours(tmp_path):
    """As those of a run in its contrast_epochs: all 0, so that any order of them is as good."""
    config = PretrainConfig(workdir=str(tmp_path))
    shown = subject.some_of(open_source("digits"), np.arange(53), 10)
    checkpoint.save(str(tmp_path), 1, *make_state(0.0))
    assert command._lists_of_classes(str(tmp_path), config, shown, 3) == []
    checkpoint.save(str(tmp_path), 2, *make_state())
    (weights,) = command._lists_of_classes(str(tmp_path), config, shown, 3)
    assert (weights.key, weights.places.shape) == ("weights", (10, 3))


@pytest.mark.parametrize("most", [7, 2000])
def test_thumbnails_belong_to_their_images(tmp_path, most):
    source = open_source("digits")
    if most > 7:
        source = take(source, np.arange(9))
    chosen = subject.some_of(source, np.arange(source.num_instances, dtype=np.int32), most)
    load = source.loader()
    with subject.thumbnails_of(chosen, 8, 1.0, str(tmp_path), no_progress) as pixels:
        for row, image in enumerate(chosen.ids.tolist()):
            np.testing.assert_array_equal(pixels[row], load(np.int64(image)).numpy())
    assert list(tmp_path.iterdir()) == []


def test_thumbnails_for_which_there_is_no_room(tmp_path, monkeypatch):
    def full(descriptor: int, begin: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    chosen = subject.some_of(open_source("digits"), np.arange(500, dtype=np.int32), 500)
    with pytest.raises(UserError) as refusal, subject.thumbnails_of(chosen, 64, 1.0, str(tmp_path), no_progress):
        pass
    assert str(refusal.value) == f"{tmp_path}: cannot write 6 MB of thumbnails there (No space left on device)"
    assert list(tmp_path.iterdir()) == []


def test_hard_negatives_that_are_shown_come_first():
    lists = np.array([[-1, 4, -1, 2], [-1, -1, -1, 1]])
    assert command._first_shown(lists, 2).tolist() == [[4, 2], [1, -1]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"features": "pixels"}, "--features=pixels: must be one of backbone, projection"),
        ({"layout": "tsne"}, "--layout=tsne: must be one of auto, umap, pca"),
        ({"neighbors": 0}, "--neighbors=0: must be 1 to 100"),
        ({"thumbnail_size": 4}, "--thumbnail_size=4: must be 8 to 512 pixels"),
        ({"max_images": 1}, "--max_images=1: must be at least 2"),
    ],
)
def test_settings_out_of_range(changes, sentence):
    with pytest.raises(UserError) as error:
        GallerySettings(**changes).validate()
    assert str(error.value) == sentence


def test_features_that_the_method_has_not_trained(tmp_path):
    begin_run(PretrainConfig(workdir=str(tmp_path), dataset="digits", method="diet"))
    with pytest.raises(UserError, match=r"^--features=projection: must be backbone: --method=diet leaves"):
        command.gallery_of_run(str(tmp_path), None, None, GallerySettings(features="projection"))
    with pytest.raises(UserError, match=r"^--features=projection: must be backbone: --method=diet leaves"):
        instcls_tf.embed(["a.jpg"], str(tmp_path), features="projection")
    assert [path.name for path in tmp_path.iterdir()] == ["run.flags"]


def test_features_are_kept_under_the_split_that_the_run_was_trained_on(tmp_path, monkeypatch):
    """As those of `search`, `duplicates` and `extract`, which need not compute them again then."""
    begin_run(PretrainConfig(workdir=str(tmp_path), dataset="some_of_tfds", tfds_split="train[:10%]"))
    asked = []

    def stored_features(workdir, encoder, source, split, **settings):
        asked.append(split)
        raise UserError("asked")

    monkeypatch.setattr(command, "open_training_source", lambda *given: open_source("digits"))
    monkeypatch.setattr(command, "load_encoder", lambda workdir: None)
    monkeypatch.setattr(command.feature_store, "stored_features", stored_features)
    with pytest.raises(UserError, match="asked"):
        command.gallery_of_run(str(tmp_path), None, None, GallerySettings(layout="pca"))
    assert asked == ["train[:10%]"]


def test_images_of_records_have_the_names_of_their_files(tmp_path):
    """As `prepare` has kept them."""
    names = ["a/0.png", "a/1.png", "b/2.png"]
    write_images(tmp_path / "photos", names)
    prepare(f"folder:{tmp_path}/photos", str(tmp_path / "records"), shard_megabytes=1)
    workdir = make_run(tmp_path / "run", tmp_path / "photos", trained_encoder())
    config = load_run(workdir).replace(dataset=f"records:{tmp_path}/records", method="simclr")
    Path(run_flags_path(workdir)).write_text(config.as_flags())
    gallery = command.gallery_of_run(workdir, None, None, GallerySettings(layout="pca"))
    assert gallery.result["images"] == 3
    (script,) = (tmp_path / "run" / "gallery" / "data").glob("names-*.js")
    assert sorted(json.loads(script.read_text().removeprefix("GALLERY.names(0, ").removesuffix(");\n"))) == names
