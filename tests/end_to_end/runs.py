"""A tiny recipe: two epochs of four steps over 1,437 digits.

1,437 divides by neither 2 nor 4: three batches of 360, and one of 357 whose BN groups are 180 and 177. (A last batch of
a single image would amplify what float32 rounds by hundreds; with half of the channels, oneDNN's 1x1 convolution writes
beyond its memory when an odd number of rows follows an even one.)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TINY = {
    "dataset": "digits",
    "augmentation": "digits",
    "image_size": 16,
    "encoder": "resnet10",
    "width_multiplier": 0.25,
    "stem": "small",
    "batch_size": 360,
    "micro_batch": 180,
    "epochs": 2,
    "learning_rate": 0.05,
    "scale_learning_rate": False,
    "hard_negatives": 10,
    "log_every": 1,
    "gauge_every": 0,
    "report": False,
}
NUM_INSTANCES, STEPS_PER_EPOCH, STEPS = 1437, 4, 8


def flags_of(workdir: Path, **changes) -> list[str]:
    """The command line of the tiny recipe with some settings changed."""
    return [f"--{name}={value}" for name, value in {**TINY, "workdir": workdir, **changes}.items()]


def metrics_of(workdir: Path) -> dict[str, np.ndarray]:
    """The columns of `metrics.jsonl` but for those of the search for hard negatives, which one line an epoch has."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [{name: line[name] for name in line if not name.startswith("hard_negative_")} for line in lines]
    assert all(line.keys() == lines[0].keys() for line in lines)
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


def searches_of(workdir: Path) -> dict[int, dict[str, float]]:
    """What `metrics.jsonl` says about searches for hard negatives, by step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: {name: line[name] for name in line if name.startswith("hard_negative_")} for line in lines}
    return {step: search for step, search in found.items() if search}
