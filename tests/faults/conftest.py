"""Runs to be damaged: nine steps of 24 pictures, a checkpoint every third; and how a resume of one ended."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from instcls_tf.errors import UserError
from tests.commands import Finished, run_script
from tests.faults.preloaded.server import Server

# Small enough that a run's time is that of its graph.
RECIPE = {
    "augmentation": "none",
    "image_size": 16,  # at 8, BN of the last stage is over four numbers, and what sums round is blown up
    "encoder": "resnet10",
    "width_multiplier": 0.125,
    "stem": "small",
    "batch_size": 8,
    "micro_batch": 4,
    "epochs": 3,
    "learning_rate": 0.05,
    "scale_learning_rate": False,
    "smoothing": 0.0,
    "classifier_init": "random",
    "log_every": 1,
    "gauge_every": 0,
    "report": False,
}
NUM_IMAGES, EVERY, STEPS = 24, 3, 9


class Past(NamedTuple):
    """Runs of the same recipe and images; nobody may change their folders."""

    photos: Path
    stopped: Path  # after 6 steps, with checkpoints of 3 and 6
    whole: Path  # the same, continued to the end


def write_photos(folder: Path, count: int = NUM_IMAGES) -> None:
    """Pictures of noise, whose files have different sizes."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(random.integers(0, 256, [8 + index, 9, 3], np.uint8)).save(folder / f"{index:02d}.png")


def flags_of(workdir: Path, photos: Path, **changes) -> list[str]:
    """The command line of the recipe with some settings changed."""
    settings = {**RECIPE, "dataset": f"folder:{photos}", "workdir": workdir, **changes}
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="session")
def past(made_once) -> Past:
    """One worker's."""

    def make(folder: Path) -> Past:
        runs = Past(*(folder / name for name in ("photos", "stopped", "whole")))
        write_photos(runs.photos)
        finished = run_script("pretrain", *flags_of(runs.stopped, runs.photos, max_steps=6))
        assert finished.status == 0, finished.output
        shutil.copytree(runs.stopped, runs.whole)
        finished = run_script("pretrain", *flags_of(runs.whole, runs.photos))
        assert finished.status == 0, finished.output
        return runs

    return made_once("faults", make)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Makes the workers of jobs under the launcher, see `tests.faults.preloaded.server`."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        yield Server(Path(folder) / "server")


class Damaged:
    """A copy of the stopped run, to be damaged and continued."""

    def __init__(self, workdir: Path, photos: Path):
        self.workdir, self.photos = workdir, photos
        self.checkpoints = workdir / "checkpoints"

    def file(self, step: int, end: str) -> Path:
        """One of a checkpoint's files; of several, the first."""
        return sorted(self.checkpoints.glob(f"ckpt-{step:08d}.{end}"))[0]

    def steps(self) -> list[int]:
        """Of the checkpoints that are there."""
        return sorted(int(path.stem.removeprefix("ckpt-")) for path in self.checkpoints.glob("ckpt-*.index"))

    def resume(self, **changes) -> Finished:
        """The command again, up to the step at which it can only have read: tracing a graph takes seconds."""
        return run_script("pretrain", *flags_of(self.workdir, self.photos, **{"max_steps": EVERY, **changes}))


@pytest.fixture
def damaged(past, tmp_path) -> Damaged:
    shutil.copytree(past.stopped, tmp_path / "run")
    return Damaged(tmp_path / "run", past.photos)


def sentence_of(finished: Finished, status: int = UserError.status) -> str:
    """What a command that was refused said, its last line; and that it was."""
    assert finished.status == status, finished.output
    assert "Traceback" not in finished.output
    return finished.stderr.splitlines()[-1].removeprefix("error: ")


def weights_of(workdir: Path) -> dict[str, np.ndarray]:
    """Everything that the newest checkpoint holds."""
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints"))
    names = [name for name in reader.get_variable_to_shape_map() if not name.startswith("_")]
    return {name: reader.get_tensor(name) for name in names}


def assert_equal_runs(workdir: Path, expected: Path) -> None:
    """The same end, and the same log up to what depends on the clock."""
    one, other = weights_of(workdir), weights_of(expected)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-4, atol=1e-5, err_msg=name)
    texts = [(run / "metrics.jsonl").read_text() for run in (workdir, expected)]
    logs = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    np.testing.assert_allclose(*([line["loss"] for line in log] for log in logs), rtol=1e-4)
