"""Kills and resumes runs of two workers again and again: all signals, to all processes, in all phases.

    python -m tests.faults.soak --folder=runs/soak --cycles=200 --seed=0

A cycle is a start of the run that the last one has left, and a signal to one of its processes. When a run comes to its
end, its last checkpoint is compared bit by bit with that of the same run without any signal, and another one begins.
The workers are real, over MPI and under the launcher, but forked from a process that has imported TensorFlow. What was
done is kept in the folder: the same command goes on from there, whatever has ended it. Status 1 when something was not
as it should be; the folder then shows what.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.commands import ROOT, start_fork, user_environment
from tests.faults.jobs import launcher
from tests.faults.preloaded.server import STANDS_FOR_A_WORKER, Server
from tests.faults.soak_plan import Hurt, hurt_of, phase_of, table

# Everything that a run does, as little of it as there can be.
RECIPE = {
    "dataset": "digits",
    "augmentation": "digits",
    "image_size": 8,
    "encoder": "resnet18",
    "width_multiplier": 0.125,
    "stem": "small",
    "embedding_size": 16,
    "batch_size": 480,
    "micro_batch": 240,
    "epochs": 6,
    "learning_rate": 0.05,
    "scale_learning_rate": False,
    "hard_negatives": 4,
    "prior_every": 2,
    "online_knn_every": 1,
    "log_every": 1,
    "gauge_every": 0,
    "report": False,
    "checkpoint_every": 1,
}
_STEPS_PER_EPOCH = 3
_STOPPED, _HOURS = 75, 3600.0
# Of the fields of a line of metrics.jsonl, those that a clock makes.
_OF_THE_CLOCK = ("second", "share", "wait")
# And that of the evaluation.
_OF_JUDGES = ("knn_top1",)
# Every process of the job but the driver; the numbers of threads decide how sums are rounded.
_ENVIRONMENT = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1", "SHALLOW": "yes"}


class Wrong(Exception):
    """Something was not as it should be."""


class Soak:
    """A folder with a run without signals, one that has them, and what was done so far.

    Args:
      folder: of the soak; made if it is not there.
      seed: of what is done when.
      server: makes the workers.
      **recipe: settings of the runs that are other than usual.
    """

    def __init__(self, folder: Path, seed: int, server: Server, **recipe: object):
        self._folder, self._seed, self._server, self._recipe = folder, seed, server, {**RECIPE, **recipe}
        self._state = folder / "state.json"
        self.done: list[dict[str, Any]] = []
        self.compared = 0
        if self._state.exists():
            self.done, self.compared = json.loads(self._state.read_text())
        else:
            folder.mkdir(parents=True)  # never a folder with something else in it
            self._keep()

    def run(self, cycles: int) -> None:
        """Goes on until so many cycles are done, and then brings the last run to its end.

        Raises:
          Wrong: a run did not end, go on or come out as it should.
        """
        if not (self._folder / "whole.done").exists():
            shutil.rmtree(self._folder / "whole", ignore_errors=True)
            status, said = self._start("whole")
            self._expect(status == 0, "the run without signals failed", said)
            (self._folder / "whole.done").touch()
        while len(self.done) < cycles:
            self._cycle(hurt_of(self._seed, len(self.done)))
        if (self._folder / "hurt").exists():
            status, said = self._start("hurt")
            self._expect(status == 0, "the last run did not come to its end", said)
            self._compare()

    def _cycle(self, hurt: Hurt) -> None:
        started, log = time.monotonic(), self._folder / "stamps"
        log.unlink(missing_ok=True)
        status, said = self._start("hurt", HURT=hurt.variable, HURT_LOG=str(log))
        stamps = log.read_text().splitlines() if log.exists() else []
        if stamps:
            phase = phase_of(stamps[0])
            self._judge(hurt, phase, status, said)
            seconds = round(time.monotonic() - started, 1)
            self.done.append({**hurt._asdict(), "phase": phase, "status": status, "seconds": seconds})
            _say(f"cycle {len(self.done)}: {hurt.signal} to {hurt.victim}, {phase}: status {status}, {seconds} s")
        else:  # such a phase does not come any more
            self._expect(status == 0, f"not stopped by {hurt.variable}, and not done", said)
        if status == 0:
            self._compare()
        self._keep()

    def _judge(self, hurt: Hurt, phase: str, status: int, said: str) -> None:
        killed = hurt.signal == "SIGKILL"
        allowed = {-signal.SIGKILL} if killed and hurt.victim == "launcher" else {1} if killed else {_STOPPED}
        if phase == "start-up" and not killed:
            allowed.add(1)  # by the signal itself, before anything heeds it
            allowed.add(-getattr(signal, hurt.signal))
        if "done: " in said:
            allowed.add(0)
        self._expect(status in allowed, f"{hurt}: status {status}, wanted one of {sorted(allowed)}", said)
        self._expect("Traceback" not in said, f"{hurt}: a traceback", said)
        self._expect("begin anew" not in said and "starts over" not in said, f"{hurt}: started over", said)

    def _start(self, name: str, **environment: str) -> tuple[int, str]:
        """Starts a run or continues it; how the launcher ended, and what was said."""
        flags = [f"--{key}={value}" for key, value in {**self._recipe, "workdir": self._folder / name}.items()]
        output = self._folder / f"{name}.txt"
        with open(output, "wb") as file:
            process = subprocess.Popen(
                launcher(2, STANDS_FOR_A_WORKER, *flags), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env={**user_environment(), **_ENVIRONMENT, **self._server.environment, **environment},
                start_new_session=True,
            )  # fmt: skip
        try:
            status = process.wait(_HOURS)
        finally:
            process.kill()
        said = output.read_text(errors="replace")
        self._expect(self._server.is_idle(600), f"{environment}: workers are left", said)
        return status, said

    def _compare(self) -> None:
        """Compares the run that had the signals with the one that had none, and takes it away."""
        comparison = start_fork(compare, self._folder / "hurt", self._folder / "whole")
        comparison.join()
        self._expect(comparison.exitcode == 0, "the run with signals came out otherwise", "")
        shutil.rmtree(self._folder / "hurt")
        self.compared += 1
        self._keep()
        _say(f"run {self.compared}: bitwise the one without signals")

    def _keep(self) -> None:
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps([self.done, self.compared]))
        os.replace(new, self._state)

    @staticmethod
    def _expect(holds: bool, what: str, said: str) -> None:
        if not holds:
            raise Wrong(f"{what}\n{said[-5000:]}")


def compare(one: Path, other: Path) -> None:
    """Compares last checkpoints and logs of two runs, in a process that has TensorFlow; fails if they differ."""
    import numpy as np
    import tensorflow as tf

    tensors = []
    for workdir in (one, other):
        reader = tf.train.load_checkpoint(str(workdir / "checkpoints"))
        names = [name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
        tensors.append({name: reader.get_tensor(name) for name in names})
    assert tensors[0].keys() == tensors[1].keys() and len(tensors[0]) > 20
    differ = [name for name, value in tensors[0].items() if not np.array_equal(value, tensors[1][name])]
    assert not differ, differ
    logs = [_logged(workdir) for workdir in (one, other)]
    last = max(logs[1])
    assert [step for step, line in logs[0].items() if not _is_same(line, logs[1].get(step, {}), step == last)] == []
    # A kill between a checkpoint and its line in the log, which comes after it, takes that line.
    every = RECIPE["checkpoint_every"] * _STEPS_PER_EPOCH
    assert [step for step in logs[1] if step not in logs[0] and step % every] == []


def _is_same(line: dict[str, float], whole: dict[str, float], is_last: bool) -> bool:
    """Whether two lines are the same, but for an evaluation amid the run that a signal has left out."""
    left_out = () if is_last else _OF_JUDGES
    return line == {name: value for name, value in whole.items() if name in line or name not in left_out}


def _logged(workdir: Path) -> dict[int, dict[str, float]]:
    """The lines of metrics.jsonl by their steps."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    # A search in mid-epoch, where a run was continued, is not reported.
    left_out = (*_OF_THE_CLOCK, "hard_negative")
    names = [[name for name in line if not any(part in name for part in left_out)] for line in lines]
    return {line["step"]: {name: line[name] for name in known} for line, known in zip(lines, names)}


def report(done: Iterable[dict[str, Any]], compared: int) -> str:
    """The table of a soak, and what it took."""
    done = list(done)
    seconds = sum(cycle["seconds"] for cycle in done)
    statuses = ", ".join(
        f"{number} x {status}" for status, number in sorted(Counter(c["status"] for c in done).items())
    )
    return "\n".join(
        [
            table((cycle["signal"], cycle["victim"], cycle["phase"]) for cycle in done),
            "",
            f"{len(done)} cycles in {seconds / 3600:.1f} hours, exit statuses: {statuses}; {compared} run(s) came to"
            f" their end, bitwise equal to the one without signals",
        ]
    )


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the soak; one that is there goes on")
    parser.add_argument("--cycles", type=int, default=200, help="that are to be done, those before included")
    parser.add_argument("--seed", type=int, default=0, help="of what is done when")
    options = parser.parse_args()
    os.environ.update(_ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(options.folder.resolve(), options.seed, Server(Path(folder) / "server"))
        try:
            soak.run(options.cycles)
        except Wrong as error:
            _say(re.sub(r"(?m)^", "  ", str(error)).strip())
            return 1
        finally:
            print(report(soak.done, soak.compared))
    return 0


if __name__ == "__main__":
    sys.exit(main())
