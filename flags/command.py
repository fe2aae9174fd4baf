"""How every command starts and ends: strict flags, one sentence for a user's mistake, and its exit status."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from typing import Callable

from absl import flags

from instcls_tf.errors import UserError
from instcls_tf.launcher import launched_rank_and_size

USER_ERROR_STATUS = 2

# How long the other ranks give rank 0 to report a mistake that all of them see.
_GRACE_SECONDS = 5.0

# TensorFlow's allocator reserves regions whose sizes are powers of two, and counts them in full against the physical
# memory, unless told otherwise: two arrays of 10 GB would not fit into 24 GB. What is only reserved takes no memory.
_ADDRESS_SPACE = 2**46

_WANTED = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def run(main: Callable[[], None], description: str, before_parsing: Callable[[], None] = lambda: None) -> None:
    """Parses `sys.argv` and calls `main`; exits with 2 and one sentence on a `UserError` or a wrong flag.

    Args:
      main: imports TensorFlow itself, so that a typo is answered at once.
      description: shown by --help above the flags.
      before_parsing: may take words off `sys.argv` and define the flags that depend on them.
    """
    # TensorFlow's notices would bury the progress and the one sentence that matters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_MKL_ALLOC_MAX_BYTES", str(_ADDRESS_SPACE))
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        before_parsing()
        _parse(description)
        main()
    except UserError as error:
        _fail_once(str(error))


def print_result(result: dict) -> None:
    """Prints the JSON object that ends a command, in one piece: launchers mark each piece with its worker."""
    print(json.dumps(result) + "\n", end="", flush=True)


def _parse(description: str) -> None:
    _define_help()
    try:
        _, *stray = flags.FLAGS(sys.argv)
    except flags.Error as error:
        raise UserError(_one_sentence(error)) from error
    if stray:
        raise UserError(f"{stray[0]!r} is not a flag: every setting is given as --name=value")
    if flags.FLAGS["help"].value:
        print(f"{description.strip()}\n\nFlags:{_own_flags_help()}")
        sys.exit(0)


def _one_sentence(error: flags.Error) -> str:
    """What absl says about a command line, in the form of this project's other errors."""
    text = " ".join(str(error).split())
    if isinstance(error, flags.UnrecognizedFlagError):
        _, _, meant = text.partition("Did you mean: ")
        return f"--{error.flagname}: no such flag" + (f"; did you mean --{meant.removesuffix(' ?')}?" if meant else "")
    if isinstance(error, flags.CantOpenFlagFileError):
        return f"--flagfile: cannot read {error.__context__.filename} ({error.__context__.strerror})"
    illegal = re.match(r"flag (--(\w+)=.*?): ", text)
    if illegal:
        return f"{illegal[1]}: must be {_WANTED[flags.FLAGS[illegal[2]].flag_type()]}"
    return text


def _define_help() -> None:
    if "help" not in flags.FLAGS:
        flags.DEFINE_bool("help", False, "Show this help.", short_name="h")


def _own_flags_help() -> str:
    modules = [name for name in flags.FLAGS.flags_by_module_dict() if name.startswith("flags.")]
    text = "".join(flags.FLAGS.module_help(module) for module in sorted(modules))
    return "\n".join(line for line in text.splitlines() if not line.startswith("flags."))


def _fail_once(sentence: str) -> None:
    """Rank 0 speaks for all. The others wait to be ended by the launcher; one that is not met a mistake of its own."""
    rank, size = launched_rank_and_size() or (0, 1)
    if rank > 0:
        time.sleep(_GRACE_SECONDS)
        sentence = f"rank {rank}: {sentence}"
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    if size > 1 and "tensorflow" in sys.modules:
        # Horovod's shutdown at exit would wait for the ranks that sleep.
        os._exit(USER_ERROR_STATUS)
    sys.exit(USER_ERROR_STATUS)
