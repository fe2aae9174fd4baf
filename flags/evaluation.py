"""Flags of the commands that look at a finished run, and how they answer."""

from __future__ import annotations

import json
import os

from absl import flags

from instcls_tf.errors import UserError

FLAGS = flags.FLAGS


def define() -> None:
    """The flags that all evaluations share."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("data_dir", None, "Where TFDS keeps its datasets (TFDS datasets only).")


def define_knn() -> None:
    """The flags of `knn_eval`."""
    flags.DEFINE_string(
        "dataset", None, "Evaluate on this dataset instead of the run's own (same forms as in pretrain)."
    )
    flags.DEFINE_integer("num_neighbors", 20, "Neighbours that vote.")
    flags.DEFINE_float("knn_temperature", 0.07, "Temperature of the votes' weights, exp(cosine / temperature).")
    flags.DEFINE_string("features", "backbone", "What is compared: `backbone`, `projection`, or `pixels` (no network).")


def define_similarity() -> None:
    """The flags of `similarity`."""
    flags.DEFINE_integer("instances", 2000, "How many instances, evenly spread over the dataset, are measured.")


def define_compare() -> None:
    """The flags of `compare`."""
    flags.DEFINE_string("runs", None, "NAME=WORKDIR,NAME=WORKDIR,...: the runs to compare; the last one is pictured.")
    flags.DEFINE_string("output", None, "Folder that receives comparison.md and comparison.png.")


def named_runs() -> dict[str, str]:
    """The value of --runs as workdirs by name."""
    runs = {}
    for name, _, workdir in (part.partition("=") for part in required("runs").split(",")):
        if not name or not workdir or name in runs:
            raise UserError(f"--runs={FLAGS.runs}: must be NAME=WORKDIR,NAME=WORKDIR,... with different names")
        runs[name] = workdir
    return runs


def required(name: str) -> str:
    """The value of a flag that has no default."""
    if not FLAGS[name].value:
        raise UserError(f"--{name} is missing")
    return FLAGS[name].value


def choice(name: str, choices: tuple[str, ...]) -> str:
    """The value of a flag that names one of a few things."""
    if FLAGS[name].value not in choices:
        raise UserError(f"--{name}={FLAGS[name].value}: must be one of {', '.join(choices)}")
    return FLAGS[name].value


def answer(command: str, workdir: str, result: dict) -> None:
    """Writes `WORKDIR/<command>.json` and prints the same object on the last line of standard output."""
    with open(os.path.join(workdir, f"{command}.json"), "w") as file:
        json.dump(result, file)
    print(json.dumps(result), flush=True)
