"""How long a run will take here: a few of its real steps, timed, and some of smaller ones. TensorFlow comes late."""

from __future__ import annotations

from typing import NamedTuple

from instcls_tf.config import RANDOM, RAW_RUNNING_BN, PretrainConfig
from instcls_tf.data.source import Source
from instcls_tf.progress import in_words

# Of the seconds, for the recipe itself; the rest is for what would be faster.
_SHARE = 0.5
_NARROWEST = 16  # channels of the first layer
_SMALLER, _MULTIPLE, _SMALLEST = 2 / 3, 8, 16  # image sizes


class Hours(NamedTuple):
    """Seconds of a run by its parts; `change` is the flag that makes it a smaller one, empty for the recipe itself."""

    change: str
    images_per_second: float
    cache_seconds: float  # until it is filled
    prior_seconds: float
    training_seconds: float
    search_seconds: float  # for hard negatives, at best

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.cache_seconds + self.prior_seconds + self.training_seconds + self.search_seconds


def measure_hours(config: PretrainConfig, num_instances: int, source: Source, seconds: float) -> list[Hours]:
    """Measures the recipe, and what a narrower network and smaller views would take.

    Args:
      config: the recipe.
      num_instances: N.
      source: images to measure with, at most N.
      seconds: of timed steps, all recipes together.

    Returns:
      Of the recipe first.
    """
    smaller = _smaller(config)
    share = (1.0 - _SHARE) / max(1, len(smaller))
    return [
        _hours(change, recipe, num_instances, source, part * seconds)
        for change, recipe, part in [("", config, _SHARE), *((*pair, share) for pair in smaller.items())]
    ]


def _smaller(config: PretrainConfig) -> dict[str, PretrainConfig]:
    """Recipes that take less time, by the flag that makes them."""
    found = {}
    width, side = config.width_multiplier / 2, round(_SMALLER * config.image_size / _MULTIPLE) * _MULTIPLE
    if round(64 * width) >= _NARROWEST:
        found[f"--width_multiplier={width:g}"] = config.replace(width_multiplier=width)
    if _SMALLEST <= side < config.image_size:
        found[f"--image_size={side}"] = config.replace(image_size=side)
    return found


def _hours(change: str, config: PretrainConfig, num_instances: int, source: Source, seconds: float) -> Hours:
    from instcls_tf.pretraining.pace import measure_pace, search_seconds, with_sample_cached

    filling = 0.0
    if config.cache:
        source, filling = with_sample_cached(config, source)
    pace = measure_pace(config, num_instances, source, seconds)
    epochs = config.for_instances(num_instances).all_epochs
    passes = 0 if config.classifier_init == RANDOM else 1
    passes += config.bn_burn_in if config.classifier_init == RAW_RUNNING_BN else 0
    return Hours(
        change,
        pace.training,
        filling * num_instances,
        passes * num_instances / pace.passes,
        epochs * num_instances / pace.training,
        epochs * search_seconds(config, num_instances) if config.smoothing else 0.0,
    )


def text_of(found: list[Hours], seconds: float) -> str:
    """For people: a line for each recipe."""
    lines = [f"Measured here, in one process, with {seconds:g} s of training steps: images/s, and the whole run"]
    for hours in found:
        before = (("cache", hours.cache_seconds), ("prior", hours.prior_seconds))
        parts = [*(part for part in before if part[1]), ("training", hours.training_seconds)]
        parts += [("searches for hard negatives, at best", hours.search_seconds)] if hours.search_seconds >= 1 else []
        told = ", ".join(f"{name} {in_words(taken)}" for name, taken in parts)
        name = hours.change or "these flags"
        lines.append(f"  {name:32}{hours.images_per_second:14.1f}  {in_words(hours.seconds)} ({told})")
    return "\n".join(lines)


def result_of(found: list[Hours]) -> list[dict]:
    """For programs: seconds."""
    return [{**hours._asdict(), "seconds": hours.seconds} for hours in found]
