"""`docs/claims.yaml`: what the paper reports, and which runs try it at which scale. No TensorFlow."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from instcls_tf import files
from instcls_tf.errors import UserError, shown

# What is measured of every run: 20-NN, and logistic regression on stored features.
KNN, LINEAR = METRICS = ("knn", "linear")


@dataclasses.dataclass(frozen=True)
class Scale:
    """The recipe that all runs of a scale share."""

    name: str
    title: str
    flags: dict[str, Any]
    workers: int | None = None  # None where runs are made here, on one worker each
    seconds_per_epoch: float | None = None  # on so many workers, as the paper reports it


@dataclasses.dataclass(frozen=True)
class Arm:
    """One kind of run of a claim. `flags` by scale; `paper` is what the paper reports, by epochs.

    `stretch` makes its runs so many times as long as the claim says, by scale: where runs of equal passes or equal time
    are compared.
    """

    name: str
    flags: dict[str, dict[str, Any]]
    paper: dict[int, float]
    stretch: dict[str, float] = dataclasses.field(default_factory=dict)

    def epochs(self, scale: str, epochs: int) -> int:
        """The length of its runs where the claim says so many epochs."""
        return max(1, round(epochs * self.stretch.get(scale, 1.0)))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A comparison of runs. `orderings` are pairs of arms, of which the paper has the first above the second.

    `is_whole` is False of a trial with fewer seeds than the claim asks for.
    """

    id: str
    where: str
    says: str
    protocol: str
    arms: dict[str, Arm]
    orderings: tuple[tuple[str, str], ...]
    epochs: dict[str, tuple[int, ...]]
    seeds: dict[str, int]
    is_whole: bool = True

    def tried(self, scale: str, seeds: int | None = None, epochs: int | None = None) -> Claim:
        """The claim with so many seeds, and one length, at a scale that it has: for trials."""
        changes: dict[str, Any] = {}
        if scale in self.epochs and epochs is not None:
            changes["epochs"] = {**self.epochs, scale: (epochs,)}
        if scale in self.seeds and seeds is not None:
            changes["seeds"] = {**self.seeds, scale: seeds}
            changes["is_whole"] = seeds >= self.seeds[scale]
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Minutes:
    """What the picture of accuracy against minutes shows: flags of recipes by their names, at a scale."""

    scale: str
    title: str
    series: dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Ledger:
    """All of it. `elsewhere` are quantities that are no comparison of runs, with the page that has ours,
    and a `note` where that is of something else, or nothing."""

    path: str
    scales: dict[str, Scale]
    claims: dict[str, Claim]
    elsewhere: tuple[dict[str, str], ...]
    minutes: Minutes | None = None

    def chosen(self, claim: str) -> list[Claim]:
        """The claim of that id, or every one for `all`.

        Raises:
          UserError: there is none.
        """
        if claim == "all":
            return list(self.claims.values())
        if claim not in self.claims:
            have = ", ".join(["all", *self.claims])
            raise UserError(f"--claim={shown(claim)}: is not in {shown(self.path)}, wanted one of {have}")
        return [self.claims[claim]]

    def scale(self, name: str) -> Scale:
        """The scale of that name.

        Raises:
          UserError: there is none.
        """
        if name not in self.scales:
            raise UserError(f"--scale={shown(name)}: wanted one of {', '.join(self.scales)}")
        return self.scales[name]


def read_ledger(path: str) -> Ledger:
    """Reads the claims.

    Raises:
      UserError: the file, or what reads it, is not there; or it says something that cannot be meant.
    """
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise UserError(f"--claims={shown(path)}: reading it takes PyYAML: pip install pyyaml") from error
    try:
        content = yaml.safe_load(files.read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"--claims={shown(path)}: {' '.join(str(error).split())}") from error
    try:
        return _ledger(path, content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"--claims={shown(path)}: cannot understand it ({type(error).__name__}: {error})") from error


def _ledger(path: str, content: dict[str, Any]) -> Ledger:
    scales = {name: Scale(name, **about) for name, about in content["scales"].items()}
    claims = {about["id"]: _claim(about, tuple(scales)) for about in content["claims"]}
    if len(claims) < len(content["claims"]):
        raise ValueError("two claims have the same id")
    minutes = Minutes(**content["minutes"]) if "minutes" in content else None
    if minutes is not None and minutes.scale not in scales:
        raise ValueError(f"minutes: {minutes.scale!r} is no scale")
    return Ledger(path, scales, claims, tuple(content["elsewhere"]), minutes)


def _claim(about: dict[str, Any], scales: tuple[str, ...]) -> Claim:
    about = dict(about)
    arms = {name: _arm(name, of_arm, scales) for name, of_arm in about.pop("arms").items()}
    orderings = tuple((better, worse) for better, worse in about.pop("orderings"))
    for name in {name for pair in orderings for name in pair} - arms.keys():
        raise ValueError(f"{about['id']}: an ordering names the arm {name!r}")
    epochs = {scale: tuple(lengths) for scale, lengths in about.pop("epochs").items()}
    claim = Claim(**about, arms=arms, orderings=orderings, epochs=epochs)
    if claim.epochs.keys() != claim.seeds.keys() or not claim.epochs.keys() <= set(scales):
        raise ValueError(f"{claim.id}: epochs and seeds are not of the same scales")
    return claim


def _arm(name: str, about: dict[str, Any], scales: tuple[str, ...]) -> Arm:
    about = dict(about)
    shared, paper, stretch = about.pop("flags"), about.pop("paper", {}), about.pop("stretch", {})
    flags = {scale: {**shared, **about.pop(scale, {})} for scale in scales}
    if about:
        raise ValueError(f"{name}: {next(iter(about))!r} is no scale")
    if not stretch.keys() <= set(scales):
        raise ValueError(f"{name}: stretch names a scale that is none")
    return Arm(name, flags, paper, stretch)
