"""An ordering in a figure: the differences of each pair of seeds as dots, their mean and its 95 % interval."""

from __future__ import annotations

from typing import Any

from instcls_tf.claims.ledger import KNN, Claim, Scale
from instcls_tf.claims.verdicts import FEWEST, values_of, verdicts_of
from instcls_tf.report.figures import new_figure, save_figure

_ROW, _MARGIN = 0.34, 0.9  # inches


def has_orderings(claim: Claim, scale: Scale, results: dict[str, dict[str, Any]]) -> bool:
    """Whether a pair of any of them is made at that scale."""
    return any(verdict.pairs for verdict in verdicts_of(claim, scale, KNN, results))


def draw_orderings(path: str, claim: Claim, scale: Scale, results: dict[str, dict[str, Any]]) -> None:
    """Writes the figure of a claim at a scale, in points of 20-NN, to a PNG file.

    Raises:
      UserError: the file cannot be written.
    """
    verdicts = [verdict for verdict in verdicts_of(claim, scale, KNN, results) if verdict.pairs]
    figure = new_figure(10, _MARGIN + _ROW * len(verdicts))
    axes: Any = figure.subplots()
    axes.axvline(0, color="0.6", linewidth=1)
    for row, verdict in enumerate(verdicts):
        better, worse = (
            values_of(claim.arms[name], scale, verdict.epochs, KNN, results, claim.seeds[scale.name])
            for name in (verdict.better, verdict.worse)
        )
        points = [100 * (better[seed] - worse[seed]) for seed in better if seed in worse]
        axes.plot(points, [row] * len(points), "o", color="0.65", markersize=4)
        if verdict.difference is not None:
            mean, interval = verdict.difference
            half = 0.0 if interval is None or verdict.pairs < FEWEST else interval
            axes.errorbar(100 * mean, row, xerr=100 * half, fmt="o", color="#0072b2", capsize=4)
    names = [f"{v.better} above {v.worse}, {v.told_epochs} epochs: {v.word}" for v in verdicts]
    axes.set_yticks(range(len(verdicts)), names, parse_math=False)
    axes.set_ylim(len(verdicts) - 0.5, -0.5)
    axes.set_xlabel("difference in 20-NN accuracy, points")
    save_figure(path, figure)
