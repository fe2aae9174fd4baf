"""Flags from a dataclass and back."""

from __future__ import annotations

import dataclasses

import pytest
from absl import flags as absl_flags

from flags import from_dataclass


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int = 3
    rate: float = 0.5
    plain: bool = True
    stem: str = "small"
    limit: int | None = None
    folder: str | None = None
    rates: tuple[float, ...] = (0.1, 30.0)


DESCRIPTIONS = {field.name: f"The {field.name}." for field in dataclasses.fields(Settings)}


@pytest.fixture
def values() -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    from_dataclass.define(
        Settings, DESCRIPTIONS, choices={"stem": ("small", "big")}, path_names=("folder",), flag_values=values
    )
    return values


def test_defaults_and_descriptions(values):
    values(["command"])
    assert from_dataclass.read(Settings, flag_values=values, rates=(0.1, 30.0)) == Settings()
    assert values["rates"].value == "0.1,30"
    assert values["stem"].help == "The stem. One of: small, big."
    assert values["rate"].help == "The rate."


def test_every_type_is_read(values, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["--steps=5", "--rate=2", "--noplain", "--stem=big", "--limit=7", "--folder=~/x", "--rates=1,2"]
    values(["command", *given])
    settings = from_dataclass.read(Settings, flag_values=values)
    assert settings == Settings(5, 2.0, False, "big", 7, "/home/me/x", "1,2")


@pytest.mark.parametrize("word", ["--steps=x", "--rate=x", "--plain=x", "--limit=x"])
def test_other_types_are_refused(values, word):
    with pytest.raises(absl_flags.IllegalFlagValueError):
        values(["command", word])


def test_two_dataclasses_share_a_flag():
    @dataclasses.dataclass(frozen=True)
    class Other:
        steps: int = 9
        seed: int = 1

    values = absl_flags.FlagValues()
    from_dataclass.define(Settings, DESCRIPTIONS, only=("steps",), flag_values=values)
    from_dataclass.define(Other, {"seed": "The seed."}, flag_values=values)
    values(["command", "--seed=2"])
    assert from_dataclass.read(Other, flag_values=values) == Other(steps=3, seed=2)
    assert from_dataclass.read(Settings, flag_values=values) == Settings()
