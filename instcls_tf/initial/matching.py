"""Each weight of an encoder from one of the same name and shape; what is missing or left over ends it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.config import IMAGENET_STEM, RESNET50, RESNET_DEPTHS, SMALL_STEM
from instcls_tf.errors import UserError, shown, some_of
from instcls_tf.initial.arrays import HEAD, Arrays, from_torch, name_of_variable, to_torch

# By it the weights of a ResNet are found among those of others.
_MARK = "layer1.0.conv1.weight"
# PyTorch counts batches, and nothing uses it.
_COUNTER = "num_batches_tracked"
# Of several networks in a file, such as MoCo's query and key encoders, what its own evaluation takes.
_PREFERRED = ("encoder_q.", "teacher.", "student.")
# What other methods and classifiers have beside the backbone: left out, and said.
_OTHER_PARTS = re.compile(
    r"(?:.*?\.)?(?P<part>fc|head|classifier|projector|projection_head|prototypes|predictor|queue|queue_ptr|encoder_k)\b.*"
)
# Below the backbone's own parts all of it makes the features, whatever it is called: an SE-ResNet's gates are `se.fc`.
_OF_BACKBONE = re.compile(r"(layer[1-4]|conv1|bn1)\..*")
# MoCo v2's head is ours: two linear maps with a ReLU between them.
_HEAD_OF_MOCO = {"fc.0": f"{HEAD}fc1", "fc.2": f"{HEAD}fc2"}


class Matched(NamedTuple):
    """Weights for an encoder."""

    values: dict[str, np.ndarray]  # by name, with Keras' order of axes
    notes: list[str]  # what was left out and what stays random


def match(encoder: tf.keras.Model, arrays: Arrays, path: str) -> Matched:
    """Finds a weight for each variable of the backbone, and of the projection head if they are there.

    Args:
      encoder: of `networks.build_encoder`.
      arrays: by torchvision's names, perhaps with something before them (`module.encoder_q.`).
      path: for the sentences.

    Raises:
      UserError: names the weights that are missing, of another shape, not finite, or left over.
    """
    arrays = {name: value for name, value in arrays.items() if not name.endswith(_COUNTER)}
    own, others = _own(arrays, path)
    wanted = {name_of_variable(variable.name): variable for variable in encoder.variables}
    own = _with_head_of_moco(own, wanted)
    _refuse_another_network(encoder, own, path)
    shapes = {name: to_torch(np.empty(variable.shape, np.float32)).shape for name, variable in wanted.items()}
    has_head = all(name in own and own[name].shape == shape for name, shape in shapes.items() if name.startswith(HEAD))
    taken = {name: shape for name, shape in shapes.items() if has_head or not name.startswith(HEAD)}
    _refuse_unlike(own, taken, path)
    left = [name for name in own if name not in taken]
    _refuse_left_over([name for name in left if _OF_BACKBONE.fullmatch(name)], path)
    notes = _notes([*others, *left], path)
    notes.append(
        "its projection head is taken as well" if has_head else "the projection head starts from random weights"
    )
    return Matched({name: from_torch(own[name]) for name in taken}, notes)


def fill(encoder: tf.keras.Model, matched: Matched) -> None:
    """Gives the encoder's variables these values."""
    for variable in encoder.variables:
        value = matched.values.get(name_of_variable(variable.name))
        if value is not None:
            variable.assign(value)


def _own(arrays: Arrays, path: str) -> tuple[Arrays, list[str]]:
    """The weights of one network without what stands before their names, and the other names."""
    prefixes = sorted(name.removesuffix(_MARK) for name in arrays if name.endswith(_MARK))
    for preferred in _PREFERRED:
        prefixes = [prefix for prefix in prefixes if preferred in prefix] or prefixes
    if len(prefixes) != 1:
        found = f"{len(prefixes)} networks ({some_of(map(shown, prefixes))})" if prefixes else "no ResNet"
        raise UserError(
            f"--init={shown(path)}: holds {found}, wanted one whose weights have torchvision's names, such as {_MARK};"
            f" there are {some_of(map(shown, arrays), most=3)}"
        )
    (prefix,) = prefixes
    own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    return own, [name for name in arrays if not name.startswith(prefix)]


def _with_head_of_moco(own: Arrays, wanted: Iterable[str]) -> Arrays:
    places = [(theirs, name) for theirs, name in _HEAD_OF_MOCO.items() if f"{name}.weight" in wanted]
    if not all(f"{theirs}.{part}" in own for theirs, _ in places for part in ("weight", "bias")):
        return own
    renamed = {f"{theirs}.{part}": f"{name}.{part}" for theirs, name in places for part in ("weight", "bias")}
    return {renamed.get(name, name): value for name, value in own.items()}


def _refuse_another_network(encoder: tf.keras.Model, own: Arrays, path: str) -> None:
    """Says which flags would fit, where that is plain; the rest is told weight by weight."""
    first = own.get("conv1.weight")
    if first is None or first.ndim != 4:
        return
    depths = tuple(len({n.split(".")[1] for n in own if n.startswith(f"layer{stage}.")}) for stage in range(1, 5))
    name = next((name for name, blocks in RESNET_DEPTHS.items() if blocks == depths), None)
    if name is None or ("layer1.0.conv3.weight" in own) != (name == RESNET50):
        kind = "bottleneck" if "layer1.0.conv3.weight" in own else "basic"
        raise UserError(
            f"--init={shown(path)}: is a ResNet of {', '.join(map(str, depths))} {kind} blocks, wanted one of"
            f" {', '.join(RESNET_DEPTHS)}"
        )
    about = (
        name,
        first.shape[0] / 64,
        {7: IMAGENET_STEM, 3: SMALL_STEM}.get(first.shape[2], f"{first.shape[2]}-pixel"),
    )
    kernel = encoder.get_layer("backbone").get_layer("conv1").kernel
    blocks = sum(layer.name.endswith("_add") for layer in encoder.get_layer("backbone").layers)
    mine = next(name for name, depths in RESNET_DEPTHS.items() if sum(depths) == blocks)
    ours = (mine, kernel.shape[3] / 64, {7: IMAGENET_STEM, 3: SMALL_STEM}[int(kernel.shape[0])])
    if about != ours:
        wanted = "--encoder={} --width_multiplier={:g} --stem={}"
        raise UserError(f"--init={shown(path)}: is of {wanted.format(*about)}, this run of {wanted.format(*ours)}")


def _refuse_unlike(own: Arrays, taken: dict[str, tuple[int, ...]], path: str) -> None:
    missing = [name for name in taken if name not in own]
    if missing:
        raise UserError(f"--init={shown(path)}: lacks {len(missing)} weights: {some_of(missing)}")
    for name, shape in taken.items():
        if own[name].shape != shape:
            raise UserError(f"--init={shown(path)}: {name} has shape {own[name].shape}, wanted {shape}")
        if not np.isfinite(own[name]).all():
            raise UserError(f"--init={shown(path)}: {name} has values that are not finite")


def _refuse_left_over(names: list[str], path: str) -> None:
    if names:
        raise UserError(
            f"--init={shown(path)}: {len(names)} weights are left over, which this network has not:"
            f" {some_of(map(shown, names))}"
        )


def _notes(left: list[str], path: str) -> list[str]:
    """What is left out, by its part.

    Raises:
      UserError: something is left over that is no other part of a network: its features would not be what they were.
    """
    found = {name: _OTHER_PARTS.fullmatch(name) for name in left if not name.startswith(HEAD)}
    _refuse_left_over([name for name, part in found.items() if part is None], path)
    parts = dict.fromkeys(part["part"] for part in found.values() if part)
    if any(name.startswith(HEAD) for name in left):
        parts[f"{HEAD.rstrip('.')} of another shape"] = None
    return [f"left out: {', '.join(parts)}"] if parts else []
