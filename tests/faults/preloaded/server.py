"""Workers under the launcher as forks of a process that has imported TensorFlow: a start costs its own work alone.

The launcher starts `tests.faults.preloaded.pretrain` for each worker, which asks here for the real one. That has its
environment and its outputs, and is killed when it is gone, as the system does with a worker whose launcher is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import socket
import sys
import threading
import time
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from instcls_tf.config import RESNET18, RESNET_DEPTHS
from tests.commands import start_fork

STANDS_FOR_A_WORKER = "tests.faults.preloaded.pretrain"


class Server:
    """Serves forks until this process ends.

    Args:
      path: of a socket that is to be made; short, as the system wants it.
    """

    def __init__(self, path: Path):
        self.environment = {"PRELOADED": str(path)}
        self._workers: set[BaseProcess] = set()
        self._starting = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def is_idle(self, seconds: float) -> bool:
        """Whether no fork is left within a time."""
        end = time.monotonic() + seconds
        while self._workers and time.monotonic() < end:
            time.sleep(0.02)
        return not self._workers

    def _accept(self) -> None:
        while True:
            asking, _ = self._socket.accept()
            threading.Thread(target=self._serve, args=(asking,), daemon=True).start()

    def _serve(self, asking: socket.socket) -> None:
        with asking, contextlib.suppress(OSError):  # who asked is gone
            line = asking.makefile().readline()
            if not line:
                return
            with self._starting:
                worker = start_fork(become, json.loads(line))
                self._workers.add(worker)
            try:
                asking.sendall(f"{worker.pid}\n".encode())
                # Nothing is sent but the end.
                if worker.sentinel not in connection.wait([worker.sentinel, asking]):
                    worker.kill()
                worker.join()
                asking.sendall(f"{worker.exitcode}\n".encode())
            finally:
                worker.kill()
                worker.join()
                self._workers.discard(worker)


def become(request: dict[str, Any]) -> None:
    """The worker, from its first line on; with SHALLOW in its environment its ResNet-18 has a single block."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for descriptor in (1, 2):
        os.dup2(os.open(f"/proc/{request['pid']}/fd/{descriptor}", os.O_WRONLY | os.O_NOCTTY), descriptor)
    sys.argv[1:] = request["words"]
    if "SHALLOW" in os.environ:
        RESNET_DEPTHS[RESNET18] = (1, 0, 0, 0)
    try:
        runpy.run_module("tests.faults.hurt.pretrain", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # of Horovod, for one: processes of this kind end without
