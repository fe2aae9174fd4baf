"""A sweep's course, with small programs in the place of training and judging."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest

from flags.sweep import config_of
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import MachineError, UserError
from instcls_tf.run.interrupted import Interrupted
from instcls_tf.run.workdir import holds_this_run
from instcls_tf.sweep.ownership import interruptible, locked
from instcls_tf.sweep.run import COMMANDS, Commands, plan_of_sweep, run_sweep
from instcls_tf.sweep.spec import Spec, read_spec
from tests.images import write_images

# Three epochs of four steps, or what the recipe says; at a rate of 9 the loss is no number, at 8 there is no disk.
_TRAIN = """
import json, os, sys
folder, epochs, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
os.makedirs(folder, exist_ok=True)
with open(os.path.join(folder, "metrics.jsonl"), "w") as file:
    for step in range(1, 4 * epochs + 1):
        line = {"step": step, "epoch": step / 4, "seconds": 5 + 2.0 * step, "images_per_second": 100.0}
        file.write(json.dumps({**line, "knn_top1": rate}) + chr(10))
if rate == 9:
    sys.exit("error: step 3: the loss is nan, and the step was not taken on any worker; if the run diverged, it needs")
if rate == 8:
    sys.exit("error: cannot write (No space left on device)")
"""
_JUDGE = """
import json, os, sys
with open(os.path.join(sys.argv[1], "metrics.jsonl")) as file:
    accuracy = json.loads(file.readline())["knn_top1"]
with open(os.path.join(sys.argv[1], "knn_eval.json"), "w") as file:
    json.dump({"top1": accuracy, "train_split": "train", "test_split": "test", "examples": 7}, file)
"""


class Recorder:
    """The commands, and the recipes that were trained."""

    def __init__(self) -> None:
        self.trained: list[PretrainConfig] = []

    def pretrain(self, config: PretrainConfig) -> tuple[str, ...]:
        self.trained.append(config)
        words = (config.workdir, str(config.epochs), str(config.learning_rate))
        return (sys.executable, "-c", _TRAIN, *words)

    def commands(self) -> Commands:
        return Commands(self.pretrain, lambda config: (sys.executable, "-c", _JUDGE, config.workdir))


@pytest.fixture
def make_spec(tmp_path):
    def make(rates: list[float], **changes) -> Spec:
        arms = {"a": {"grid": {"learning_rate": rates}}, "b": {"flags": {"method": "simclr", "learning_rate": 0.3}}}
        values = {"workdir": f"{tmp_path}/sweep", "minutes": 2, "seeds": [4, 5], "unequal_trials": True, "arms": arms}
        values |= {"cores": 1, "side_by_side": 1, "base": {"dataset": "digits"}, **changes}
        (tmp_path / "spec.json").write_text(json.dumps(values))
        return read_spec(str(tmp_path / "spec.json"), config_of)

    return make


def results_of(spec: Spec) -> list[dict]:
    return [json.loads(line) for line in Path(spec.workdir, "results.jsonl").read_text().splitlines()]


def test_search_and_final(make_spec):
    recorder, spec = Recorder(), make_spec([0.1, 0.5, 9.0])
    found = run_sweep(spec, commands=recorder.commands()).result
    assert found["stage"] == "search"
    assert found["arms"]["a"]["flags"] == {"learning_rate": 0.5}
    assert (found["arms"]["a"]["finished"], found["arms"]["a"]["failed"]) == (3, 1)
    assert found["arms"]["b"]["difference"] == pytest.approx(-0.2)
    # A calibration for each arm: 8 seconds for an epoch, and 5 before, of two minutes.
    calibrations = [config for config in recorder.trained if "calibrations" in config.workdir]
    assert [config.learning_rate for config in calibrations] == [0, 0]
    assert {line["epochs"] for line in results_of(spec)} == {round((120 - 5) / 8)} == {14}
    assert [line["accuracy"] for line in results_of(spec) if line["arm"] == "a"] == [0.1, 0.5, None]
    assert {line["minutes"] for line in results_of(spec)} == {(5 + 2 * 4 * 14) / 60}
    assert {line["split"] for line in results_of(spec)} == {"validation"}
    assert all(config.dataset.startswith(f"folder:{spec.workdir}/images-") for config in recorder.trained)

    recorder.trained.clear()
    found = run_sweep(spec, final=True, commands=recorder.commands()).result
    assert found["stage"] == "final"
    assert found["arms"]["b"]["difference"] == pytest.approx(-0.2)
    assert found["arms"]["b"]["difference_interval"] == pytest.approx(0)
    trained = [config for config in recorder.trained if "calibrations" not in config.workdir]
    assert [(c.learning_rate, c.seed) for c in trained] == [(0.5, 4), (0.3, 4), (0.5, 5), (0.3, 5)]
    assert {config.dataset for config in recorder.trained} == {"digits"}
    assert {(line["train_split"], line["split"]) for line in results_of(spec)[4:]} == {("train", "test")}
    recorder.trained.clear()
    assert run_sweep(spec, final=True, commands=recorder.commands()).result == found
    assert recorder.trained == []


@pytest.mark.parametrize("final", [False, True])
def test_no_stage_goes_on_with_other_images(make_spec, tmp_path, final):
    """The search is finished, or a trial of it is missing: one more image is refused before anything is trained."""
    photos = tmp_path / "photos"
    write_images(photos, [f"{split}/{name}/{i}.jpg" for split in ("train", "test") for name in "ab" for i in range(3)])
    base = {"dataset": f"folder:{photos}", "batch_size": 4, "hard_negatives": 2, "micro_batch": 4}
    run_sweep(make_spec([0.1], base=base), commands=Recorder().commands())
    write_images(photos, ["train/a/new.jpg"])
    recorder, spec = Recorder(), make_spec([0.1] if final else [0.1, 0.5], base=base)
    with pytest.raises(UserError, match="has other images than when the sweep began"):
        run_sweep(spec, final=final, commands=recorder.commands())
    assert recorder.trained == []


def test_equal_epochs_need_no_calibration(make_spec):
    recorder, spec = Recorder(), make_spec([0.1, 0.5], minutes=0.1)
    with pytest.raises(
        UserError, match=r"minutes: 0.1 are too few for arms.a, which takes 0.08 minutes before and 0.13"
    ):
        run_sweep(spec, commands=recorder.commands())
    recorder.trained.clear()
    epochs = dataclasses.replace(spec, minutes=None, epochs=6)
    run_sweep(epochs, commands=recorder.commands())
    assert [config.epochs for config in recorder.trained] == [6, 6, 6]


def test_a_length_that_is_measured_rules_no_trial_out(make_spec):
    """Three epochs fit: a prior that is taken again after five is taken once."""
    recorder = Recorder()
    spec = make_spec([0.1], minutes=0.5, arms={"a": {"grid": {"prior_every": [0, 2, 5]}}})
    run_sweep(spec, commands=recorder.commands())
    trained = [config for config in recorder.trained if "calibrations" not in config.workdir]
    assert [(config.epochs, config.prior_every) for config in trained] == [(3, 0), (3, 2), (3, 0)]
    assert [line["flags"]["prior_every"] for line in results_of(spec)] == [0, 2, 5]
    spec = make_spec([0.1], minutes=0.5, arms={"a": {"flags": {"contrast_epochs": 3}}})
    with pytest.raises(UserError) as refusal:
        run_sweep(spec, commands=recorder.commands())
    assert str(refusal.value).endswith(
        "arms.a: --contrast_epochs=3: must be below --epochs=3, the instance classification follows (--epochs=3 fit"
        " into minutes: 0.5)"
    )


def test_an_interrupted_trial_goes_on_with_what_it_was_given_without_effect(make_spec):
    spec = make_spec([0.1], minutes=0.5, arms={"a": {"flags": {"prior_every": 5}}})
    run_sweep(spec, commands=(first := Recorder()).commands())
    begun = first.trained[-1].replace(prior_every=5, tfds_split="train[:80%]", batch_contrast_temperature=0.1)
    assert "--batch_contrast_temperature=0.1" not in COMMANDS.pretrain(begun), "a preset's, which a new run refuses"
    Path(spec.workdir, "results.jsonl").unlink()
    Path(begun.workdir, "run.flags").write_text(begun.as_flags())
    Path(begun.workdir, "checkpoints").mkdir()
    Path(begun.workdir, "checkpoints", "ckpt-00000004.index").touch()
    run_sweep(spec, commands=(second := Recorder()).commands())
    assert second.trained == [begun]
    assert holds_this_run(begun) and "--batch_contrast_temperature=0.1" in COMMANDS.pretrain(begun)


def test_a_trial_that_fails_otherwise_stops_the_sweep_and_is_tried_again(make_spec, tmp_path):
    recorder, spec = Recorder(), make_spec([0.1, 8.0])
    with pytest.raises(UserError) as refusal:
        run_sweep(spec, commands=recorder.commands())
    assert str(refusal.value).startswith(f"--spec={tmp_path}/spec.json: the run in {spec.workdir}/search/a-")
    assert "(exit status 1; log.txt there ends with: error: cannot write (No space left on device))" in str(
        refusal.value
    )
    assert [line["accuracy"] for line in results_of(spec)] == [0.1, 0.3]
    recorder.trained.clear()
    with pytest.raises(UserError):
        run_sweep(spec, commands=recorder.commands())
    assert [config.learning_rate for config in recorder.trained] == [8.0]


def test_a_signal_interrupts_a_sweep_of_a_script(make_spec, tmp_path):
    """Which handles none itself: its trials would go on alone."""
    write_images(tmp_path / "photos", [f"train/{name}/{index}.jpg" for name in "xy" for index in range(2)])
    before, words = signal.getsignal(signal.SIGTERM), "import os, time; os.kill(os.getppid(), 15); time.sleep(60)"

    def pretrain(config: PretrainConfig) -> tuple[str, ...]:
        assert signal.getsignal(signal.SIGTERM) is not before
        return (sys.executable, "-c", words)

    base = {"dataset": f"folder:{tmp_path}/photos", "batch_size": 2, "hard_negatives": 1, "micro_batch": 2}
    spec = dataclasses.replace(make_spec([0.1], base=base), minutes=None, epochs=6)
    with pytest.raises(Interrupted) as raised:
        run_sweep(spec, commands=Commands(pretrain, lambda config: ()))
    assert raised.value.told.startswith("interrupted: ") and signal.getsignal(signal.SIGTERM) is before
    (attempts,) = Path(spec.workdir).rglob("attempts.jsonl")
    assert json.loads(attempts.read_text())["status"] == -signal.SIGTERM
    with ThreadPoolExecutor() as pool:  # whose threads cannot handle any
        pool.submit(interruptible().__enter__).result()


def test_one_sweep_at_a_time(make_spec, tmp_path):
    spec = make_spec([0.1])
    with locked(spec.workdir, "the other"), pytest.raises(UserError) as refusal:
        run_sweep(spec, commands=Recorder().commands())
    problem = f"another one, or a run that it has left, is running in {spec.workdir}"
    assert str(refusal.value) == f"--spec={tmp_path}/spec.json: workdir: {problem}"
    assert not Path(spec.workdir, "results.jsonl").exists()


def test_more_cores_than_there_are_are_refused(make_spec, tmp_path):
    have = len(os.sched_getaffinity(0))
    with pytest.raises(UserError) as refusal:
        run_sweep(make_spec([0.1], side_by_side=have + 1), commands=Recorder().commands())
    assert f"side_by_side: {have + 1} run(s) of 1 core(s) are more than the {have} core(s)" in str(refusal.value)
    assert not (tmp_path / "sweep").exists()


def test_a_file_system_that_fails_is_no_mistake_of_the_specification(make_spec, tmp_path, monkeypatch):
    write_images(tmp_path / "photos", [f"train/{name}/{index}.jpg" for name in "xy" for index in range(2)])
    looks = Mock(side_effect=[False, MachineError("cannot be read")])
    monkeypatch.setattr("instcls_tf.sweep.run.can_continue", looks)
    spec = dataclasses.replace(make_spec([0.1], base={"dataset": f"folder:{tmp_path}/photos"}), minutes=None, epochs=6)
    with pytest.raises(MachineError, match=r"arms\.a: cannot be read$"):
        run_sweep(spec, commands=Recorder().commands())


@pytest.mark.parametrize(
    ("names", "final", "sentence"),
    [
        ([], False, "no such folder"),
        ([], True, "no such folder"),
        (["0.jpg", "1.jpg", "2.jpg"], False, "the train split has no labels, wanted PATH/{train,test}/CLASS/"),
        (["train/x/0.jpg", "train/x/1.jpg", "train/y/2.jpg"], True, "no test split"),
    ],
)
def test_images_that_cannot_judge_are_neither_planned_nor_trained_on(
    make_spec, tmp_path, monkeypatch, names, final, sentence
):
    write_images(tmp_path / "photos", names) if names else None
    if final:  # its splits hold what the search needs, and are opened once
        monkeypatch.delattr("instcls_tf.sweep.run.open_labelled")
    spec = make_spec([0.1, 0.2], base={"dataset": f"folder:{tmp_path}/photos", "hard_negatives": 2})
    for begin in (plan_of_sweep, partial(run_sweep, commands=Recorder().commands())):
        with pytest.raises(UserError) as refusal:
            begin(spec, final=final)
        assert str(refusal.value).startswith(f"--dataset=folder:{tmp_path}/photos: {sentence}")
        assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("split", ["unlabelled", "train+test"])
def test_a_search_needs_a_part_of_train(make_spec, tmp_path, split):
    """The slice would be without labels, or of test images."""
    base = {"dataset": "stl10", "tfds_split": split}
    spec = make_spec([0.1, 0.2], base=base)
    for begin in (plan_of_sweep, partial(run_sweep, commands=Recorder().commands())):
        for final in (False, True):
            with pytest.raises(UserError, match=rf"^--tfds_split={re.escape(split)}: is not within train, a part of"):
                begin(spec, final=final)
    assert not (tmp_path / "sweep").exists()
