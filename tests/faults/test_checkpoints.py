"""Checkpoints that are damaged, lost, or of something else."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import instcls_tf
from instcls_tf.errors import UserError
from instcls_tf.run import checkpoint, checkpoint_choice
from instcls_tf.run.checkpoint_manifest import Origin
from instcls_tf.run.parts import Slices
from tests.commands import forked, run_script, snapshot
from tests.faults.conftest import Damaged, assert_equal_runs, sentence_of


def flip(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def lose(path: Path) -> Path:
    path.unlink()
    return path


def test_a_lost_record_of_the_newest_checkpoint(damaged):
    """`checkpoints/checkpoint` is gone: the newest whole checkpoint is taken, and it is said."""
    lose(damaged.checkpoints / "checkpoint")
    finished = damaged.resume(max_steps=6)
    assert finished.status == 0, finished.output
    assert f"continuing {damaged.workdir} from step 6" in finished.stderr
    assert (
        "checkpoints/checkpoint is missing: the newest checkpoint, that of step 6, is whole and taken"
        in finished.stderr
    )
    assert len((damaged.workdir / "metrics.jsonl").read_text().splitlines()) == 6


def test_a_garbled_record_of_the_newest_checkpoint(damaged):
    """`checkpoints/checkpoint` holds NUL bytes: the newest whole checkpoint is taken, and it is said."""
    (damaged.checkpoints / "checkpoint").write_bytes(b"\0" * 100)
    finished = damaged.resume(max_steps=6)
    assert finished.status == 0, finished.output
    assert "which names the newest checkpoint: the newest checkpoint, that of step 6, is whole" in finished.stderr


@pytest.mark.parametrize(
    ("change", "end", "sentence"),
    [
        (cut, "data-*", "bytes, "),
        (flip, "data-*", "damaged, its checksum is "),
        (lose, "data-*", "is missing"),
        (lose, "index", "is missing"),
        (flip, "index", "damaged, its checksum is "),
        (cut, "json", "damaged; without this file the checkpoint is judged by TensorFlow's own checksums"),
    ],
    ids=["truncated_data", "flipped_byte", "a_slice_missing", "index_missing", "index_flipped", "manifest_cut"],
)
def test_a_damaged_newest_checkpoint(damaged, change, end, sentence):
    """A file of the newest checkpoint is cut, flipped or lost: the file is named, and the one before is taken."""
    path = change(damaged.file(6, end))
    finished = damaged.resume()
    assert finished.status == 0, finished.output
    (warning,) = [line for line in finished.stderr.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: {path}: ") and sentence in warning
    assert warning.endswith(": the older checkpoint of step 3 is taken")
    assert f"continuing {damaged.workdir} from step 3" in finished.stderr


def test_the_run_after_a_damaged_checkpoint(damaged, past):
    """From the checkpoint before the damaged one, the run comes to the undamaged run's end; the damaged one goes."""
    flip(damaged.file(6, "data-*"))
    finished = damaged.resume(max_steps=9)
    assert finished.status == 0, finished.output
    assert_equal_runs(damaged.workdir, past.whole)
    assert damaged.steps() == [6, 9]
    assert not [path for path in damaged.checkpoints.iterdir() if path.name.startswith(".writing")]


def test_no_checkpoint_is_whole(damaged):
    """Both checkpoints are damaged: the run stops, names both, and changes nothing; it never starts over."""
    paths = [flip(damaged.file(step, "data-*")) for step in (3, 6)]
    before = snapshot(damaged.workdir)
    sentence = sentence_of(damaged.resume())
    assert sentence.startswith(f"--workdir={damaged.workdir}: none of its checkpoints can be used: ")
    assert all(str(path) in sentence for path in paths)
    assert {**snapshot(damaged.workdir), ".": ()} == {**before, ".": ()}


def test_all_files_of_checkpoints_are_lost(damaged):
    """Only the record is left: the run stops instead of starting over."""
    for path in damaged.checkpoints.glob("ckpt-*"):
        path.unlink()
    sentence = sentence_of(damaged.resume())
    assert sentence.startswith(f"--workdir={damaged.workdir}: ")
    assert "names ckpt-00000006, but no file of any checkpoint is there" in sentence
    assert len((damaged.workdir / "metrics.jsonl").read_text().splitlines()) == 6


def test_the_first_save_was_ended_before_its_index(damaged):
    """Only data of a run's first checkpoint have their names, and no record: the run begins, and its next save removes
    them.
    """
    for path in damaged.checkpoints.iterdir():
        if not path.name.startswith("ckpt-00000006.data-00000"):
            path.unlink()
    finished = damaged.resume(max_steps=0)
    assert finished.status == 0, finished.output
    assert "is missing" not in finished.stderr and "continuing" not in finished.stderr
    assert {path.name.partition(".")[0] for path in damaged.checkpoints.iterdir()} == {"checkpoint", "ckpt-00000000"}


def test_run_flags_are_lost(damaged):
    """Checkpoints without run.flags: nobody knows of which run, so none begins there."""
    lose(damaged.workdir / "run.flags")
    sentence = sentence_of(damaged.resume())
    assert "has checkpoints, but its run.flags is missing: bring it back from a copy" in sentence


def test_checkpoints_of_an_earlier_version(damaged):
    """Without manifests and run id, as earlier versions wrote them: the run goes on."""
    for path in damaged.checkpoints.glob("*.json"):
        path.unlink()
    flags = damaged.workdir / "run.flags"
    flags.write_text("".join(line + "\n" for line in flags.read_text().splitlines() if not line.startswith("# run")))
    finished = damaged.resume(max_steps=6)
    assert finished.status == 0, finished.output
    assert "warning" not in finished.stderr
    assert f"continuing {damaged.workdir} from step 6" in finished.stderr


def test_a_damaged_checkpoint_of_an_earlier_version(damaged):
    """Without a manifest, TensorFlow's own checksums tell: the one before is taken, and it is said."""
    for path in damaged.checkpoints.glob("*.json"):
        path.unlink()
    flip(damaged.file(6, "data-*"))
    finished = damaged.resume()
    assert finished.status == 0, finished.output
    assert "ckpt-00000006: damaged (" in finished.stderr
    assert f"continuing {damaged.workdir} from step 3" in finished.stderr


def test_checkpoints_of_another_run(damaged, past, tmp_path):
    """The `checkpoints/` of another run copied in: refused, with both runs' ids."""
    other = Damaged(tmp_path / "other", damaged.photos)
    finished = other.resume(max_steps=0)
    assert finished.status == 0, finished.output
    shutil.rmtree(other.checkpoints)
    shutil.copytree(damaged.checkpoints, other.checkpoints)
    ids = [(run.workdir / "run.flags").read_text().split()[2] for run in (damaged, other)]
    sentence = sentence_of(other.resume())
    assert f"ckpt-00000006: belongs to another run ({ids[0]}) than this folder's ({ids[1]})" in sentence


def save(workdir: Path, *steps: int, run: str = "f00d") -> None:
    """Checkpoints of a run without a network, two of which are kept."""
    for step in steps:
        checkpoint.save(str(workdir), step, *state_of(step), Origin(run))


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("ckpt-")) for path in folder.glob("ckpt-*.json"))


@pytest.mark.parametrize("end", ["data-*", "index"])
def test_one_that_has_lost_a_file_is_not_counted(tmp_path, end):
    """A kept checkpoint loses a file while the run goes on: the good one before it stays in its place."""
    save(tmp_path, 1, 2)
    lose(sorted((tmp_path / "checkpoints").glob(f"ckpt-00000002.{end}"))[0])
    save(tmp_path, 3)
    assert steps_of(tmp_path / "checkpoints") == [1, 2, 3]
    lose(tmp_path / "checkpoints" / "ckpt-00000003.index")
    assert checkpoint_choice.choose(str(tmp_path), whole=True).prefix.endswith("ckpt-00000001")
    # As soon as two whole ones are later than what is damaged, that goes.
    save(tmp_path, 4, 5)
    assert steps_of(tmp_path / "checkpoints") == [4, 5]


def test_checkpoints_of_another_run_stay(tmp_path):
    """Another run's checkpoints lie among this one's: none is removed, and one of the same step is laid aside."""
    folder = tmp_path / "checkpoints"
    save(tmp_path, 1, 4, run="beef")
    theirs = {path.name: path.read_bytes() for path in folder.glob("ckpt-*")}
    save(tmp_path, 2, 3)
    assert steps_of(folder) == [1, 2, 3, 4]
    save(tmp_path, 4, 5)
    assert steps_of(folder) == [1, 4, 5]
    kept = [*folder.glob("ckpt-00000001.*"), *(folder / "of-run-beef").iterdir()]
    assert {path.name: path.read_bytes() for path in kept} == theirs
    choice = checkpoint_choice.choose(str(tmp_path), whole=True, wanted=Origin("f00d"))
    assert choice == (str(folder / "ckpt-00000005"), ())


def rewritten(damaged: Damaged, change) -> None:
    """The newest checkpoint with other tensors, as no program of ours writes it: without a manifest."""
    prefix = str(damaged.file(6, "index")).removesuffix(".index")
    reader = tf.train.load_checkpoint(prefix)
    tensors = change({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})
    for path in damaged.checkpoints.glob("ckpt-00000006.*"):
        path.unlink()
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )


def test_a_renamed_variable(damaged):
    """A tensor has another name: refused with the checkpoint's name, nothing is left at its first value."""

    def rename(tensors):
        return {name.replace("classifier/rows", "classifier/lines"): value for name, value in tensors.items()}

    rewritten(damaged, rename)
    before = snapshot(damaged.checkpoints)
    assert sentence_of(damaged.resume(max_steps=6)).endswith("ckpt-00000006: the checkpoint has no classifier/rows")
    assert snapshot(damaged.checkpoints) == before


@pytest.mark.parametrize("name", ["classifier/rows", "encoder/"])
def test_values_that_are_not_finite(damaged, name):
    """NaN in a checkpoint, as earlier versions saved it: neither continued nor loaded."""

    def spoil(tensors):
        found = next(tensor for tensor in sorted(tensors) if tensor.startswith(name) and tensors[tensor].ndim)
        return {**tensors, found: np.full_like(tensors[found], np.nan)}

    rewritten(damaged, spoil)
    assert "has values that are not finite" in sentence_of(damaged.resume(max_steps=6))
    if name == "encoder/":
        with pytest.raises(UserError, match="has values that are not finite"):
            instcls_tf.load_encoder(str(damaged.workdir))


# ------------------------------------------------------------------------------------------------------ while it writes


def state_of(step: int) -> tuple[tf.train.Checkpoint, dict[str, Slices]]:
    """Values that name their step, in several files."""
    rows = tf.Variable(tf.fill([3000, 64], float(step)))
    return tf.train.Checkpoint(kernel=tf.Variable(tf.fill([100_000], float(step)))), {"rows": Slices(rows, 0, 3000)}


def save_for_ever(workdir: str) -> None:
    choice = checkpoint_choice.choose(workdir)
    step = 0 if choice.prefix is None else checkpoint_choice.step_of(choice.prefix)
    while True:
        step += 1
        checkpoint.save(workdir, step, *state_of(step))


def newest_whole(workdir: str) -> int:
    """The step of the newest checkpoint that is complete while another process may be at the next one; 0 for none."""
    try:
        prefix = checkpoint_choice.choose(workdir).prefix
    except UserError:  # the first one has some of its names; or what was looked at has just been removed
        return 0
    return 0 if prefix is None else checkpoint_choice.step_of(prefix)


def test_killed_while_a_checkpoint_is_written(tmp_path):
    """SIGKILL at 20 random moments: what is taken then is whole, and never older than what was complete before."""
    chance, workdir, last = random.Random(0), str(tmp_path), 0
    for _ in range(20):
        process = forked(save_for_ever, workdir)
        # Complete, not only begun: a kill in the midst of the next one rightly goes back to it.
        while (complete := newest_whole(workdir)) <= last:
            time.sleep(0.01)
            assert process.is_running() and process.status() != "zombie"
        time.sleep(chance.random() / 10)
        process.kill()
        process.wait(60)
        choice = checkpoint_choice.choose(workdir, whole=True)
        step = checkpoint_choice.step_of(choice.prefix)
        assert step >= complete
        state = state_of(-1)
        checkpoint.restore(choice.prefix, *state)
        np.testing.assert_array_equal(state[0].kernel, np.full([100_000], step))
        np.testing.assert_array_equal(state[1]["rows"].variable, np.full([3000, 64], step))
        last = step
    checkpoint.save(workdir, last + 1, *state_of(last + 1))
    left = {path.name.split(".")[0] for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"checkpoint", *(f"ckpt-{step:08d}" for step in (last, last + 1))}


def test_a_full_disk(damaged, tmp_path):
    """A disk of 24 MB is full while saving: path and free space are named, the partial one goes, the old ones stay."""
    small = tmp_path / "small"
    small.mkdir()
    if os.system(f"mount -t tmpfs -o size=24m tmpfs {small} 2>/dev/null"):
        pytest.skip("mounting a file system needs root")
    try:
        shutil.copytree(damaged.workdir, small / "run")
        on_disk = Damaged(small / "run", damaged.photos)
        with open(small / "ballast", "wb") as file:
            file.write(b"\0" * (shutil.disk_usage(small).free - 300_000))
        sentence = sentence_of(on_disk.resume(max_steps=9))
        assert sentence.startswith(
            f"--workdir={small}/run: cannot write the checkpoint of step 9 to {small}/run/checkpoints (No space left on"
            " device; 0."
        )
        assert sentence.endswith(
            "MB are free there); the last good checkpoint is that of step 6, from which the same command goes on"
        )
        assert on_disk.steps() == [3, 6]
        assert not list(on_disk.checkpoints.glob(".writing*"))
        (small / "ballast").unlink()
        finished = on_disk.resume(max_steps=9)
        assert finished.status == 0, finished.output
        assert on_disk.steps() == [6, 9]
    finally:
        os.system(f"umount {small}")


def test_checkpoint_command(damaged):
    """`scripts.checkpoint verify` names the damaged file and ends with status 2; `inspect` lists what is there."""
    finished = run_script("checkpoint", "verify", str(damaged.workdir))
    assert finished.status == 0 and finished.stdout.count(": whole\n") == 2, finished.output
    path = flip(damaged.file(3, "data-*"))
    finished = run_script("checkpoint", "verify", str(damaged.workdir))
    assert sentence_of(finished).startswith(f"1 of 2 checkpoint(s) damaged: {path}: damaged, ")
    assert run_script("checkpoint", "inspect", str(damaged.workdir), "--step=6").status == 0
    assert sentence_of(run_script("checkpoint", "verify")).startswith("checkpoint: wanted one of inspect, verify")
