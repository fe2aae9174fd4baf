"""What the loss should read, from N, D and tau alone: a loss far from these values is a fault, not a result."""

from __future__ import annotations

import math

from instcls_tf.config import PretrainConfig

# Smoothing and an unlucky first epoch lie within.
_ABOVE_START, _BELOW_FLOOR = 1.0, 0.1


def expected_start(num_instances: int, embedding_size: int, temperature: float) -> float:
    """Eq. 1 with Gaussian class weights and a random network.

    Cosines have variance 1 / D around 0, so it is ln N + 1 / (2 D tau^2).

    Args:
      num_instances: N.
      embedding_size: D.
      temperature: tau.
    """
    return math.log(num_instances) + _half_variance(embedding_size, temperature)


def expected_floor(num_instances: int, embedding_size: int, temperature: float) -> float:
    """About the least that Eq. 1 can reach: own cosine 1, negatives spread evenly over the sphere.

    Args as for `expected_start`.
    """
    log_negatives = math.log(max(1, num_instances - 1)) + _half_variance(embedding_size, temperature)
    return math.log1p(math.exp(min(700.0, log_negatives - 1.0 / temperature)))


def compared_classes(num_instances: int, sampled_classes: int) -> int:
    """How many classes the softmax of a row runs over: all N, or its own and a sample.

    Args:
      num_instances: N.
      sampled_classes: of the sample; 0 for all.
    """
    return min(num_instances, sampled_classes + 1) if sampled_classes else num_instances


def expected_losses(
    num_instances: int, embedding_size: int, temperature: float, sampled_classes: int = 0
) -> dict[str, float]:
    """Both marks, under the names that `metrics.jsonl` gives them.

    Args as for `expected_start` and `compared_classes`.
    """
    sizes = (compared_classes(num_instances, sampled_classes), embedding_size, temperature)
    return {"loss_expected_start": expected_start(*sizes), "loss_floor": expected_floor(*sizes)}


def unexpected(loss: float, num_instances: int, config: PretrainConfig) -> str:
    """What is odd about the loss after the first epoch of an instance classification, as a sentence; empty if nothing.

    Args:
      loss: the mean of the last steps.
      num_instances: N.
      config: the recipe.
    """
    classes = compared_classes(num_instances, config.sampled_classes)
    sizes = (classes, config.embedding_size, config.temperature)
    start, floor = expected_start(*sizes), expected_floor(*sizes)
    if loss > start + _ABOVE_START:
        return (
            f"warning: after the first epoch the loss is {loss:.2f}, above the {start:.2f} of random class weights: the"
            f" encoder learns nothing; is --learning_rate={config.learning_rate:g} too high, or the warm-up too short?"
        )
    if loss < floor - _BELOW_FLOOR:
        return (
            f"warning: after the first epoch the loss is {loss:.2f}, below the {floor:.2f} that {classes} classes with"
            f" different images can reach: do many images look the same, or do their embeddings collapse?"
        )
    return ""


def _half_variance(embedding_size: int, temperature: float) -> float:
    return 1.0 / (2.0 * embedding_size * temperature**2)
