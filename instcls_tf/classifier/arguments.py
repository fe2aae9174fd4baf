"""What a classifier refuses before it computes, in words that name the argument, its value and what is wanted."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from instcls_tf.checks import require_argument
from instcls_tf.config import CLASS_PASSES, INT8, PRODUCTS_DTYPES, SMOOTHING_LOSSES, STORAGE_DTYPES
from instcls_tf.errors import UserError

GAUSSIAN, ZEROS = "gaussian", "zeros"
INITIALIZERS = (GAUSSIAN, ZEROS)


def check(settings: dict[str, Any]) -> None:
    """Refuses arguments of `ShardedClassifier`.

    Args:
      settings: values by the names of the arguments.

    Raises:
      UserError: a value is out of range, is none of the words there are, or does not go with another.
    """
    _check_numbers(settings)
    choices = {
        "smoothing_loss": SMOOTHING_LOSSES,
        "weights_dtype": STORAGE_DTYPES,
        "momentum_dtype": STORAGE_DTYPES,
        "products_dtype": PRODUCTS_DTYPES,
        "initializer": INITIALIZERS,
        "make_passes": CLASS_PASSES,
    }
    for name, words in choices.items():
        require_argument(name, settings[name], settings[name] in words, f"one of {words}")
    for name in ("weights_dtype", "momentum_dtype"):
        if settings[name] == INT8 and tf.config.list_physical_devices("GPU"):
            wanted = "another on a GPU, where rows of int8 cannot be written"
            raise UserError(f"{name}={settings[name]!r}: must be {wanted}")


def _check_numbers(settings: dict[str, Any]) -> None:
    for name in ("num_instances", "embedding_size"):
        require_argument(name, settings[name], settings[name] >= 1, "at least 1")
    temperature = settings["temperature"]
    require_argument("temperature", temperature, math.isfinite(temperature) and temperature > 0, "a number above 0")
    for name in ("smoothing", "momentum"):
        require_argument(name, settings[name], 0 <= settings[name] < 1, "0 or more and below 1")
    for name in ("weight_decay", "learning_rate_factor"):
        value = settings[name]
        require_argument(name, value, math.isfinite(value) and value >= 0, "0 or more")
    require_argument("seed", settings["seed"], 0 <= settings["seed"] < 2**31, "0 or more and below 2147483648")
    num_instances, sampled = settings["num_instances"], settings["sampled_classes"]
    require_argument("sampled_classes", sampled, 0 <= sampled <= num_instances, f"0 to the {num_instances} classes")
    if sampled and settings["smoothing"]:
        raise UserError(f"sampled_classes={sampled}: works with smoothing=0 only, not {settings['smoothing']}")


def check_ids(name: str, ids: tf.Tensor, num_instances: int) -> None:
    """Refuses ids of no class where they can be seen: not inside of a `tf.function`, which knows no values yet.

    Args:
      name: of the argument.
      ids: integers of any shape.
      num_instances: N.

    Raises:
      UserError: names the first one outside of [0, N).
    """
    if not tf.executing_eagerly():
        return
    numbers = ids.numpy()
    wrong = numbers[(numbers < 0) | (numbers >= num_instances)]
    if len(wrong):
        raise UserError(f"{name}: {wrong[0]} is no class, must be 0 or more and below num_instances={num_instances}")


def check_rows(lists: tf.Tensor, num_rows: int | None) -> None:
    """Refuses hard negatives that are not those of the rows of a batch.

    Args:
      lists: what was given for `[b, K]`.
      num_rows: b; None where it is not known.

    Raises:
      UserError: it has another shape.
    """
    fits = lists.shape.rank == 2 and (None in (lists.shape[0], num_rows) or lists.shape[0] == num_rows)
    if not fits:
        raise UserError(
            f"hard_negatives: of shape {list(lists.shape)}, must be [{'b' if num_rows is None else num_rows}, K], lists"
            f" of the rows of the batch, or HardNegatives, which has those of all classes"
        )
