"""Fig. 4 of a run: how its views are distributed around their own and around other class weights."""

from __future__ import annotations

import os

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from instcls_tf import collectives
from instcls_tf.evaluation.similarity import Similarities, similarities_of_run


def similarities_with_picture(workdir: str, data_dir: str | None, instances: int) -> dict[str, dict[str, float]]:
    """`similarities_of_run`, drawn into `WORKDIR/similarity.png`; all workers together."""
    summaries, cosines = similarities_of_run(workdir, data_dir, instances)
    if collectives.rank() == 0:
        draw_histograms(os.path.join(workdir, "similarity.png"), cosines)
    return summaries


def draw_histograms(path: str, cosines: dict[str, Similarities]) -> None:
    """Writes one histogram per initialisation to a PNG file: cosines to the own row and to single other rows."""
    figure, grid = plt.subplots(1, len(cosines), figsize=(3.2 * len(cosines), 3.2), layout="constrained", squeeze=False)
    for axes, (name, values) in zip(grid[0], cosines.items()):
        both = np.concatenate([values.intra, values.inter_sample])
        bins = np.linspace(both.min() - 1e-3, max(both.max(), both.min() + 1e-3) + 1e-3, 60)
        axes.hist(values.inter_sample, bins, density=True, alpha=0.6, color="tab:grey", label="other instances")
        axes.hist(values.intra, bins, density=True, alpha=0.6, color="tab:blue", label="own instance")
        axes.set(title=f"{name}, gap {values.summary()['gap']:.1%}", xlabel="cosine of view and row", yticks=[])
    grid[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
