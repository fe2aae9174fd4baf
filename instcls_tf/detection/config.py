"""Settings of the detection fine-tune: every default and limit. Plain Python, no TensorFlow."""

from __future__ import annotations

import dataclasses

from instcls_tf.checks import (
    check_seed,
    require,
    require_one_of,
    require_path_for_tensorflow,
    require_zero_or_more,
    require_zero_to_below_one,
)
from instcls_tf.errors import UserError

CHECKPOINT, SCRATCH = INITS = ("checkpoint", "scratch")
# Channels of the pyramid come in groups of this many normalisation groups.
NORM_GROUPS = 16


@dataclasses.dataclass(frozen=True)
class DetectConfig:
    """Settings of `detect`, one per command-line flag of the same name (see `flags/detection.py`).

    Batch size, learning rate, warm-up and the schedule's two steps (at 3/4 and 11/12 of the run) are those with which
    MoCo v2 and the paper fine-tune on PASCAL VOC 07+12: 24,000 iterations of 16 images, learning rate 0.02 after 100
    iterations of warm-up, divided by 10 after 18,000 and 22,000; 23 epochs of its 16,551 images are 23,793 iterations.
    """

    workdir: str = ""
    dataset: str = ""
    data_dir: str | None = None
    train_split: str = "trainval"
    test_split: str = "test"
    init: str = CHECKPOINT
    image_size: int = 512
    pyramid_channels: int = 256
    batch_size: int = 16
    epochs: int = 23
    learning_rate: float = 0.02
    warmup_steps: int = 100
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0

    def validate(self, num_workers: int = 1) -> None:
        """Checks what can be known before the data are opened.

        Raises:
          UserError: one sentence naming the flag, its value and what is wanted.
        """
        for name in ("workdir", "dataset"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing")
        require_path_for_tensorflow("workdir", self.workdir)
        require_one_of(self, "init", INITS)
        require(self, "image_size", self.image_size >= 1, "at least 1")
        channels = self.pyramid_channels
        require(self, "pyramid_channels", channels >= 1 and channels % NORM_GROUPS == 0, f"a multiple of {NORM_GROUPS}")
        require(self, "batch_size", self.batch_size >= num_workers, f"at least the number of workers, {num_workers}")
        require_zero_or_more(self, "epochs", "warmup_steps", "learning_rate", "weight_decay")
        require_zero_to_below_one(self, "momentum")
        check_seed(self)
