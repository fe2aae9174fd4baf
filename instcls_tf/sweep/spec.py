"""The specification of a sweep: what is tried, for how long, and on what it is judged."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any, Callable, NamedTuple

from instcls_tf.checks import require_path_for_tensorflow
from instcls_tf.config import CACHE_IN_MEMORY, PretrainConfig
from instcls_tf.distributed import cores
from instcls_tf.errors import UserError
from instcls_tf.sweep.beside import begun_side_by_side
from instcls_tf.sweep.draws import ArmTable, flags_of_settings
from instcls_tf.sweep.spec_table import SpecTable, is_number, is_seeds, is_whole, read_spec_file

ConfigOf = Callable[[list[str]], PretrainConfig]

# What the sweep gives to each trial.
_OF_THE_SWEEP = {
    "workdir": "each trial has a folder of its own",
    "seed": "give seeds",
    "epochs": "give minutes or epochs for all trials",
    "extend_epochs": "give minutes or epochs for all trials",
    "exposures": "give minutes or epochs for all trials",
    "max_steps": "give minutes or epochs for all trials",
}
# What says which images are looked at: the same for all arms.
_OF_ALL_ARMS = ("dataset", "data_dir", "tfds_split")
_LONG = 10**6  # epochs, until it is known how many fit into the minutes


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an arm tries: `flags` are those that the specification gives to the arm, for people; `config` is all."""

    arm: str
    flags: dict[str, Any]
    config: PretrainConfig


class _Base(NamedTuple):
    """What all arms have in common: the flags, and the recipe that they make by themselves."""

    flags: dict[str, Any]
    config: PretrainConfig


@dataclasses.dataclass(frozen=True)
class Spec:
    """A specification that was checked. `arms` are the settings by the names of the arms, in their order."""

    path: str
    workdir: str
    minutes: float | None
    epochs: int | None
    cores: int
    side_by_side: int
    seeds: tuple[int, ...]
    search_seeds: tuple[int, ...]
    validation: float
    seed: int
    measurements: int
    arms: dict[str, tuple[Setting, ...]]


def read_spec(path: str, config_of: ConfigOf) -> Spec:
    """Reads and checks a specification.

    Args:
      path: of the file, see `docs/sweeps.md`.
      config_of: from words of a command line of `pretrain` to the recipe; raises UserError.

    Raises:
      UserError: one sentence naming the file, the key and what is wanted.
    """
    table = read_spec_file(path)
    sizes = _sizes(table)
    base = _base(table, config_of)
    arms = table.table("arms")
    trials = table.take("trials", "a whole number of at least 1", lambda value: is_whole(value, 1), None)
    may_differ = table.take("unequal_trials", "true or false", lambda value: isinstance(value, bool), False)
    if not arms.items():
        raise table.error("arms", "is missing: wanted a table for each arm, such as [arms.simclr.flags]")
    settings = {}
    for name in arms.items():
        if not re.fullmatch(r"[\w.+-]+", name):
            raise arms.error(name, "must be of letters, digits and _ . + -: folders are named so")
        arm = ArmTable(arms.table(name), trials)
        for part in (arm.flags, arm.grid, arm.random):
            _refuse(part, {**_OF_THE_SWEEP, **dict.fromkeys(_OF_ALL_ARMS, "give it in base, it is the same for all")})
        flags = flags_of_settings(arm, sizes["seed"])
        settings[name] = tuple(_setting(arms, name, base, chosen, sizes, config_of) for chosen in flags)
    table.refuse_unknown()
    _refuse_unequal(table, settings, may_differ)
    if any(setting.config.cache not in (None, "", CACHE_IN_MEMORY) for arm in settings.values() for setting in arm):
        raise table.error("base", f"cache must be {CACHE_IN_MEMORY}, or left out: trials would make one file at a time")
    return Spec(path=path, arms=settings, **sizes)


def _sizes(table: SpecTable) -> dict[str, Any]:
    def whole(key: str, default: int | None, least: int = 1) -> Any:
        return table.take(key, f"a whole number of at least {least}", lambda value: is_whole(value, least), default)

    def is_path(value: Any) -> bool:
        return isinstance(value, str) and value != ""

    workdir = os.path.expanduser(table.take("workdir", "the path of a folder", is_path, ""))
    if not workdir:
        raise table.error("workdir", "is missing: wanted the folder that receives the sweep")
    try:
        require_path_for_tensorflow("workdir", workdir)
    except UserError as error:
        raise table.error("workdir", str(error)) from error
    wanted = "a number of minutes above 0"
    minutes = table.take("minutes", wanted, lambda value: is_number(value) and value > 0, None)
    epochs = whole("epochs", None)
    if (minutes is None) == (epochs is None):
        raise table.error("minutes", "wanted either minutes, the same for each trial, or epochs")
    seeds = table.take("seeds", "a list of different whole numbers", is_seeds, [0])
    search_seeds = table.take("search_seeds", "a list of different whole numbers", is_seeds, seeds[:1])
    of_trial = whole("cores", 1)
    beside = begun_side_by_side(workdir, of_trial) or max(1, cores.allowed() // of_trial)
    slice_of = "a fraction above 0 and below 1"
    return {
        "workdir": workdir,
        "minutes": minutes,
        "epochs": epochs,
        "cores": of_trial,
        "side_by_side": whole("side_by_side", beside),
        "seeds": tuple(seeds),
        "search_seeds": tuple(search_seeds),
        "validation": table.take("validation", slice_of, lambda value: is_number(value) and 0 < value < 1, 0.1),
        "seed": whole("seed", 0, 0),
        "measurements": whole("measurements", 0, 0),
    }


def _base(table: SpecTable, config_of: ConfigOf) -> _Base:
    base = table.table("base")
    _refuse(base, _OF_THE_SWEEP)
    try:
        return _Base(base.items(), config_of(_words(table, "base", base.items())))
    except UserError as error:
        raise table.error("base", str(error)) from error


def _setting(
    arms: SpecTable, arm: str, base: _Base, flags: dict[str, Any], sizes: dict[str, Any], config_of: ConfigOf
) -> Setting:
    words = [*_words(arms, arm, base.flags), *_words(arms, arm, flags)]
    try:
        config = _on_images_of(base, config_of(words))
        length = {"epochs": sizes["epochs"] or _LONG, "extend_epochs": 0, "exposures": 0, "max_steps": None}
        config = config.replace(workdir=sizes["workdir"], seed=0, **length)
        config.validate()
    except UserError as error:
        raise arms.error(arm, str(error)) from error
    return Setting(arm, flags, config)


def _on_images_of(base: _Base, config: PretrainConfig) -> PretrainConfig:
    """An arm's recipe on the images of base: those that it names hold for all, whatever a flagfile of an arm says.

    Raises:
      UserError: it names none, and a flagfile of the arm names other images than its own.
    """
    images = {name: getattr(base.config, name) for name in _OF_ALL_ARMS}
    if "dataset" in base.flags:
        return config.replace(**images)
    for name, value in images.items():
        if getattr(config, name) != value:
            raise UserError(
                f"--{name}={getattr(config, name)}: is of the arm's flagfile, and arms are compared on the same"
                f" images: give dataset in base"
            )
    return config


def _words(arms: SpecTable, where: str, flags: dict[str, Any]) -> list[str]:
    """A flagfile comes first, so that flags beside it go before what it says."""
    words = []
    for name in sorted(flags, key=lambda name: name != "flagfile"):
        value = flags[name]
        if not isinstance(value, (str, bool, int, float)):
            raise arms.error(f"{where}.{name}", "must be a word, a number, true or false")
        words.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return words


def _refuse(table: SpecTable, reasons: dict[str, str]) -> None:
    for name in table.items():
        if name in reasons:
            raise table.error(name, f"no flag of an arm or of base: {reasons[name]}")


def _refuse_unequal(table: SpecTable, arms: dict[str, tuple[Setting, ...]], may_differ: bool) -> None:
    counts = {name: len(settings) for name, settings in arms.items()}
    first = next(iter(counts))
    for name, count in counts.items():
        if count != counts[first] and not may_differ:
            raise table.error(
                f"arms.{name}",
                f"has {count} setting(s) and {first} has {counts[first]}: wanted as many for each arm, or"
                f" unequal_trials = true",
            )
