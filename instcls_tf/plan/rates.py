"""The rates of `step_model.py`, as they are given or as the doctor has measured them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from instcls_tf.checks import require_value
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError, shown
from instcls_tf.plan.step_model import RATES_OF, Rates

_WANTED = "wanted what `python -m scripts.doctor --json` printed"


class GivenRates(NamedTuple):
    """Those of the command line; None for one that is not given."""

    images_per_second: float | None = None
    gigaflops: float | None = None
    latency_seconds: float | None = None
    bandwidth: float | None = None  # GB/s


class Measured(NamedTuple):
    """By the doctor."""

    rates: dict[str, float]
    recipe: Mapping[str, Any]  # the settings that rates of work depend on; empty if no step was measured


def rates_of(
    given: GivenRates, config: PretrainConfig, doctor: str | None, most_workers: int, one_machine: bool = False
) -> Rates:
    """The rates, those that are given before those that the doctor has measured.

    Args:
      given: on the command line.
      config: the recipe that is modelled.
      doctor: a file with the doctor's answer on its last line, or None.
      most_workers: the largest T; a worker alone sends nothing.
      one_machine: whether all workers share one, as those of the doctor have; rates of work are then the machine's.

    Raises:
      UserError: a rate is missing or out of range, or the file is not the doctor's, or of another network.
    """
    for name, value in given._asdict().items():
        if value is not None:
            is_latency = name == "latency_seconds"
            fits = math.isfinite(value) and (value >= 0 if is_latency else value > 0)
            require_value(name, value, fits, "0 or more" if is_latency else "a number above 0")
    found: dict[str, float] = {}
    if doctor:
        found, recipe = read_doctor(doctor, one_machine)
        _refuse_another(recipe, config, given, doctor)
    bandwidth = None if given.bandwidth is None else given.bandwidth * 1e9
    operations = None if given.gigaflops is None else given.gigaflops * 1e9
    told = {
        "images_per_second": (given.images_per_second, "images_per_second"),
        "products_per_second": (operations, "gigaflops"),
        "latency_seconds": (given.latency_seconds, "latency_seconds"),
        "sum_bytes_per_second": (bandwidth, "bandwidth"),
        "gather_bytes_per_second": (bandwidth, "bandwidth"),
    }
    rates: dict[str, float] = {}
    for name, (value, flag) in told.items():
        is_needed = most_workers > 1 or name in ("images_per_second", "products_per_second")
        rate = value if value is not None else found.get(name, None if is_needed else 1.0)
        if rate is None:
            raise UserError(f"--{flag} is missing: {_missing(doctor, flag)}")
        rates[name] = rate
    return Rates(**rates)


def _refuse_another(recipe: Mapping[str, Any], config: PretrainConfig, given: GivenRates, doctor: str) -> None:
    """The doctor's rates of work are those of the step that it was given."""
    for flag, names in RATES_OF.items():
        for name in names if getattr(given, flag) is None else ():
            own = getattr(config, name)
            if recipe.get(name, own) != own:
                raise UserError(
                    f"--doctor={shown(doctor)}: has measured a step of --{name}={recipe[name]}, which is {own} here:"
                    f" let it measure these flags, or give --{flag}"
                )


def _missing(doctor: str | None, flag: str) -> str:
    if doctor is None:
        return "give it, or --doctor=FILE, which has measured it"
    what = "a step" if flag in ("images_per_second", "gigaflops") else "several workers"
    return f"--doctor={shown(doctor)} has not measured {what}"


def read_doctor(path: str, one_machine: bool = False) -> Measured:
    """The rates that an answer of the doctor tells, and of which recipe they are.

    Args:
      path: its standard output, whose last line is the JSON object.
      one_machine: whether rates of work are those of all its workers together.

    Raises:
      UserError: the file cannot be read, or is another one.
    """
    try:
        with open(path, encoding="utf-8") as file:
            last = file.read().strip().splitlines()[-1]
        answer = json.loads(last[last.index("{") : last.rindex("}") + 1])  # launchers mark lines
        figures = {finding["topic"]: finding["figures"] for finding in answer["findings"]}
        workers = answer["workers"]
        together = workers if one_machine else 1
        step = figures.get("step", {})
        of_step = {name: together * rate for name, rate in _of_step(step).items()}
        return Measured({**of_step, **_of_network(figures.get("collectives"), workers)}, {**step.get("recipe", {})})
    except OSError as error:
        raise UserError(f"--doctor={shown(path)}: cannot be read ({error.strerror}), {_WANTED}") from error
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"--doctor={shown(path)}: is no answer of the doctor, {_WANTED}") from error


def _of_step(figures: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    if figures.get("encoder_seconds"):
        found["images_per_second"] = figures["local_images"] / figures["encoder_seconds"]
    if figures.get("classifier_seconds"):
        found["products_per_second"] = figures["classifier_operations"] / figures["classifier_seconds"]
    return found


def _of_network(figures: Mapping[str, Any] | None, workers: int) -> dict[str, float]:
    """What a worker sends per second in a ring, from the bytes of whole results per second; latency by doublings."""
    if figures is None:
        return {}
    share = (workers - 1) / workers
    return {
        "latency_seconds": figures["latency_seconds"] / math.log2(workers),
        "sum_bytes_per_second": 2 * share * figures["sum_bytes_per_second"],
        "gather_bytes_per_second": share * figures["gather_bytes_per_second"],
    }
