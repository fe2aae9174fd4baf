"""What a run says of itself: means, speed, the search for hard negatives and online k-NN, for people and programs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from instcls_tf import stamps
from instcls_tf.classifier.expected_loss import expected_losses, unexpected
from instcls_tf.classifier.hard_negatives import Refresh
from instcls_tf.classifier.output import LossOutput
from instcls_tf.config import INSTANCE, MIXED_FLOAT16
from instcls_tf.distributed import collectives
from instcls_tf.evaluation.online_gauge import OnlineGauge
from instcls_tf.evaluation.online_knn import OnlineKnn
from instcls_tf.pretraining.forecast import Forecast
from instcls_tf.pretraining.steps import Steps
from instcls_tf.progress import Progress
from instcls_tf.run.log import MetricsLog, RunClock, StepTimer

# Images of the first batch whose views TensorBoard shows.
_SHOWN_IMAGES = 8


class _AskedToStop(Exception):
    """Ends a measurement in which nothing is lost."""


class EpochReporter:
    """Collects what steps and epochs bring, and reports it: to `metrics.jsonl` every few steps, to people at each.

    All workers have one and call it alike, rank 0 writes. It begins to measure the time of steps when it is made.

    Args:
      steps: of the run.
      first_step: the next one to be made; `metrics.jsonl` is cut back to it.
      progress: of the run.
      online_knn: measured at the end of the epochs for which it is due; None for never.
      gauge: likewise.
      clock: of the run, which may know more of the parts before than `metrics.jsonl`; None for one that begins now.
    """

    def __init__(
        self,
        steps: Steps,
        first_step: int,
        progress: Progress,
        online_knn: OnlineKnn | None,
        clock: RunClock | None = None,
        gauge: OnlineGauge | None = None,
    ):
        config = steps.config
        is_chief = collectives.rank() == 0
        self._steps, self._progress = steps, progress
        self._judges: list[OnlineKnn | OnlineGauge] = [judge for judge in (online_knn, gauge) if judge is not None]
        self._log = MetricsLog(config.workdir, first_step) if is_chief else None
        # For Eq. 1 alone
        is_classification = config.method == INSTANCE and not config.batch_contrast
        sizes = (steps.num_instances, config.embedding_size, config.temperature, config.sampled_classes)
        self._expected = expected_losses(*sizes) if is_classification else {}
        self._outputs: list[LossOutput] = []
        self._images = self._skipped = 0
        self._has_views = False
        self._judged_from = (config.contrast_epochs + 1) * steps.per_epoch  # after the first of the classification
        self._judged = first_step >= self._judged_from
        self._step = first_step + 1  # counted from 1, as people are told
        self._refresh: Refresh | None = None
        self._epoch_started = 0.0
        self._timer = StepTimer()
        self._clock = RunClock(time.monotonic()) if clock is None else clock
        self._clock.at_least(self._log.seconds if self._log else 0.0)
        self.refresh_progress = Progress(visible=is_chief, within=True)
        self._forecast = Forecast(steps, progress.say)
        self.metrics: dict[str, float] = {}

    def refreshed(self, step: int, refresh: Refresh) -> None:
        """Takes note of what came before `step`, to report it with the last step of the epoch.

        In mid-epoch, where a run was continued, it is left out: the rest of an epoch would give a wrong share of time.
        """
        self.refresh_progress.close()
        self._forecast.searched(refresh.seconds)
        self._refresh = refresh if self._steps.begins_epoch(step) else None
        self._epoch_started = time.monotonic() - refresh.seconds

    def next(self, batches: Iterator[Any]) -> Any:
        """The next batch; the time that it is waited for goes into the report."""
        stamps.stamp("waiting for images", self._step, self._steps.end)
        batch = self._timer.next(batches)
        stamps.stamp("training", self._step, self._steps.end)
        return batch

    def show_views(self, views: tf.Tensor) -> None:
        """Shows TensorBoard the settings and, of the first batch that it is given, some views `[b, V, S, S, 3]`."""
        if self._log and not self._has_views:
            self._log.show_beginning(self._step - 1, self._steps.config.as_flags(), views[:_SHOWN_IMAGES].numpy())
        self._has_views = True

    def add(self, step: int, output: LossOutput, skipped: Any = False) -> None:
        """Takes what a step brought, and whether loss scaling left the weights as they were in it."""
        self._step = step + 2
        self._outputs.append(output)
        self._skipped += bool(skipped)
        self._images += self._steps.instances(step)

    def is_due(self, step: int) -> bool:
        """Whether a line of `metrics.jsonl` follows a step."""
        done = step + 1
        regular = done % self._steps.config.log_every == 0 or done == self._steps.end
        return regular or self._reports_refresh(step) or bool(self._judges_of(step)) or self._steps.ends_contrast(step)

    def write(self, step: int, learning_rate: float, is_asked: Callable[[], bool] | None = None) -> bool:
        """Writes the line; all workers together, since the network may be judged.

        Args:
          step: counted from 0.
          learning_rate: of that step.
          is_asked: whether the run has been asked to stop by now, on all workers alike: then the network is not judged,
            or no further. None for a run that judges it whatever comes.

        Returns:
          Whether it was left unjudged for that.
        """
        self.metrics = {
            "step": step + 1,
            "epoch": (step + 1) / self._steps.per_epoch,
            **_means(self._outputs),
            **({} if self._steps.contrasts(step) else self._expected),
            **({"skipped_steps": self._skipped} if self._steps.config.precision == MIXED_FLOAT16 else {}),
            "learning_rate": learning_rate,
            **self._timer.report(self._images),
            "seconds": self._clock.seconds(),
        }
        self._outputs, self._images, self._skipped = [], 0, 0
        self._judge_loss(step)
        if self._refresh is not None and self._reports_refresh(step):
            self.metrics.update(self._refresh.metrics(epoch_seconds=time.monotonic() - self._epoch_started))
        is_left = self._judge(step, is_asked)
        if self._log:
            self._log.write(self.metrics)
        return is_left

    def _judge(self, step: int, is_asked: Callable[[], bool] | None) -> bool:
        """Puts what the judges find into the line, unless the run is asked to stop; whether it was."""

        def heed() -> None:
            if is_asked is not None and is_asked():
                raise _AskedToStop

        def heeding(stage: str, done: int, total: int) -> None:
            stamps.stamp(stage, done, total)
            heed()

        try:
            for judge in self._judges_of(step):
                heed()
                with self._clock.stopped():
                    self.metrics.update(judge.measure(heeding))
                self._timer.report(0)  # the measurement is no part of the training's speed
        except _AskedToStop:
            self._progress.say(f"asked to stop: the evaluation after step {step + 1} is left out")
            return True
        return False

    def _judge_loss(self, step: int) -> None:
        """Once, after the first epoch: figures that cannot be right are easily taken for a good run."""
        if self._judged or not self._expected or step + 1 < self._judged_from:
            return
        self._judged = True
        warning = unexpected(self.metrics["loss"], self._steps.num_instances, self._steps.config)
        if warning:
            self._progress.say(warning)

    def show(self, step: int) -> None:
        """Tells people how far the run is, with the figures of the last line, and once when it will be done."""
        self._forecast.stepped(step)
        if self.metrics:
            epoch = f"epoch {self._steps.epoch(step) + 1}/{self._steps.config.all_epochs}"
            self._progress("pretraining", step + 1, self._steps.end, f"{epoch}, {_describe(self.metrics)}")

    def close(self) -> None:
        """Ends the files and the bar."""
        if self._log:
            self._log.close()
        self._progress.close()

    def _reports_refresh(self, step: int) -> bool:
        return self._refresh is not None and self._steps.ends_epoch(step)

    def _judges_of(self, step: int) -> list[OnlineKnn | OnlineGauge]:
        epoch = self._steps.epoch(step)
        return [judge for judge in self._judges if judge.is_due(epoch)] if self._steps.ends_epoch(step) else []


def _means(outputs: list[LossOutput]) -> dict[str, float]:
    """Over the steps since the last line, of each field."""
    return {name: float(np.mean([getattr(output, name) for output in outputs])) for name in outputs[0]._fields}


def _describe(metrics: dict[str, float]) -> str:
    return (
        f"loss {metrics['loss']:.3f}, instance top-1 {metrics['instance_top1']:.1%},"
        f" {metrics['images_per_second']:.0f} images/s, data wait {metrics['data_wait_fraction']:.0%}"
    )
