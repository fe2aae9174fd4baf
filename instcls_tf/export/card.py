"""The model card: `model_card.json` for programs, and `README.md` with the front matter that model hubs read."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from instcls_tf.config import DIET
from instcls_tf.export.self_check import CARD_NAME, COSINE_DISTANCE, RELATIVE_ERROR
from instcls_tf.export.subject import Subject

_TITLE = "Features learned by telling images apart"
_LIBRARIES = {
    "saved_model": "tf-keras",
    "onnx": "onnx",
    "onnx_int8": "onnx",
    "litert": "litert",
    "torchvision": "timm",
    "detectron2": "detectron2",
}
_NETWORK = ("encoder", "width_multiplier", "stem")


def card_of(
    subject: Subject, format_name: str, any_size: bool, architecture: str = "", least_cosine: float | None = None
) -> dict[str, Any]:
    """What the card of an export tells, before it is verified.

    Args:
      subject: what is exported.
      format_name: a word of `--format`.
      any_size: whether the export prepares images itself.
      architecture: torchvision's name of the network, where it has one.
      least_cosine: of a format that rounds weights: the cosine with the encoder's outputs that is good enough.
    """
    return {
        "format": format_name,
        # Not by an import: the face of the package names every room, this one as well.
        "made_by": f"instcls_tf {sys.modules['instcls_tf'].__version__}",
        "architecture": architecture,
        "feature_size": int(subject.encoder.get_layer("backbone").output_shape[-1]),
        "projection_size": int(subject.encoder.output_shape[-1]),
        "input": subject.input_facts(any_size),
        "origin": subject.origin,
        "metric": RELATIVE_ERROR if least_cosine is None else COSINE_DISTANCE,
        "tolerance": subject.tolerance if least_cosine is None else round(1 - least_cosine, 6),
        "self_check": subject.self_check(any_size),
    }


def write(folder: str, card: dict[str, Any], use: str, place: str = "") -> None:
    """Writes both files of the card.

    Args:
      folder: the export.
      card: see `card_of`.
      use: how the export is used: Markdown.
      place: folder below `folder` of the JSON file.
    """
    os.makedirs(os.path.join(folder, place), exist_ok=True)
    with open(os.path.join(folder, place, CARD_NAME), "w", encoding="utf-8") as file:
        json.dump(card, file, indent=1)
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as file:
        file.write(f"{_front_matter(card)}\n# {_TITLE}\n\n{_facts(card)}\n\n## Use\n\n{use.strip()}\n")


def _front_matter(card: dict[str, Any]) -> str:
    """YAML; strings are written as JSON, which is YAML."""
    lines = [
        "---",
        f"library_name: {_LIBRARIES[card['format']]}",
        "pipeline_tag: image-feature-extraction",
        "tags: [self-supervised-learning, instance-classification]",
    ]
    knn = card["origin"].get("knn")
    if knn:
        lines += [
            "model-index:",
            f"- name: {json.dumps(card['architecture'] or 'encoder')}",
            "  results:",
            "  - task: {type: image-classification}",
            f"    dataset: {{name: {json.dumps(knn['dataset'])}, type: {json.dumps(knn['dataset'])}}}",
            f"    metrics: [{{type: accuracy, name: {knn['num_neighbors']}-NN, value: {knn['top1']}}}]",
        ]
    return "\n".join([*lines, "---"])


def _facts(card: dict[str, Any]) -> str:
    about, origin = card["input"], card["origin"]
    recipe = origin.get("recipe", {})
    facts = {
        "method": "[Train a One-Million-Way Instance Classifier](https://arxiv.org/abs/2102.04848)"
        if recipe.get("method", "instance") == "instance"
        else recipe["method"],
        "network": ", ".join(f"{name} {recipe[name]}" for name in _NETWORK if name in recipe) or card["architecture"],
        "features": f"float32, {card['feature_size']} of the backbone",
        "projection": "untrained: the method leaves it as it was drawn, use the features"
        if recipe.get("method") == DIET
        else f"float32, {card['projection_size']} of the head",
        "input": f"{about['pixels']}; seen at {about['size'][0]} x {about['size'][1]} pixels, the centred square of"
        f" {about['center_crop_fraction']} of the shorter side, resize {about['resize']}",
        "data": f"{recipe.get('dataset', 'unknown')} (digest {origin.get('data_digest') or 'unknown'})",
        "steps": origin.get("step", "unknown"),
        "k-NN": _knn_text(origin.get("knn")),
        "read back": f"in {card['verified_in']}: largest {card['metric']} {card['max_error']:.1e}"
        if "verified_in" in card
        else "not yet",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    flags = " ".join(f"--{name}={value}" for name, value in recipe.items())
    return f"| | |\n|---|---|\n{rows}" + (f"\n\nRecipe: `{flags}`" if flags else "")


def _knn_text(knn: dict[str, Any] | None) -> str:
    if not knn:
        return "not measured"
    where = f"{knn['num_neighbors']}-NN on {knn['examples']} images of {knn['dataset']}, {knn['features']}"
    return f"{knn['top1']:.1%} ({where})"
