"""A sweep from its specification to its summary: the slice, calibrations, trials side by side, what they bring."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import sys
from typing import Any, Callable, NamedTuple

import numpy as np

from instcls_tf.checks import without_effect
from instcls_tf.config import PretrainConfig
from instcls_tf.data.labelled import bank_split, open_labelled, splits_of_run
from instcls_tf.data.sources import chosen_split
from instcls_tf.distributed.cores import allowed
from instcls_tf.errors import UserError, shown
from instcls_tf.files import is_there, refuse_unwritable
from instcls_tf.progress import Progress
from instcls_tf.report.answer import Answer, Picture
from instcls_tf.run.metrics import metrics_path, read_metrics
from instcls_tf.run.workdir import can_continue, load_run
from instcls_tf.sweep import calibration, picture, summary
from instcls_tf.sweep.beside import keep_side_by_side
from instcls_tf.sweep.calibration import Pace
from instcls_tf.sweep.held_out import held_out_folder, refuse_other_images, write_held_out
from instcls_tf.sweep.jobs import Ended, Job, commit_of, places, run_jobs
from instcls_tf.sweep.ownership import interruptible, locked
from instcls_tf.sweep.results import CALIBRATIONS_NAME, RESULTS_NAME, append_line, processor, read_lines
from instcls_tf.sweep.spec import Spec
from instcls_tf.sweep.trials import SEARCH, Trial, final_trials, search_trials, trials_before_final


class Commands(NamedTuple):
    """What trials are made of: words of the command that trains a recipe, and of that which judges its run."""

    pretrain: Callable[[PretrainConfig], tuple[str, ...]]
    judge: Callable[[PretrainConfig], tuple[str, ...]]


def _pretrain(config: PretrainConfig) -> tuple[str, ...]:
    # What a flagfile may have without any effect, the command line may not.
    idle = () if can_continue(config.workdir) else without_effect(config)
    words = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and value is not None and field.name not in idle:
            words.append(f"--{field.name}={str(value).lower() if isinstance(value, bool) else value}")
    return (sys.executable, "-m", "scripts.pretrain", *words)


def _judge(config: PretrainConfig) -> tuple[str, ...]:
    words = (f"--workdir={config.workdir}", "--features=backbone", f"--train_split={bank_split(config)}")
    return (sys.executable, "-m", "scripts.knn_eval", *words)


COMMANDS = Commands(_pretrain, _judge)


def run_sweep(spec: Spec, final: bool = False, commands: Commands = COMMANDS) -> Answer:
    """Runs the trials that are not finished, and sums all of them up.

    Args:
      spec: the specification.
      final: the search as far as it chooses between settings, and then the best of each arm on the test split.
      commands: of this project.

    Raises:
      UserError: the machine has too few cores, the images cannot judge, another sweep runs in the folder, or a trial
        cannot be run.
      Interrupted: a signal came, in the main thread of a command or a script; its trials have ended.
    """
    needed = spec.cores * spec.side_by_side
    if needed > allowed():
        raise UserError(
            f"--spec={shown(spec.path)}: side_by_side: {spec.side_by_side} run(s) of {spec.cores} core(s) are more than"
            f" the {allowed()} core(s) that this process may use"
        )
    _refuse_unfit_images(spec, final)
    with locked(spec.workdir, f"--spec={shown(spec.path)}: workdir") as lock, interruptible():
        keep_side_by_side(spec.workdir, spec.cores, spec.side_by_side)
        sweep = _Sweep(spec, lock, commands)
        if final:
            sweep.run(trials_before_final(spec))
            sweep.run(final_trials(spec, sweep.results))
        else:
            sweep.run(search_trials(spec))
    return Answer(summary.result_of(spec, sweep.results), summary.table_of(spec, sweep.results), "summary.md")


def plan_of_sweep(spec: Spec, final: bool = False) -> Answer:
    """What `run_sweep` would do: a line for each trial, and hours. Writes nothing.

    Raises:
      UserError: the images cannot judge.
    """
    _refuse_unfit_images(spec, final)
    results = read_lines(spec.workdir, RESULTS_NAME)
    trials = [*trials_before_final(spec), *final_trials(spec, results)] if final else search_trials(spec)
    open_arms = len(spec.arms) * len(spec.seeds) - sum(trial.stage != SEARCH for trial in trials) if final else 0
    to_do = {trial.key for trial in _unfinished(trials, results)}
    lines = []
    for trial in trials:
        flags = " ".join(f"--{name}={value}" for name, value in trial.setting.flags.items())
        state = "to do" if trial.key in to_do else "finished"
        lines.append(f"{trial.stage} {trial.setting.arm} seed {trial.seed}: {flags} ({state})")
    if open_arms:
        lines.append(f"final: {open_arms} trial(s) of the best settings, which are not known yet (to do)")
    left = sum(trial.key in to_do for trial in trials) + open_arms
    # A trial takes its place to its end: those that are left over share nothing.
    hours = None if spec.minutes is None else -(-left // spec.side_by_side) * spec.minutes / 60
    length = f"{spec.epochs} epochs each" if hours is None else f"about {hours:.2f} hours, and calibrations before"
    lines.append(f"{left} of {len(trials) + open_arms} trials to do, {spec.side_by_side} side by side: {length}")
    answer = {"trials": len(trials) + open_arms, "finished": len(trials) + open_arms - left, "hours": hours}
    return Answer(answer, "\n".join(lines))


def _refuse_unfit_images(spec: Spec, final: bool) -> None:
    """Before hours are spent, or planned, on what could not be judged; of stages that are finished nothing is asked.

    Raises:
      UserError: the dataset is not there, or has no labels; for the search, the split is no part of train; for the
        final stage, there is no test split.
    """
    results = read_lines(spec.workdir, RESULTS_NAME)
    config = next(iter(spec.arms.values()))[0].config  # all arms have their images in common
    search = _unfinished(trials_before_final(spec) if final else search_trials(spec), results)
    if search and bank_split(config) != chosen_split(config, None, None):
        raise UserError(
            f"--tfds_split={config.tfds_split}: is not within train, a part of which judges the search: wanted train,"
            f" or a part of it such as 'train[:10%]', or arms of one setting each, with --final"
        )
    if search and not final:
        open_labelled(config.dataset, chosen_split(config, None, None), config.data_dir)
    if final and (search or _unfinished(final_trials(spec, results), results)):
        splits_of_run(config)


def _unfinished(trials: list[Trial], results: list[dict[str, Any]]) -> list[Trial]:
    finished = {result["key"] for result in results}
    return [trial for trial in trials if trial.key not in finished]


def picture_of_sweep(spec: Spec, path: str) -> Answer:
    """The summary of what is finished, and its picture; runs nothing.

    Raises:
      UserError: no trial with measurements is finished, or the picture cannot be written.
    """
    results = read_lines(spec.workdir, RESULTS_NAME)
    if not picture.curves_of(spec, results):
        raise UserError(
            f"--picture={shown(path)}: no arm of {shown(spec.workdir)} has finished trials with measurements yet,"
            f" wanted measurements or base.online_knn_every in --spec={shown(spec.path)}, and all trials of an arm"
        )
    refuse_unwritable(path, "picture")
    drawn = Picture(path, lambda path: picture.draw_curves(path, spec, results))
    return Answer(summary.result_of(spec, results), summary.table_of(spec, results), picture=drawn)


class _Sweep:
    """A sweep that owns its folder."""

    def __init__(self, spec: Spec, lock: int, commands: Commands):
        self._spec, self._keep_open, self._commands = spec, (lock,), commands
        self._progress = Progress(visible=True)
        self.results = read_lines(spec.workdir, RESULTS_NAME)
        lines = read_lines(spec.workdir, CALIBRATIONS_NAME)
        self._paces = {line["key"]: Pace(*(line[name] for name in Pace._fields)) for line in lines}
        self._places = places(spec.cores, spec.side_by_side)

    def run(self, trials: list[Trial]) -> None:
        """Runs those that are not finished."""
        left = _unfinished(trials, self.results)
        if len(left) < len(trials):
            self._progress.say(f"{len(trials) - len(left)} of {len(trials)} trials are finished already")
        if left:
            config = left[0].setting.config  # all arms have their images in common
            folder = held_out_folder(self._spec.workdir, config, self._spec.validation, self._spec.seed)
            if left[0].stage == SEARCH:
                write_held_out(folder, config, self._spec.validation, self._spec.seed)
            refuse_other_images(folder, config)
        configs = {trial.folder: self._config(trial) for trial in left}
        by_folder = {trial.folder: trial for trial in left}
        jobs = [
            Job(folder, folder, (self._commands.pretrain(config), self._commands.judge(config)))
            for folder, config in configs.items()
        ]
        with contextlib.closing(run_jobs(jobs, self._places, self._keep_open)) as all_ended:
            for done, ended in enumerate(all_ended, start=1):
                trial = by_folder[ended.job.name]
                line = self._result(trial, configs[trial.folder], ended)
                append_line(os.path.join(self._spec.workdir, RESULTS_NAME), line)
                self.results.append(line)
                found = "has diverged" if line["accuracy"] is None else f"{line['accuracy']:.1%}"
                self._progress.say(f"{done}/{len(left)} {trial.folder}: {found} after {line['minutes']:.1f} minutes")

    def _config(self, trial: Trial) -> PretrainConfig:
        """The recipe of a trial, whose length may have to be measured before."""
        spec, epochs = self._spec, self._spec.epochs
        if spec.minutes is not None:
            pace = self._pace(trial)
            epochs = calibration.epochs_in(spec.minutes, pace)
            if epochs < 1:
                raise UserError(
                    f"--spec={shown(spec.path)}: minutes: {spec.minutes:g} are too few for arms.{trial.setting.arm},"
                    f" which takes {pace.seconds_before / 60:.2f} minutes before and {pace.seconds_per_epoch / 60:.2f}"
                    f" for an epoch"
                )
        config = _as_begun(trial.config(epochs or 1, spec.measurements))
        try:
            config.validate(begins=not can_continue(config.workdir))
        except UserError as error:
            fit = "" if spec.minutes is None else f" (--epochs={epochs} fit into minutes: {spec.minutes:g})"
            raise type(error)(f"--spec={shown(spec.path)}: arms.{trial.setting.arm}: {error}{fit}") from error
        return config

    def _pace(self, trial: Trial) -> Pace:
        """Measured as trials run: with as many others beside it, here of its own kind."""
        key = calibration.group_of(trial, self._spec.cores, self._spec.side_by_side)
        if key in self._paces:
            return self._paces[key]
        self._progress.say(f"measuring how long an epoch of {trial.setting.arm} takes")
        folders = [os.path.join(self._spec.workdir, "calibrations", f"{key}-{i}") for i in range(len(self._places))]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)  # one that was interrupted has measured nothing
        configs = [calibration.calibration_config(trial, folder) for folder in folders]
        jobs = [Job(folder, folder, (self._commands.pretrain(config),)) for folder, config in zip(folders, configs)]
        with contextlib.closing(run_jobs(jobs, self._places, self._keep_open)) as all_ended:
            for ended in all_ended:
                self._refuse_failed(ended)
        paces = [calibration.pace_of(read_metrics(config.workdir)) for config in configs]
        pace = calibration.mean_pace(paces)
        line = {"key": key, "arm": trial.setting.arm, **pace._asdict(), "processor": processor(), "date": _now()}
        append_line(os.path.join(self._spec.workdir, CALIBRATIONS_NAME), line)
        self._paces[key] = pace
        return pace

    def _result(self, trial: Trial, config: PretrainConfig, ended: Ended) -> dict[str, Any]:
        """The line of a finished trial; its accuracy is None if it has diverged."""
        accuracy = None
        if not ended.has_diverged:
            self._refuse_failed(ended)
            with open(os.path.join(trial.folder, "knn_eval.json"), encoding="utf-8") as file:
                accuracy = json.load(file)
        lines = read_metrics(trial.folder) if is_there(metrics_path(trial.folder)) else []
        # Features of one evaluation, as large as a small dataset.
        shutil.rmtree(os.path.join(trial.folder, "features"), ignore_errors=True)
        return {
            "key": trial.key,
            "stage": trial.stage,
            "arm": trial.setting.arm,
            "flags": trial.setting.flags,
            "seed": trial.seed,
            "minutes_planned": self._spec.minutes,
            "minutes": lines[-1]["seconds"] / 60 if lines else 0.0,
            "epochs": config.epochs,
            "images_per_second": float(np.median([line["images_per_second"] for line in lines])) if lines else None,
            "accuracy": accuracy and accuracy["top1"],
            "split": "validation" if trial.stage == SEARCH else accuracy and accuracy["test_split"],
            "train_split": accuracy and accuracy.get("train_split"),  # earlier answers have none
            "examples": accuracy and accuracy["examples"],
            "folder": trial.folder,
            "commit": commit_of(ended.job),
            "processor": processor(),
            "date": _now(),
        }

    def _refuse_failed(self, ended: Ended) -> None:
        if ended.status == 0:
            return
        how = f"ended by signal {-ended.status}" if ended.status < 0 else f"exit status {ended.status}"
        last = ended.tail.splitlines()[-1] if ended.tail else "it said nothing"
        raise UserError(
            f"--spec={shown(self._spec.path)}: the run in {ended.job.folder} failed ({how}; log.txt there ends with:"
            f" {shown(last)}); the same command goes on when that is mended"
        )


def _as_begun(config: PretrainConfig) -> PretrainConfig:
    """A recipe that goes on with what its run in the workdir, if one was interrupted there, was given without effect.

    Raises:
      UserError: the run's `run.flags` cannot be understood.
    """
    if not can_continue(config.workdir):
        return config
    run = load_run(config.workdir)
    return config.replace(
        **{name: getattr(run, name) for name in ("tfds_split", "prior_every", *without_effect(config))}
    )


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
