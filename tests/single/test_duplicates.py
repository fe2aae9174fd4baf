"""From features and signatures to groups: candidates, groups, percentiles, leaks, contradictions, what to drop."""

from __future__ import annotations

import csv
import io
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.benchmark.duplicate_peers import Told
from instcls_tf.benchmark.duplicates import judged
from instcls_tf.benchmark.planted import CHANGES, Planted, changed_copy, plant
from instcls_tf.config import PretrainConfig
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import open_source
from instcls_tf.distributed import collectives, partition
from instcls_tf.errors import UserError
from instcls_tf.progress import Progress
from instcls_tf.report import duplicates as report
from instcls_tf.run.workdir import begin_run
from instcls_tf.search import age
from instcls_tf.search.age import Age
from instcls_tf.search.age import judged as judged_age
from instcls_tf.search.candidates import Neighbours, neighbours_by_features, pairs_to_compare
from instcls_tf.search.duplicates import _refuse_common_images, duplicates_of_run, find, usual_cosines
from instcls_tf.search.images import Images, joined
from instcls_tf.search.neighbours import unit_rows
from instcls_tf.search.settings import Settings
from instcls_tf.search.signatures import signatures_of
from tests.encoders import trained_encoder
from tests.images import write_images
from tests.single.test_verify import scene

OLD_ENOUGH = Age(0.8, 0.1, 100, False)
QUIET = Progress(visible=False)


def test_usual_cosines_leave_copies_and_the_other_set_out():
    neighbours = Neighbours(np.array([[0.9], [0.5], [0.99], [0.7], [0.3]]), np.zeros([5, 1], np.int64))
    of_source = np.array([0, 0, 0, 0, 1])
    np.testing.assert_array_equal(usual_cosines(neighbours, of_source, [[2, 4]]), [0.5, 0.7, 0.9])
    np.testing.assert_array_equal(usual_cosines(neighbours, of_source, [[0, 1, 2, 3]]), [0.3, 0.5, 0.7, 0.9, 0.99])


def test_a_run_is_too_young_if_it_finds_no_more_than_chance_would():
    def hits(count):
        return np.arange(100) < count

    assert judged_age(hits(30), hits(20)) == (0.3, 0.2, 100, False)
    assert judged_age(hits(22), hits(20)).is_too_young
    assert judged_age(hits(10), hits(40)).is_too_young
    assert not judged_age(hits(97), hits(99)).is_too_young
    sentence = judged_age(hits(22), hits(20)).sentence()
    assert "among 100 images it finds the other view of 22%, an untrained network of 20%" in sentence


def test_an_untrained_network_sees_the_same_batches_for_any_number_of_workers(monkeypatch):
    """Its statistics are those of a batch."""
    images = np.random.default_rng(0).integers(0, 256, [150, 8, 8, 3], np.uint8)
    order = np.random.default_rng(1).permutation(150)
    views = age._of_all_workers(tf.constant(images[order]), tf.constant(order))
    np.testing.assert_array_equal(views, images)
    network = trained_encoder().get_layer("backbone")
    whole, shares = age._features(network, views, True), []
    for rank in range(2):
        monkeypatch.setattr(collectives, "own_bounds", lambda total, rank=rank: partition.bounds(total, 2, rank))
        shares.append(age._features(network, views, True))
    np.testing.assert_allclose(np.concatenate(shares), whole, atol=1e-5)
    assert 0 < len(shares[1]) < 150


# ----------------------------------------------------------------------------------------- a folder with planted copies


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 scenes; copies of five of them beside, one a kind; one of those, and a sixth, among the test images."""
    root = tmp_path_factory.mktemp("scenes")
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (root / name).mkdir(parents=True)
    for seed in range(30):
        scene(seed, (80, 60)).save(root / "train" / ("cat" if seed < 15 else "dog") / f"{seed:02d}.png")
    for seed in range(100, 104):
        scene(seed, (80, 60)).save(root / "test" / "dog" / f"{seed}.png")
    for seed, kind in enumerate(CHANGES):
        copy = changed_copy(scene(seed, (80, 60)), kind, np.random.default_rng(seed))
        (root / "train" / "cat" / f"{kind}.jpg").write_bytes(copy)
    shutil.move(root / "train" / "cat" / "encoded.jpg", root / "train" / "dog" / "encoded.jpg")
    shutil.copy(root / "train" / "cat" / "cropped.jpg", root / "test" / "cat" / "cropped again.jpg")
    scene(29, (80, 60)).save(root / "test" / "dog" / "29<b>.png")
    return root


def images_of(root, split: str) -> Images:
    """With features that tell nothing."""
    source = open_source(f"folder:{root}", split)
    signatures = signatures_of(source)
    names = [str(source.name_of(place)) for place in signatures.ids]
    vectors = unit_rows(np.random.default_rng(len(names)).normal(size=[len(names), 6]))
    of_source = np.zeros(len(names), np.int32)
    return Images((source,), (split,), of_source, signatures.ids, names, source.labels, vectors, signatures)


@pytest.fixture(scope="module")
def found(folder):
    images = joined([images_of(folder, "train"), images_of(folder, "test")])
    return find(images, Settings(neighbors=4, listed=3), OLD_ENOUGH, QUIET)


def named(found, pairs) -> set[frozenset[str]]:
    return {frozenset((found.images.names[pair[0]], found.images.names[pair[1]])) for pair in pairs}


def test_pixels_find_copies_where_features_tell_nothing(found):
    assert named(found, found.near) == {
        frozenset(pair)
        for pair in [
            ("cat/00.png", "dog/encoded.jpg"), ("cat/01.png", "cat/resized.jpg"), ("cat/02.png", "cat/cropped.jpg"),
            ("cat/02.png", "cat/cropped again.jpg"), ("cat/cropped.jpg", "cat/cropped again.jpg"),
            ("cat/03.png", "cat/mirrored.jpg"), ("cat/04.png", "cat/brightened.jpg"), ("dog/29.png", "dog/29<b>.png"),
        ]
    }  # fmt: skip
    assert [len(group) for group in found.groups] == [2, 2, 3, 2, 2, 2]
    (mirrored,) = (pair for pair in found.near if pair.is_mirrored)
    assert named(found, [mirrored]) == {frozenset(["cat/03.png", "cat/mirrored.jpg"])}
    assert found.near[0].similarity == max(pair.similarity for pair in found.near)


def test_alike_is_told_in_percentiles_of_the_sets_own(found):
    usual = usual_cosines(neighbours_by_features(found.images.vectors, 4), found.images.of_source, found.groups)
    assert found.threshold == pytest.approx(np.percentile(usual, 99))
    assert found.alike and not named(found, found.alike) & named(found, found.near)
    # Of few values the percentile lies between two of them: so many are certainly not above it.
    not_above = 1 + int(0.99 * (len(usual) - 1))
    for pair in found.alike:
        assert pair.cosine >= found.threshold
        assert pair.percentile == pytest.approx(100 * np.mean(usual <= pair.cosine), abs=1e-3)
        assert pair.percentile >= 100 * not_above / len(usual) - 1e-3


def test_what_is_doubtful(found):
    leaks = [pair for pair in found.near if found.is_leak(pair)]
    assert len(leaks) == 3 and len(report.connected_leaks(found)) == 2
    assert [[found.images.names[place] for place in group] for group in found.conflicts] == [
        ["cat/00.png", "dog/encoded.jpg"]
    ]
    # The larger one stays, and of leaks what is in the test split.
    assert {found.images.names[place] for place in found.drop} == {
        "dog/encoded.jpg", "cat/resized.jpg", "cat/02.png", "cat/cropped.jpg", "cat/mirrored.jpg", "cat/brightened.jpg",
        "dog/29.png",
    }  # fmt: skip
    means = neighbours_by_features(found.images.vectors, 4).cosines.mean(axis=1)[found.images.of_source == 0]
    assert [outlier.place for outlier in found.outliers] == np.argsort(means)[:3].tolist()


def test_files_and_page(found, tmp_path):
    rows = list(csv.DictReader(io.StringIO(report.table_of(found).decode())))
    assert len(rows) == len(found.near) + len(found.alike)
    (row,) = (row for row in rows if row["second"] == "dog/29<b>.png" and row["kind"] == "near-duplicate")
    assert (row["first"], row["first_split"], row["second_split"], row["leak"]) == ("dog/29.png", "train", "test", "1")
    assert [row["second"] for row in rows if row["labels_differ"] == "1" and row["similarity"]] == ["dog/encoded.jpg"]
    assert report.drop_list(found).decode().splitlines() == [found.images.names[place] for place in found.drop]
    answer = report.summary(found, Settings(listed=3))
    assert json.loads(json.dumps(answer)) == answer
    assert (answer["groups"], answer["near_duplicates"], answer["leaks"], answer["label_conflicts"]) == (6, 8, 3, 1)
    assert (answer["examples"], answer["against"], answer["drop"]) == (35, 6, 7)
    first, *_ = found.alike
    assert len(answer["listed_alike"]) == min(3, answer["alike"]) and answer["listed_alike"][0] == {
        "first": found.images.names[first.first], "first_set": found.images.set_of(first.first),
        "second": found.images.names[first.second], "second_set": found.images.set_of(first.second),
        "cosine": round(first.cosine, 4),
    }  # fmt: skip
    young = found._replace(age=Age(0.1, 0.1, 50, True))
    report.write_duplicates(str(tmp_path / "page.html"), young)
    page = (tmp_path / "page.html").read_text()
    assert "29&lt;b&gt;.png" in page and "<b>" not in page
    assert page.count("data:image/jpeg;base64,") > 12 and "http" not in page.replace("http-equiv", "")
    assert "This run is too young to tell" in page


def test_what_the_split_is_held_against_is_not_cleaned(folder):
    """Copies among those alone are left out of the counts, the table and the groups."""
    other = images_of(folder, "train")
    own = images_of(folder, "test")
    found = find(joined([own, other]), Settings(neighbors=4, listed=3), OLD_ENOUGH, QUIET)
    assert named(found, found.near) == {
        frozenset(pair)
        for pair in [
            ("cat/02.png", "cat/cropped again.jpg"), ("cat/cropped.jpg", "cat/cropped again.jpg"),
            ("dog/29.png", "dog/29<b>.png"),
        ]
    }  # fmt: skip
    assert found.alike and all(pair.first < len(own.ids) for pair in found.alike)
    assert len(found.groups) == 2 and found.conflicts == []
    answer = report.summary(found, Settings(listed=3))
    assert (answer["near_duplicates"], answer["groups"], answer["leaks"], answer["drop"]) == (3, 2, 3, 2)


def test_sets_of_two_datasets_have_different_names(folder, tmp_path):
    shutil.copytree(folder / "train" / "cat", tmp_path / "cat")
    images = joined([images_of(folder / "train" / "cat", "train"), images_of(tmp_path / "cat", "train")])
    found = find(images, Settings(neighbors=4, listed=2), OLD_ENOUGH, QUIET)
    sets = [f"folder:{folder}/train/cat train", f"folder:{tmp_path}/cat train"]
    answer = report.summary(found, Settings(listed=2))
    assert answer["sets"] == sets
    assert {(leak["first_set"], leak["second_set"]) for leak in answer["listed_leaks"]} == {tuple(sets)}
    assert all({name.endswith(f" ({sets[1]})") for name in group} == {True, False} for group in answer["listed_groups"])
    rows = list(csv.DictReader(io.StringIO(report.table_of(found).decode())))
    assert {f"{row['second_dataset']} {row['second_split']}" for row in rows if row["leak"] == "1"} == {sets[1]}
    report.write_duplicates(str(tmp_path / "page.html"), found)
    page = (tmp_path / "page.html").read_text()
    assert all(name in page for name in sets)


def test_names_in_lists(found):
    names = [*found.images.names]
    names[found.drop[0]], names[found.drop[1]] = "a\nb.jpg", "caf\udce9.jpg"
    odd = found._replace(images=found.images._replace(names=names))
    assert report.drop_list(odd).splitlines()[:2] == [b"a\\nb.jpg", b"caf\xe9.jpg"]
    assert b"caf\xe9.jpg" in report.table_of(odd)


def test_mirrored_copies_are_candidates_by_their_hash_alone(folder):
    images = images_of(folder, "train")
    places = {name: place for place, name in enumerate(images.names)}
    pair = sorted([places["cat/03.png"], places["cat/mirrored.jpg"]])
    nobody = np.arange(len(places))[:, None]  # every image is its only neighbour by features
    assert pair in pairs_to_compare(images.signatures, nobody, 2).pairs.tolist()
    unmirrored = images.signatures._replace(mirrored_hashes=images.signatures.hashes)
    assert pair not in pairs_to_compare(unmirrored, nobody, 2).pairs.tolist()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (Settings(neighbors=0), "--neighbors=0: must be at least 1"),
        (Settings(similarity=1.5), "--similarity=1.5: must be above 0 and at most 1"),
        (Settings(percentile=-1.0), "--percentile=-1.0: must be between 0 and 100"),
        (Settings(listed=0), "--listed=0: must be at least 1"),
    ],
)
def test_limits(settings, sentence):
    with pytest.raises(UserError) as refusal:
        settings.validate()
    assert str(refusal.value) == sentence


# ---------------------------------------------------------------------------------------------------------- benchmark


def test_planted_copies(folder, tmp_path):
    planted = plant(str(folder / "train"), str(tmp_path / "set"), 12, 2)
    assert planted.examples == 22 and len(list((tmp_path / "set").iterdir())) == 22
    assert sorted(kind for kind, _ in planted.copies.values()) == sorted([*CHANGES] * 2)
    assert len({original for _, original in planted.copies.values()}) == 10
    assert plant(str(folder / "train"), str(tmp_path / "again"), 12, 2).copies == planted.copies
    with pytest.raises(UserError, match=r"has 35 images, wanted at least 50 of --images$"):
        plant(str(folder / "train"), str(tmp_path / "more"), 60, 10)


def test_precision_and_recall():
    planted = Planted("", {"a'": ("encoded", "a"), "b'": ("mirrored", "b")}, 10)
    told = Told({frozenset(pair) for pair in [("a", "a'"), ("a", "b"), ("c", "d")]}, 1.0)
    result = judged([(planted, told)])
    assert (result["precision"], result["recall"], result["wrong_pairs"]) == ([0.3333], [0.5], 2)
    assert result["recall_by_kind"]["encoded"] == 1.0 and result["recall_by_kind"]["mirrored"] == 0.0
    assert judged([(planted, Told(set(), 0.0, "no network"))]) == {"failure": "no network"}


def test_a_file_is_no_copy_of_itself(tmp_path):
    """It would be listed to be dropped, as a copy of what is protected, and no other would be left."""
    write_images(tmp_path, ["a.png", "2023/b.png", "2023/c.png"])
    (tmp_path / "link").symlink_to(tmp_path / "2023")
    whole = open_source(f"folder:{tmp_path}")
    for other in ("2023", "2023/", "link"):
        with pytest.raises(
            UserError, match=r"^--against: 2 file\(s\) are on both sides \(.*2023/b\.png, .*2023/c\.png\)"
        ):
            _refuse_common_images(whole, open_source(f"folder:{tmp_path}/{other}"))
    write_images(tmp_path / "elsewhere", ["b.png", "c.png"])
    _refuse_common_images(open_source(f"folder:{tmp_path}/2023"), open_source(f"folder:{tmp_path}/elsewhere"))
    _refuse_common_images(whole, open_source("digits"))


def test_the_same_records_called_otherwise_are_the_same(tmp_path):
    write_images(tmp_path / "photos", [f"train/{i}.png" for i in range(4)])
    prepare(f"folder:{tmp_path}/photos", str(tmp_path / "records"), shard_megabytes=1)
    (tmp_path / "link").symlink_to(tmp_path / "records")
    begin_run(PretrainConfig(workdir=str(tmp_path / "run"), dataset=f"records:{tmp_path}/records"))
    for name, sentence in (
        ("records/", "--against=train: is the split itself, wanted another split or --against_dataset"),
        ("link", f"--against: 1 file(s) are on both sides ({tmp_path}/records/"),
    ):
        with pytest.raises(UserError) as refusal:
            duplicates_of_run(
                str(tmp_path / "run"), None, None, None, (f"records:{tmp_path}/{name}", "train"), Settings()
            )
        assert str(refusal.value).startswith(sentence)
