"""A run that is asked to stop: all workers save in the same step and end with 75, and the run that follows is the same.

Signals come at exact places of real runs, see `tests.faults.hurt`. Compared with uninterrupted runs bit by bit.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.run import checkpoint, checkpoint_manifest
from tests.commands import Finished, run_forked
from tests.end_to_end.runs import flags_of
from tests.faults.jobs import launcher, running, saved
from tests.faults.preloaded.server import STANDS_FOR_A_WORKER, Server

HURT = "tests.faults.hurt.pretrain"
STOPPED = 75


def checkpoint_of(workdir: Path) -> dict[str, np.ndarray]:
    """Everything in the newest checkpoint: weights, momentum, statistics, the number of steps."""
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints"))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names if name != "_CHECKPOINTABLE_OBJECT_GRAPH"}


def assert_same(workdir: Path, other: Path) -> None:
    one, two = checkpoint_of(workdir), checkpoint_of(other)
    assert one.keys() == two.keys() and len(one) > 50
    assert [name for name in one if not np.array_equal(one[name], two[name])] == []


def hurt(how: str, workdir: Path, **changes) -> Finished:
    """One worker, in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HURT", how)
        return run_forked(HURT, *flags_of(workdir, **changes))


def stopped(finished: Finished) -> str:
    """The last line of a run that has stopped as it should."""
    assert finished.status == STOPPED, finished.output
    assert "Traceback" not in finished.stderr
    return finished.stderr.splitlines()[-1]


# ---------------------------------------------------------------------------------------------------- one worker


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finished = hurt("", workdir)
    assert finished.status == 0, finished.output
    return workdir


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> dict[str, tuple[Finished, Path]]:
    """A run that is stopped again and again; how each start ended, and a copy of its folder then."""
    folder = tmp_path_factory.mktemp("chain")
    places = {
        "prior": "SIGTERM@0:contrastive prior:2",
        "search": "SIGINT@0:hard negatives:1",
        "step": "SIGHUP@0:training:6",
        "before": "SIGUSR1@0:restoring:0",
        "end": "SIGTERM@0:training:8",
    }
    found = {}
    for name, how in places.items():
        finished = hurt(how, folder / "run")
        found[name] = finished, folder / name
        shutil.copytree(folder / "run", folder / name)
    return found


def test_in_the_prior(chain):
    """SIGTERM in the contrastive prior: status 75, nothing is saved, and the line says so."""
    finished, workdir = chain["prior"]
    assert stopped(finished) == (
        "SIGTERM: stopped in the midst of the contrastive prior; nothing was saved yet, the same command starts again"
    )
    assert saved(workdir) == []


def test_ctrl_c_in_the_search(chain):
    """Ctrl-C in the first search: status 75, what the prior has brought is saved as step 0."""
    finished, workdir = chain["search"]
    assert stopped(finished) == (
        "SIGINT: stopped in the midst of the hard negatives; the same command goes on from step 0, which is saved"
    )
    assert saved(workdir) == [0]


def test_in_a_step(chain):
    """SIGHUP in a step: status 75, that very step is saved beside the checkpoint before it."""
    finished, workdir = chain["step"]
    assert stopped(finished) == (
        "SIGHUP: stopped after step 6 of 8; the same command goes on from step 6, which is saved"
    )
    assert "contrastive prior" not in finished.stderr, "it is saved with step 0"
    assert saved(workdir) == [4, 6]


def test_the_time_of_a_part_that_was_stopped(tmp_path):
    """SIGTERM in the search that follows the prior, and in a step between two lines of metrics.jsonl: checkpoints keep
    the run's time, and `seconds` of the run that follows has all parts in it.
    """
    workdir, hour = tmp_path / "run", 3600
    for part, how in enumerate(("SIGTERM@0:hard negatives:1", "SIGTERM@0:training:3")):
        stopped(hurt(how, workdir, log_every=100))
        assert (workdir / "metrics.jsonl").read_text() == ""
        prefix = checkpoint.newest(str(workdir))
        manifest = checkpoint_manifest.read(prefix)
        assert part * hour < manifest.seconds < (part + 1) * hour
        as_after_an_hour = dataclasses.replace(manifest, seconds=manifest.seconds + hour)
        checkpoint_manifest.write(checkpoint_manifest.path_of(prefix), as_after_an_hour)
    finished = hurt("", workdir, log_every=100)
    assert finished.status == 0, finished.output
    first, *_ = (workdir / "metrics.jsonl").read_text().splitlines()
    assert 2 * hour < json.loads(first)["seconds"] < 3 * hour


def test_before_it_begins(chain):
    """SIGUSR1 while a checkpoint is read: status 75 at once, the checkpoints are as they were."""
    finished, workdir = chain["before"]
    assert stopped(finished) == ("SIGUSR1: stopped before it began, nothing is lost; the same command starts again")
    assert checkpoint_of(workdir).keys() == checkpoint_of(chain["step"][1]).keys() and saved(workdir) == [4, 6]


def test_in_the_last_step_there_is_nothing_to_stop(chain, whole):
    """SIGTERM in the last step: the run is done, and bitwise the one that was never stopped."""
    finished, workdir = chain["end"]
    assert finished.status == 0, finished.output
    assert finished.stderr.splitlines()[-1].startswith("done: ")
    assert_same(workdir, whole)


def test_in_the_evaluation(tmp_path):
    """SIGTERM in the k-NN evaluation of a run, or in the step before it: status 75, it is left out, which is said; that
    step is saved and logged, and the run that follows judges at its end.
    """
    for place in ("features of digits:1", "training:4"):
        workdir = tmp_path / place.partition(":")[0]
        finished = hurt(f"SIGTERM@0:{place}", workdir, online_knn_every=1)
        assert stopped(finished) == (
            "SIGTERM: stopped after step 4 of 8; the same command goes on from step 4, which is saved"
        )
        assert "asked to stop: the evaluation after step 4 is left out" in finished.stderr
        last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 4 and "loss" in last and "knn_top1" not in last
        assert saved(workdir) == [4]
    finished = hurt("", workdir, online_knn_every=1)
    assert finished.status == 0, finished.output
    assert '"knn_top1"' in (workdir / "metrics.jsonl").read_text().splitlines()[-1]


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_in_a_later_prior(tmp_path, checkpoint_every):
    """SIGTERM in a prior amid the run: status 75, left at once if the step before is saved, else after the step that
    follows; the end is bitwise that of the uninterrupted run.
    """
    changes = {"contrast_epochs": 1, "checkpoint_every": checkpoint_every}
    finished = hurt("SIGTERM@0:contrastive prior:2", tmp_path / "run", **changes)
    if checkpoint_every:
        assert stopped(finished) == (
            "SIGTERM: stopped in the midst of the contrastive prior; the same command goes on from step 4, which is"
            " saved"
        )
        assert saved(tmp_path / "run") == [4]
    else:
        assert "SIGTERM: stopping when the contrastive prior is complete" in finished.stderr
        assert stopped(finished) == (
            "SIGTERM: stopped after step 5 of 8; the same command goes on from step 5, which is saved"
        )
        assert saved(tmp_path / "run") == [5]
    for name in ("run", "whole"):
        finished = hurt("", tmp_path / name, **changes)
        assert finished.status == 0, finished.output
    assert_same(tmp_path / "run", tmp_path / "whole")


# ------------------------------------------------------------------------------------------------ two workers, over MPI


def of_two(server: Server, workdir: Path, how: str = "") -> Finished:
    """Two workers under the launcher."""
    words = launcher(2, STANDS_FOR_A_WORKER, *flags_of(workdir, epochs=3))
    with running(words, HURT=how, **server.environment) as job:
        return job.finish()


def test_two_workers_stop_in_the_same_step(tmp_path, server):
    """Two workers: SIGUSR1 to one, then SIGTERM to the launcher: status 75 twice, both save the same step, and the end
    is bitwise that of the uninterrupted run.
    """
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    assert stopped(of_two(server, workdir, "SIGUSR1@1:training:3")) == (
        "a signal to another worker: stopped after step 3 of 12; the same command goes on from step 3, which is saved"
    )
    assert saved(workdir) == [3]
    assert stopped(of_two(server, workdir, "SIGTERM@launcher:training:6")) == (
        "SIGUSR1: stopped after step 6 of 12; the same command goes on from step 6, which is saved"
    )
    finished = of_two(server, workdir)
    assert finished.status == 0, finished.output
    assert f"continuing {workdir} from step 6" in finished.stderr.splitlines()
    finished = of_two(server, whole)
    assert finished.status == 0, finished.output
    assert_same(workdir, whole)
