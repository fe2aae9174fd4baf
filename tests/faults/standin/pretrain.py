"""Stands in for pretraining where a test is about what is around it: stamps, saves, stops, without TensorFlow or MPI.

Its "checkpoints" are empty files named after steps. `--faults=KIND@RANK:STEP,...` makes workers fail.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from absl import flags

from flags import command
from instcls_tf import stamps
from instcls_tf.distributed import watchdog
from instcls_tf.distributed.launcher import launched_rank_and_size
from instcls_tf.errors import MachineError, UserError
from instcls_tf.progress import Progress
from instcls_tf.run import signals

flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_integer("steps", 10, "Steps.")
flags.DEFINE_float("step_seconds", 0.05, "Of a step.")
flags.DEFINE_list("faults", [], "KIND@RANK:STEP.")
flags.DEFINE_bool("once", False, "Faults happen in the first attempt only.")
flags.DEFINE_float("stall_timeout", 900.0, "As that of pretrain.")
FLAGS = flags.FLAGS


class HorovodError(RuntimeError):
    """As survivors of a dead worker see it."""


def stuck_here() -> None:
    while True:
        time.sleep(0.05)


def fail(kind: str) -> None:
    if kind == "raise":
        raise RuntimeError("the disk of this worker is on fire")
    if kind == "collective":
        raise HorovodError("Horovod has been shut down")
    if kind == "mistake":
        raise UserError("--dataset=x: this worker has no such images")
    if kind == "machine":
        raise MachineError("step 4: the file system has failed")
    if kind == "die":
        os._exit(9)
    if kind == "hang":
        stuck_here()
    if kind == "evaluate":
        for place in range(100):
            stamps.stamp("evaluating", place, 100)
            time.sleep(0.1)
        return
    if kind == "child":
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        return
    os.kill(os.getpid(), getattr(signal, kind))
    time.sleep(0.5)


def wait_for_all(rank: int, size: int, step: int) -> None:
    """A collective, through files in the job's folder."""
    arrived = [Path(os.environ["INSTCLS_JOB"], f"step{step}.{worker}") for worker in range(size)]
    arrived[rank].touch()
    while not all(path.exists() for path in arrived):
        time.sleep(0.01)


def train(rank: int, size: int, folder: Path) -> None:
    saved = folder / "checkpoints"
    saved.mkdir(parents=True, exist_ok=True)
    first = max((int(path.name.removeprefix("ckpt-")) for path in saved.glob("ckpt-*")), default=0)
    is_first_attempt = not (folder / "attempts").exists() or (rank > 0 and first == 0)
    progress = Progress(visible=rank == 0)
    progress.say(f"{size} worker(s) from step {first}")
    if rank == 0:
        with open(folder / "attempts", "a") as file:
            file.write(f"{size} {first}\n")
    for step in range(first, FLAGS.steps):
        for fault in FLAGS.faults if is_first_attempt or not FLAGS.once else []:
            kind, _, place = fault.partition("@")
            if place == f"{rank}:{step}":
                fail(kind)
        time.sleep(FLAGS.step_seconds)
        wait_for_all(rank, size, step)
        progress("pretraining", step + 1, FLAGS.steps)
        if (rank == 0 and step % 2) or signals.received():
            (saved / f"ckpt-{step + 1:08d}").touch()
        if signals.received():
            progress.close()
            progress.say(f"{signals.received()}: saved at step {step + 1}")
            raise signals.Stopped("stopped")
    progress.close()
    progress.say("done")


def main() -> None:
    rank, size = launched_rank_and_size() or (0, 1)
    print(f"rank {rank} answers", flush=True) if rank == 0 else None
    with signals.heeded(), watchdog.watching(FLAGS.stall_timeout, FLAGS.workdir):
        signals.defer()
        train(rank, size, Path(FLAGS.workdir))


if __name__ == "__main__":
    command.run(main, __doc__ or "")
