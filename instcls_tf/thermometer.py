"""What the loss should read, from N, D and tau alone: a loss far from these values is a fault, not a result."""

from __future__ import annotations

import math


def expected_start(num_instances: int, embedding_size: int, temperature: float) -> float:
    """Eq. 1 with Gaussian rows and a random network: cosines of variance 1/D around 0, so ln N + 1 / (2 D tau^2)."""
    return math.log(num_instances) + _half_variance(embedding_size, temperature)


def expected_floor(num_instances: int, embedding_size: int, temperature: float) -> float:
    """About the least that Eq. 1 can reach: own cosine 1, negatives spread evenly over the sphere."""
    log_negatives = math.log(max(1, num_instances - 1)) + _half_variance(embedding_size, temperature)
    return math.log1p(math.exp(min(700.0, log_negatives - 1.0 / temperature)))


def expected_losses(num_instances: int, embedding_size: int, temperature: float) -> dict[str, float]:
    """Both marks, under the names that `metrics.jsonl` gives them."""
    sizes = (num_instances, embedding_size, temperature)
    return {"loss_expected_start": expected_start(*sizes), "loss_floor": expected_floor(*sizes)}


def _half_variance(embedding_size: int, temperature: float) -> float:
    return 1.0 / (2.0 * embedding_size * temperature**2)
