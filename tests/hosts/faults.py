"""What happens to a run on two hosts whose link, keys, code or cores are not right, with seconds.

    python -m tests.hosts.faults --folder=/tmp/hosts
    python -m tests.hosts.faults --folder=/tmp/hosts --only=down_for_good

As root, see `tests.hosts.network`; some ten minutes. Each case's line is kept in `results.jsonl` of the folder, so that
the command goes on where it was ended. The last thing printed is the table of docs/clusters.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Callable

from instcls_tf.distributed import hosts as machines
from instcls_tf.distributed import mpirun
from tests.commands import ROOT, run_command, user_environment
from tests.faults.conftest import write_photos
from tests.hosts.jobs import BOTH, EPOCH, Job, launch, losses, recipe, seconds_until_empty
from tests.hosts.network import NAMES, Host, refusal, two_hosts, wait_for_servers

EPOCHS = 4
CUT_AT = EPOCH + 5  # a step, after which a checkpoint is there
LONG_CUT = 25.0  # seconds
SLOWED = "tc qdisc add dev eth0 root tbf rate 20mbit burst 32kbit latency 400ms"
LOSSY = "iptables -A INPUT -i eth0 -m statistic --mode random --probability 0.01 -j DROP"


class Trial:
    """What a case has at hand.

    Args:
      folder: with the pictures, and the run on one host.
      name: of the case, and of its run.
      hosts: to start from, and the other one.
    """

    def __init__(self, folder: Path, name: str, hosts: tuple[Host, Host]):
        self.folder, self.name, (self.north, self.south) = folder, name, hosts
        self.workdir = folder / name
        shutil.rmtree(self.workdir, ignore_errors=True)

    def start(self, *options: object, host: Host | None = None) -> Job:
        """The run, or its continuation."""
        words = launch(*(options or BOTH), "pretrain", *recipe(self.folder, self.name, EPOCHS))
        return Job(host or self.north, words, self.folder / f"{self.name}.log", self.workdir)

    def whole(self, job: Job) -> dict:
        """Waits for a run, and compares it with the one on one host."""
        status, seconds = job.finish(), time.monotonic() - job.started
        assert status == 0, job.said()
        expected, found = losses(self.folder / "one_host"), losses(self.workdir)
        differing = sum(one != other for one, other in zip(expected, found))
        return {"seconds": round(seconds, 1), "steps": len(found), "of one host": len(expected), "differ": differing}

    def gone(self, job: Job, since: float) -> dict:
        """How soon nothing was left on both hosts, and what was said last."""
        before = time.monotonic() - since
        seconds = [round(before + each, 1) for each in seconds_until_empty([self.north, self.south])]
        return {"gone": dict(zip(("north", "south"), seconds)), "status": job.finish(), "said": job.last_line()}

    def refused(self, *options: object) -> dict:
        """A job that cannot begin."""
        job = self.start(*options)
        status, seconds = job.finish(), time.monotonic() - job.started
        assert not self.workdir.exists(), "nothing has begun"
        return {"seconds": round(seconds, 1), "status": status, "said": job.last_line()}

    def newest(self) -> str:
        """The newest checkpoint, all of whose bytes have been read."""
        finished = run_command([sys.executable, "-m", "scripts.checkpoint", "verify", str(self.workdir)])
        assert finished.status == 0, finished.output
        return max(path.stem for path in (self.workdir / "checkpoints").glob("ckpt-*.index"))


# --------------------------------------------------------------------------------------------------------- the cases


def one_host(trial: Trial) -> dict:
    """Both workers on one host of two cores: what the others are compared with."""
    return trial.whole(trial.start("-np", "2", host=trial.north._replace(cores="0-1")))


def equal(trial: Trial) -> dict:
    """A worker on each host, one core each."""
    return trial.whole(trial.start())


def unequal(trial: Trial) -> dict:
    """One host has two cores, the other one."""
    job = trial.start(host=trial.north._replace(cores="0-1"))
    return {**trial.whole(job), "said": job.said().splitlines()[0]}


def slowed(trial: Trial) -> dict:
    """The link carries 20 Mbit/s (tbf)."""
    for host in (trial.north, trial.south):
        host.do(*SLOWED.split())
    return trial.whole(trial.start())


def lossy(trial: Trial) -> dict:
    """The link loses 1% of the packets, each way."""
    for host in (trial.north, trial.south):
        host.do(*LOSSY.split())
    return trial.whole(trial.start())


def down_for_10_seconds(trial: Trial) -> dict:
    """The link is down for 10 s: the run goes on."""
    job = trial.start()
    job.wait_for_step(CUT_AT)
    trial.south.link("down")
    time.sleep(10)
    trial.south.link("up")
    return trial.whole(job)


def down_for_good(trial: Trial) -> dict:
    """The link is cut: both sides end, the checkpoint is whole, and the same command goes on when the link is back."""
    job = trial.start()
    job.wait_for_step(CUT_AT)
    since = time.monotonic()
    trial.south.link("down")
    result = {**trial.gone(job, since), "checkpoint": trial.newest()}
    trial.south.link("up")
    wait_for_servers([trial.north, trial.south])
    return {**result, "continued": trial.whole(trial.start())}


def down_with_restarts(trial: Trial) -> dict:
    """The link is down for 25 s, under --max_restarts=1: the launcher waits for the host and goes on."""
    job = trial.start("--max_restarts=1", *BOTH)
    job.wait_for_step(CUT_AT)
    trial.south.link("down")
    time.sleep(LONG_CUT)
    trial.south.link("up")
    result = trial.whole(job)
    words = ("host ", "waiting", "restart", "error: ")
    return {**result, "said": [line for line in job.said().splitlines() if line.startswith(words)]}


def asked_to_stop(trial: Trial) -> dict:
    """SIGTERM to the launcher: all save, nothing is left on either host."""
    job = trial.start()
    job.wait_for_step(CUT_AT)
    since = time.monotonic()
    job.stop()
    return {**trial.gone(job, since), "checkpoint": trial.newest()}


def a_host_dies(trial: Trial) -> dict:
    """Everything on one host is killed."""
    job = trial.start()
    job.wait_for_step(CUT_AT)
    since = time.monotonic()
    for process in trial.south.processes():
        process.kill()
    return {**trial.gone(job, since), "checkpoint": trial.newest()}


def other_code(trial: Trial) -> dict:
    """Another version of the package on one host."""
    module = ROOT / "instcls_tf" / "errors.py"
    other = trial.folder / "errors.py"
    other.write_text(module.read_text() + "# another version\n")
    trial.south.do("mount", "--bind", other, module)
    return trial.refused()


def no_key(trial: Trial) -> dict:
    """A host accepts no key of this user."""
    (trial.folder / NETWORK / "authorized_keys").write_text("")
    return trial.refused()


def unknown_host(trial: Trial) -> dict:
    """A name that no machine has."""
    return trial.refused("-H", "north:1,west:1")


def no_server(trial: Trial) -> dict:
    """The link is down from the start."""
    trial.south.link("down")
    return trial.refused()


def wrong_slots(trial: Trial) -> dict:
    """More workers than the hosts have places."""
    return trial.refused("-np", "4", *BOTH)


def _examined(trial: Trial, host: Host, words: list[str]) -> dict:
    """What the doctor says of the hosts; the words stand before its own flags."""
    recipe_flags = recipe(trial.folder, trial.name, EPOCHS)
    job = Job(host, [*words, *recipe_flags], trial.folder / f"{trial.name}.log", trial.workdir)
    status, seconds = job.finish(), time.monotonic() - job.started
    findings = [line for line in job.said().splitlines() if line and line[0] not in "{["]
    return {"seconds": round(seconds, 1), "status": status, "said": findings}


def doctor(trial: Trial) -> dict:
    """The doctor, on a good set-up of two hosts."""
    return _examined(trial, trial.north, launch(*BOTH, "doctor"))


def doctor_of_a_spoilt_set_up(trial: Trial) -> dict:
    """The doctor, without the launcher: a link of 20 Mbit/s, a workdir not shared, a thread less on one host."""
    for host in (trial.north, trial.south):
        host.do(*SLOWED.split())
    elsewhere = trial.folder / trial.name
    elsewhere.mkdir()
    trial.south.do("mount", "-t", "tmpfs", "none", elsewhere)
    places = [machines.Host(name, 1) for name in NAMES]
    words = mpirun.command(places, [sys.executable, "-m", "scripts.doctor"], user_environment())
    return _examined(trial, trial.north._replace(cores="0-1"), words)


CASES: tuple[Callable[[Trial], dict], ...] = (
    one_host, equal, unequal, slowed, lossy, down_for_10_seconds, down_for_good, down_with_restarts, asked_to_stop,
    a_host_dies, other_code, no_key, unknown_host, no_server, wrong_slots, doctor, doctor_of_a_spoilt_set_up,
)  # fmt: skip
NETWORK = "network"


def run_case(case: Callable[[Trial], dict], folder: Path) -> dict:
    """A case by itself, on new hosts."""
    with two_hosts(folder / NETWORK) as hosts:
        return case(Trial(folder, case.__name__, hosts))


def table(results: dict[str, dict]) -> str:
    """The results, in Markdown."""
    rows = ["| what | seconds | outcome |", "|---|---|---|"]
    for case in CASES:
        if case.__name__ in results:
            result = dict(results[case.__name__])
            seconds = result.pop("seconds", None) or " / ".join(f"{host} {s}" for host, s in result.pop("gone").items())
            outcome = "; ".join(f"{name}: {value}" for name, value in result.items())
            rows.append(f"| {(case.__doc__ or '').rstrip('.')} | {seconds} | {outcome} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="For runs and results; it is kept.")
    parser.add_argument("--only", choices=[case.__name__ for case in CASES], help="This case alone, also once more.")
    asked = parser.parse_args()
    reason = refusal()
    if reason:
        sys.exit(reason)
    folder, kept = asked.folder.absolute(), asked.folder / "results.jsonl"
    if not (folder / "photos").exists():
        write_photos(folder / "photos", 8 * EPOCH)
    lines = kept.read_text().splitlines() if kept.exists() else []
    results = {name: result for name, result in map(json.loads, lines)}
    for case in CASES:
        if asked.only == case.__name__ or (asked.only is None and case.__name__ not in results):
            results[case.__name__] = run_case(case, folder)
            with open(kept, "a") as file:
                file.write(json.dumps([case.__name__, results[case.__name__]]) + "\n")
            print(case.__name__, results[case.__name__], flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
