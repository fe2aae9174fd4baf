"""Two workers over MPI, of which one differs, has a fault or cannot write: all of them stop, and say why."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.commands import run_command, script, under_launcher
from tests.faults.conftest import NUM_IMAGES, flags_of, weights_of, write_photos


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """The folder in which one job of two workers has met all faults of `tasks.py`."""
    folder = tmp_path_factory.mktemp("job")
    write_photos(folder / "photos")
    write_photos(folder / "fewer", NUM_IMAGES - 1)
    finished = run_command(under_launcher(2, [sys.executable, "-m", "tests.faults.tasks", str(folder)]))
    assert finished.status == 0, finished.output[-8000:]
    return folder


def sentence_of(job: Path, case: str) -> str:
    """What all workers said alike."""
    sentences = {(job / f"{case}.rank{rank}").read_text() for rank in (0, 1)}
    assert len(sentences) == 1, sentences
    return sentences.pop()


@pytest.mark.parametrize(
    ("flag", "value", "other"),
    [("seed", 0, 1), ("learning_rate", 0.05, 0.5), ("batch_size", 8, 12), ("max_steps", None, 4)],
)
def test_a_worker_with_another_flag(job, flag, value, other):
    """Refused before the first step, with both values; nothing is written."""
    sentence = f"worker 1 has --{flag}={other}, worker 0 has --{flag}={value}: wanted the same on both"
    assert sentence_of(job, flag) == sentence
    assert not (job / "refused" / "run.flags").exists()


def test_a_worker_with_other_images(job):
    """Refused before the first step, with both counts and digests."""
    sentence = sentence_of(job, "images")
    assert "worker 1 does not see the same images as worker 0 (23 images, digest " in sentence
    assert ", 24 images, digest " in sentence


def test_a_worker_with_other_code(job):
    """Another version of this package: refused before the first step."""
    assert re.match("worker 1 has code=another, worker 0 has code=[0-9a-f]{16}: wanted", sentence_of(job, "code"))


def test_a_worker_with_other_threads(job):
    """A machine with fewer cores, by a launcher that gives no number: refused, with both numbers and what to do."""
    assert re.fullmatch(
        r"worker 1 computes with 77 thread\(s\), worker 0 with \d+, which rounds sums differently: wanted as many on"
        r" all workers. scripts.launch sees to it; with another launcher set INSTCLS_THREADS to the smallest number for"
        r" all of them",
        sentence_of(job, "threads"),
    )


def test_a_worker_with_another_workdir(job):
    """The same path on another file system: a file that worker 0 writes is not seen by worker 1."""
    for rank, name in enumerate(("refused", "elsewhere")):
        assert (job / f"workdir.rank{rank}").read_text() == (
            f"--workdir={job / name}: worker 1 does not see worker 0's folder there, wanted one on a file system that"
            f" all workers share"
        )
    assert not (job / "elsewhere").exists()


def test_a_worker_with_other_initial_weights(job):
    """`--init` names another file on worker 1, or none: refused on both before the first step."""
    for rank, name in enumerate(("init", "other")):
        said = (job / f"init_other.rank{rank}").read_text()
        assert said.startswith(f"--init={job}/{name}.npz: worker 1 reads other weights there than worker 0 (digests ")
    assert sentence_of(job, "init_absent").startswith(f"worker 1: --init={job}/absent.npz: no such file or folder")


def test_a_worker_that_sees_another_checkpoint(job):
    """A file system shows worker 1 an older checkpoint, or none: refused before it is read, with what each finds."""
    for case, found in (
        ("older", "a whole one, digest [0-9a-f]{16}"),
        ("unseen", r"\S+/unseen/ckpt-00000001.index: is"),
    ):
        sentence = (job / f"{case}.rank0").read_text()
        assert sentence.startswith(f"{job}/seen/checkpoints/ckpt-00000001: worker 1 finds there: ")
        assert re.search(f"finds there: {found}.*; worker 0: a whole one, digest [0-9a-f]{{16}}; wanted", sentence)
        assert (job / f"{case}.rank1").read_text().partition(": ")[2] == sentence.partition(": ")[2]


def test_a_workdir_in_use(job):
    """Another process has it: both workers stop, with the owner's name."""
    assert re.search(r"--workdir=\S+/refused: is in use by process \d+ on ", sentence_of(job, "locked"))
    assert not (job / "refused" / "run.flags").exists()


def test_weights_that_differ(job):
    """One bit of one weight on one machine: found by checksums, named with worker and step."""
    sentence = sentence_of(job, "weights")
    assert re.match(
        r"step 1000: the weights of worker 1 are not those of worker 0 \(checksums \w{16} and \w{16}\)", sentence
    )


def test_a_disk_that_is_full_for_one_worker(job):
    """Both stop with path and free space; the partial checkpoint goes, the one before stays."""
    sentence = sentence_of(job, "disk")
    assert re.search(
        r"cannot write the checkpoint of step 2 to \S+ \(No space left on device; [\d.]+ MB are free", sentence
    )
    names = {path.name.split(".")[0] for path in (job / "full" / "checkpoints").iterdir()}
    assert names == {"checkpoint", "ckpt-00000001"}


def test_one_nan_in_one_gradient(job):
    """Of worker 1: both stop in that step, before anything moves; step, worker and images are named."""
    sentence = sentence_of(job, "gradient")
    assert re.match(
        r"step 5: the encoder's gradient is not finite, from the share of worker 1 \(instances \d+: '\d\d.png', .*"
        r"not taken on any worker \(the last good checkpoint is that of step 3\)",
        sentence,
    ), sentence
    assert (job / "gradient.files").read_text() == "ckpt-00000003.index"


def test_the_run_after_the_nan(job):
    """From the checkpoint before it, the run ends bit for bit as one without the fault."""
    spoilt, unspoilt = weights_of(job / "spoilt"), weights_of(job / "unspoilt")
    for name, value in unspoilt.items():
        np.testing.assert_array_equal(spoilt[name], value, err_msg=name)
        assert np.isfinite(value).all()


def test_the_command_of_workers_that_differ(tmp_path):
    """As two shells would start it, through the launcher itself: status 2, one sentence, no process left."""
    write_photos(tmp_path / "photos")
    commands = [script("pretrain", *flags_of(tmp_path / "run", tmp_path / "photos", seed=seed)) for seed in (0, 1)]
    options = ["--allow-run-as-root", "--oversubscribe", "-x", "PATH"]
    finished = run_command(
        [str(Path(sys.executable).parent / "mpirun"), *options, "-np", "1", *commands[0], ":", "-np", "1", *commands[1]]
    )
    assert finished.status == 2, finished.output
    said = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert said == ["error: worker 1 has --seed=1, worker 0 has --seed=0: wanted the same on both"]
    assert not (tmp_path / "run").exists()
