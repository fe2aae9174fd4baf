"""Who may work in the folder of a sweep, and how a sweep ends that is interrupted."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from instcls_tf.errors import UserError, shown
from instcls_tf.run.interrupted import Interrupted, raised

_LOCK_NAME = "lock"


@contextlib.contextmanager
def locked(workdir: str, what: str) -> Iterator[int]:
    """The folder's lock, which children inherit: it is free when the last of them has ended, however this one did.

    Args:
      workdir: the folder, made if it is not there.
      what: begins the sentence, and names what the folder was given by.

    Raises:
      UserError: it is taken, or cannot be written.
    """
    path = os.path.join(workdir, _LOCK_NAME)
    try:
        os.makedirs(workdir, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{what}: cannot write {path} ({error.strerror})") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{what}: another one, or a run that it has left, is running in {shown(workdir)}"
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A signal ends the trials, which save, and the command's last line says that it goes on.

    Also where no command handles signals: a script's main thread is interrupted as a command is.
    """
    try:
        with raised():
            yield
    except Interrupted as signal:
        signal.told = "interrupted: the same command goes on where it ended"
        raise
