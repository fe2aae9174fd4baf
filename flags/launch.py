"""Flags of `launch`, which stand before the command that it launches, whose own flags are left alone."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import NamedTuple

from absl import flags

from flags import given
from instcls_tf import flagfiles
from instcls_tf.checks import require_value
from instcls_tf.distributed import hosts
from instcls_tf.distributed.restarts import Options
from instcls_tf.errors import UserError, shown

FLAGS = flags.FLAGS

# What saves and stops when it is told to, and goes on when it is started again.
_RESUMABLE = "pretrain"


class Launched(NamedTuple):
    """The command behind the launcher's own flags."""

    words: list[str]
    is_resumable: bool
    workdir: str | None


_command: list[str] = []


def define() -> None:
    """Defines the launcher's flags."""
    flags.DEFINE_integer("np", None, "Workers; by default as many as -H has places.")
    flags.DEFINE_string(
        "hosts", None, "Machines and their workers, as in a:8,b:8; this one by default. The environment and the workdir"
        " are at the same path on all of them, and ssh reaches them without a password.", short_name="H",
    )  # fmt: skip
    flags.DEFINE_integer(
        "max_restarts", 0, "How often a job that failed is started again, from its last checkpoint. A user's mistake"
        " and a request to stop are no failures.",
    )  # fmt: skip
    flags.DEFINE_integer(
        "min_workers", None, "A restart may go on with as few workers as this, when machines do not answer any more or"
        " a worker has failed twice in a row; by default all are needed. With --max_restarts.",
    )  # fmt: skip
    flags.DEFINE_float(
        "wait_for_hosts", 600.0, "How long, in seconds, a restart waits for machines that do not answer, if fewer than"
        " --min_workers are left without them. With --max_restarts.",
    )  # fmt: skip


def take_command() -> None:
    """Takes the command and its words off `sys.argv`, and defines the flags of the rest."""
    define()
    words = sys.argv[1:]
    place = 0
    while place < len(words) and words[place].startswith("-"):
        takes_value = "=" not in words[place] and words[place].lstrip("-") not in ("h", "help", "helpfull")
        place += 1 + takes_value
    sys.argv[1:] = words[:place]
    _command[:] = words[place:]


def options() -> Options:
    """The launcher's settings.

    Raises:
      UserError: one of them does not fit.
    """
    if FLAGS.np is None and FLAGS.hosts is None:
        raise UserError("-np is missing: give the number of workers, as in -np 2")
    require_value("np", FLAGS.np, FLAGS.np is None or FLAGS.np >= 1, "at least 1")
    machines = hosts.parse(FLAGS.hosts) if FLAGS.hosts is not None else (hosts.Host("localhost", FLAGS.np),)
    places = sum(host.slots for host in machines)
    workers = places if FLAGS.np is None else FLAGS.np
    if workers > places:
        raise UserError(f"-np={workers}: -H={FLAGS.hosts} has {places} place(s), wanted one for each worker")
    fewest = workers if FLAGS.min_workers is None else FLAGS.min_workers
    require_value("min_workers", fewest, 1 <= fewest <= workers, f"1 to the {workers} workers")
    require_value("max_restarts", FLAGS.max_restarts, FLAGS.max_restarts >= 0, "0 or more")
    require_value("wait_for_hosts", FLAGS.wait_for_hosts, FLAGS.wait_for_hosts >= 0, "0 or more seconds")
    if not FLAGS.max_restarts:
        given.refuse(("min_workers", "wait_for_hosts"), "left out without --max_restarts")
    return Options(machines, workers, FLAGS.max_restarts, fewest, FLAGS.wait_for_hosts)


def launched() -> Launched:
    """The command that is to be launched.

    Raises:
      UserError: there is none, or no such command.
    """
    if not _command:
        raise UserError(f"the command is missing: wanted one of {', '.join(_commands())} behind the launcher's flags")
    name, *arguments = _command
    module = name if "." in name else f"scripts.{name}"
    if "." not in name and name not in _commands():
        raise UserError(f"{shown(name)}: no such command, wanted one of {', '.join(_commands())}")
    try:
        exists = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        exists = False
    if not exists:
        raise UserError(f"{shown(name)}: no such module")
    is_resumable = module.rpartition(".")[2] == _RESUMABLE
    return Launched([sys.executable, "-m", module, *arguments], is_resumable, _workdir(arguments))


def _commands() -> list[str]:
    folder = Path(__file__).parents[1] / "scripts"
    return sorted(path.stem for path in folder.glob("[a-z]*.py") if path.stem != "launch")


def _workdir(arguments: list[str]) -> str | None:
    """The run's folder, as far as the launcher can tell; the command itself checks its flags."""
    try:
        words = flagfiles.expand(arguments)
    except UserError:
        return None
    found = None
    for index, word in enumerate(words):
        name, is_given, value = word.lstrip("-").partition("=")
        if name == "workdir":
            found = value if is_given else words[index + 1] if index + 1 < len(words) else None
    return os.path.expanduser(found) if found else None
