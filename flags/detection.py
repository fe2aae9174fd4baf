"""Flags of `detect`: one per field of `DetectConfig`, whose defaults they take."""

from __future__ import annotations

from absl import flags

from flags import from_dataclass
from instcls_tf.detection.config import INITS, DetectConfig

FLAGS = flags.FLAGS

DESCRIPTIONS = {
    "workdir": "Folder of the run whose encoder is the backbone; receives detect.json, detect.png and detector/, the"
    " state from which the same command goes on.",
    "dataset": "`folder:PATH` in Pascal VOC layout (Annotations/, ImageSets/Main/, JPEGImages/ there or one folder"
    " deeper), or a prepared TFDS `voc/2007` or `voc/2012`.",
    "data_dir": "Where TFDS keeps its datasets (TFDS datasets only).",
    "train_split": "Trained on: a file of ImageSets/Main without its .txt, or a TFDS split.",
    "test_split": "Evaluated on.",
    "init": "What the backbone starts from: the run's `checkpoint`, or `scratch`, random weights of the same network.",
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


def define(flag_values: flags.FlagValues = FLAGS) -> None:
    """Defines the flags."""
    from_dataclass.define(
        DetectConfig, DESCRIPTIONS, choices={"init": INITS}, path_names=("data_dir",), flag_values=flag_values
    )


def config_from_flags(flag_values: flags.FlagValues = FLAGS) -> DetectConfig:
    """The settings on the command line, checked."""
    config = from_dataclass.read(DetectConfig, flag_values=flag_values)
    config.validate()
    return config
