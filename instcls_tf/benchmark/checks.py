"""What it costs that a run cannot be ruined silently: checks and stamps in each step, and a checkpoint in each epoch.

Two kinds of blocks of steps take turns: as pretraining makes them, with its checks, stamps, and a look for signals; and
the same steps without. So the clock and the neighbours are the same for both, and what counts is the median of the
ratios of neighbouring blocks.

  seconds_per_step       of a block as pretraining makes it, the median, by the slowest worker
  checks_share           of that, what checks, stamps and the look for signals take
  checks_share_quartiles of the ratios of neighbouring blocks: how sure that is
  checksum_share         the comparison of the encoder's weights every so many steps, spread over these
  watchdog_share         of a second, what a worker's watchdog takes in its tick
  save_seconds           of a checkpoint as an epoch ends with, the median; restore_seconds of reading it
  save_share             of an epoch's time, with one checkpoint in it
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Callable

import numpy as np

from instcls_tf import stamps
from instcls_tf.benchmark.step import refuse_misfit, synthetic_batch
from instcls_tf.benchmark.timing import seconds_of, slowest
from instcls_tf.config import PretrainConfig
from instcls_tf.distributed import collectives, watchdog, workers
from instcls_tf.pretraining import agreement, finite
from instcls_tf.pretraining.state import TRIAL_LEARNING_RATE, Run, make_step_of_run, make_trial_run
from instcls_tf.pretraining.steps import Steps
from instcls_tf.pretraining.stopping import StopRequest
from instcls_tf.progress import Progress
from instcls_tf.run import checkpoint_choice
from instcls_tf.run.parts import replicated_variables

_STEPS_PER_BLOCK = 5
_TICKS = 200


def measure_checks(config: PretrainConfig, num_instances: int, repeats: int, folder: str) -> dict[str, object]:
    """Measures a recipe with random pixels; all workers together.

    Args:
      config: the recipe.
      num_instances: N.
      repeats: blocks of each kind.
      folder: where checkpoints are written, which all workers see.

    Returns:
      The figures of this module's docstring, and the sizes that they belong to.

    Raises:
      UserError: the run does not fit into the free memory.
    """
    workers.start(config.seed)
    refuse_misfit("checks", config, num_instances)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        # All workers write into rank 0's folder.
        config = config.replace(workdir=workers.everybodys(own)[0])
        result = _measure(config, num_instances, repeats)
        collectives.barrier()
    return result


def _measure(config: PretrainConfig, num_instances: int, repeats: int) -> dict[str, object]:
    run = make_trial_run(config, num_instances)
    ratios, seconds = _blocks(config, run, num_instances, repeats)
    low, share, high = (1 - 1 / np.percentile(ratios, [25, 50, 75])).tolist()
    variables = replicated_variables(run.replicated())
    checksum = seconds_of(lambda: agreement.checksum_of(variables), repeats)
    save = seconds_of(lambda: run.save(config.workdir, with_lists=False), repeats)
    prefix = checkpoint_choice.prefix_of(config.workdir, run.step)
    restore = seconds_of(lambda: run.restore(prefix), repeats)
    steps_per_epoch = Steps(config, num_instances).per_epoch
    return {
        "workers": collectives.size(),
        "num_instances": num_instances,
        "batch_size": config.batch_size,
        "seconds_per_step": seconds,
        "checks_share": share,
        "checks_share_quartiles": [low, high],
        "checksum_share": checksum / agreement.EVERY / seconds,
        "watchdog_share": _seconds_of_tick(config.workdir),
        "steps_per_epoch": steps_per_epoch,
        "save_seconds": save,
        "save_share": save / (save + steps_per_epoch * seconds),
        "restore_seconds": restore,
    }


def _blocks(config: PretrainConfig, run: Run, num_instances: int, repeats: int) -> tuple[list[float], float]:
    """The ratios of blocks with checks to blocks without, and the seconds of a step with them."""
    batch = synthetic_batch(config, num_instances)
    stop = StopRequest(run, config.workdir, Progress(visible=False))
    with_checks, without = (
        make_step_of_run(run, config, num_instances, is_checked=is_checked) for is_checked in (True, False)
    )
    with_signals = stop.with_step(with_checks)

    def checked() -> None:
        for step in range(_STEPS_PER_BLOCK):
            stamps.stamp("waiting for images", step, _STEPS_PER_BLOCK)
            stamps.stamp("training", step, _STEPS_PER_BLOCK)
            (_, health), is_asked_to_stop = with_signals(*batch, TRIAL_LEARNING_RATE)
            finite.refuse(health, step, batch[1], config, int)
            assert not is_asked_to_stop

    def bare() -> None:
        for _ in range(_STEPS_PER_BLOCK):
            output = without(*batch, TRIAL_LEARNING_RATE).output
        output.loss.numpy()

    for block in (checked, bare):
        block()
    times = []
    for number in range(repeats):
        # Now one is the first, now the other.
        order = (checked, bare) if number % 2 else (bare, checked)
        took = {block: _seconds(block) for block in order}
        times.append((took[checked], took[bare]))
    of_checked, of_bare = zip(*times)
    ratios = [one / other for one, other in zip(of_checked, of_bare)]
    return ratios, float(np.median(of_checked)) / _STEPS_PER_BLOCK


def _seconds(block: Callable[[], None]) -> float:
    collectives.barrier()
    started = time.perf_counter()
    block()
    return slowest(time.perf_counter() - started)


def _seconds_of_tick(folder: str) -> float:
    """Of a worker's watchdog that looks at all workers and publishes its own status, once a second."""
    ranks = range(collectives.size())
    watch = watchdog.Watch(ranks)
    status = watchdog.Status(collectives.rank(), 1, "here", 0, 0, "training", "", False, 900.0, 900.0)
    collectives.barrier()
    started = time.perf_counter()
    for number in range(_TICKS):
        watchdog.publish(os.path.join(folder, watchdog.FOLDER_NAME), status._replace(ticks=number))
        watch.look(os.path.join(folder, watchdog.FOLDER_NAME))
        watch.sentence()
    return slowest((time.perf_counter() - started) / _TICKS)
