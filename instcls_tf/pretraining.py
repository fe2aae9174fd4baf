"""Pretraining, top to bottom: data, encoder, classifier, prior, and the loop over the training steps."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf import checkpoint, collectives, compiled_softmax, device, preflight, thermometer
from instcls_tf.classifier import ClassifierOutput, ShardedClassifier
from instcls_tf.config import PretrainConfig, refuse_other_recipe, run_flags_path
from instcls_tf.data import augment, pipeline
from instcls_tf.data.bad_files import BadFiles
from instcls_tf.data.folder import FolderSource
from instcls_tf.data.sources import Source, ids_digest
from instcls_tf.errors import UserError
from instcls_tf.evaluation.online_knn import OnlineKnn
from instcls_tf.hardest_classes import HardNegatives
from instcls_tf.optimizer import MomentumSGD, WarmupCosine
from instcls_tf.prior import initialize_classifier
from instcls_tf.run_log import MetricsLog, Progress, StepTimer
from instcls_tf.train_step import make_train_step


def pretrain(config: PretrainConfig, source: Source | None = None) -> dict[str, float]:
    """Pretrains an encoder, or continues the run that `config.workdir` holds; all workers call it.

    Args:
      config: the recipe.
      source: its training images, if they are open already.

    Returns:
      The last line of `metrics.jsonl`, empty if no step was made.

    Raises:
      UserError: a setting, the dataset or the workdir is not right; nothing has been written then.
    """
    # ---- What the user asked for, before anything is touched
    source = source or preflight.open_training_data(config)
    resuming = refuse_other_recipe(config)

    # ---- Workers
    collectives.init()
    device.take()
    _refuse_different_ids(source)
    tf.keras.utils.set_random_seed(config.seed)
    is_chief = collectives.rank() == 0
    progress = Progress(visible=is_chief)
    search_progress = Progress(visible=is_chief, within=True)

    # ---- Schedule
    steps_per_epoch = pipeline.steps_per_epoch(source.num_instances, config.batch_size)
    total_steps = config.epochs * steps_per_epoch
    last_step = total_steps if config.max_steps is None else min(total_steps, config.max_steps)
    warmup_steps = round(config.effective_warmup_epochs * steps_per_epoch)
    schedule = WarmupCosine(config.peak_learning_rate, warmup_steps, total_steps)

    # ---- Model
    run = make_run(config, source.num_instances, schedule)
    online_knn = OnlineKnn(config, run.encoder) if config.online_knn_every else None
    prefix = checkpoint.latest(config.workdir) if resuming else None
    if prefix is not None:
        checkpoint.restore(prefix, run.replicated(), run.sliced(with_lists=_has_lists(prefix)))
    first_step = int(run.optimizer.iterations)
    _announce(config, source, steps_per_epoch, warmup_steps, first_step, progress)
    if is_chief and not resuming:
        _begin_workdir(config)
    if is_chief and isinstance(source, FolderSource):
        _report_changes(source, source.write_manifest(config.workdir), progress)
    bad_files = BadFiles(config.workdir, source, config.max_bad_fraction)

    # ---- Classifier rows, from the random network
    if prefix is None:
        initialize_classifier(config, run.classifier, run.encoder, source, bad_files.checking(progress))
        if last_step == 0:
            run.save(config.workdir, with_lists=False)
    need_lists = run.hard_negatives is not None and not (prefix and _has_lists(prefix))

    # ---- Training
    batches = pipeline.training_batches(
        source,
        views=augment.views_of(config),
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        num_views=config.views,
        seed=config.seed,
        first_step=first_step,
        last_step=max(first_step, last_step),
        rank=collectives.rank(),
        num_workers=collectives.size(),
    )
    views_spec = tf.TensorSpec([None, config.views, config.image_size, config.image_size, 3], tf.uint8)
    several_groups = config.groups_per_batch > collectives.size()
    train_step = make_train_step(
        run.encoder, run.classifier, run.hard_negatives, run.optimizer, views_spec, config.micro_batch, several_groups
    )
    batches = iter(batches)
    log = MetricsLog(config.workdir, first_step) if is_chief else None
    expected = thermometer.expected_losses(source.num_instances, config.embedding_size, config.temperature)
    timer, outputs, images, metrics, search = StepTimer(), [], 0, {}, None
    for step in range(first_step, last_step):
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        if run.hard_negatives is not None and (step_in_epoch == 0 or need_lists):
            epoch_started = time.monotonic()
            search = run.hard_negatives.refresh(search_progress)
            search_progress.close()
            if step_in_epoch:
                search = None  # The rest of an epoch would give a wrong share of its time.
            need_lists = False

        learning_rate = schedule(step)
        views, instance_ids = timer.next(batches)
        outputs.append(train_step(views, instance_ids, learning_rate))
        images += min(config.batch_size, source.num_instances - step_in_epoch * config.batch_size)

        done = step + 1
        ends_epoch = step_in_epoch + 1 == steps_per_epoch
        measures_knn = online_knn is not None and ends_epoch and online_knn.is_due(epoch)
        reports_search = ends_epoch and search is not None
        if done % config.log_every == 0 or done == last_step or measures_knn or reports_search:
            bad_files.check()
            metrics = {
                "step": done,
                "epoch": done / steps_per_epoch,
                **_means(outputs),
                **expected,
                "learning_rate": float(learning_rate),
                **timer.report(images),
            }
            outputs, images = [], 0
            if reports_search:
                metrics.update(search.metrics(epoch_seconds=time.monotonic() - epoch_started))
            if measures_knn:
                metrics.update(online_knn.measure())
                timer.report(images)  # the measurement is no part of the training's speed
            if log:
                log.write(metrics)
        if metrics:
            progress("pretraining", done, last_step, _describe(metrics, epoch, config.epochs))
        due = ends_epoch and config.checkpoint_every and (epoch + 1) % config.checkpoint_every == 0
        if due or done == last_step:
            run.save(config.workdir, with_lists=run.hard_negatives is not None and not ends_epoch)
    if log:
        log.close()
    progress.close()
    progress.say(f"done: {config.workdir} (checkpoint at step {max(first_step, last_step)} of {total_steps})")
    return metrics


class Run(NamedTuple):
    """Everything that changes during a run."""

    encoder: tf.keras.Model
    classifier: ShardedClassifier
    hard_negatives: HardNegatives | None
    optimizer: MomentumSGD

    def replicated(self) -> tf.train.Checkpoint:
        """What all workers hold alike; `optimizer.iterations` is the number of completed steps."""
        return tf.train.Checkpoint(encoder=self.encoder, optimizer=self.optimizer)

    def sliced(self, with_lists: bool) -> dict[str, checkpoint.Slices]:
        """What is split over the workers. The lists matter in mid-epoch only: an epoch starts with new ones."""
        begin, total = self.classifier.begin, self.classifier.num_instances
        parts = {
            "classifier/rows": checkpoint.Slices(self.classifier.local_rows, begin, total),
            "classifier/momentum": checkpoint.Slices(self.classifier.local_momentum, begin, total),
        }
        if with_lists:
            parts["classifier/hard_negatives"] = checkpoint.Slices(self.hard_negatives.lists, begin, total)
        return parts

    def save(self, workdir: str, with_lists: bool) -> None:
        """Writes a checkpoint; all workers together."""
        checkpoint.save(workdir, int(self.optimizer.iterations), self.replicated(), self.sliced(with_lists))


def make_run(config: PretrainConfig, num_instances: int, schedule: WarmupCosine) -> Run:
    """A run before its first step; the class weights are 0 until something fills them."""
    encoder = checkpoint.make_encoder(config, config.precision)
    classifier = ShardedClassifier(
        num_instances,
        config.embedding_size,
        temperature=config.temperature,
        smoothing=config.smoothing,
        smoothing_loss=config.smoothing_loss,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        learning_rate_factor=config.classifier_learning_rate_factor,
        sampled_classes=config.sampled_classes,
        weights_dtype=config.class_weights_dtype,
        momentum_dtype=config.class_momentum_dtype,
        products_dtype=config.class_products_dtype,
        seed=config.seed,
    )
    hard_negatives = HardNegatives(classifier, config.hard_negatives) if config.smoothing else None
    optimizer = MomentumSGD(schedule, config.momentum, config.weight_decay)
    if config.precision == "mixed_float16":
        optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    optimizer.build(encoder.trainable_variables)
    # All workers drew the same weights from the same seed; this makes it certain.
    collectives.broadcast_variables(encoder.variables)
    return Run(encoder, classifier, hard_negatives, optimizer)


def _refuse_different_ids(source: Source) -> None:
    """Each worker has listed the images by itself: copies on other machines may differ, or files arrive meanwhile.

    Raises:
      UserError: on all workers alike.
    """
    mine = tf.constant(np.frombuffer(ids_digest(source), np.int64))
    digests = collectives.all_gather(mine, "ids_digest").numpy()
    different = np.flatnonzero(digests != digests[0])
    if len(different):
        raise UserError(
            f"--dataset={source.name}: worker {different[0]} does not see the same images as worker 0, wanted the same"
            f" files under the same names on all workers, and none added while they start"
        )


def _begin_workdir(config: PretrainConfig) -> None:
    try:
        os.makedirs(config.workdir, exist_ok=True)
        with open(run_flags_path(config.workdir), "w") as file:
            file.write(config.as_flags())
    except OSError as error:
        raise UserError(f"--workdir={config.workdir}: cannot write there ({error.strerror})") from error


def _has_lists(prefix: str) -> bool:
    return checkpoint.holds(prefix, "classifier/hard_negatives")


def _announce(config, source, steps_per_epoch, warmup_steps, first_step, progress) -> None:
    expected = thermometer.expected_losses(source.num_instances, config.embedding_size, config.temperature)
    progress.say(
        f"{source.name}: {source.num_instances} instances = classes, {collectives.size()} worker(s),"
        f" {steps_per_epoch} steps per epoch, {config.epochs} epochs"
    )
    progress.say(
        f"for orientation, the loss of Eq. 1 from Gaussian rows starts near {expected['loss_expected_start']:.2f},"
        f" cannot fall below about {expected['loss_floor']:.2f}"
    )
    if config.effective_warmup_epochs < config.warmup_epochs:
        progress.say(
            f"warm-up: {config.effective_warmup_epochs:g} epochs ({warmup_steps} step(s)), a tenth of the run, instead"
            f" of --warmup_epochs={config.warmup_epochs:g}"
        )
    if not compiled_softmax.available() and not tf.config.list_physical_devices("GPU"):
        progress.say(
            "the compiled kernels of the classifier are not there, it is slower: ./scripts/setup.sh makes them"
        )
    if first_step:
        progress.say(f"continuing {config.workdir} from step {first_step}")


def _report_changes(source: FolderSource, changed: tuple[str, ...], progress: Progress) -> None:
    for paths, what in [
        (source.changes.vanished, "are gone, their ids stay unused"),
        (source.changes.added, "are new and have ids at the end"),
        (changed, "have another size now"),
    ]:
        if paths:
            progress.say(f"since the run began, {len(paths)} file(s) {what}: {', '.join(map(repr, paths[:10]))}")


def _means(outputs: list[ClassifierOutput]) -> dict[str, float]:
    return {
        "loss": float(np.mean([output.loss for output in outputs])),
        "instance_top1": float(np.mean([output.instance_top1 for output in outputs])),
    }


def _describe(metrics: dict[str, float], epoch: int, epochs: int) -> str:
    return (
        f"epoch {epoch + 1}/{epochs}, loss {metrics['loss']:.3f}, instance top-1 {metrics['instance_top1']:.1%},"
        f" {metrics['images_per_second']:.0f} images/s, data wait {metrics['data_wait_fraction']:.0%}"
    )
