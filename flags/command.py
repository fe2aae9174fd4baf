"""How every command starts and ends: strict flags, its answer, one sentence for a user's mistake, its exit status."""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Callable, NoReturn

from absl import flags

from instcls_tf import files, flagfiles
from instcls_tf.distributed import job, watchdog
from instcls_tf.distributed.launcher import launched_rank_and_size
from instcls_tf.errors import MachineError, UserError, one_line, reason_of, shown
from instcls_tf.json_text import json_of
from instcls_tf.report.answer import Answer, Picture, Written
from instcls_tf.run import interrupted, signals

# How long the other ranks give rank 0 to report a mistake that all of them see.
_GRACE_SECONDS = 5.0
# How long a worker that was asked to end gives the others to remove what they had begun: mpirun kills them at its end.
_LINGER_SECONDS = 0.5
# The name of what `say` does with letters that its encoding lacks.
_AS_IN_JSON = "instcls_tf.as_in_json"

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "comma separated list of strings": "values with commas between",
}


def run(main: Callable[[], None], description: str, before_parsing: Callable[[], None] = lambda: None) -> None:
    """Parses `sys.argv` and calls `main`; exits with 2 and one sentence on a `UserError` or a wrong flag.

    A signal that asks it to end is a line, and 128 + its number the exit status: 130 for Ctrl-C.

    Args:
      main: imports TensorFlow itself, so that a typo is answered at once.
      description: shown by --help above the flags.
      before_parsing: may take words off `sys.argv` and define the flags that depend on them.
    """
    # TensorFlow's notices would bury the progress and the one sentence that matters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    _join_job()
    try:
        with interrupted.raised():
            before_parsing()
            _parse(description)
            main()
    except interrupted.Interrupted as signal:
        _end(signal)
    except signals.Stopped:
        sys.exit(job.STOPPED_STATUS)  # it has been said
    except Exception as error:
        _fail(error)
        raise


def _fail(error: Exception) -> None:
    """Ends the process with what there is to say of an error; returns if that is a traceback."""
    signal = interrupted.received()
    if signal:  # of which a library has made this error
        _end(signal)
    if isinstance(error, UserError):
        _fail_once(error)
    if job.record_error(f"{type(error).__name__}: {reason_of(error)}", traceback.format_exc()):
        _leave(1)  # the launcher tells of the first of the workers


def _join_job() -> None:
    job.join()
    folder = job.folder()
    if folder is not None:
        watchdog.start(folder)


def give(answer: Answer | None, name: str = "", folder: str = "") -> None:
    """Writes a command's answer, prints it with the JSON object as the last line, and then draws its picture.

    Only rank 0 does. A disk that is full does not keep the answer from being printed; a picture that cannot be drawn is
    a warning, because what was measured is there.

    Args:
      answer: of rank 0; None elsewhere.
      name: the object is kept as `FOLDER/<name>.json` as well; not if empty.
      folder: see `name`.

    Raises:
      UserError: a file cannot be written; what could be written and printed is.
    """
    rank, _ = launched_rank_and_size() or (0, 1)
    if rank != 0 or answer is None:
        return
    last_line = json_of(answer.result)
    unwritten = []
    for file in _files_of(answer, name, folder, last_line):
        try:
            file.write(file.path)
        except UserError as error:
            unwritten.append(error)
    say("\n".join(filter(None, [answer.text, last_line])))
    if unwritten:
        raise unwritten[0]
    if answer.picture:
        _draw(answer.picture)


def _files_of(answer: Answer, name: str, folder: str, last_line: str) -> Iterator[Written]:
    if name:
        yield Written(os.path.join(folder, f"{name}.json"), lambda path: files.write(path, last_line.encode()))
    if answer.text_name:
        text = f"{answer.text}\n".encode("utf-8", "backslashreplace")
        yield Written(os.path.join(folder, answer.text_name), lambda path: files.write(path, text))
    yield from answer.files


def give_page(page: Picture) -> None:
    """Draws what comes on top of a work that is done, on rank 0: whatever goes wrong with it is a warning."""
    rank, _ = launched_rank_and_size() or (0, 1)
    try:
        if rank == 0:
            _draw(page)
    except UserError as error:
        _write_error(f"warning: {error}")


def _draw(picture: Picture) -> None:
    try:
        picture.draw(picture.path)
    except UserError:
        raise
    except Exception as error:
        # Of the drawing library, on data that nobody has thought of.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _write_error(f"warning: {shown(picture.path)} could not be drawn ({shown(reason)})")


def say(text: str) -> None:
    """Prints lines in one piece, because launchers mark each piece with its worker.

    A reader that has seen enough (`| head`) is no mistake: the rest is dropped, and the command goes on. What the
    output's encoding does not have, such as a name in another one, is escaped as in JSON, which a line may be.

    Raises:
      UserError: standard output cannot be written.
    """
    try:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, _AS_IN_JSON).decode(encoding) + "\n")
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise UserError(f"standard output: cannot be written ({error.strerror})") from error


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(_AS_IN_JSON, _escaped)


def _write_error(line: str) -> None:
    """One line on standard error, newline included in one piece; nothing if nobody reads it."""
    with contextlib.suppress(OSError):
        sys.stderr.write(one_line(line) + "\n")
        sys.stderr.flush()


def _parse(description: str) -> None:
    _define_help()
    try:
        _, *stray = flags.FLAGS([sys.argv[0], *flagfiles.expand(sys.argv[1:])])
    except flags.Error as error:
        raise UserError(one_sentence(error)) from error
    if stray:
        raise UserError(f"{stray[0]!r} is not a flag: every setting is given as --name=value")
    if flags.FLAGS["help"].value:
        say(f"{description.strip()}\n\nFlags:{_own_flags_help()}")
        sys.exit(0)


def one_sentence(error: flags.Error, flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """What absl says about a command line, in the form of this project's other errors."""
    text = " ".join(str(error).split())
    if isinstance(error.__context__, UserError):  # of a flag's own parser
        return str(error.__context__)
    if isinstance(error, flags.UnrecognizedFlagError):
        _, _, meant = text.partition("Did you mean: ")
        return f"--{error.flagname}: no such flag" + (f"; did you mean --{meant.removesuffix(' ?')}?" if meant else "")
    illegal = re.match(r"flag (--(\w+)=.*?): ", text)
    if illegal:
        kind = flag_values[illegal[2]].flag_type()
        return f"{illegal[1]}: must be {_WANTED.get(kind, kind)}"
    return text


def _define_help() -> None:
    if "help" not in flags.FLAGS:
        flags.DEFINE_bool("help", False, "Show this help.", short_name="h")


def _own_flags_help() -> str:
    modules = [name for name in flags.FLAGS.flags_by_module_dict() if name.startswith("flags.")]
    text = "".join(flags.FLAGS.module_help(module) for module in sorted(modules))
    return "\n".join(line for line in text.splitlines() if not line.startswith("flags."))


def _fail_once(error: UserError) -> NoReturn:
    """Rank 0 speaks for all. The others wait to be ended by the launcher; one that is not met a mistake of its own."""
    rank, _ = launched_rank_and_size() or (0, 1)
    sentence, is_mistake = str(error), not isinstance(error, MachineError)
    is_told_by_launcher = job.record_error(sentence, is_said=rank == 0, is_mistake=is_mistake)
    if rank > 0:
        time.sleep(_GRACE_SECONDS)
        sentence = f"rank {rank}: {sentence}"
    if rank == 0 or not is_told_by_launcher:
        _write_error(f"error: {sentence}")
    _leave(error.status)


def _end(signal: interrupted.Interrupted) -> NoReturn:
    """What was begun is removed by now.

    The launcher tells of its workers, who was ended, and by what: mpirun ends those that a failed one has left with a
    signal as well. Without ours all workers may have had the signal, and rank 0 speaks first.
    """
    if job.folder() is not None:
        time.sleep(_LINGER_SECONDS)
        signal.end_process()
    rank, _ = launched_rank_and_size() or (0, 1)
    if rank > 0:
        time.sleep(_GRACE_SECONDS)
    _write_error(f"{f'rank {rank}: ' if rank else ''}{signal.number.name}: {signal.told}")
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(signal.status)  # what TensorFlow was in the midst of is not taken apart in order, with complaints


def _leave(status: int) -> NoReturn:
    """Horovod's shutdown at exit would wait for ranks that sleep or work on."""
    _, size = launched_rank_and_size() or (0, 1)
    if size > 1 and "tensorflow" in sys.modules:
        os._exit(status)
    sys.exit(status)
