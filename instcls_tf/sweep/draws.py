"""The settings of an arm: its fixed flags with each point of a grid, or with random draws from ranges."""

from __future__ import annotations

import itertools
import math
import zlib
from typing import Any

import numpy as np

from instcls_tf.sweep.spec_table import SpecTable, is_number, is_whole

LOG_UNIFORM, UNIFORM, CHOICE = KINDS = ("log_uniform", "uniform", "choice")


class ArmTable:
    """The parts of an arm, checked.

    Args:
      table: of the arm.
      trials: how many random draws an arm has that does not say it.

    Raises:
      UserError: names the file and the key.
    """

    def __init__(self, table: SpecTable, trials: int | None):
        self.flags, self.grid, self.random = (table.table(name) for name in ("flags", "grid", "random"))
        self.trials = table.take("trials", "a whole number of at least 1", lambda value: is_whole(value, 1), trials)
        table.refuse_unknown()
        if self.grid.items() and self.random.items():
            raise table.error("random", "beside a grid: wanted one of the two")
        for name, values in self.grid.items().items():
            self.grid.take(name, "a list of at least one value", _is_list, [])
            if len({repr(value) for value in values}) < len(values):
                raise self.grid.error(name, "has a value twice")
        for name, of_flag in self.random.items().items():
            _check_range(self.random, name, of_flag)
        if self.random.items() and self.trials is None:
            raise table.error("trials", "is missing: wanted the number of random draws, here or for all arms")
        for part in (self.grid, self.random):
            for name in part.items():
                if name in self.flags.items():
                    raise part.error(name, "is among the fixed flags, too")


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0


def _check_range(table: SpecTable, name: str, of_flag: Any) -> None:
    wanted = f"one of {', '.join(f'{{ {kind} = [...] }}' for kind in KINDS)}"
    table.take(name, wanted, lambda value: isinstance(value, dict) and len(value) == 1 and set(value) <= set(KINDS), {})
    ((kind, values),) = of_flag.items()
    if kind == CHOICE:
        table.take(name, "a choice of at least one value", lambda _: _is_list(values), {})
        return
    fits = isinstance(values, list) and len(values) == 2 and all(map(is_number, values)) and values[0] < values[1]
    above = " above 0" if kind == LOG_UNIFORM else ""
    fits = fits and (kind == UNIFORM or values[0] > 0)
    table.take(name, f"{kind} between two numbers{above}, the smaller first", lambda _: fits, {})


def flags_of_settings(arm: ArmTable, seed: int) -> list[dict[str, Any]]:
    """The flags of each setting of an arm, the fixed ones first.

    A draw depends on the seed, its number and the name of the flag alone: arms that share a range share its draws, and
    more trials begin with the same ones.
    """
    fixed, grid, ranges = arm.flags.items(), arm.grid.items(), arm.random.items()
    if ranges:
        draws = range(arm.trials or 0)
        return [{**fixed, **{name: _draw(ranges[name], seed, draw, name) for name in ranges}} for draw in draws]
    return [{**fixed, **dict(zip(grid, point))} for point in itertools.product(*grid.values())]


def _draw(of_flag: dict[str, list], seed: int, draw: int, name: str) -> Any:
    ((kind, values),) = of_flag.items()
    random = np.random.default_rng([seed, draw, zlib.crc32(name.encode())])
    if kind == CHOICE:
        return values[random.integers(len(values))]
    low, high = values
    if kind == LOG_UNIFORM:
        drawn = math.exp(random.uniform(math.log(low), math.log(high)))
    else:
        drawn = random.uniform(low, high)
    return float(f"{drawn:.4g}")  # what people can type again
