"""Flags of `detect`: one per field of `DetectConfig`, whose defaults they take."""

from __future__ import annotations

import dataclasses

from absl import flags

from instcls_tf.evaluation.detection_config import DetectConfig

FLAGS = flags.FLAGS

_DESCRIPTIONS = {
    "workdir": "Folder of the run whose encoder is the backbone; receives detect.json, detect.png and detector/, the"
    " state from which the same command goes on.",
    "dataset": "`folder:PATH` in Pascal VOC layout (Annotations/, ImageSets/Main/, JPEGImages/ there or one folder"
    " deeper), or a prepared TFDS `voc/2007` or `voc/2012`.",
    "data_dir": "Where TFDS keeps its datasets (TFDS datasets only).",
    "train_split": "Trained on: a file of ImageSets/Main without its .txt, or a TFDS split.",
    "test_split": "Evaluated on.",
    "init": "The backbone starts from the run's `checkpoint` or from `scratch` (random weights, same network).",
    "image_size": "Side of the squares that images are squeezed to, in pixels; a multiple of 32 (8 with the small"
    " stem).",
    "pyramid_channels": "Channels of the feature pyramid and the heads; RetinaNet has 256.",
    "batch_size": "Images per step, all workers together.",
    "epochs": "Length of the fine-tune, in epochs; 0 evaluates the untrained detector.",
    "learning_rate": "Learning rate after the warm-up; divided by 10 after 3/4 and after 11/12 of the run.",
    "warmup_steps": "Linear warm-up, in steps; at most a tenth of the run.",
    "momentum": "Momentum factor of SGD.",
    "weight_decay": "L2 weight decay, added to the gradient of every variable.",
    "seed": "Of the new layers' weights, the order of images and the flips.",
}

_DEFINE = {"int": flags.DEFINE_integer, "float": flags.DEFINE_float, "str": flags.DEFINE_string}


def define() -> None:
    """Defines the flags; limits are checked by `DetectConfig`, whose sentences name flag, value and what is wanted."""
    for field in dataclasses.fields(DetectConfig):
        _DEFINE[field.type.split(" ")[0]](field.name, field.default, _DESCRIPTIONS[field.name])


def config_from_flags() -> DetectConfig:
    """The settings on the command line, checked."""
    config = DetectConfig(**{field.name: FLAGS[field.name].value for field in dataclasses.fields(DetectConfig)})
    config.validate()
    return config
