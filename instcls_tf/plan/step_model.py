"""Seconds of a training step on T workers, term by term: a model of few numbers, each of which can be measured.

Work is what a worker's share takes at rates that do not depend on T. Messages are those of `planner.make_plan`, whose
bytes a worker sends in a ring; each costs `latency + bytes / bandwidth`, the latency of two workers for each doubling
of T. What the model leaves out: reading images, waiting for the slowest of T workers, labels, and whatever a crowded
network does.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from instcls_tf.classifier.shift import needs_shift
from instcls_tf.classifier.tiles import FLOAT_BYTES
from instcls_tf.config import PretrainConfig
from instcls_tf.distributed import partition
from instcls_tf.plan import planner

ENCODER, CLASSIFIER, SEARCH = "encoder", "classifier", "search for hard negatives"
CLASSIFIER_MESSAGES, ENCODER_MESSAGES = "messages of the classifier", "messages of the encoder"
TERMS = (ENCODER, CLASSIFIER, SEARCH, CLASSIFIER_MESSAGES, ENCODER_MESSAGES)

# Multiplications and additions of a row and a class in each matrix product of D columns.
_OPERATIONS = 2
# Matrix products of a step: logits twice and both gradients, and at small temperatures logits once more, for their
# maxima; plain data parallelism keeps its logits.
_PRODUCTS, _PLAIN_PRODUCTS = 4, 3
# Of the encoder's time, what passes after the first gradients are there.
_BACKWARD_SHARE = 2 / 3
# What a worker's rates of work are those of: the flag of the rate -> the settings.
RATES_OF = {
    "images_per_second": ("encoder", "stem", "width_multiplier", "image_size", "views", "precision"),
    "gigaflops": ("class_products_dtype",),
}
_OF_THE_ENCODER = ("encoder gradients", "BN statistics")


class Rates(NamedTuple):
    """What a worker and the network between workers do."""

    images_per_second: float  # of a worker: instances whose views are encoded forward and backward, update included
    products_per_second: float  # of a worker: multiplications and additions in the classifier's products
    latency_seconds: float  # of a message between two workers
    sum_bytes_per_second: float  # that a worker sends in sums
    gather_bytes_per_second: float  # that a worker sends in gathers


class Setting(NamedTuple):
    """Where a step is made."""

    one_machine: bool = False  # the workers share the cores that the rates are those of, and nothing overlaps
    overlap: bool = True  # gradients travel while the backward pass goes on


class Step(NamedTuple):
    """Seconds of a step."""

    terms: dict[str, float]
    hidden: float  # of the messages, what passes during the backward pass

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(self.terms.values()) - self.hidden

    @property
    def largest(self) -> str:
        """The term that takes most of what is left when messages are hidden, which are the encoder's first."""
        shown = dict(self.terms)
        left = self.hidden
        for name in (ENCODER_MESSAGES, CLASSIFIER_MESSAGES):
            hidden = min(left, shown[name])
            shown[name], left = shown[name] - hidden, left - hidden
        return max(shown, key=lambda name: shown[name])


def classifier_operations(config: PretrainConfig, num_instances: int, num_workers: int) -> int:
    """Multiplications and additions in the products of the fullest worker's classes, of a step; as `step` has it."""
    _, classes = partition.bounds(config.sampled_classes or num_instances, num_workers, 0)
    rows = planner.batch_of(config, num_instances, num_workers).rows
    products = _PRODUCTS + needs_shift(config.temperature)
    return products * _OPERATIONS * rows * classes * config.embedding_size


def share_of(config: PretrainConfig, num_instances: int, num_workers: int) -> dict[str, Any]:
    """The work of the fullest worker in a step: `local_images`, `classifier_operations`, and the `recipe` of both."""
    return {
        "recipe": {name: getattr(config, name) for names in RATES_OF.values() for name in names},
        "local_images": planner.batch_of(config, num_instances, num_workers).local_instances,
        "classifier_operations": classifier_operations(config, num_instances, num_workers),
    }


def step(config: PretrainConfig, num_instances: int, num_workers: int, rates: Rates, setting: Setting) -> Step:
    """A step of this design.

    Args:
      config: the recipe.
      num_instances: N.
      num_workers: T.
      rates: of a worker, or of the machine that all of them share.
      setting: where.
    """
    rates = _of_a_worker(rates, num_workers, setting)
    steps = partition.steps_per_epoch(num_instances, config.batch_size)
    _, queries = partition.bounds(num_instances, num_workers, 0)
    plan = planner.make_plan(config, num_instances, num_workers)
    messages = {name: _message(name, sent, num_workers, rates) for name, sent in plan.wire_step.items()}
    search = 0.0
    if config.smoothing:
        products = _OPERATIONS * num_instances * queries * config.embedding_size / rates.products_per_second
        gathered = plan.wire_epoch["hard negatives: class weights"] / rates.gather_bytes_per_second
        search = (products + gathered) / steps
    of_encoder = sum(messages[name] for name in _OF_THE_ENCODER)
    batch = planner.batch_of(config, num_instances, num_workers)
    encoder = batch.local_instances / rates.images_per_second
    terms = {
        ENCODER: encoder,
        CLASSIFIER: classifier_operations(config, num_instances, num_workers) / rates.products_per_second,
        SEARCH: search,
        CLASSIFIER_MESSAGES: sum(messages.values()) - of_encoder,
        ENCODER_MESSAGES: of_encoder,
    }
    return Step(terms, _hidden(messages["encoder gradients"], encoder, batch.local_groups, setting))


def plain_step(config: PretrainConfig, num_instances: int, num_workers: int, rates: Rates, setting: Setting) -> Step:
    """A step of plain data parallelism, which sums the gradient of all class weights; arguments as in `step`.

    Without smoothing, and without what reading and writing all logits and class weights takes.
    """
    rates = _of_a_worker(rates, num_workers, setting)
    batch = planner.batch_of(config, num_instances, num_workers)
    operations = _OPERATIONS * batch.local_instances * config.views * num_instances * config.embedding_size
    plan = planner.make_plan(config, num_instances, num_workers)
    messages = {name: _message(name, plan.wire_step[name], num_workers, rates) for name in _OF_THE_ENCODER}
    weights = planner.reduce_bytes(num_instances * config.embedding_size * FLOAT_BYTES, num_workers)
    of_classifier = _message("gradient of class weights", weights, num_workers, rates)
    encoder = batch.local_instances / rates.images_per_second
    terms = {
        ENCODER: encoder,
        CLASSIFIER: _PLAIN_PRODUCTS * operations / rates.products_per_second,
        SEARCH: 0.0,
        CLASSIFIER_MESSAGES: of_classifier,
        ENCODER_MESSAGES: sum(messages.values()),
    }
    gradients = messages["encoder gradients"] + of_classifier
    return Step(terms, _hidden(gradients, encoder, batch.local_groups, setting))


def _of_a_worker(rates: Rates, num_workers: int, setting: Setting) -> Rates:
    if not setting.one_machine:
        return rates
    return rates._replace(
        images_per_second=rates.images_per_second / num_workers,
        products_per_second=rates.products_per_second / num_workers,
    )


def _message(name: str, sent: int, num_workers: int, rates: Rates) -> float:
    if num_workers == 1:
        return 0.0
    is_gathered = name in planner.GATHERED
    bandwidth = rates.gather_bytes_per_second if is_gathered else rates.sum_bytes_per_second
    return rates.latency_seconds * math.log2(num_workers) + sent / bandwidth


def _hidden(seconds: float, encoder: float, local_groups: int, setting: Setting) -> float:
    """Of these messages, what passes during the backward pass: that of the last BN group, which completes gradients."""
    if setting.one_machine or not setting.overlap:
        return 0.0
    return min(seconds, _BACKWARD_SHARE * encoder / local_groups)
