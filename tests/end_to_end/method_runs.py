"""What `test_methods` looks at: a tiny run of each method and of each lever, whole, and on one worker in parts as well.

All of them in one process (or one launch): `python -m tests.end_to_end.method_runs FOLDER [in_parts]`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import instcls_tf
from instcls_tf.config import PretrainConfig
from tests.end_to_end.runs import TINY

RUNS: dict[str, dict] = {
    "simclr": {"method": "simclr"},
    "moco_v2": {"method": "moco_v2", "moco_momentum": 0.9, "moco_queue": 360, "learning_rate": 0.1, "epochs": 4},
    "pic": {"method": "pic", "pic_recent_negatives": 50, "learning_rate": 0.02},
    "diet": {
        "method": "diet",
        "diet_label_smoothing": 0.2,
        "classifier_learning_rate_factor": 4.0,
        "learning_rate": 0.02,
        "epochs": 4,
    },
    "batch_contrast": {"batch_contrast": 0.5, "class_momentum": 0.5, "class_weight_decay": 0.0},
    "contrast_epochs": {"contrast_epochs": 1},
    "prior_every": {"prior_every": 1, "smoothing": 0.0},
}
# After which steps a run is stopped: in mid-epoch, and where an epoch of contrast or the next prior would follow. What
# NT-Xent adds to the paper's method has no state.
STOPS = {name: (3,) for name in RUNS if name != "batch_contrast"} | {"contrast_epochs": (2, 4), "prior_every": (4,)}


def config_of(name: str, workdir: Path) -> PretrainConfig:
    """The recipe of a run."""
    return PretrainConfig(**{**TINY, "seed": 5, "workdir": str(workdir), **RUNS[name]})


def main(folder: Path, in_parts: bool) -> None:
    for name in RUNS:
        instcls_tf.pretrain(config_of(name, folder / name))
        for stop in (*STOPS[name], None) if in_parts and name in STOPS else ():
            instcls_tf.pretrain(config_of(name, folder / f"{name}_in_parts").replace(max_steps=stop))


if __name__ == "__main__":
    main(Path(sys.argv[1]), in_parts="in_parts" in sys.argv[2:])
