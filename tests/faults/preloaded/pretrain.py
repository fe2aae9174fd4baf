"""Stands for a worker of pretraining under the launcher, which is a fork of a process that has imported TensorFlow.

It asks `server` for the fork, passes signals on to it, and ends as it ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def main() -> None:
    server = socket.socket(socket.AF_UNIX)
    server.connect(os.environ["PRELOADED"])
    request = {"pid": os.getpid(), "folder": os.getcwd(), "words": sys.argv[1:], "environment": dict(os.environ)}
    server.sendall(json.dumps(request).encode() + b"\n")
    answers = server.makefile()
    fork = int(answers.readline())
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(fork, number))
    status = int(answers.readline())
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
