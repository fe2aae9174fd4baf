"""One file with several names, by links: it is no copy of itself, and nothing goes that a name leads to which stays."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest

from instcls_tf.data.overlap import same_files
from instcls_tf.data.sources import open_source
from instcls_tf.report import duplicates as report
from instcls_tf.search.duplicates import Duplicates, find
from instcls_tf.search.images import joined
from instcls_tf.search.neighbours import unit_rows
from instcls_tf.search.settings import Settings
from tests.single.test_duplicates import OLD_ENOUGH, QUIET, images_of, named
from tests.single.test_verify import scene

HOW = Settings(neighbors=6, listed=3)


def write_photos(root: Path) -> None:
    """Six scenes, favourites that lead to three of them, one hard link, and copies of two, one larger, one smaller."""
    for name in ("raw", "best", "more"):
        (root / name).mkdir(parents=True)
    for seed in range(6):
        scene(seed, (80, 60)).save(root / "raw" / f"{seed}.png")
    for seed in (0, 1, 2):
        (root / "best" / f"{seed}.png").symlink_to(f"../raw/{seed}.png")
    os.link(root / "raw" / "3.png", root / "more" / "3.png")
    scene(1, (80, 60)).resize((60, 45)).save(root / "more" / "small 1.png")
    scene(2, (80, 60)).resize((160, 120)).save(root / "more" / "large 2.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    write_photos(root)
    scene(7, (80, 60)).save(root / "beside the folders.png")
    return root


@pytest.fixture(scope="module")
def found(photos) -> Duplicates:
    return find(images_of(photos, "train"), HOW, OLD_ENOUGH, QUIET)


def test_nothing_goes_that_a_name_leads_to_which_stays(found, photos):
    drop = report.drop_list(found).decode().splitlines()
    assert drop == ["best/2.png", "more/small 1.png", "raw/2.png"], "a file goes with its names or not at all"
    gone = {os.path.realpath(photos / name) for name in drop}
    for name in set(found.images.names) - set(drop):
        assert os.path.realpath(photos / name) not in gone, name


def test_a_file_is_no_near_duplicate_of_itself(found, tmp_path):
    assert named(found, found.near) == {
        frozenset(pair)
        for pair in [
            ("raw/1.png", "more/small 1.png"), ("best/1.png", "more/small 1.png"),
            ("raw/2.png", "more/large 2.png"), ("best/2.png", "more/large 2.png"),
        ]
    }  # fmt: skip
    of_one_file = {frozenset((f"best/{seed}.png", f"raw/{seed}.png")) for seed in (0, 1, 2)}
    of_one_file.add(frozenset(("more/3.png", "raw/3.png")))
    assert named(found, found.one_file) == of_one_file and not of_one_file & named(found, found.alike)
    answer = report.summary(found, HOW)
    assert (answer["groups"], answer["one_file"], answer["drop"]) == (2, 4, 3)
    assert answer["listed_one_file"][0] == ["best/0.png", "raw/0.png"]
    rows = csv.DictReader(io.StringIO(report.table_of(found).decode()))
    assert {frozenset((row["first"], row["second"])) for row in rows if row["kind"] == "one file"} == of_one_file
    report.write_duplicates(str(tmp_path / "page.html"), found)
    page = (tmp_path / "page.html").read_text()
    assert "<h2>One file (4)</h2>" in page and "A chain" not in page


def test_a_file_in_two_classes_contradicts_itself(tmp_path):
    write_photos(tmp_path / "train")
    found = find(images_of(tmp_path, "train"), HOW, OLD_ENOUGH, QUIET)
    names = [{found.images.names[place] for place in group} for group in found.conflicts]
    assert len(names) == 4 and {"best/0.png", "raw/0.png"} in names and {"more/3.png", "raw/3.png"} in names


def test_a_link_to_an_image_of_the_other_set_is_a_leak(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    for seed in range(4):
        scene(seed, (80, 60)).save(tmp_path / "train" / f"{seed}.png")
    scene(9, (80, 60)).save(tmp_path / "test" / "9.png")
    os.link(tmp_path / "train" / "2.png", tmp_path / "test" / "2.png")
    found = find(joined([images_of(tmp_path, split) for split in ("train", "test")]), HOW, OLD_ENOUGH, QUIET)
    assert [found.is_leak(pair) for pair in found.near] == [True] and found.one_file == []
    assert report.drop_list(found) == b"2.png\n"


def file_of(name: str) -> str:
    """What `found_with_links` has called the file that a name leads to."""
    return name.split(" link")[0].removesuffix(".png")


def found_with_links(root: Path, links: int) -> Duplicates:
    """Scenes with a copy of one beside, and so many other names, of either kind, of that scene and of an odd image."""
    root.mkdir()
    for seed in range(12):
        scene(seed, (80, 60)).save(root / f"{seed:02}.png")
    scene(3, (80, 60)).resize((60, 45)).save(root / "copy of 3.png")
    scene(40, (80, 60)).save(root / "odd.png")
    for name, number in ((name, number) for name in ("03", "odd") for number in range(links)):
        path = root / f"{name} link {number:02}.png"
        os.link(root / f"{name}.png", path) if number % 2 else path.symlink_to(root / f"{name}.png")
    images = images_of(root, "train")
    files = [file_of(name) for name in images.names]
    random = np.random.default_rng(2)
    vectors = {file: random.normal([3, *[0] * 5], 1.0) for file in sorted({*files})}
    vectors["odd"] = np.array([-2.0, 1, 0, 0, 0, 0])
    return find(images._replace(vectors=unit_rows([vectors[file] for file in files])), HOW, OLD_ENOUGH, QUIET)


def outliers_of(found: Duplicates) -> list[tuple[str, str, float]]:
    names = [file_of(name) for name in found.images.names]
    return [(names[one.place], names[one.nearest], one.cosine) for one in found.outliers]


@pytest.mark.parametrize("links", [1, 11])
def test_other_names_of_a_file_are_none_of_its_neighbours(tmp_path, links):
    alone, many = found_with_links(tmp_path / "alone", 0), found_with_links(tmp_path / "many", links)
    expected = outliers_of(alone)
    assert expected[0][0] == "odd"
    assert outliers_of(many) == [(*files, pytest.approx(cosine)) for *files, cosine in expected]
    assert named(alone, alone.near) == {frozenset(("03.png", "copy of 3.png"))}
    of_three = ["03.png", *(f"03 link {number:02}.png" for number in range(links))]
    assert named(many, many.near) == {frozenset((name, "copy of 3.png")) for name in of_three}
    assert many.threshold == pytest.approx(alone.threshold)
    assert report.drop_list(many) == b"copy of 3.png\n" and len(many.groups) == 1


def test_nothing_but_names_of_one_file(tmp_path):
    scene(0, (80, 60)).save(tmp_path / "a.png")
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    found = find(images_of(tmp_path, "train"), HOW, OLD_ENOUGH, QUIET)
    assert (found.one_file, found.near, found.alike, found.groups, found.outliers) == ([[0, 1]], [], [], [], [])
    assert report.summary(found, HOW)["drop"] == 0
    report.write_duplicates(str(tmp_path / "page.html"), found)


def test_same_files(photos, tmp_path):
    source = open_source(f"folder:{photos}")
    ids = np.arange(source.num_instances)
    names = [source.name_of(place) for place in ids]
    first = {name: names[place] for name, place in zip(names, same_files(source, ids))}
    assert {name: other for name, other in first.items() if name != other} == {
        "raw/0.png": "best/0.png", "raw/1.png": "best/1.png", "raw/2.png": "best/2.png", "raw/3.png": "more/3.png",
    }  # fmt: skip
    later = same_files(source, ids[2:])
    assert names[2:][later[names[2:].index("raw/3.png")]] == "more/3.png", "places among those that are asked for"
    assert same_files(open_source("digits"), np.arange(3)).tolist() == [0, 1, 2]
