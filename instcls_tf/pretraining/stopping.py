"""A run that is asked to stop: all workers learn of it in the same step, save, and leave together."""

from __future__ import annotations

from typing import Any, Callable, NoReturn

import tensorflow as tf

from instcls_tf.distributed import collectives
from instcls_tf.pretraining.state import Run
from instcls_tf.pretraining.train_step import TrainStep
from instcls_tf.progress import OnProgress, Progress
from instcls_tf.run import signals


class StopRequest:
    """Whether any worker has had a signal, known to all of them alike.

    Signals reach one worker or all, each at another moment, but workers must part at the same point: one that is
    missing leaves the others waiting. So a flag is summed over the workers. In a step it travels while the batch is
    encoded; on CPUs it is no message of its own, Horovod packs it into one with gradients.

    Args:
      run: what is saved.
      workdir: where.
      progress: of the run, for the last line.
    """

    def __init__(self, run: Run, workdir: str, progress: Progress):
        self._run, self._workdir, self._progress = run, workdir, progress
        with tf.device("CPU:0"):  # read after every step: the host must not wait for a copy from the device
            self._mine = tf.Variable(0.0, trainable=False)

    def with_step(self, train_step: TrainStep) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[Any, tf.Tensor]]:
        """The same step, which returns as well whether a worker had been asked to stop before it."""
        signature = train_step.input_signature  # type: ignore[attr-defined] # of a tf.function

        @tf.function(autograph=False, input_signature=signature)
        def step(*arguments: tf.Tensor) -> tuple[Any, tf.Tensor]:
            return train_step(*arguments), self._of_all_workers()

        def make_step(*arguments: tf.Tensor) -> tuple[Any, tf.Tensor]:
            self._look()
            return step(*arguments)

        return make_step

    def _of_all_workers(self) -> tf.Tensor:
        with tf.device("CPU:0"):
            return collectives.sum_over_workers(self._mine.read_value(), "stop") > 0

    def _look(self) -> None:
        if signals.received():
            self._mine.assign(1.0)

    @tf.function(autograph=False)
    def _agree(self) -> tf.Tensor:
        return self._of_all_workers()

    def is_asked(self) -> bool:
        """Whether a worker has been asked to stop by now; all workers together, between two steps."""
        self._look()
        return bool(self._agree())

    def heeded_in(self, progress: OnProgress, changes_run: bool = False) -> OnProgress:
        """A phase's report of progress, which ends the phase if a worker was asked to stop.

        Args:
          progress: of the phase; all workers report the same pieces of work, between which they agree.
          changes_run: the phase changes what is saved. Then it ends early only if there is nothing that a save would
            have to keep; otherwise it says that it goes on, and the run stops where it next can: in a search that
            follows, or after the next step.
        """
        is_said = False

        def report(stage: str, done: int, total: int) -> None:
            nonlocal is_said
            progress(stage, done, total)
            if is_said or not self.is_asked():
                return
            if not changes_run or self._run.step == 0 or self._is_saved():
                self.stop(f"in the midst of the {stage}", saves=not changes_run)
            is_said = True
            self._progress.say(f"{self._name()}: stopping when the {stage} is complete")

        return report

    def _is_saved(self) -> bool:
        """Whether there is a checkpoint of the step at which the run is; one that it has gone around is none."""
        return self._run.step in self._run.kept

    def stop(self, where: str, saves: bool = True, with_lists: bool = False) -> NoReturn:
        """Saves what is not saved yet and leaves; all workers together.

        Args:
          where: the run is, for the last line.
          saves: the run is in a state from which it can go on.
          with_lists: see `Run.save`.

        Raises:
          Stopped: always.
        """
        step = self._run.step
        if saves and not self._is_saved():
            self._run.save(self._workdir, with_lists)
        kept = f"the same command goes on from step {step}, which is saved"
        if step == 0 and not saves:
            kept = "nothing was saved yet, the same command starts again"
        self._progress.close()
        sentence = f"{self._name()}: stopped {where}; {kept}"
        self._progress.say(sentence)
        # Else the launcher might end rank 0 when another worker is gone, before it has spoken.
        collectives.barrier()
        raise signals.Stopped(sentence)

    def _name(self) -> str:
        return signals.received() or "a signal to another worker"
