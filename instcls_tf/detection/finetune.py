"""Detection, top to bottom: a run's encoder becomes the backbone of a detector, which is fine-tuned and judged.

All of the backbone learns, its batch normalisation included, as in the paper's and MoCo's VOC fine-tunes. The loss is
summed over all workers' images and divided once by the global number of anchors that belong to an object (RetinaNet's
normaliser), so that a step does not depend on how the batch is shared out, but for batch normalisation, which sees each
worker's own images.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from instcls_tf.detection import checkpoint
from instcls_tf.detection.annotations import DetectionSource
from instcls_tf.detection.batches import inference_batches, training_batches
from instcls_tf.detection.config import CHECKPOINT, DetectConfig
from instcls_tf.detection.metrics import Detections, average_precisions
from instcls_tf.detection.model import MAX_DETECTIONS, build_detector, detection_losses, find_objects
from instcls_tf.detection.pictures import draw_detections
from instcls_tf.distributed import collectives, partition, workers
from instcls_tf.encoder import networks
from instcls_tf.encoder.networks import encoder_digest, make_encoder
from instcls_tf.errors import DivergedError, UserError
from instcls_tf.optimizer import MomentumSGD
from instcls_tf.progress import Progress
from instcls_tf.report.answer import Answer, Picture
from instcls_tf.run.checkpoint import newest
from instcls_tf.run.checkpoint_choice import step_of
from instcls_tf.run.encoder import encoder_of
from instcls_tf.run.workdir import load_run

# Single anchors of a fresh box head can have gradients of hundreds; keras-cv's guides clip at the same norm.
_CLIP_NORM = 10.0
_OF_A_DATASET = r"Error in user-defined function passed to \S+ transformation with iterator: \S+: "  # from 2.18 on
_ASSERTED = r"assertion failed: \[(.*)\]"


def detect(config: DetectConfig, train: DetectionSource, test: DetectionSource) -> Answer | None:
    """Fine-tunes a detector and evaluates it on the test split; all workers call it.

    Writes `detector/` into the workdir, the state of the fine-tune after every epoch, from which the same settings go
    on. The picture, `detect.png` there (test images with their objects and what was found), is still to be drawn.

    Args:
      config: the settings; with 0 epochs the untrained detector is evaluated.
      train, test: the splits, from `open_detection_data`.

    Returns:
      `AP`, `AP50`, `AP75`, `voc07_AP`, `voc07_AP50`, `voc07_AP75` (fractions), `examples`, the main settings and, of a
      run's encoder, its `step` on rank 0; None elsewhere.

    Raises:
      UserError: a setting, the run or an image is not right, or the loss is no longer finite.
    """
    # ---- Workers
    progress = workers.start(config.seed, (*train.notes, *test.notes))
    config.validate(collectives.size())
    is_chief = collectives.rank() == 0

    # ---- Model
    step = {}
    if config.init == CHECKPOINT:
        prefix = newest(config.workdir)
        step, encoder = {"step": step_of(prefix)}, encoder_of(load_run(config.workdir), prefix)
    else:
        encoder = make_encoder(load_run(config.workdir))
    origin = f"{encoder_digest(encoder)} {train.digest()}"
    detector = build_detector(
        encoder, len(train.class_names), image_size=config.image_size, pyramid_channels=config.pyramid_channels
    )
    # All workers drew the same weights from the same seed; this makes it certain.
    collectives.broadcast_variables(detector.variables)

    # ---- Training
    steps = config.epochs * math.ceil(len(train.annotations) / config.batch_size)
    progress.say(
        f"{len(train.annotations)} images to train on, {len(test.annotations)} to test on, {len(train.class_names)}"
        f" classes ({', '.join(train.class_names[:20])}), {collectives.size()} worker(s), {steps} steps"
    )
    _train(config, origin, detector, train, steps, progress)

    # ---- Evaluation
    found = _detections(config, detector, test, progress)
    progress.close()
    if not is_chief:
        return None
    precisions = average_precisions(test.annotations, found, len(train.class_names))
    settings = ("dataset", "init", "image_size", "batch_size", "epochs", "learning_rate")
    result = {
        **precisions,
        "examples": len(test.annotations),
        "steps": steps,
        **{name: getattr(config, name) for name in settings},
        **step,
    }
    path = os.path.join(config.workdir, "detect.png")
    return Answer(result, picture=Picture(path, lambda path: draw_detections(path, test, found)))


@tf.keras.utils.register_keras_serializable("instcls_tf")
class WarmupSteps(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to `peak`, which is divided by 10 after 3/4 and again after 11/12 of `total_steps`.

    The warm-up takes a tenth of the run at most.
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int):
        self.peak, self.total_steps = peak, total_steps
        self.warmup_steps = min(warmup_steps, total_steps // 10)

    def __call__(self, step: Any) -> tf.Tensor:
        """The learning rate of `step` (float32 scalar)."""
        step = tf.cast(step, tf.float32)
        warmup = tf.minimum(1.0, (step + 1.0) / (self.warmup_steps + 1.0))
        drops = tf.cast(step * 4 >= 3.0 * self.total_steps, tf.float32)
        drops += tf.cast(step * 12 >= 11.0 * self.total_steps, tf.float32)
        return self.peak * warmup * 0.1**drops

    def get_config(self) -> dict[str, Any]:
        """Keras' description of the schedule."""
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "total_steps": self.total_steps}


def _train(
    config: DetectConfig,
    origin: str,
    detector: tf.keras.Model,
    train: DetectionSource,
    steps: int,
    progress: Progress,
) -> None:
    schedule = WarmupSteps(config.learning_rate, config.warmup_steps, steps)
    optimizer = MomentumSGD(schedule, config.momentum, config.weight_decay)
    optimizer.build(detector.trainable_variables)
    train_step = make_train_step(detector, optimizer, config.image_size)
    state = tf.train.Checkpoint(detector=detector, optimizer=optimizer)
    first_step = checkpoint.restore(config, origin, state)
    if first_step:
        progress.say(f"continuing the fine-tune in {config.workdir} from step {first_step}")
    batches = training_batches(
        train,
        image_size=config.image_size,
        batch_size=config.batch_size,
        steps=steps,
        first_step=first_step,
        seed=config.seed,
        rank=collectives.rank(),
        num_workers=collectives.size(),
    )
    for step, batch in enumerate(_readable(batches, config.dataset), start=first_step + 1):
        loss = float(train_step(*batch))
        if not math.isfinite(loss):
            raise DivergedError(
                f"--learning_rate={config.learning_rate}: the loss is not finite after {step} steps; try a lower rate"
            )
        progress("fine-tuning", step, steps, f"loss {loss:.3f}")
        if step % (steps // config.epochs) == 0:
            # The moving statistics saw different images on each worker.
            collectives.average_variables(networks.batch_norm_statistics(detector), "detector_bn")
            checkpoint.save(config, origin, state, step)


def make_train_step(
    detector: tf.keras.Model, optimizer: tf.keras.optimizers.Optimizer, image_size: int
) -> Callable[..., tf.Tensor]:
    """The training step as a `tf.function` of a batch of `training_batches`; returns the global loss."""
    variables = detector.trainable_variables

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, image_size, image_size, 3], tf.uint8),
            tf.TensorSpec([None, None, 4], tf.float32),
            tf.TensorSpec([None, None], tf.int32),
        ],
    )
    def train_step(images: tf.Tensor, boxes: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = detection_losses(detector, images, boxes, labels)
            total = losses.classification + losses.box
        # The one division, by a global number: gradients are summed, never averaged.
        normalizer = tf.maximum(1.0, collectives.sum_over_workers(losses.positives, "detector_positives"))
        gradients = collectives.sum_one_by_one(tape.gradient(total, variables), "detector_gradient")
        gradients = [gradient / normalizer for gradient in gradients]
        gradients, _ = tf.clip_by_global_norm(gradients, _CLIP_NORM)
        optimizer.apply_gradients(zip(gradients, variables))
        return collectives.sum_over_workers(total, "detector_loss") / normalizer

    return train_step


def _detections(
    config: DetectConfig, detector: tf.keras.Model, test: DetectionSource, progress: Progress
) -> list[Detections]:
    """What the detector finds in every test image, on all workers; each looks at an even share of them."""
    images_spec = tf.TensorSpec([None, config.image_size, config.image_size, 3], tf.uint8)
    look = tf.function(lambda images: find_objects(detector, images), [images_spec], autograph=False)
    gather = tf.function(
        lambda rows: collectives.all_gather(rows, "detections"), autograph=False, reduce_retracing=True
    )
    begin, end = partition.bounds(len(test.annotations), collectives.size(), collectives.rank())
    share = max(1, config.batch_size // collectives.size())
    batches = inference_batches(test, image_size=config.image_size, batch_size=share, begin=begin, end=end)
    rows = [np.zeros([0, MAX_DETECTIONS, 6], np.float32)]
    for step, (images, _, _) in enumerate(_readable(batches, config.dataset), start=1):
        rows.append(look(images).numpy())
        progress("testing", step, math.ceil((end - begin) / share))
    everything = gather(tf.constant(np.concatenate(rows))).numpy()  # [N, MAX_DETECTIONS, 6]
    return [_in_pixels(rows, truth.height, truth.width) for rows, truth in zip(everything, test.annotations)]


def _in_pixels(rows: np.ndarray, height: int, width: int) -> Detections:
    rows = rows[rows[:, 5] >= 0].astype(np.float64)
    return Detections(rows[:, :4] * [width, height, width, height], rows[:, 4], rows[:, 5].astype(int))


def _readable(batches: tf.data.Dataset, name: str) -> Iterator:
    """The batches; an image that cannot be used ends the command with one sentence."""
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            raise UserError(f"--dataset={name}: {_said_by(error)}") from error
        yield batch


def _said_by(error: tf.errors.OpError) -> str:
    """What is wrong with an image, without TensorFlow's words on the graph around it.

    "{{function_node …}} assertion failed: [cannot decode the image cat.jpg (empty)]", or "/voc/cat.jpg; Permission
    denied", each with lines on the graph below.
    """
    around = rf"^({{{{.*?}}}} )*({_OF_A_DATASET})?| \[Op:\w+\].*$"
    line = re.sub(around, "", error.message.splitlines()[0])
    said = re.search(_ASSERTED, line)
    return said[1] if said else line.strip()
