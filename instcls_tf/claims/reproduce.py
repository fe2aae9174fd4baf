"""Makes the runs of a claim that are not made yet, one worker each and as many side by side as there are cores."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import shutil
from typing import Any, NamedTuple

import numpy as np

from instcls_tf import files
from instcls_tf.claims.figure import draw_orderings, has_orderings
from instcls_tf.claims.ledger import KNN, LINEAR, Claim, Ledger, Scale
from instcls_tf.claims.minutes import draw_minutes
from instcls_tf.claims.page import MINUTES_FIGURE, cpu_seconds_of, figure_name, render
from instcls_tf.claims.runs import Run, hours_of, passes_per_image, runs_of
from instcls_tf.claims.verdicts import verdicts_of
from instcls_tf.config import PretrainConfig
from instcls_tf.data.source import Source
from instcls_tf.data.sources import open_training_source
from instcls_tf.distributed.cores import allowed
from instcls_tf.errors import UserError, shown
from instcls_tf.progress import Progress
from instcls_tf.report.answer import Answer
from instcls_tf.run.metrics import metrics_path, read_json_lines, read_metrics
from instcls_tf.run.workdir import load_run
from instcls_tf.sweep.jobs import ATTEMPTS_NAME, LOG_NAME, Ended, Job, commit_of, places, run_jobs
from instcls_tf.sweep.ownership import interruptible, locked
from instcls_tf.sweep.results import append_line, processor


def read_results(path: str) -> dict[str, dict[str, Any]]:
    """The lines of `results.jsonl` by their keys; none if it is not there."""
    lines = read_json_lines(path) if files.is_there(path) else []
    return {line["key"]: line for line in lines if "key" in line}


class Places(NamedTuple):
    """Where the images and what is made of them lie."""

    workdir: str  # holds the runs
    results: str  # `results.jsonl`, which gets a line for each
    dataset: str | None  # see `Run.words`


def reproduce(claims: list[Claim], scale: Scale, at: Places) -> Answer:
    """Makes what is missing, and says how the orderings stand. An interrupted run goes on where it ended.

    Args:
      claims: whose runs.
      scale: of all of them.
      at: where.

    Raises:
      UserError: a setting is not right, another command works in the folder, or a run fails.
      Interrupted: a signal came, in the main thread of a command or a script; its runs have ended.
    """
    if scale.workers is not None:
        raise UserError(
            f"--scale={scale.name}: takes {scale.workers} workers and a cluster, and is not run from here: --dry_run"
            f" prints its commands"
        )
    found = read_results(at.results)
    todo = _missing(claims, scale, found)
    for run in todo:
        config = _config(run, at)
        config.validate()
    if todo:
        _refuse_other_images(open_training_source(config, begins=True), scale, found)
    progress = Progress(visible=True)
    jobs = {run.folder(at.workdir): run for run in todo}
    with locked(at.workdir, f"--workdir={shown(at.workdir)}") as lock, interruptible():
        queue = [Job(folder, folder, run.commands(at.dataset, at.workdir)) for folder, run in jobs.items()]
        with contextlib.closing(run_jobs(queue, places(1, allowed()), (lock,))) as all_ended:
            for done, ended in enumerate(all_ended, start=1):
                line = _line(jobs[ended.job.name], ended)
                append_line(at.results, line)
                shutil.rmtree(os.path.join(ended.job.folder, "features"), ignore_errors=True)
                told = "has diverged"
                if line[KNN] is not None:
                    told = f"20-NN {line[KNN]:.1%}, linear {line[LINEAR]:.1%}"
                progress.say(f"{done}/{len(todo)} {ended.job.folder}: {told}")
    return answer_of(claims, scale, read_results(at.results))


def _config(run: Run, at: Places) -> PretrainConfig:
    config = run.config.replace(workdir=run.folder(at.workdir))
    return config if at.dataset is None else config.replace(dataset=at.dataset)


def _refuse_other_images(source: Source, scale: Scale, results: dict[str, dict[str, Any]]) -> None:
    """Runs of a scale are of the same images, or their difference would not be that of the methods."""
    for line in results.values():
        if line["scale"] == scale.name and line["images"] != source.ids_digest().hex():
            raise UserError(
                f"--dataset={shown(source.name)}: has not the images of the runs of --scale={scale.name} that are made"
                f" already ({line['instances']} under other names), wanted the same or another --results"
            )


def plan(claims: list[Claim], scale: Scale, at: Places) -> Answer:
    """The commands of the runs that are missing, and hours; starts none. Arguments as `reproduce`."""
    found = read_results(at.results)
    todo = _missing(claims, scale, found)
    words = [command[2:] for run in todo for command in run.commands(at.dataset, at.workdir)]
    lines = [shlex.join(["python", "-m", *command]) for command in words]
    pace = _seconds_per_pass(scale, found)
    hours = [hours_of(run, scale, pace) for run in todo]
    total = None if None in hours else sum(hour for hour in hours if hour is not None)
    if total is None:
        told = "nobody has measured how long they take at this scale"
    elif scale.workers is None:
        total /= allowed()
        told = f"about {total:.1f} hours on {allowed()} core(s), by the runs that are made"
    else:
        told = f"about {total:.0f} hours on {scale.workers} workers as the paper has them"
    lines.append(f"{len(todo)} runs to make: {told}")
    return Answer({"runs": len(todo), "hours": total}, "\n".join(lines))


def _missing(claims: list[Claim], scale: Scale, results: dict[str, dict[str, Any]]) -> list[Run]:
    """Each run once, whichever claims share it."""
    runs = {run.key: run for claim in claims for run in runs_of(claim, scale)}
    return [run for key, run in runs.items() if key not in results]


def _seconds_per_pass(scale: Scale, results: dict[str, dict[str, Any]]) -> float | None:
    """The median over the runs that are made, of one core; None before the first."""
    of_scale = [line for line in results.values() if line["scale"] == scale.name and line[KNN] is not None]
    paces = [cpu_seconds_of(line) / (line["epochs"] * line["passes_per_image"]) for line in of_scale]
    return float(np.median(paces)) if paces else None


def _line(run: Run, ended: Ended) -> dict[str, Any]:
    """What a run has found, and all that it takes to believe it; no accuracy if it has diverged."""
    folder = ended.job.folder
    if ended.status and not ended.has_diverged:
        how = f"signal {-ended.status}" if ended.status < 0 else f"exit status {ended.status}"
        last = ended.tail.splitlines()[-1] if ended.tail else "it said nothing"
        raise UserError(
            f"{shown(folder)}: the run failed ({how}; {LOG_NAME} there ends with: {shown(last)}); the same command goes"
            f" on when that is mended"
        )
    config = load_run(folder)
    lines = read_metrics(folder) if files.is_there(metrics_path(folder)) else []
    source = open_training_source(config, workdir=folder)
    found: dict[str, Any] = {KNN: None, LINEAR: None, "test_images": None}
    if not ended.has_diverged:
        knn, linear = (_json(os.path.join(folder, f"{name}.json")) for name in ("knn_eval", "linear_eval"))
        found = {KNN: knn["top1"], LINEAR: linear["top1"], "test_images": knn["examples"]}
    return {
        "key": run.key,
        "scale": run.scale,
        "flags": run.flags,
        "recipe": run.recipe,
        "dataset": config.dataset.rpartition("/")[2],
        "epochs": run.epochs,
        "seed": run.seed,
        **found,
        "instances": source.num_instances,
        "images": source.ids_digest().hex(),
        "passes_per_image": passes_per_image(config),
        "seconds": lines[-1]["seconds"] if lines else 0.0,
        "cpu_seconds": _cpu_seconds(folder),
        "images_per_second": float(np.median([line["images_per_second"] for line in lines])) if lines else None,
        "cores": 1,
        "commit": commit_of(ended.job),
        "processor": processor(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu_seconds(folder: str) -> float:
    """Of the pretraining, from the start of its process to its end, interrupted attempts with it.

    Unlike wall time, it is hardly longer beside other work.
    """
    attempts = read_json_lines(os.path.join(folder, ATTEMPTS_NAME))
    return sum(cpu_seconds_of(line) for line in attempts if line["command"].endswith("scripts.pretrain"))


def _json(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def answer_of(claims: list[Claim], scale: Scale, results: dict[str, dict[str, Any]]) -> Answer:
    """How the orderings stand at a scale."""
    verdicts = {claim.id: verdicts_of(claim, scale, KNN, results) for claim in claims}
    lines, found = [], []
    for claim, of_claim in verdicts.items():
        for verdict in of_claim:
            found.append({"claim": claim, **verdict._asdict()})
            text = "" if verdict.difference is None else f" by {100 * verdict.difference.mean:+.1f} points of 20-NN"
            lines.append(
                f"{claim}, {verdict.told_epochs} epochs: {verdict.better} above {verdict.worse}{text},"
                f" {verdict.pairs} pair(s)"
                + (f", {verdict.diverged} with a run that has diverged" if verdict.diverged else "")
                + f": {verdict.word}"
            )
    runs = sum(line["scale"] == scale.name for line in results.values())
    return Answer({"scale": scale.name, "runs": runs, "orderings": found}, "\n".join(lines))


def ledger_page(ledger: Ledger, results: str, page: str) -> Answer:
    """Writes `docs/results.md` anew from the claims and the results, and its figures after it.

    Raises:
      UserError: there are no results, or a file cannot be read or written.
      MachineError: the file system fails.
    """
    if not files.is_there(results):
        raise UserError(
            f"--results={shown(results)}: is not there, wanted the file with the runs of --page={shown(page)}"
        )
    found = read_results(results)
    files.write(page, render(ledger, found).encode())
    for claim in ledger.claims.values():
        for scale in ledger.scales.values():
            if has_orderings(claim, scale, found):
                draw_orderings(os.path.join(os.path.dirname(page), figure_name(claim, scale)), claim, scale, found)
    if ledger.minutes is not None:
        place = os.path.join(os.path.dirname(page), MINUTES_FIGURE)
        draw_minutes(place, ledger.minutes, ledger.scales[ledger.minutes.scale], found)
    return Answer({"page": page, "runs": len(found)}, f"{page} is written")
