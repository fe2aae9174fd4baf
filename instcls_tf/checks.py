"""Limits of settings: what is out of range is answered in one way, naming the flag, its value and what is wanted."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
import re
import unicodedata
from collections.abc import Collection
from typing import Any, Callable

from instcls_tf.errors import UserError, shown

_PATTERN = "[]*?\\"
BACKGROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}


def require_value(name: str, value: object, holds: bool, wanted: str) -> None:
    """Refuses the value of a flag.

    Args:
      name: of the flag.
      value: what was given.
      holds: whether the value is fit.
      wanted: ends the sentence "must be ...".

    Raises:
      UserError: the value is not fit.
    """
    if not holds:
        raise UserError(f"--{name}={shown(value)}: must be {wanted}")


def require_argument(name: str, value: object, holds: bool, wanted: str) -> None:
    """`require_value` for an argument of a function that users call from Python, named as they have written it."""
    if not holds:
        raise UserError(f"{name}={value!r}: must be {wanted}")


def require(settings: object, name: str, holds: bool, wanted: str) -> None:
    """Refuses a setting that is named as its flag is; see `require_value`."""
    require_value(name, getattr(settings, name), holds, wanted)


def as_flag_gives_it(value: Any, kind: str) -> Any:
    """A number of the type that its flag gives: recipes are compared and kept as text, where 10 is not 10.0.

    Args:
      value: of a setting; what is no such number is returned as it is.
      kind: the annotation of the setting.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    if kind.startswith("float"):
        return float(value)
    return int(value) if kind.startswith("int") and value == value // 1 else value


def require_numbers(settings: Any) -> None:
    """Refuses what is no number where a setting is one, and fractions where it is a whole one."""
    for field in dataclasses.fields(settings):
        value, (kind, _, optional) = getattr(settings, field.name), str(field.type).partition(" | ")
        if kind in ("int", "float") and not (optional and value is None):
            is_number = isinstance(value, int if kind == "int" else float) and not isinstance(value, bool)
            require(settings, field.name, is_number, "a whole number" if kind == "int" else "a number")


def require_one_of(settings: object, name: str, choices: tuple[str, ...]) -> None:
    """Refuses a setting that is none of a few words; see `require_value`."""
    require(settings, name, getattr(settings, name) in choices, "one of " + ", ".join(choices))


def refuse_int8_on_gpu(settings: object, otherwise: str = "") -> None:
    """Refuses what TensorFlow has no operations for on a GPU: to write rows of class weights or momentum in int8.

    Args:
      settings: with both numbers' types.
      otherwise: the flag that names a CPU, if there is one.

    Raises:
      UserError: the setting of one of the two.
    """
    instead = f" (a CPU is {otherwise})" if otherwise else ""
    for name in ("class_weights_dtype", "class_momentum_dtype"):
        wanted = f"float32 or bfloat16 on a GPU, where rows of int8 cannot be written{instead}"
        require(settings, name, getattr(settings, name) != "int8", wanted)


def is_finite(settings: object, name: str) -> bool:
    """Whether a setting is a number, neither infinite nor NaN."""
    return math.isfinite(getattr(settings, name))


def require_above_zero(settings: object, *names: str) -> None:
    """Refuses settings that are 0, below, infinite or NaN; see `require_value`."""
    for name in names:
        require(settings, name, is_finite(settings, name) and getattr(settings, name) > 0, "a number above 0")


def require_zero_or_more(settings: object, *names: str) -> None:
    """Refuses settings that are below 0, infinite or NaN; None is let through. See `require_value`."""
    for name in names:
        fits = getattr(settings, name) is None or (is_finite(settings, name) and getattr(settings, name) >= 0)
        require(settings, name, fits, "0 or more")


def require_zero_to_below_one(settings: object, *names: str) -> None:
    """Refuses settings outside of [0, 1), as momentum factors; None is let through. See `require_value`."""
    for name in names:
        fits = getattr(settings, name) is None or 0 <= getattr(settings, name) < 1
        require(settings, name, fits, "0 or more and below 1")


def check_seed(settings: object) -> None:
    """Refuses a `seed` that TensorFlow does not take as int32; see `require_value`."""
    require(settings, "seed", 0 <= getattr(settings, "seed") < 2**31, "0 or more and below 2147483648")  # noqa: B009


def refuse_workers_without_group(settings: Any, num_workers: int) -> None:
    """Refuses a `micro_batch` of which a batch has fewer than there are workers; see `require_value`."""
    if num_workers > 1:
        largest = -(-settings.batch_size // (num_workers - 1)) - 1
        why = f"for each of the {num_workers} workers to have a BN group of --batch_size={settings.batch_size}"
        wanted = f"at most {largest}, {why}, or at most {settings.groups_per_batch} workers"
        require(settings, "micro_batch", settings.micro_batch <= largest, wanted)


def check_sampled_classes(settings: Any) -> None:
    """Refuses `sampled_classes` together with what cannot be computed from a sample.

    Raises:
      UserError: names both settings.
    """
    if settings.sampled_classes and settings.smoothing:
        raise UserError(
            f"--sampled_classes={settings.sampled_classes} works without smoothing only (a hard negative need not be in"
            f" the sample): add --smoothing=0"
        )
    if settings.sampled_classes:  # of which a worker has another number in each step, and XLA compiles for each
        require(settings, "class_passes", settings.class_passes != "xla", "auto or operations with --sampled_classes")


def refuse_given(settings: Any, names: tuple[str, ...], why: str) -> None:
    """Refuses settings, fields of a dataclass, that are not their defaults.

    Raises:
      UserError: names the first one and its value, says why, and how to do without a flagfile's.
    """
    for field in dataclasses.fields(settings):
        if field.name in names and getattr(settings, field.name) != field.default:
            default = f"{field.default:g}" if isinstance(field.default, float) else field.default
            instead = "" if default is None else f", or add --{field.name}={default} after a flagfile that has it"
            raise UserError(f"--{field.name}={getattr(settings, field.name)}: {why}: leave it out{instead}")


def refuse_without_effect(settings: Any, begins: bool) -> None:
    """Refuses settings of a `PretrainConfig` that another one leaves without any effect.

    Args:
      settings: the recipe.
      begins: whether it is a run's first start; a run that began with such settings goes on.

    Raises:
      UserError: names both settings.
    """
    why = "takes the contrastive prior again, but --classifier_init=random has none"
    refuse_given(settings, ("prior_every",) if settings.classifier_init == "random" else (), why)
    if not begins:
        return
    if _is_no_tfds(settings):
        refuse_given(settings, ("tfds_split",), _of_tfds(settings))
    if settings.method == "diet" and settings.diet_optimizer == "adamw":
        refuse_given(settings, ("class_momentum",), "is of --diet_optimizer=sgd, adamw has averages of its own")
    if settings.pic_window == 0:
        refuse_given(settings, ("pic_stride",), "is of a window that slides, --pic_window=0 has none")


def _is_no_tfds(settings: Any) -> bool:
    return settings.dataset == "digits" or settings.dataset.startswith(("folder:", "records:"))


def _of_tfds(settings: Any) -> str:
    return f"is of TFDS datasets, --dataset={shown(settings.dataset)} is none"


def without_effect(settings: Any) -> dict[str, str]:
    """Which settings of a `PretrainConfig` another one leaves without any effect, and why, beside those refused above.

    A preset may have them all the same: what another flag chooses there is not what it was made for.
    """
    idle: dict[str, str] = {}
    if settings.augmentation != "simclr":
        why = f"is of --augmentation=simclr, --augmentation={settings.augmentation} has nothing of the kind"
        idle |= dict.fromkeys(("crop_min_area", "color_strength", "blur_probability"), why)
    if not settings.smoothing:
        idle["smoothing_loss"] = "is of smoothing, --smoothing=0 has none"
    if not settings.batch_contrast and not settings.contrast_epochs:
        idle["batch_contrast_temperature"] = (
            "is of NT-Xent, without --batch_contrast or --contrast_epochs there is none"
        )
    if _is_no_tfds(settings):
        idle["data_dir"] = _of_tfds(settings)
    return idle


def refuse_idle(settings: Any, given: Collection[str]) -> None:
    """Refuses settings `without_effect` that a run's user has given himself, other than their defaults.

    Args:
      settings: a `PretrainConfig`, of a run that begins.
      given: the names that do not come from a flagfile.

    Raises:
      UserError: names the first one and its value, and says why.
    """
    for name, why in without_effect(settings).items():
        value = getattr(settings, name)
        if name in given and value != getattr(type(settings), name):
            raise UserError(f"--{name}={shown(value)}: {why}: leave it out")


def refuse_beyond_epochs(settings: Any, begins: bool) -> None:
    """Refuses a `contrast_epochs` or `prior_every` after which no epoch comes, the latter when a run begins."""
    wanted = f"below --epochs={settings.epochs}, the instance classification follows"
    require(settings, "contrast_epochs", settings.contrast_epochs < settings.epochs, wanted)
    epochs = settings.all_epochs - settings.contrast_epochs
    fits = settings.prior_every < epochs or not begins
    require(settings, "prior_every", fits, f"below the {epochs} epoch(s) of the classification, or 0 for one prior")


def check_start(settings: Any) -> None:
    """Refuses an `init` or `extend_from` that is the run's own `workdir`, or that another setting would undo.

    Raises:
      UserError: names both settings.
    """
    own, weights, other = os.path.realpath(settings.workdir), settings.init, settings.extend_from
    if weights is not None and own in (os.path.realpath(weights), os.path.dirname(os.path.realpath(weights))):
        raise UserError(f"--init={weights}: is of --workdir itself, wanted weights that lie elsewhere")
    if other is None:
        return
    require_path_for_tensorflow("extend_from", other)
    if weights is not None:
        raise UserError(f"--extend_from={other}: brings its network along, leave --init={weights} out")
    for name in ("contrast_epochs", "prior_every"):
        if getattr(settings, name):
            raise UserError(
                f"--extend_from={other}: takes class weights over, and --{name}={getattr(settings, name)} would take"
                f" them from the network again: leave one of the two out"
            )
    if os.path.realpath(other) == own:
        raise UserError(f"--extend_from={other}: is --workdir itself, wanted another folder for the run that grows")


def numbers_of(name: str, text: str, kind: Callable[[str], Any], wanted: str) -> list[Any]:
    """The value of a flag that lists numbers with commas between.

    Args:
      name: of the flag.
      text: its value.
      kind: makes a number of a part, `int` or `float`.
      wanted: ends the sentence "must be ...".

    Raises:
      UserError: a part is no number, or there is none.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--{name}={shown(text)}: must be {wanted}") from error


def require_path_of_text(name: str, path: str) -> None:
    """Refuses a path that is no plain text: it could not be written into a file of settings, nor given to TensorFlow.

    Args:
      name: of the flag.
      path: its value.

    Raises:
      UserError: the path holds a control character, or bytes that are no UTF-8.
    """
    # To Python, bytes that are no UTF-8 are single halves of surrogate pairs.
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in path):
        raise UserError(f"--{name}={shown(path)}: wanted a path without control characters, in UTF-8")


def require_path_for_tensorflow(name: str, path: str) -> None:
    """Refuses a path that TensorFlow would take for a pattern of several, and then not find what it has saved there.

    Args:
      name: of the flag.
      path: its value.

    Raises:
      UserError: the path is no text, or holds one of these characters.
    """
    require_path_of_text(name, path)
    found = [letter for letter in _PATTERN if letter in path]
    if found:
        raise UserError(
            f"--{name}={path}: holds {' '.join(found)}, which TensorFlow reads as a pattern, wanted a path without any"
            f" of {' '.join(_PATTERN)}"
        )


def background_colour(text: str) -> tuple[int, int, int]:
    """The red, green and blue, 0 to 255, of `--background`: a name, or hexadecimal `#rrggbb`.

    Raises:
      UserError: it is neither.
    """
    if re.fullmatch("#[0-9a-fA-F]{6}", text):
        red, green, blue = bytes.fromhex(text[1:])
        return red, green, blue
    require_value("background", text, text in BACKGROUNDS, f"one of {', '.join(BACKGROUNDS)}, or #rrggbb")
    return BACKGROUNDS[text]
