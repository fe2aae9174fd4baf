"""What is exported: an encoder, how it sees images, where it comes from, and what it gives for the check's images."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np
import tensorflow as tf

from instcls_tf.checks import BACKGROUNDS, background_colour
from instcls_tf.config import CACHE_IN_MEMORY, PretrainConfig
from instcls_tf.encoder.networks import IMAGENET_MEAN, IMAGENET_STD
from instcls_tf.export.preprocessing import central_square
from instcls_tf.export.self_check import TOLERANCE, blocks, image_of
from instcls_tf.run import checkpoint_choice, checkpoint_manifest
from instcls_tf.run.checkpoint import newest
from instcls_tf.run.encoder import encoder_of
from instcls_tf.run.workdir import load_run, recipe_of

# Levels between a resized pixel and where its rounding turns: a hundred times what other sums change.
_CLEAR, _MOST_SEEDS = 1e-3, 64
# Of mixed precision, where another fusion of operations rounds to 8 bits.
_ROUGH_TOLERANCE = 2e-2


@dataclasses.dataclass(frozen=True)
class Subject:
    """An encoder to export.

    Attributes:
      encoder: a model of `networks.build_encoder`.
      image_size: side in pixels of the square images that it sees.
      center_crop_fraction: side of the central square as a fraction of an image's shorter side.
      max_pixels: a file that declares more is not decoded.
      background: RGB beneath what is transparent in a file.
      origin: the run, for the model card; empty if unknown.
    """

    encoder: tf.keras.Model
    image_size: int
    center_crop_fraction: float = 1.0
    max_pixels: int = PretrainConfig.max_pixels
    background: tuple[int, int, int] = BACKGROUNDS[PretrainConfig.background]
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """The relative error that reading it back may bring."""
        policies = {layer.dtype_policy.name for layer in self.encoder.get_layer("backbone").layers}
        return TOLERANCE if policies == {"float32"} else _ROUGH_TOLERANCE

    def outputs(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Features `[b, F]` and projections `[b, D]` of unit length, of whole images uint8 `[b, h, w, 3]`."""
        square = central_square(tf.convert_to_tensor(images), self.image_size, self.center_crop_fraction)
        features = self.encoder.get_layer("backbone")(square, training=False)
        return features, tf.math.l2_normalize(self.encoder.get_layer("projection")(features, training=False), axis=1)

    def self_check(self, any_size: bool) -> list[dict[str, Any]]:
        """The cases of `self_check.compare`: a prepared image and, with `any_size`, larger and smaller ones."""
        size = self.image_size
        cases: list[dict[str, Any]] = [{"shape": [size, size]}]
        if any_size:
            for shape in ([2 * size + 5, 3 * size + 2], [size // 2 + 1, 2 * size // 3 + 1]):
                cases.append({"shape": shape, "blocks": self._clear_blocks(*shape)})
        for case in cases:
            features, projection = self.outputs(image_of(case))
            case["features"] = _short(features)
            if any_size:
                case["projection"] = _short(projection)
        return cases

    def _clear_blocks(self, height: int, width: int) -> int:
        """The first seed whose blocks, resized, keep away from where rounding turns."""

        def distance(seed: int) -> float:
            image = tf.constant(blocks(height, width, seed)[None])
            resized = central_square(image, self.image_size, self.center_crop_fraction, is_rounded=False)
            return float(tf.reduce_min(tf.abs(resized - tf.floor(resized) - 0.5)))

        for seed in range(_MOST_SEEDS):
            if distance(seed) > _CLEAR:
                return seed
        return max(range(_MOST_SEEDS), key=distance)

    def input_facts(self, any_size: bool) -> dict[str, Any]:
        """The card's `input`; mean and deviation are for formats that do not prepare images themselves."""
        return {
            "size": [self.image_size, self.image_size],
            "any_size": any_size,
            "pixels": "uint8 RGB" if any_size else "float32 RGB in 0..1, (x - mean) / std",
            "center_crop_fraction": self.center_crop_fraction,
            "resize": "bilinear, antialiased, rounded to whole levels",
            "mean": [round(value / 255, 6) for value in IMAGENET_MEAN],
            "std": [round(value / 255, 6) for value in IMAGENET_STD],
        }


def _short(vectors: tf.Tensor) -> list[float]:
    # Nine digits hold a float32.
    return [float(f"{value:.9g}") for value in np.asarray(vectors[0], np.float64)]


def subject_of_run(workdir: str) -> Subject:
    """The encoder of a run's newest checkpoint, and all that its card tells.

    Raises:
      UserError: there is no run, or it has no checkpoint.
    """
    config = load_run(workdir)
    prefix = newest(workdir)
    manifest = checkpoint_manifest.read(prefix)
    recipe = {name: value for name, value in recipe_of(config).items() if value != "None"}
    recipe["dataset"] = _without_folders(config.dataset)
    recipe.pop("cache")
    if config.cache:
        recipe["cache"] = CACHE_IN_MEMORY  # wherever it was, the views are the same
    for name in {"init", "extend_from"} & recipe.keys():
        recipe[name] = os.path.basename(os.path.normpath(recipe[name]))
    origin = {
        "step": checkpoint_choice.step_of(prefix),
        "run_id": manifest.origin.run_id if manifest else "",
        "data_digest": manifest.origin.dataset if manifest else "",
        "recipe": recipe,
        "knn": knn_of_step(workdir, checkpoint_choice.step_of(prefix)),
    }
    return Subject(
        encoder_of(config, prefix),
        config.image_size,
        config.center_crop_fraction,
        config.max_pixels,
        background_colour(config.background),
        origin,
    )


def _without_folders(dataset: str) -> str:
    """A dataset's name for others to read: without the folders of the machine that it lay on."""
    kind, colon, path = dataset.partition(":")
    return f"{kind}:{os.path.basename(os.path.normpath(path))}" if colon and os.sep in path else dataset


def knn_of_step(workdir: str, step: int) -> dict[str, Any] | None:
    """What `knn_eval` measured of the network after so many steps, if it did: not of pixels, nor elsewhere."""
    try:
        with open(os.path.join(workdir, "knn_eval.json"), encoding="utf-8") as file:
            found = json.load(file)
        if found["step"] != step:  # of pixels there is none
            return None
        found["dataset"] = _without_folders(found["dataset"])
        return {name: found[name] for name in ("top1", "examples", "num_neighbors", "features", "dataset")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
