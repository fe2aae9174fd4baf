"""`search`, `duplicates` and the tables of `extract`, as a user starts them, on photographs that a run has not seen."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import ImageOps

from tests.commands import run_script, snapshot
from tests.single.test_verify import scene


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, whole_run) -> Path:
    """A copy of the tiny run, to which commands may add their results."""
    return shutil.copytree(whole_run.workdir, tmp_path_factory.mktemp("found") / "run")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Ten scenes for training, and two others for testing of which one is the mirror image of a training one."""
    folder = tmp_path_factory.mktemp("photos")
    for split in ("train", "test"):
        (folder / split).mkdir()
    for seed in range(10):
        scene(seed, (48, 36)).save(folder / "train" / f"{seed}.jpg")
    scene(10, (48, 36)).save(folder / "test" / "10.jpg")
    ImageOps.mirror(scene(4, (48, 36))).save(folder / "test" / "mirrored.jpg")
    return folder


def test_search(workdir, photos, tmp_path):
    page = tmp_path / "hits.html"
    query = photos / "test" / "mirrored.jpg"
    flags = [
        f"--workdir={workdir}",
        f"--dataset=folder:{photos}",
        f"--query={query},7.jpg",
        "--k=2",
        f"--output={page}",
    ]
    finished = run_script("search", *flags)
    assert finished.status == 0, finished.output
    answer = json.loads(finished.stdout.splitlines()[-1])
    assert answer == json.loads((workdir / "search.json").read_text())
    assert [hit["query"] for hit in answer["hits"]] == [str(query)] * 2 + ["7.jpg"] * 2
    assert answer["hits"][2] == {"query": "7.jpg", "path": "7.jpg", "cosine": pytest.approx(1.0)}
    assert page.read_text().count("data:image/jpeg;base64,") == 6


def test_search_for_names_of_any_letters(workdir, photos, tmp_path):
    """Commas, quotation marks and newlines, of files that are asked for and of files that join; the flags repeat."""
    names = [str(tmp_path / "a, b.jpg"), str(tmp_path / 'c\n"d".jpg'), '"e\n.jpg']
    shutil.copytree(photos / "train", tmp_path / "train")
    for seed, path in enumerate(names, start=20):
        scene(seed, (48, 36)).save(tmp_path / "train" / path)  # of which the first two are absolute paths
    flags = [f"--workdir={workdir}", f"--dataset=folder:{tmp_path}", "--k=1", f"--output={tmp_path / 'hits.html'}"]
    queries, added = [f"--query={name}" for name in (*names, "7.jpg,3.jpg")], [f"--add={name}" for name in names[:2]]
    finished = run_script("search", *flags, *queries, *added)
    assert finished.status == 0, finished.output
    hits = json.loads(finished.stdout.splitlines()[-1])["hits"]
    assert [hit["query"] for hit in hits] == [hit["path"] for hit in hits] == [*names, "7.jpg", "3.jpg"]


def test_duplicates_and_leaks(workdir, photos):
    before = snapshot(photos)
    finished = run_script("duplicates", f"--workdir={workdir}", f"--dataset=folder:{photos}", "--against=test")
    assert finished.status == 0, finished.output
    answer = json.loads(finished.stdout.splitlines()[-1])
    assert answer == json.loads((workdir / "duplicates.json").read_text())
    assert {key: answer[key] for key in ("groups", "near_duplicates", "leaks", "drop")} == {
        "groups": 1, "near_duplicates": 1, "leaks": 1, "drop": 1,
    }  # fmt: skip
    assert answer["listed_leaks"] == [
        {"first": "4.jpg", "first_set": "train", "second": "mirrored.jpg", "second_set": "test"}
    ]
    assert (workdir / "duplicates_drop.txt").read_text() == "4.jpg\n"
    with open(workdir / "duplicates.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["kind"], row["first"], row["second"], row["mirrored"]) == (
        "near-duplicate",
        "4.jpg",
        "mirrored.jpg",
        "1",
    )
    assert "In both sets (1)" in (workdir / "duplicates.html").read_text()
    assert snapshot(photos) == before, "nothing is deleted"
    said = "this run is too young to tell what is alike" in finished.stderr
    assert said == answer["too_young"]


def test_a_table_of_features(workdir, photos, tmp_path):
    flags = [f"--workdir={workdir}", f"--dataset=folder:{photos}", f"--output={tmp_path / 'features.csv'}"]
    finished = run_script("extract", *flags)
    assert finished.status == 0, finished.output
    answer = json.loads(finished.stdout.splitlines()[-1])
    assert (answer["format"], answer["files"], answer["examples"]) == ("csv", 1, 10)
    with open(tmp_path / "features.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{seed}.jpg" for seed in range(10)]
    assert len(rows[0]) == 3 + 128 + 128 and rows[3]["backbone_127"] != rows[4]["backbone_127"]
