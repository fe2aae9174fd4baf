"""The table of a run beside its start, and what it says in the end."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_training_source
from instcls_tf.encoder.networks import make_encoder
from instcls_tf.errors import UserError
from instcls_tf.evaluation import against_start
from instcls_tf.evaluation.against_start import BETTER, LIKE, TOO_FEW, WORSE, Judgement, _splits, judge_run
from instcls_tf.evaluation.unseen import has_seen_nothing
from instcls_tf.initial.start import keep_starting_weights
from instcls_tf.run.workdir import begin_run
from tests.images import write_images
from tests.recipes import WITHOUT_PRIOR

ABOUT = {
    "dataset": "d",
    "step": 8,
    "init": "",
    "extend_from": "",
    "pixel_side": 32,
    "gauge_images": 400,
    "not_labels": "",
    "labelled_dataset": "",
}
LABELLED = {**ABOUT, "train_examples": 5000, "test_examples": 400, "test_split": "test"}
UNLABELLED = {**ABOUT, "train_examples": 0, "test_examples": 0, "test_split": ""}


def networks(start: float, run: float, has_labels: bool) -> dict[str, dict[str, float]]:
    """Of pixels, a start and a run; what the verdict must not look at points the other way."""
    found = {}
    for name, value in {"pixels": 0.99, "start": start, "run": run}.items():
        if has_labels:
            other = {"gauge_agreement": 1 - value, "rank_me": 20.0}
            found[name] = {"top1": value, "nearest_top1": 1 - value, **other}
        else:
            found[name] = {"gauge_agreement": value, "rank_me": 100 * (1 - value)}
    return found


def with_labels(start: int, run: int, both: int = 100, neither: int = 250, **about) -> Judgement:
    """Of images that only the start, only the run, both and neither get right."""
    kinds = np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], [start, run, both, neither], axis=0).astype(bool)
    hits = {"pixels": np.ones(len(kinds), bool), "start": kinds[:, 0], "run": kinds[:, 1]}
    accuracies = hits["start"].mean(), hits["run"].mean()
    return Judgement(networks(*accuracies, has_labels=True), {**LABELLED, "test_examples": len(kinds), **about}, hits)


@pytest.mark.parametrize(
    ("start", "run", "verdict"),
    [(0, 0, LIKE), (0, 4, LIKE), (0, 5, BETTER), (5, 0, WORSE), (19, 31, LIKE), (15, 31, BETTER), (31, 15, WORSE)],
)
def test_the_verdict_is_beyond_two_standard_errors(start, run, verdict):
    """Of the images that only one of the two gets right: 50 of them differ by 14 with luck."""
    found = with_labels(start, run)
    assert found.verdict() == verdict
    words = {"verdict": verdict, "against_pixels": "below raw pixels"}
    assert found.result() == {**found.networks, **found.about, **words}


@pytest.mark.parametrize(("right", "word"), [(32, "like"), (33, "above"), (18, "like"), (17, "below")])
def test_the_run_is_held_against_raw_pixels_in_the_same_way(right, word):
    """Of 50 images that only the run or only the pixels get right."""
    found = with_labels(0, 0, both=right, neither=50 - right)
    found.of_images["pixels"][:] = ~found.of_images["run"]
    assert found.against_pixels() == f"{word} raw pixels"


@pytest.mark.parametrize(("run", "both"), [(1, 0), (2, 2), (4, 0)])
def test_the_labels_of_a_handful_of_images_tell_nothing(run, both):
    found = with_labels(0, run, both, neither=0)
    assert found.verdict() == TOO_FEW
    assert f"by so few images (20-NN of {run + both} images among 5000)." in found.text()


def test_the_table_with_labels():
    found = with_labels(0, 60, both=120, neither=220, init="w.npz")
    assert found.text() == (
        "                                  1-NN        20-NN  views agree       RankMe\n"
        "raw pixels (32 px)                1.0%        99.0%         1.0%         20.0\n"
        "starting weights (--init)        70.0%        30.0%        70.0%         20.0\n"
        "this run (step 8)                55.0%        45.0%        55.0%         20.0\n"
        "This run is better than its start, and below raw pixels (20-NN of 400 images among 5000)."
    )


def without_labels(fall: float, images: int = 400, **about) -> Judgement:
    """Of images in which the run's views share fewer neighbours than the start's, by so much in the mean."""
    shares = np.resize([0.1, 0.3, 0.5], images)
    unlike = np.resize([0.3, -0.3, 0.0, 0.1], images)  # what the networks differ by, image by image
    of_images = {"pixels": shares - 0.4, "start": shares, "run": shares + unlike - unlike.mean() - fall}
    about = {**UNLABELLED, "gauge_images": images, **about}
    return Judgement(networks(0.3, 0.3 - fall, has_labels=False), about, of_images)


@pytest.mark.parametrize(("fall", "verdict"), [(0.04, WORSE), (0.03, LIKE), (-0.03, LIKE), (-0.04, BETTER)])
def test_without_labels_it_is_beyond_three_standard_errors_of_what_images_differ_by(fall, verdict):
    """3.3 points of 400 images; were each a coin toss, 2 errors would be 6.5."""
    assert without_labels(fall).verdict() == verdict


def test_the_table_without_labels():
    assert without_labels(0.1).text() == (
        "                              views agree       RankMe\n"
        "raw pixels (32 px)                  99.0%          1.0\n"
        "starting weights (untrained)        30.0%         70.0\n"
        "this run (step 8)                   20.0%         80.0\n"
        "This run is worse than its start, and above raw pixels (no labels: 10 nearest neighbours shared by two views"
        " of 400 images)."
    )


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (5, "not to be told from its start by so few images (no labels: nearest neighbour"),
        (9, "not to be told from its start by so few images (no labels: 2 nearest neighbours"),
        (40, "like its start, and above raw pixels (no labels: 9 nearest neighbours"),
    ],
)
def test_the_neighbours_that_were_looked_at_stand_in_the_sentence(images, said):
    """And a handful of images tells nothing."""
    last = without_labels(0.0, images).text().splitlines()[-1]
    assert last == f"This run is {said} shared by two views of {images} images)."


def test_folders_that_are_no_labels_are_told_before_the_verdict():
    *_, told, verdict = without_labels(0.1, not_labels="Folders ('DCIM') are not.").text().splitlines()
    assert told == "Folders ('DCIM') are not." and verdict.startswith("This run is worse than its start, and above raw")


def test_a_grown_run_starts_from_the_one_it_extends():
    found = with_labels(0, 60, both=120, neither=220, extend_from="runs/before")
    assert [line.split("  ")[0] for line in found.text().splitlines()][2:4] == [
        "starting weights (of the run it extends)", "this run (step 8)",
    ]  # fmt: skip
    last = (
        "This run is better than its start, the run it extends, and below raw pixels (20-NN of 400 images among 5000)."
    )
    assert found.text().splitlines()[-1] == last


def splits_of(root: Path) -> tuple:
    splits, note = _splits(*given(root), None, None)
    return len({id(split) for split in splits}), note


@pytest.mark.parametrize(
    "names",
    [["DCIM/Camera/0.jpg", "DCIM/Camera/1.jpg"], ["2019/0.jpg", "2020/1.jpg"], ["train/a/0.jpg", "train/a/1.jpg"]],
)
def test_folders_that_nobody_meant_as_labels_do_not_judge(tmp_path, names):
    write_images(tmp_path, names)
    assert _splits(*given(tmp_path), None, None) == (None, "")


def test_a_number_of_images_is_refused_where_nothing_has_labels(tmp_path):
    write_images(tmp_path / "photos", ["0.jpg", "1.jpg"])
    config, _ = given(tmp_path / "photos")
    begin_run(config.replace(workdir=str(tmp_path / "run")))
    with pytest.raises(UserError, match=r"^--images=2000: must be left out without labels, where gauges look at 128"):
        judge_run(str(tmp_path / "run"), images=2000)


def test_labelled_images_elsewhere_judge(tmp_path):
    write_images(tmp_path / "photos", ["0.jpg", "1.jpg"])
    write_images(tmp_path / "labelled" / "train", [f"{'ab'[number % 2]}/{number}.jpg" for number in range(6)])
    dataset = f"folder:{tmp_path / 'labelled'}"
    splits, _ = _splits(*given(tmp_path / "photos"), None, dataset)
    assert (splits.test is splits.train, splits.train.name, splits.train.num_instances) == (True, dataset, 6)
    with pytest.raises(UserError, match=f"^--dataset=folder:{tmp_path}/photos: the train split has no labels, wanted"):
        _splits(*given(tmp_path / "labelled"), None, f"folder:{tmp_path}/photos")
    assert with_labels(0, 60, labelled_dataset=dataset).text().endswith(f" images among 5000 of {dataset}).")


def given(root: Path) -> tuple:
    config = PretrainConfig(workdir="run", dataset=f"folder:{root}")
    return config, open_training_source(config)


def test_only_a_test_split_that_is_missing_is_passed_over_in_silence(tmp_path):
    for split, letters in {"train": "ab", "test": "ab"}.items():
        write_images(tmp_path / split, [f"{letter}/{number}.png" for letter in letters for number in range(2)])
    assert splits_of(tmp_path) == (2, "")
    write_images(tmp_path / "test", ["c/0.png"])
    assert splits_of(tmp_path) == (1, (
        f"warning: every fifth training image asks the others: --dataset=folder:{tmp_path}: class folder 'c' is"
        f" missing in {tmp_path / 'train'}"
    ))  # fmt: skip
    shutil.rmtree(tmp_path / "test")
    assert splits_of(tmp_path) == (1, "")


def test_a_run_without_a_step_is_like_its_start_whatever_its_method(tmp_path, monkeypatch):
    """No prior has shown either network an image: both are judged with the same statistics."""
    write_images(tmp_path / "photos", [f"{number}.jpg" for number in range(20)])
    config = WITHOUT_PRIOR.replace(dataset=f"folder:{tmp_path / 'photos'}", workdir=str(tmp_path / "run"))
    begin_run(config)
    run = make_encoder(config)
    keep_starting_weights(config.workdir, run)
    monkeypatch.setattr(against_start, "encoder_of", lambda config, prefix: run)
    asked = iter(["checkpoints/ckpt-00000007"])  # once: a run that goes on has another one later
    monkeypatch.setattr(against_start, "newest", lambda workdir: next(asked))
    found = judge_run(config.workdir)
    assert found.networks["start"] == found.networks["run"] and found.verdict() == LIKE
    assert not has_seen_nothing(run) and found.about["step"] == 7
