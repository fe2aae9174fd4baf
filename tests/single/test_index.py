"""An index of images: the same as comparing all features, grown without training, kept in a file, mistakes refused."""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import instcls_tf
from instcls_tf.config import PretrainConfig
from instcls_tf.data import prepare as prepare_module
from instcls_tf.data.names import names_of
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import open_source, open_training_source
from instcls_tf.errors import UserError
from instcls_tf.evaluation import tables
from instcls_tf.evaluation.commands import extract_of_run
from instcls_tf.evaluation.feature_store import Stored, format_of, write_output
from instcls_tf.report.search import search_with_page, thumbnails_by_name, write_hits
from instcls_tf.run import checkpoint
from instcls_tf.run.workdir import load_run, run_flags_path
from instcls_tf.search.commands import Searched, search_in_run
from instcls_tf.search.index import Hit
from tests.encoders import trained_encoder
from tests.images import write_images
from tests.single.test_checkpoint import make_state

NAMES = [*(f"a/{number}.png" for number in range(6)), "b/<i>&.png", "b/z.png"]
ALL = {"dataset": None, "split": "train", "data_dir": None, "kind": "backbone"}


def make_run(workdir: Path, photos: Path, encoder: tf.keras.Model) -> str:
    settings = {"encoder": "resnet18", "width_multiplier": 0.125, "stem": "small", "embedding_size": 16}
    config = PretrainConfig(workdir=str(workdir), dataset=f"folder:{photos}", image_size=16, **settings)
    workdir.mkdir()
    Path(run_flags_path(str(workdir))).write_text(config.as_flags())
    checkpoint.save(str(workdir), 1, tf.train.Checkpoint(encoder=encoder), make_state()[1])
    return str(workdir)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def workdir(photos, tmp_path_factory) -> str:
    return make_run(tmp_path_factory.mktemp("runs") / "run", photos, trained_encoder())


@pytest.fixture(scope="module")
def other_run(photos, tmp_path_factory) -> str:
    encoder = trained_encoder()
    encoder.variables[0].assign_add(tf.ones_like(encoder.variables[0]))
    return make_run(tmp_path_factory.mktemp("runs") / "other", photos, encoder)


@pytest.fixture(scope="module")
def whole(workdir) -> instcls_tf.Index:
    """Not to be added to."""
    return instcls_tf.Index.of_run(workdir)


def copied(index: instcls_tf.Index) -> instcls_tf.Index:
    """With lists of its own, and the same encoder."""
    other = copy.copy(index)
    other.names = [*index.names]
    return other


def test_a_search_is_all_cosines(whole, photos):
    assert len(whole) == 8 and whole.names == NAMES
    dense = whole.vectors @ whole.vectors.T
    (hits,) = whole.search([photos / "a/3.png"], 8)
    assert [hit.position for hit in hits] == np.argsort(-dense[3], kind="stable").tolist()
    np.testing.assert_allclose([hit.cosine for hit in hits], np.sort(dense[3])[::-1], atol=1e-5)
    assert hits[0].name == "a/3.png" and hits[0].cosine == pytest.approx(1, abs=1e-6)
    by_pixels = whole.search(np.asarray(Image.open(photos / "a/3.png"))[np.newaxis], 8)
    assert [hit.name for hit in by_pixels[0]] == [hit.name for hit in hits]
    assert whole.search(whole.vectors[3:5] * 7, 2)[0][0].position == 3


def test_projections(workdir, whole):
    heads = instcls_tf.Index.of_run(workdir, kind="projection")
    assert heads.vectors.shape == (8, 16) and whole.vectors.shape[1] == 64
    with pytest.raises(UserError, match=r"^--features=pixels: must be one of backbone, projection$"):
        instcls_tf.Index.of_run(workdir, kind="pixels")


def test_images_join_without_training(whole, photos, tmp_path):
    index = copied(whole)
    before = index.vectors.copy()
    write_images(tmp_path, ["of the pixels of the first.png", "new.png"])
    (tmp_path / "broken.png").write_bytes(b"no image")
    new, broken, twin = str(tmp_path / "new.png"), str(tmp_path / "broken.png"), str(tmp_path / "copy.png")
    Path(twin).write_bytes((photos / "a/5.png").read_bytes())
    assert index.add([new, broken, twin]) == [broken]
    assert index.names == [*NAMES, new, twin]
    np.testing.assert_array_equal(index.vectors[:8], before)
    assert {hit.name for hit in index.search([twin], 2)[0]} == {"a/5.png", twin}
    index.add(before[:1], ["again"])
    assert [hit.name for hit in index.search(before[:1], 2)[0]] == ["a/0.png", "again"]  # the one that came first
    index.add(np.zeros([2, 9, 9, 3], np.uint8))
    assert index.names[-2:] == ["11", "12"]
    with pytest.raises(UserError, match=r"^names: has 1, wanted one for each of the 2 images$"):
        index.add(before[:2], ["a"])
    with pytest.raises(UserError, match=r"^features: have a width of 5, the index of 64$"):
        index.search(np.zeros([1, 5]), 1)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_alone_is_a_list_of_one(workdir, whole, photos, kind):
    """In a search, among what joins, and where features are asked for."""
    path, index = kind(photos / "a/3.png"), copied(whole)
    assert whole.search(path, k=1) == whole.search([path], k=1)
    np.testing.assert_array_equal(whole.embed(path), whole.embed([path]))
    assert index.add(path) == [] and index.names == [*NAMES, str(path)]
    assert index.add(path, "of one name") == [] and index.names[9:] == ["of one name"]
    np.testing.assert_array_equal(instcls_tf.embed(path, workdir), instcls_tf.embed([path], workdir))


def test_a_file_keeps_it(workdir, other_run, whole, tmp_path):
    index = copied(whole)
    index.add(index.vectors[:1], ["caf\udce9\n.jpg"])
    index.save(tmp_path / "photos.index")
    again = instcls_tf.Index.load(tmp_path / "photos.index")
    assert again.names == index.names and again.origin == whole.origin
    np.testing.assert_array_equal(again.vectors, index.vectors)
    assert again.search(index.vectors[2:3], 3) == index.search(index.vectors[2:3], 3)
    with pytest.raises(UserError, match=r"photos\.index: was made by another encoder than --workdir=.*other has now"):
        instcls_tf.Index.load(tmp_path / "photos.index", other_run)


def test_what_is_no_index(workdir, tmp_path):
    np.savez(tmp_path / "features.npz", backbone=np.zeros([2, 3]))
    (tmp_path / "text").write_text("x")
    for name in ("features.npz", "text"):
        with pytest.raises(
            UserError, match=rf"{name}: is no index of images, wanted a file that Index\.save has written$"
        ):
            instcls_tf.Index.load(tmp_path / name, workdir)
    with pytest.raises(UserError, match=r"none: cannot read this index \(No such file or directory\)$"):
        instcls_tf.Index.load(tmp_path / "none", workdir)


# ------------------------------------------------------------------------------------------------------- the command


def test_the_answer_and_its_page(workdir, photos, tmp_path):
    page = tmp_path / "hits.html"
    queries = [str(photos / "a/1.png"), "b/<i>&.png"]
    answer = search_with_page(workdir, queries, 3, str(page), **ALL)
    hits = answer.result["hits"]
    assert [hit["query"] for hit in hits] == [queries[0]] * 3 + [queries[1]] * 3
    assert (hits[0]["path"], hits[3]["path"]) == ("a/1.png", "b/<i>&.png")
    assert hits[3]["cosine"] == pytest.approx(1, abs=1e-6) and hits[3]["cosine"] >= hits[4]["cosine"]
    assert not page.exists(), "results come before pages"
    answer.picture.draw(answer.picture.path)
    text = page.read_text()
    assert "b/&lt;i&gt;&amp;.png" in text and "<i>" not in text
    assert text.count("data:image/jpeg;base64,") == 8
    assert "default-src 'none'" in text and "//" not in text.replace("base64,/", "").split("<body>")[0]


def test_an_index_is_kept_and_grows(workdir, photos, tmp_path, monkeypatch):
    kept, more = tmp_path / "kept", tmp_path / "more"
    write_images(more, ["x.png", "deep/y.png"])
    settings = {**ALL, "index_path": str(kept)}
    answer = search_in_run(workdir, ["a/0.png"], 1, **settings).summary()
    assert answer["examples"] == 8 and json.loads(json.dumps(answer)) == answer
    grown = search_in_run(workdir, ["a/0.png"], 10, **settings, add=[str(more)]).summary()
    assert grown["examples"] == 10 and len(grown["hits"]) == 10
    assert instcls_tf.Index.load(kept).names[8:] == [str(more / "deep/y.png"), str(more / "x.png")]
    monkeypatch.chdir(tmp_path)
    twice = ["more", "more/../more/x.png", str(more / "x.png")]
    again = search_in_run(workdir, ["a/0.png"], 10, **settings, add=twice).summary()
    assert again["hits"] == grown["hits"], "what is in it does not join again"
    with pytest.raises(UserError, match=r"^--dataset=digits: --index=.*kept has images already, give one of them$"):
        search_in_run(workdir, ["a/0.png"], 1, **{**settings, "dataset": "digits"})
    for name, flag, wanted, found in [
        ("split", "split", "test", "train"),
        ("kind", "features", "projection", "backbone"),
        ("center_crop_fraction", "center_crop_fraction", 0.5, "0.875"),
    ]:
        with pytest.raises(UserError, match=rf"^--{flag}={wanted}: --index=.*kept was made with {found}, leave the"):
            search_in_run(workdir, ["a/0.png"], 1, **{**settings, name: wanted})


def test_the_current_folder_has_other_images_of_the_same_names(workdir, photos, tmp_path, monkeypatch):
    """A hit is the dataset's own image, and a folder is no query."""
    names = ["a/1.png", "a/2.png"]
    ours = thumbnails_by_name(names, (f"folder:{photos}", "train"))
    monkeypatch.chdir(tmp_path)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / name)
    (tmp_path / "a" / "3.png").mkdir()
    assert thumbnails_by_name(names, (f"folder:{photos}", "train")) == ours
    assert thumbnails_by_name(names) != ours
    assert thumbnails_by_name(names, ("folder:/no/where", "train")) == {}
    Image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / "a" / "gone.png")
    there = str(tmp_path / "a" / "1.png")
    assert thumbnails_by_name(["a/gone.png", there], (f"folder:{photos}", "train")).keys() == {there}
    found = search_in_run(workdir, ["a/3.png"], 1, **ALL)
    assert found.summary()["hits"][0]["path"] == "a/3.png"


def test_files_are_shown_as_the_run_reads_them(workdir, photos, tmp_path):
    """Queries and added files as well: here on a red background, and not the larger ones."""
    shutil.copytree(workdir, tmp_path / "run")
    config = load_run(workdir).replace(background="#ff0000", max_pixels=10_000)
    Path(run_flags_path(str(tmp_path / "run"))).write_text(config.as_flags())
    for name, side in (("clear", 9), ("large", 101)):
        Image.new("RGBA", (side, side), (0, 0, 0, 0)).save(tmp_path / f"{name}.png")
    clear, large = str(tmp_path / "clear.png"), str(tmp_path / "large.png")
    index = instcls_tf.Index.of_run(str(tmp_path / "run"))
    hit = Hit(clear, 1.0, 0)
    write_hits(str(tmp_path / "page.html"), Searched(index, [clear, large], [[hit], [hit._replace(name=large)]]))
    encoded = re.findall(r"data:image/jpeg;base64,([^\"]+)", (tmp_path / "page.html").read_text())
    assert len(encoded) == 2, "the query and the hit; what is larger is a grey square"
    for jpeg in encoded:
        red, green, blue = Image.open(io.BytesIO(base64.b64decode(jpeg))).resize([1, 1]).getpixel((0, 0))
        assert red > 240 and green < 15 and blue < 15


def test_mistakes(workdir, photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    search_in_run(workdir, ["a/1.png"], 1, **ALL)  # keeps its features
    before = sorted(os.listdir(workdir))
    for query, k, sentence in [
        ("no.jpg", 3, f"--query=no.jpg: no such file, and no image of folder:{photos} has this name"),
        (str(photos), 3, f"--query={photos}: is a folder, wanted image files, or names of images of folder:{photos}"),
        (str(tmp_path / "broken.jpg"), 3, f"--query={tmp_path / 'broken.jpg'}: cannot be read ("),
        ("a/1.png", 0, "--k=0: must be at least 1"),
        ("a/1.png", 9, "--k=9: must be between 1 and the 8 images that are searched"),
    ]:
        with pytest.raises(UserError) as refusal:
            search_in_run(workdir, [query], k, **ALL)
        assert str(refusal.value).startswith(sentence)
    with pytest.raises(UserError, match=r"^--add=no/folder: no such file or folder$"):
        search_in_run(workdir, ["a/1.png"], 1, **ALL, add=["no/folder"])
    assert sorted(os.listdir(workdir)) == before


# ----------------------------------------------------------------------------------------------- names in `extract`

STORED = Stored(
    np.arange(12, dtype=np.float32).reshape(4, 3) / 7, np.ones([4, 2], np.float32), np.array([0, 1, 1, 0]), np.arange(4)
)
PATHS = ["cat/é.jpg", 'a "b",c.jpg', "caf\udce9.jpg", "3"]


def test_names_of_sources(photos, tmp_path):
    prepare(f"folder:{photos}", str(tmp_path / "records"), shard_megabytes=1)
    count = open_source(f"folder:{photos}").num_instances
    place = np.argsort(prepare_module._order(count))  # of each image in the records
    for dataset, ids in ((f"folder:{photos}", [6, 2]), (f"records:{tmp_path / 'records'}", place[[6, 2]])):
        names = names_of(open_source(dataset), np.array(ids))
        assert [name[-len("/2.png") :] for name in names] == ["<i>&.png"[-6:], "/2.png"], dataset
    assert names_of(open_source("digits"), np.array([5, 0])) == ["5", "0"]


def test_ids_are_those_of_the_run(tmp_path):
    """Also when images are gone, or have come, since it began; those of other images are their places."""
    write_images(tmp_path / "photos", NAMES[:4])
    workdir = make_run(tmp_path / "run", tmp_path / "photos", trained_encoder())
    open_training_source(load_run(workdir)).write_manifest(workdir)
    (tmp_path / "photos" / NAMES[1]).unlink()
    write_images(tmp_path / "photos", ["0.png"])
    shutil.copytree(tmp_path / "photos", tmp_path / "others")
    for name, dataset, ids in (("own", None, [0, 2, 3, 4]), ("others", f"folder:{tmp_path}/others", [1, 2, 3, 0])):
        extract_of_run(workdir, dataset, None, None, str(tmp_path / f"{name}.npz"))
        with np.load(tmp_path / f"{name}.npz") as found:
            of_name = dict(zip(found["paths"].tolist(), found["ids"].tolist()))
        assert of_name == dict(zip([NAMES[0], NAMES[2], NAMES[3], "0.png"], ids))


def test_npz(tmp_path):
    write_output(STORED, str(tmp_path / "x.npz"), PATHS)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert file["paths"].tolist() == PATHS
        np.testing.assert_array_equal(file["backbone"], STORED.backbone)


def test_csv(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 3)
    assert write_output(STORED, str(tmp_path / "x.csv"), PATHS) == [str(tmp_path / "x.csv")]
    with open(tmp_path / "x.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == PATHS
    assert [(row["id"], row["label"]) for row in rows] == [("0", "0"), ("1", "1"), ("2", "1"), ("3", "0")]
    read = np.array([[row[f"backbone_{i}"] for i in range(3)] for row in rows], np.float32)
    np.testing.assert_array_equal(read, STORED.backbone)
    assert rows[0]["projection_1"] == "1.0"


def test_parquet(tmp_path, monkeypatch):
    from pyarrow import parquet

    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 3)
    write_output(STORED, str(tmp_path / "features"), PATHS, "parquet")
    table = parquet.read_table(tmp_path / "features").to_pydict()
    assert table["path"] == [*PATHS[:2], "caf\\xe9.jpg", "3"]
    assert (table["id"], table["label"]) == ([0, 1, 2, 3], [0, 1, 1, 0])
    np.testing.assert_array_equal(np.array(table["backbone"], np.float32), STORED.backbone)
    assert np.shape(table["projection"]) == (4, 2)


def test_formats(monkeypatch):
    assert [format_of(name) for name in ("a.npz", "a.csv", "a.parquet", "a")] == ["npz", "csv", "parquet", "npy"]
    assert format_of("a.csv", "npz") == "npz"
    with pytest.raises(UserError, match=r"^--format=xls: must be one of npz, npy, csv, parquet$"):
        format_of("a", "xls")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^--format=parquet: needs the package pyarrow: pip install 'instcls-tf\[find\]'$"
    ):
        format_of("a.parquet")
