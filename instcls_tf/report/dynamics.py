"""A picture of what moved during a run."""

from __future__ import annotations

import os

from instcls_tf.evaluation.dynamics import dynamics_of_run
from instcls_tf.report.answer import Answer, Picture
from instcls_tf.report.figures import add_legend, new_figure, save_figure

# Which columns share axes, and what these are.
_AXES = {
    "degrees": ("turn", "visit_turn"),
    "length of class weights": ("norm",),
    "cosine of a view to class weights": ("own_cosine", "hard_cosine"),
    "share of the classification's gradient": ("own_share", "hard_share", "rest_share"),
    "alignment": ("alignment",),
    "uniformity": ("uniformity",),
}


def dynamics_with_picture(workdir: str, data_dir: str | None, instances: int) -> Answer:
    """`dynamics_of_run` as `checkpoints`, with a table, to be drawn into `WORKDIR/dynamics.png`."""
    found = dynamics_of_run(workdir, data_dir, instances)
    picture = Picture(os.path.join(workdir, "dynamics.png"), lambda path: draw_dynamics(path, found))
    return Answer({"checkpoints": found}, table(found), picture=picture)


def table(found: list[dict[str, float]]) -> str:
    """What was measured, a line per checkpoint, in Markdown; "–" where there is nothing to measure."""
    columns = list(dict.fromkeys(name for line in found for name in line))
    rows = [[f"{line[name]:.4g}" if name in line else "–" for name in columns] for line in found]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows))


def draw_dynamics(path: str, found: list[dict[str, float]]) -> None:
    """Writes the columns over the epochs to a PNG file."""
    figure = new_figure(10, 5.5)
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, _AXES.items()):
        lines = {}
        for name in names:
            measured = [(line["epoch"], line[name]) for line in found if name in line]
            if measured:
                (lines[name],) = axes.plot(*zip(*measured), marker=".")
        axes.set(ylabel=title, xlabel="epoch")
        if lines:
            add_legend(axes, list(lines.values()), list(lines), fontsize="small")
    save_figure(path, figure)
