"""What a gallery is made of: maps, neighbours, duplicates, and the files of its page."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import os
import re

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from sklearn.decomposition import PCA

from instcls_tf.errors import UserError
from instcls_tf.gallery import layout, neighbours, pages, projector

NAMES = [
    "a.png",
    "<img src=x onerror=alert(1)>.png",
    "</script><b>.png",
    "\u2028\u202e.png",
    "b\udcff.png",
    'q"uote.png',
]


@pytest.fixture
def without(monkeypatch):
    """Makes a package look as if it were not installed."""

    def hide(package: str) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))

    return hide


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ----------------------------------------------------------------------------------------------------------------- maps


def test_the_map_is_that_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(layout, "_BLOCK_ROWS", 7)
    vectors = np.random.default_rng(0).normal(size=[40, 5]) * [5, 3, 1, 1, 1]
    wanted = PCA(2).fit(unit(vectors))
    found, share = layout.principal_components(vectors, 2)
    np.testing.assert_allclose(np.abs(found), np.abs(wanted.transform(unit(vectors))), atol=1e-6)
    assert share == pytest.approx(wanted.explained_variance_ratio_.sum())


def test_places_are_within_the_square_and_the_same_each_time():
    vectors = np.random.default_rng(0).normal(size=[30, 4])
    placed = layout.lay_out(vectors, "pca", seed=1)
    assert placed.places.min() >= 0 and placed.places.max() <= 1
    assert np.ptp(placed.places, axis=0).max() == pytest.approx(0.96)
    np.testing.assert_array_equal(placed.places, layout.lay_out(vectors, "pca", seed=1).places)
    assert "PCA" in placed.sentence


@pytest.mark.parametrize("vectors", [np.ones([3, 4]), np.zeros([3, 4]), np.ones([3, 1])])
def test_features_that_are_all_the_same_have_a_map(vectors):
    np.testing.assert_allclose(layout.lay_out(vectors, "pca", 0).places, 0.5)


def test_umap_that_is_not_installed(without):
    without("umap")
    assert layout.method_of("auto", 1000) == "pca"
    with pytest.raises(UserError, match=r"^--layout=umap: the package umap-learn is not installed"):
        layout.method_of("umap", 1000)


def test_what_follows_on_the_curve_lies_together():
    places = np.random.default_rng(0).random([2000, 2]).astype(np.float32)
    order = layout.along_a_curve(places)
    assert sorted(order) == list(range(2000))
    apart = np.linalg.norm(np.diff(places[order], axis=0), axis=1).mean()
    assert apart < 0.1 * np.linalg.norm(np.diff(places, axis=0), axis=1).mean()


# ----------------------------------------------------------------------------------------------- neighbours, duplicates


@pytest.mark.parametrize("hidden", ["", "faiss"])
def test_nearest_others_are_exact(without, monkeypatch, hidden):
    without(hidden)
    monkeypatch.setattr(neighbours, "_QUERIES", 16)
    vectors = np.random.default_rng(0).normal(size=[50, 6]).astype(np.float32)
    cosines = unit(vectors) @ unit(vectors).T
    np.fill_diagonal(cosines, -2)
    wanted = np.argsort(-cosines, axis=1)[:, :4]
    found = neighbours.nearest_others(vectors, 4)
    np.testing.assert_array_equal(found.places, wanted)
    np.testing.assert_allclose(found.cosines, np.take_along_axis(cosines, wanted, axis=1), atol=1e-5)
    ranks = neighbours.outlier_ranks(found)
    assert ranks[cosines.max(axis=1).argmin()] == 0 and sorted(ranks) == list(range(50))


@pytest.mark.parametrize("hidden", ["", "faiss"])
def test_an_image_is_no_other_of_itself_even_among_equals(without, hidden):
    without(hidden)
    found = neighbours.nearest_others(np.ones([9, 3], np.float32), 3)
    assert found.places.shape == (9, 3)
    assert not (found.places == np.arange(9)[:, None]).any()


@pytest.mark.parametrize("hidden", ["", "faiss"])
def test_features_that_are_not_finite(without, hidden):
    without(hidden)
    with pytest.raises(UserError, match="not finite"):
        neighbours.nearest_others(np.full([3, 2], np.nan, np.float32), 1)


def test_near_duplicates_agree_in_features_and_pixels():
    random = np.random.default_rng(0)
    picture, other = random.integers(30, 200, [2, 20, 20, 3]).astype(np.uint8)
    flat = np.full([20, 20, 3], 90, np.uint8)
    faint = flat + (np.arange(20) // 10)[None, :, None].astype(np.uint8)  # what would correlate by its noise
    thumbnails = np.stack([picture, picture + 40, other, faint, flat + 1, faint + 60])  # 0, 1 and 3, 4 are the same
    everybody = np.array([[j for j in range(6) if j != i] for i in range(6)], np.int32)
    alike = neighbours.Neighbours(everybody, np.full([6, 5], 0.99, np.float32))
    assert neighbours.near_duplicates(alike, thumbnails).pairs.tolist() == [[0, 1], [3, 4]]
    unlike = alike._replace(cosines=np.full([6, 5], 0.5, np.float32))
    assert neighbours.near_duplicates(unlike, thumbnails).pairs.shape == (0, 2)


# ------------------------------------------------------------------------------------------------------------ the files


def exhibit_of(names: list[str], **changes) -> pages.Exhibit:
    random, count = np.random.default_rng(0), len(names)
    vectors = random.normal(size=[count, 4]).astype(np.float32)
    nearest = neighbours.nearest_others(vectors, 3)
    settings = {
        "title": "</script>",
        "about": "six",
        "names": names,
        "places": random.random([count, 2]).astype(np.float32),
        "thumbnails": random.integers(0, 256, [count, 8, 8, 3], np.uint8),
        "lists": [
            pages.Others("nearest", "Nearest", "", nearest.places, nearest.cosines),
            pages.Others("hard", "Hard", "", np.where(nearest.places == 0, -1, nearest.places)),
        ],
        "ranks": neighbours.outlier_ranks(nearest),
        "twins": neighbours.Twins(np.array([[0, 3]], np.int32), np.array([0.99], np.float32)),
        "labels": np.array([0, 1, 1, 0, -1, 1], np.int32),
        "class_names": ("<b>", "c"),
    }
    return pages.Exhibit(**{**settings, **changes})


def given_by(path) -> list:
    """The arguments of the call that a script of data is."""
    text = path.read_text("ascii")
    return json.loads("[" + re.fullmatch(r"GALLERY\.\w+\((.*)\);\n", text, re.DOTALL)[1] + "]")


def test_data_of_the_page_are_those_of_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_SHARD", 4)
    exhibit = exhibit_of(NAMES)
    size = pages.write_gallery(str(tmp_path / "g"), exhibit)
    assert size == sum(path.stat().st_size for path in (tmp_path / "g").rglob("*") if path.is_file())
    data = tmp_path / "g" / "data"
    assert not any(b"<" in path.read_bytes() for path in data.iterdir()), "what could end a script or begin markup"
    (about,), order = given_by(data / "set.js"), layout.along_a_curve(exhibit.places)
    names = [name for shard in (0, 1) for name in given_by(data / f"names-{shard:05d}.js")[1]]
    shown = {"\u2028\u202e.png": "'\\u2028\\u202e.png'", "b\udcff.png": "'b\\udcff.png'"}
    assert names == [shown.get(NAMES[i], NAMES[i]) for i in order]
    labels = np.frombuffer(base64.b64decode(about["labels"]), "<u4")
    assert labels.tolist() == [2**32 - 1 if exhibit.labels[i] < 0 else exhibit.labels[i] for i in order]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(about["ranks"]), "<u4"), exhibit.ranks[order])
    assert [order[i] for i in about["duplicates"]["pairs"][0][:2]] == [0, 3]
    lists = [given_by(data / f"lists-{shard:05d}.js")[1] for shard in (0, 1)]
    for one in exhibit.lists:
        ids = np.concatenate([np.frombuffer(base64.b64decode(part[one.key]["ids"]), "<u4") for part in lists])
        back = [-1 if i == 2**32 - 1 else order[i] for i in ids]
        assert back == one.places[order].ravel().tolist()


def test_classes_beyond_16_bits_keep_their_names(tmp_path):
    """As of a folder in which every person, or product, has a class."""
    classes = tuple(f"c{i}" for i in range(2**16 + 8))
    labels = np.array([0, 2**16 - 1, 2**16, 2**16 + 1, 2**16 + 7, 7], np.int32)
    exhibit = exhibit_of(NAMES, labels=labels, class_names=classes)
    pages.write_gallery(str(tmp_path / "g"), exhibit)
    (about,), order = given_by(tmp_path / "g" / "data" / "set.js"), layout.along_a_curve(exhibit.places)
    script = (tmp_path / "g" / "gallery.js").read_text()
    kind = re.search(r"set.labels = set.labels \? new Uint(\d+)Array\(bytes", script)[1]
    found = np.frombuffer(base64.b64decode(about["labels"]), f"<u{int(kind) // 8}").tolist()
    assert [about["classes"][label] for label in found] == [classes[labels[i]] for i in order]


def test_a_sheet_holds_the_thumbnails_in_the_order_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_SHEET_PIXELS", 16)  # four of them in a sheet
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [200, 200, 200]], np.uint8)
    exhibit = exhibit_of(NAMES, thumbnails=np.broadcast_to(colours[:, None, None], [6, 8, 8, 3]))
    pages.write_gallery(str(tmp_path / "g"), exhibit)
    order = layout.along_a_curve(exhibit.places)
    for place, image in enumerate(order.tolist()):
        sheet = np.asarray(Image.open(tmp_path / "g" / "sprites" / f"{place // 4:05d}.jpg"), int)
        row, column = divmod(place % 4, 2)
        assert np.abs(sheet[8 * row + 4, 8 * column + 4] - colours[image]).max() < 60


def test_another_folder_is_left_alone_and_a_gallery_is_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(UserError, match=r"/mine: exists and is no gallery, name a new folder$"):
        pages.refuse_unfit(str(tmp_path / "mine"))
    output = tmp_path / "g"
    pages.refuse_unfit(str(output))
    pages.write_gallery(str(output), exhibit_of(NAMES))
    (output / "sprites" / "00009.jpg").write_text("stale")
    pages.refuse_unfit(str(output))
    pages.write_gallery(str(output), exhibit_of(NAMES[:6]))
    assert not (output / "sprites" / "00009.jpg").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "mine"]
    if os.geteuid():
        (tmp_path / "mine").chmod(0o500)
        with pytest.raises(UserError, match="cannot be written"):
            pages.refuse_unfit(str(tmp_path / "mine" / "g"))


def files_below(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_site_with_data_of_the_same_name_is_no_gallery(tmp_path):
    (tmp_path / "site" / "data").mkdir(parents=True)
    (tmp_path / "site" / "data" / "set.js").write_text("var set = 1;")
    with pytest.raises(UserError, match=r"/site: exists and is no gallery, name a new folder$"):
        pages.refuse_unfit(str(tmp_path / "site"))


@pytest.mark.parametrize("name", ["notes.txt", "data/mine.js", "sprites/photo.png", "more/index.html"])
def test_files_of_others_in_a_gallery_stay(tmp_path, name):
    output = tmp_path / "g"
    pages.write_gallery(str(output), exhibit_of(NAMES))
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("mine")
    before = files_below(tmp_path)
    for act in (pages.refuse_unfit, lambda path: pages.write_gallery(path, exhibit_of(NAMES[:6]))):
        with pytest.raises(UserError, match=r"/g: is a gallery with .*, which is none of its own files"):
            act(str(output))
    assert files_below(tmp_path) == before


def test_the_old_gallery_stays_if_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    output, rename = tmp_path / "g", os.rename
    pages.write_gallery(str(output), exhibit_of(NAMES))
    before = files_below(tmp_path)

    def full(source, target):
        if target == str(output) and not source.endswith("-old"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(UserError, match=r"/g: cannot be written \(No space left on device\)$"):
        pages.write_gallery(str(output), exhibit_of(NAMES[:6]))
    assert files_below(tmp_path) == before


def test_the_old_gallery_stays_if_a_signal_comes_between(tmp_path, monkeypatch):
    output, rename = tmp_path / "g", os.rename
    pages.write_gallery(str(output), exhibit_of(NAMES))
    before = files_below(tmp_path)

    def interrupted(source, target):
        rename(source, target)
        if source == str(output):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pages.write_gallery(str(output), exhibit_of(NAMES[:6]))
    assert files_below(tmp_path) == before


def test_a_sheet_that_cannot_be_encoded_is_one_sentence(tmp_path, monkeypatch):
    def broken(image, path, **settings):
        raise OSError("encoder error -2 when writing image file")  # as Pillow says it, without a number

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(UserError, match=r"/g: cannot be written \(encoder error -2 when writing image file\)$"):
        pages.write_gallery(str(tmp_path / "g"), exhibit_of(NAMES))
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_gallery_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "g")
    for name in ("g", "link"):
        pages.write_gallery(str(tmp_path / name), exhibit_of(NAMES))
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "link"]


def test_the_projector_is_as_tensorboard_reads_it(tmp_path):
    exhibit = exhibit_of(["tab\t.png", *NAMES[1:]])
    projector.write_projector(str(tmp_path), exhibit, np.random.default_rng(0).normal(size=[6, 5]))
    folder = tmp_path / "tensorboard"
    config = importlib.import_module("tensorboard.plugins.projector").ProjectorConfig()
    text_format.Parse((folder / "projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    assert np.loadtxt(folder / embedding.tensor_path, delimiter="\t").shape == (6, 5)
    head, *rows = (folder / embedding.metadata_path).read_text().splitlines()
    assert head == "name\tclass" and rows[0] == "'tab\\t.png'\t<b>" and rows[4].endswith("\t") and len(rows) == 6
    sheet = np.asarray(Image.open(folder / embedding.sprite.image_path))
    size = embedding.sprite.single_image_dim[0]
    np.testing.assert_array_equal(sheet[size : 2 * size, :size], exhibit.thumbnails[3])
