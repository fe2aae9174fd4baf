"""The real pretraining, hurt at an exact place: HURT=HOW@VICTIM:PHASE:STEP in the environment.

HOW is a signal that the victim gets when its work stamps that place, or `hang`. The victim is a rank, or `launcher`:
then rank 0 sends the signal and waits until the launcher has passed it on.

HURT=HOW@VICTIM:PHASE:#COUNT:SECONDS is near a place: so many seconds after the so many-th stamp whose phase begins like
that, whatever the work has come to by then; the file that HURT_LOG names receives the phase. A phase `starting` is the
process's begin.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading
import time

from instcls_tf import stamps
from instcls_tf.distributed import job
from instcls_tf.distributed.launcher import launched_rank_and_size
from instcls_tf.run import signals

LAUNCHER = "launcher"


def _hurt_at(how: str, victim: str, phase: str, step: int) -> None:
    make = stamps.Stamp

    def hurting(number: int, at: str, done: int, total: int) -> stamps.Stamp:
        if (at, done) == (phase, step):
            if how == "hang":
                hang()
            _send(how, victim)
            while victim == LAUNCHER and not signals.received():
                time.sleep(0.01)
        return make(number, at, done, total)

    stamps.Stamp = hurting  # type: ignore[misc] # however `stamps.stamp` was imported


def _hurt_near(how: str, victim: str, phase: str, count: int, seconds: float) -> None:
    make, seen = stamps.Stamp, 0

    def send() -> None:
        with open(os.environ["HURT_LOG"], "a") as file:
            file.write(f"{stamps.last().phase}\n")
        _send(how, victim)

    def hurting(number: int, at: str, done: int, total: int) -> stamps.Stamp:
        nonlocal seen
        seen += at.startswith(phase)
        if at.startswith(phase) and seen == count:
            timer = threading.Timer(seconds, send)
            timer.daemon = True
            timer.start()
        return make(number, at, done, total)

    stamps.Stamp = hurting  # type: ignore[misc] # however `stamps.stamp` was imported
    hurting(*stamps.last())


def _send(how: str, victim: str) -> None:
    pid = int(os.environ[job.LAUNCHER].partition("@")[0]) if victim == LAUNCHER else os.getpid()
    os.kill(pid, getattr(signal, how))


def hang() -> None:
    while True:
        time.sleep(0.1)


def _prepare() -> None:
    how, _, place = os.environ.get("HURT", "").partition("@")
    rank, _ = launched_rank_and_size() or (0, 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the tests' forks ignore
    if not how:
        return
    victim, phase, step, *seconds = place.split(":")
    if victim != (LAUNCHER if victim == LAUNCHER and rank == 0 else str(rank)):
        return
    if seconds:
        _hurt_near(how, victim, phase, int(step.removeprefix("#")), float(seconds[0]))
    else:
        _hurt_at(how, victim, phase, int(step))


if __name__ == "__main__":
    _prepare()
    runpy.run_module("scripts.pretrain", run_name="__main__")
