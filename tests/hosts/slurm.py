"""`scripts/slurm.sbatch` under a real Slurm on the two hosts: cancelled; saved at the time limit, queued again, done.

    python -m tests.hosts.slurm --folder=/tmp/slurm

As root, with munge, slurmctld and slurmd, see `tests.hosts.network`; some ten minutes. Prints what the job said, and
how its losses compare with those of a run that was never interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.commands import ROOT, run_command, user_environment
from tests.faults.conftest import write_photos
from tests.hosts.jobs import EPOCH, launch, losses, recipe
from tests.hosts.network import NAMES, Host, address, refusal, two_hosts

EPOCHS = 45
_TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
_PATIENCE = 900.0


def _settings(folder: Path) -> str:
    nodes = "\n".join(f"NodeName={name} NodeAddr={address(name)} CPUs=1 State=UNKNOWN" for name in NAMES)
    return f"""ClusterName=test
SlurmctldHost={NAMES[0]}({address(NAMES[0])})
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm(folder: Path, hosts: tuple[Host, Host]) -> Iterator[dict[str, str]]:
    """A controller on the first host and a node on each; gives the environment of those who use it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("state", *(f"spool.{host.name}" for host in hosts)):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(_settings(folder))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    environment = {**user_environment(), "SLURM_CONF": str(folder / "slurm.conf")}
    munge = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--force", "--foreground", f"--socket={folder}/munge.socket", *munge],
        hosts[0].inside("slurmctld", "-D"),
        *(host.inside("slurmd", "-D", "-N", host.name) for host in hosts),
    ]
    servers = []
    try:
        for command in commands:
            with open(folder / "servers.log", "a") as log:
                servers.append(
                    subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                )
            time.sleep(1)
        yield environment
    finally:
        for server in reversed(servers):
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            server.kill()
            server.wait()


def run(folder: Path, hosts: tuple[Host, Host]) -> str:
    """Submits the script with a time limit below what the run needs, and waits for the end of its last attempt."""
    with slurm(folder / "slurm", hosts) as environment:
        said = _submit(folder, "run", hosts[0], environment, "--time=2", "--signal=B:USR1@30")
        end = time.monotonic() + _PATIENCE
        while "ended with status 0" not in (text := _text(said)):
            if time.monotonic() > end or "ended with status 1" in text:
                break
            time.sleep(1)
    return text


def cancel(folder: Path, hosts: tuple[Host, Host]) -> str:
    """Cancels the job when it trains, and looks for a minute whether it comes back."""
    with slurm(folder / "slurm", hosts) as environment:
        said = _submit(folder, "cancelled", hosts[0], environment)
        end = time.monotonic() + _PATIENCE
        while len(losses(folder / "cancelled")) < EPOCH and time.monotonic() < end:
            time.sleep(1)
        subprocess.run(hosts[0].inside("scancel", "--jobname=instcls"), env=environment, check=True)
        time.sleep(60)
        queue = subprocess.run(
            hosts[0].inside("squeue", "--noheader", "--format=%T"), env=environment, capture_output=True, text=True
        )
    return f"{_text(said)}after scancel: {len(queue.stdout.split())} job(s) in the queue"


def _submit(folder: Path, name: str, host: Host, environment: dict[str, str], *own: str) -> Path:
    """Submits the script for a run of that name; gives the file of what it says."""
    said = folder / f"said_{name}"
    said.unlink(missing_ok=True)
    shutil.rmtree(folder / name, ignore_errors=True)
    words = [
        "sbatch",
        *own,
        f"--output={said}",
        f"--chdir={ROOT}",
        "scripts/slurm.sbatch",
        *recipe(folder, name, EPOCHS),
    ]
    subprocess.run(host.inside(*words), env=environment, check=True)
    return said


def _text(said: Path) -> str:
    return said.read_text() if said.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="For runs and settings; it is kept.")
    folder = parser.parse_args().folder.absolute()
    reason = refusal() or ", ".join(tool for tool in _TOOLS if shutil.which(tool) is None)
    if reason:
        sys.exit(reason)
    if not (folder / "photos").exists():
        write_photos(folder / "photos", 8 * EPOCH)
    with two_hosts(folder / "network") as hosts:
        print(cancel(folder, hosts))
        print(run(folder, hosts))
    finished = run_command(launch("-np", "2", "pretrain", *recipe(folder, "uninterrupted", EPOCHS)))
    assert finished.status == 0, finished.output
    one, other = losses(folder / "uninterrupted"), losses(folder / "run")
    print(f"{len(other)} of {len(one)} steps; losses that differ: {sum(a != b for a, b in zip(one, other))}")


if __name__ == "__main__":
    main()
