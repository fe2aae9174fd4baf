"""Commands as a user starts them: from the root of the repository, in a shell where the environment is active."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Callable, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[1]

# Ends what hangs. No test is about how long something takes, and the machine may be busy.
TIMEOUT = 1800.0

# Imported once, in a process from which commands are forked: TensorFlow takes seconds of a core to import, and starts
# its threads only with its first operation.
_PRELOADED = ("instcls_tf.pretraining.pretrain", "instcls_tf.evaluation.commands", "instcls_tf.detection.finetune")
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__, *_PRELOADED])

# What the launcher puts before a worker's output: "[1,0]<stderr>:" over MPI, "[0]<stderr>:" over Gloo.
_TAG = re.compile(r"\[(?:1,)?(\d+)\]<std(?:out|err)>:")


class Finished(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Both streams."""
        return self.stdout + self.stderr

    def said_by(self, rank: int | None) -> list[str]:
        """The lines on standard error of one worker under a launcher; None for the launcher's own."""
        said = []
        for line in self.stderr.splitlines():
            own, *tagged = _TAG.split(line)
            # Open MPI sometimes repeats the tag at the end of a line.
            pieces = [(None, own), *zip(map(int, tagged[::2]), tagged[1::2])]
            said += [text.strip() for who, text in pieces if who == rank and text.strip()]
        return said


def run_script(name: str, *arguments: str, workers: int = 1) -> Finished:
    """`python -m scripts.NAME`: forked with TensorFlow imported, or through horovodrun if there are several workers."""
    if workers == 1:
        return run_forked(f"scripts.{name}", *arguments)
    return run_command(under_launcher(workers, script(name, *arguments)))


def script(name: str, *arguments: str) -> list[str]:
    """The words of a command, for a new interpreter."""
    return [sys.executable, "-m", f"scripts.{name}", *arguments]


def run_forked(module: str, *arguments: object) -> Finished:
    """`python -m MODULE` in a process in which TensorFlow is imported."""
    _start_server()
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        for stream in streams:
            stream.touch()
        process = _forks.Process(target=_in_fork, args=(module, [*map(str, arguments)], streams, user_environment()))
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
            raise TimeoutError(f"{module} {arguments}")
        return Finished(process.exitcode, *(stream.read_text() for stream in streams))


def forked(target: Callable, *arguments: object) -> psutil.Process:
    """Starts a function of a test module in a process of its own, forked with TensorFlow imported."""
    return psutil.Process(start_fork(target, *arguments).pid)


def start_fork(target: Callable, *arguments: object) -> BaseProcess:
    """The same, whose exit status its starter can wait for."""
    _start_server()
    process = _forks.Process(target=target, args=arguments)
    process.start()
    return process


def _start_server() -> None:
    own = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as commands set it before they import TensorFlow
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["TF_CPP_MIN_LOG_LEVEL"]
        if own is not None:
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = own


def _in_fork(module: str, arguments: list[str], streams: list[Path], environment: dict[str, str]) -> None:
    """Becomes the command; how it ends is the status of this process."""
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, stream in zip((1, 2), streams):
        os.dup2(os.open(stream, os.O_WRONLY), descriptor)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def under_launcher(workers: int, command: list[str]) -> list[str]:
    """The command on several workers; one worker is started by hand, without any launcher."""
    if workers == 1:
        return command
    return [os.path.join(os.path.dirname(sys.executable), "horovodrun"), "-np", str(workers), *command]


def run_command(command: list[str], timeout: float = TIMEOUT) -> Finished:
    """Runs a command to its end; it and its workers are killed when time is up."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=user_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # Open MPI's workers have sessions of their own and outlive a signal to their launcher.
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        raise
    return Finished(process.returncode, stdout, stderr)


def user_environment() -> dict[str, str]:
    """The environment of a user's shell in which the virtual environment is active.

    But that workers of Open MPI which wait for others do not keep a core from those: tests run beside them.
    """
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    of_tests = ("TF_CPP_MIN_LOG_LEVEL", "TF_NUM_INTRAOP_THREADS")
    inherited = {name: value for name, value in os.environ.items() if name not in of_tests}
    return {**inherited, "PATH": path, "OMPI_MCA_mpi_yield_when_idle": "1"}


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Everything in a folder with its time of change and a hash of its content, the folder itself included."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [folder, *folder.rglob("*")]
    }


# Each call of a program in a fork, that of a process which has imported what most of its time goes into.
_CALLS = """
import contextlib, importlib, io, json, os, sys, traceback
program, preloaded, calls = json.load(sys.stdin)
for module in preloaded:
    importlib.import_module(module)
for words in calls:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    sys.argv[1:] = words
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            status = 1
    print(json.dumps([status, stdout.getvalue(), stderr.getvalue()]), flush=True)
    os._exit(0)
"""


def run_calls(program: str, calls: list[list[str]], preloaded: Sequence[str]) -> list[Finished]:
    """`python -c PROGRAM WORDS...` for each of the calls, without TensorFlow; status 1 with a traceback if it fails.

    Args:
      program: reads `sys.argv`.
      calls: the words of each.
      preloaded: modules that change nothing when they are imported.
    """
    words = json.dumps([program, list(preloaded), calls])
    done = subprocess.run(
        [sys.executable, "-c", _CALLS], cwd=ROOT, env=user_environment(), input=words, stdout=subprocess.PIPE,
        text=True, check=True, timeout=TIMEOUT,
    )  # fmt: skip
    answers = [Finished(*json.loads(line)) for line in done.stdout.splitlines()]
    assert len(answers) == len(calls)
    return answers
