"""The end of a run: how it stands against its start, as a table and in `report.json`."""

from __future__ import annotations

import os

from instcls_tf import files
from instcls_tf.config import PretrainConfig
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError, reason_of
from instcls_tf.evaluation.against_start import WORSE, judge_run
from instcls_tf.json_text import json_of
from instcls_tf.progress import Progress
from instcls_tf.run import signals

REPORT_NAME = "report.json"
NOT_JUDGED = "the run is finished, but not judged"


def report_help(config: PretrainConfig, progress: Progress) -> None:
    """Prints and keeps how the finished run stands against its start; all workers together.

    Nothing that goes wrong with it is a reason to fail a run that is done. A worker that fails alone says so and goes
    on to its end; the others cannot get an answer from it any more, and come out of their wait when it has left. If a
    worker was asked to stop in the last step, nobody begins.
    """
    if workers.total([signals.received() is not None], "stop_judging")[0] > 0:
        progress.say(f"{NOT_JUDGED}: a signal came; python -m scripts.report does it")
        return
    try:
        found = judge_run(config.workdir, config.data_dir)
        if collectives.rank() == 0:
            files.write(os.path.join(config.workdir, REPORT_NAME), json_of(found.result()).encode())
    except Exception as error:
        rank = collectives.rank()
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {reason_of(error)}"
        Progress(visible=True).say(f"{f'rank {rank}: ' if rank else ''}warning: {NOT_JUDGED}: {reason}")
        return
    *table, last = found.text().splitlines()
    is_worse = found.verdict() == WORSE
    for line in (*table, f"warning: {last}" if is_worse else last):
        progress.say(line)
