"""Workers that would not train the same run stop before the first step, and those that have drifted apart, later.

Each worker reads flags, code and images by itself, and the workdir through its own machine's file system. What differs
would not be noticed otherwise: sums of unlike things are sums all the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path

import tensorflow as tf

from instcls_tf import files, stamps
from instcls_tf.classifier.kernels import passes, streamed_softmax
from instcls_tf.config import PretrainConfig
from instcls_tf.data.kernels import views
from instcls_tf.data.source import Source, digest_of_ids
from instcls_tf.distributed import collectives, cores, device, gpus, workers
from instcls_tf.errors import MachineError, UserError, shown
from instcls_tf.run import checkpoint_choice, checkpoint_manifest
from instcls_tf.run.code import code_digest

# Places may have other names on other machines; whether they are the same is tried.
_PLACES = ("workdir", "data_dir")
# A kind of devices, in TensorFlow's word.
_GPU = "GPU"
# Seconds until a file or a folder must be seen on all machines: network file systems remember for a while what was not
# there.
_PATIENCE = 60.0
# Steps between two comparisons of the weights.
EVERY = 1000


def refuse_differences(config: PretrainConfig, source: Source) -> None:
    """Compares flags, code and images; all workers together, as the first thing they send.

    Raises:
      UserError: names the first difference, with both values; on all workers alike.
    """
    with tf.device("CPU"):  # where all workers have a device alike
        found = workers.everybodys(_facts(config, source))
    for rank, facts in enumerate(found):
        for name, value in facts.items():
            if value == found[0][name]:
                continue
            if name == _GPU:
                raise UserError(
                    f"worker {rank}: TensorFlow sees {value}, for worker 0 {found[0][name]}: wanted the same on all"
                    f" workers; {gpus.REMEDY}"
                )
            if name == "dataset":
                raise UserError(
                    f"--dataset={source.name}: worker {rank} does not see the same images as worker 0 ({value},"
                    f" {found[0][name]}), wanted the same files under the same names on all workers, and none added"
                    f" or taken away while they start"
                )
            if name == "threads":
                raise UserError(
                    f"worker {rank} computes with {value} thread(s), worker 0 with {found[0][name]}, which rounds sums"
                    f" differently: wanted as many on all workers. scripts.launch sees to it; with another launcher set"
                    f" {cores.THREADS} to the smallest number for all of them"
                )
            raise UserError(
                f"worker {rank} has {name}={value}, worker 0 has {name}={found[0][name]}: wanted the same on both"
            )


def _facts(config: PretrainConfig, source: Source) -> dict[str, str]:
    """What must be the same everywhere, in words; what others of them follow from comes first."""
    fields = dataclasses.asdict(config)
    flags = {f"--{name}": str(value) for name, value in fields.items() if name not in _PLACES}
    kernels = [
        library.path.name if is_there else "none"
        for library, is_there in (
            (streamed_softmax.LIBRARY, passes.available()),
            (views.LIBRARY, views.operations() is not None),
        )
    ]
    return {
        _GPU: "a GPU" if tf.config.list_physical_devices(_GPU) else "no GPU",
        **flags,
        "dataset": f"{source.num_instances} images{_gone(source)}, digest {source.ids_digest().hex()}",
        "code": code_digest(),
        "TensorFlow": tf.__version__,
        "kernels": " and ".join(kernels),
        "threads": str(device.threads() or "a GPU's"),
    }


def _gone(source: Source) -> str:
    """How many are gone since the run began, and which: each worker leaves its own out of account."""
    vanished = source.changes.vanished
    digest = digest_of_ids(len(vanished), map(os.fsencode, vanished)).hex()
    return f", {len(vanished)} of them gone (digest {digest})" if vanished else ""


def refuse_other_workdirs(workdir: str) -> None:
    """Makes sure that all workers see the same folder: rank 0 writes a file there, which the others read.

    A worker that does not see it looks again and again for a minute.

    Args:
      workdir: the folder; rank 0 makes it.

    Raises:
      UserError: it cannot be written, or another worker does not see it; on all workers alike.
    """
    is_chief = collectives.rank() == 0
    made = files.missing_folders(workdir) if is_chief else ()
    try:
        with contextlib.ExitStack() as until_seen:
            left = _leave_word(workdir, until_seen) if is_chief else ("", "", "")
            (name, word, problem), *_ = workers.everybodys(left)
            if not problem and collectives.size() > 1:
                seen = workers.everybodys(_sees(os.path.join(workdir, name), word))
                blind = [rank for rank, sees in enumerate(seen) if not sees]
                if blind:
                    problem = (
                        f"--workdir={shown(workdir)}: worker {blind[0]} does not see worker 0's folder there, wanted"
                        f" one on a file system that all workers share"
                    )
            if problem:
                raise UserError(problem)
    except BaseException:
        files.remove_made(made)
        raise


def _leave_word(workdir: str, until_seen: contextlib.ExitStack) -> tuple[str, str, str]:
    """Makes the folder, and a file there that goes with `until_seen`; what a killed process had left goes as well.

    Returns:
      The path of the file in the folder, what is in it, and what is wrong, if it cannot be written.
    """
    word = secrets.token_hex(16)
    try:
        os.makedirs(workdir, exist_ok=True)
        folder = tempfile.mkdtemp(dir=workdir, prefix=files.scratch_prefix(workdir))
        until_seen.callback(shutil.rmtree, folder, ignore_errors=True)
        os.chmod(folder, 0o755)  # mkdtemp's folders are private
        Path(folder, "word").write_text(word)
    except OSError as error:
        return "", "", f"--workdir={shown(workdir)}: cannot write there ({error.strerror})"
    return os.path.join(os.path.basename(folder), "word"), word, ""


def _sees(path: str, word: str) -> bool:
    end = time.monotonic() + _PATIENCE
    while True:
        files.look_again(os.path.dirname(os.path.abspath(path)))
        with contextlib.suppress(OSError):
            if Path(path).read_text() == word:
                return True
        if time.monotonic() > end:
            return False
        stamps.go_on()
        time.sleep(0.5)


def refuse_other_checkpoints(prefix: str) -> None:
    """Makes sure that all workers see the same files of the checkpoint from which they are about to go on.

    Raises:
      UserError: names the first worker that does not, and what it sees instead; on all workers alike.
      MachineError: a file system fails; likewise.
    """
    found = _facts_of_all(prefix)
    end = time.monotonic() + _PATIENCE
    while len(set(found)) > 1 and workers.rank_0_says(time.monotonic() < end, "patience"):
        stamps.go_on()
        time.sleep(0.5)
        found = _facts_of_all(prefix)
    for rank, facts in enumerate(found):
        if facts != found[0]:
            raise UserError(
                f"{shown(prefix)}: worker {rank} finds there: {facts}; worker 0: {found[0]}; wanted the same"
                f" checkpoint, on a file system that all workers share"
            )


def _facts_of_all(prefix: str) -> list[str]:
    return workers.everybodys(workers.all_or_none(lambda: _facts_of(prefix)))


def _facts_of(prefix: str) -> str:
    """A checkpoint in words, by its manifest, or what is wrong with it."""
    files.look_again(os.path.dirname(os.path.abspath(prefix)))
    problem = checkpoint_choice.problem_of(prefix, whole=False)
    manifest = "" if problem else checkpoint_manifest.read(prefix)
    return problem or f"a whole one, digest {hashlib.sha256(repr(manifest).encode()).hexdigest()[:16]}"


def refuse_different_facts(about: str, fact: str) -> None:
    """Makes sure that all workers have found the same.

    Args:
      about: begins the sentence: what was looked at.
      fact: what this worker has found.

    Raises:
      UserError: names the first worker that has found something else, and both; on all workers alike.
    """
    found = workers.everybodys(fact)
    for rank, other in enumerate(found):
        if other != found[0]:
            raise UserError(f"{about}: worker {rank} finds {other} there, worker 0 {found[0]}: wanted the same")


def compares_weights(step: int) -> bool:
    """Whether the weights are compared after a step, counted from 0."""
    return (step + 1) % EVERY == 0


def checksum_of(variables: list[tf.Variable]) -> str:
    """A checksum of the variables' values."""
    digest = hashlib.blake2b(digest_size=8)
    for variable in variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def refuse_different_weights(variables: list[tf.Variable], step: int) -> None:
    """Compares what all workers hold alike, by checksums; all workers together.

    Args:
      variables: in the same order on all workers.
      step: completed steps.

    Raises:
      MachineError: names the worker and both checksums; on all workers alike.
    """
    if collectives.size() == 1:
        return
    found = workers.everybodys(checksum_of(variables))
    for rank, checksum in enumerate(found):
        if checksum != found[0]:
            raise MachineError(
                f"step {step}: the weights of worker {rank} are not those of worker 0 (checksums {checksum} and"
                f" {found[0]}), nothing was saved: look for a defect of that machine's memory or processor; the same"
                f" command goes on from the last checkpoint"
            )
