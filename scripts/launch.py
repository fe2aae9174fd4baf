"""Starts a command on several workers and looks after them: quiet, without orphans, with one cause when it fails.

The command and its own flags follow the launcher's. SIGTERM, SIGUSR1 and Ctrl-C reach all workers: `pretrain` saves
in that very step and ends with 75, and the same command goes on later. A second Ctrl-C ends it at once.
Examples:
  python -m scripts.launch -np 2 pretrain --flagfile=flags/presets/digits.flags --workdir=runs/digits
  python -m scripts.launch -np 2 knn_eval --workdir=runs/digits
  python -m scripts.launch -H a:8,b:8 --max_restarts=5 --min_workers=8 pretrain --data_dir=/data --workdir=/shared/run
"""

import sys

from flags import command, launch
from instcls_tf.distributed.launch import supervise


def main() -> None:
    options, launched = launch.options(), launch.launched()
    sys.exit(supervise(options, launched.words, launched.is_resumable, launched.workdir))


if __name__ == "__main__":
    command.run(main, __doc__, before_parsing=launch.take_command)
