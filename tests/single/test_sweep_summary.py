"""Intervals, differences of pairs, what a sweep says of its results, and how long its trials become."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from scipy import stats

from flags.sweep import config_of
from instcls_tf.errors import UserError
from instcls_tf.sweep import calibration, picture, run, summary
from instcls_tf.sweep.calibration import Pace, calibration_config, epochs_in, group_of, mean_pace, pace_of
from instcls_tf.sweep.spec import Spec, read_spec
from instcls_tf.sweep.summary import mean_with_interval, paired_difference
from instcls_tf.sweep.trials import Trial, final_trials, search_trials

ACCURACIES = {"ours": [0.30, 0.36, 0.33], "simclr": [0.41, 0.43, 0.45]}


@pytest.fixture
def spec(tmp_path) -> Spec:
    arms = {"ours": {}, "simclr": {"flags": {"method": "simclr", "temperature": 0.5}}}
    values = {"workdir": f"{tmp_path}/sweep", "minutes": 6, "cores": 1, "side_by_side": 2, "seeds": [0, 1, 2]}
    values |= {"base": {"dataset": "digits", "online_knn_every": 1}, "arms": arms}
    (tmp_path / "spec.json").write_text(json.dumps(values))
    return read_spec(str(tmp_path / "spec.json"), config_of)


def result(trial: Trial, accuracy: float | None, **changes) -> dict:
    about = {"key": trial.key, "seed": trial.seed, "accuracy": accuracy, "minutes": 6.1, "epochs": 20}
    return {**about, "processor": "x", **changes}


@pytest.fixture
def results(spec) -> list[dict]:
    return [result(trial, ACCURACIES[trial.setting.arm][trial.seed]) for trial in final_trials(spec, [])]


def test_intervals_are_students():
    values = [0.41, 0.43, 0.45, 0.40]
    mean, interval = mean_with_interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (mean - interval, mean + interval) == pytest.approx((low, high))
    # By hand: t(0.975, 1) = 12.706; the deviation of the mean of 1 and 3 is 1.
    assert mean_with_interval([1, 3]) == pytest.approx((2, 12.706), abs=1e-3)
    assert mean_with_interval([0.5]) == (0.5, None)


def test_differences_are_of_pairs():
    ours, simclr = (dict(enumerate(values)) for values in ACCURACIES.values())
    difference = paired_difference(simclr, ours)
    assert difference.mean == pytest.approx(0.1)
    # Of 0.11, 0.07, 0.12: deviation 0.026458, t(0.975, 2) = 4.30265.
    assert difference.interval == pytest.approx(4.30265 * 0.026458 / 3**0.5, rel=1e-3)
    paired = stats.ttest_rel(list(simclr.values()), list(ours.values())).confidence_interval(0.95)
    assert (difference.mean - difference.interval, difference.mean + difference.interval) == pytest.approx(paired)
    assert paired_difference({0: 0.5, 7: 0.9}, ours).mean == pytest.approx(0.2)  # the seeds that both have
    assert paired_difference({7: 0.9}, ours) is None


def test_the_summary_compares_with_the_first_arm(spec, results):
    found = summary.result_of(spec, results)
    assert found["stage"] == "final"
    ours, simclr = found["arms"]["ours"], found["arms"]["simclr"]
    assert ours["accuracy"] == pytest.approx(0.33) and "difference" not in ours
    assert (simclr["finished"], simclr["failed"], simclr["trials"], simclr["seeds"]) == (3, 0, 3, [0, 1, 2])
    assert simclr["flags"] == {"method": "simclr", "temperature": 0.5}
    assert simclr["difference"] == pytest.approx(0.1)
    table = summary.table_of(spec, results)
    flags = "--method=simclr --temperature=0.5"
    assert f"| simclr | 3 of 3 | {flags} | 20 | 6.1 | 43.0 ± 5.0 | +10.0 ± 6.6 |" in table
    assert "different processors" not in table


def test_the_summary_of_what_is_not_complete(spec, results):
    assert summary.result_of(spec, [])["arms"]["ours"] == {"finished": 0, "failed": 0, "trials": 1}
    assert "| ours | 0 of 1 | | | | | |" in summary.table_of(spec, [])
    results[0]["accuracy"] = None  # diverged
    results[1]["processor"] = "y"
    table = summary.table_of(spec, results[:-1])
    assert "| ours | 3 of 3, 1 failed |" in table and "| simclr | 2 of 3 |" in table
    assert summary.result_of(spec, results)["arms"]["ours"]["seeds"] == [1, 2]
    assert "different processors, whose minutes differ: x; y" in table


def write_metrics(trial: Trial, minutes: list[float], accuracies: list[float | None]) -> None:
    os.makedirs(trial.folder)
    with open(os.path.join(trial.folder, "metrics.jsonl"), "w") as file:
        for step, (minute, accuracy) in enumerate(zip(minutes, accuracies)):
            knn = {} if accuracy is None else {"knn_top1": accuracy}
            file.write(json.dumps({"step": step, "seconds": 60 * minute, **knn}) + "\n")


def test_curves_are_means_over_seeds_against_minutes(spec, results, tmp_path):
    for trial in final_trials(spec, []):
        shift = 0.1 * trial.seed
        write_metrics(trial, [1 + shift, 2, 3 + shift, 4], [0.1, None, 0.3 + shift, None])
    curves = picture.curves_of(spec, results)
    assert list(curves) == ["ours", "simclr"]
    np.testing.assert_allclose(curves["simclr"].minutes, [1.1, 3.1, 6.1])  # the end is that of the result
    np.testing.assert_allclose(curves["simclr"].accuracy, [0.1, 0.4, 0.43])
    np.testing.assert_allclose(
        curves["simclr"].interval, [0, mean_with_interval([0.3, 0.4, 0.5]).interval, 0.0497], atol=1e-4
    )
    picture.draw_curves(str(tmp_path / "accuracy.png"), spec, results)
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_be_drawn(spec, tmp_path):
    with pytest.raises(
        UserError, match=r"has finished trials with measurements yet, wanted measurements or base.online_"
    ):
        run.picture_of_sweep(spec, str(tmp_path / "accuracy.png"))
    assert not (tmp_path / "accuracy.png").exists()


def test_the_plan_counts_hours_and_writes_nothing(spec, results, tmp_path):
    answer = run.plan_of_sweep(spec, final=True)
    assert answer.result == {"trials": 6, "finished": 0, "hours": pytest.approx(3 * 6 / 60)}
    assert "final simclr seed 2: --method=simclr --temperature=0.5 (to do)" in answer.text
    assert answer.text.endswith("6 of 6 trials to do, 2 side by side: about 0.30 hours, and calibrations before")
    assert run.plan_of_sweep(spec).result == {"trials": 2, "finished": 0, "hours": pytest.approx(0.1)}
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results[:3]))
    answer = run.plan_of_sweep(spec, final=True)
    assert answer.result == {"trials": 6, "finished": 3, "hours": pytest.approx(2 * 6 / 60)}
    assert answer.text.count("(finished)") == 3


def lines_of(step_seconds: list[float], per_epoch: int) -> list[dict[str, float]]:
    seconds = np.cumsum(step_seconds)
    return [
        {"step": step, "epoch": step / per_epoch, "seconds": now, "images_per_second": step}
        for step, now in enumerate(seconds, start=1)
    ]


def test_the_pace_is_that_of_whole_epochs_after_the_first():
    """A prior of 20 seconds with the first step; each epoch begins with a search of 5."""
    pace = pace_of(lines_of([27, 2, 2, 2, 7, 2, 2, 2, 7, 2, 2, 2], per_epoch=4))
    assert pace == pytest.approx(Pace(20, 13, 8.5))
    assert epochs_in(10, pace) == round((600 - 20) / 13)
    assert epochs_in(27 / 60, pace) == 1
    assert epochs_in(26 / 60, pace) == 0


def test_the_pace_of_long_epochs_is_that_of_later_steps():
    pace = pace_of(lines_of([21, 1, 3, 2, 2, 2], per_epoch=100))
    assert pace.seconds_per_epoch == pytest.approx(200)
    assert pace.seconds_before == pytest.approx(25 - 3 * 2)
    assert mean_pace([Pace(1, 2, 3), Pace(3, 4, 5)]) == Pace(2, 3, 4)


def test_the_pace_of_an_epoch_and_a_half_has_one_search_in_it():
    """A prior and a search of 20 seconds with the first step, one of 10 with that of the next epoch."""
    pace = pace_of(lines_of([21, 1, 1, 1, 1, 1, 11, 1, 1, 1], per_epoch=6))
    assert pace.seconds_per_epoch == pytest.approx(16)


def test_the_pace_of_less_than_an_epoch_and_a_half_has_none():
    pace = pace_of(lines_of([21, 1, 1, 1, 1, 1, 1, 1, 11, 1], per_epoch=8))
    assert pace.seconds_per_epoch == pytest.approx(8)


def test_settings_that_take_the_same_time_share_a_calibration(spec):
    ours, simclr = search_trials(spec)
    assert group_of(ours, 1, 2) != group_of(simclr, 1, 2)
    assert group_of(ours, 1, 2) != group_of(ours, 1, 1)

    def group(**changes) -> str:
        setting = ours.setting
        changed = type(setting)(setting.arm, setting.flags, setting.config.replace(**changes))
        return group_of(Trial(changed, 7, ours.stage, ours.dataset, "elsewhere", "key"), 1, 2)

    assert group() == group(learning_rate=0.1, temperature=0.3, weight_decay=0.0) == group_of(ours, 1, 2)
    assert group() == group(stall_timeout=60.0, keep_checkpoints=5, gauge_every=2, report=False)
    assert group() != group(temperature=0.02) == group(temperature=0.01)  # which have a pass more
    for changes in (
        {"views": 4},
        {"smoothing": 0.0},
        {"width_multiplier": 0.5},
        {"batch_contrast": 1.0},
        {"checkpoint_every": 2},
    ):
        assert group(**changes) != group()
    config = calibration_config(ours, "somewhere")
    assert (config.workdir, config.dataset, config.learning_rate) == ("somewhere/run", ours.dataset, 0)
    assert (config.epochs, config.online_knn_every) == (calibration._EPOCHS, 0)
