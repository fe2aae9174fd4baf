"""How well copies are found: precision and recall on images with planted ones, and other tools on the same images.

A pair counts as right if it is a planted copy and its original. Copies that were among the images before count as
wrong; they are listed.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

from instcls_tf.benchmark.duplicate_peers import PEERS, Told, ask
from instcls_tf.benchmark.planted import CHANGES, Planted, plant
from instcls_tf.data.folder import PREFIX
from instcls_tf.errors import UserError
from instcls_tf.progress import Progress
from instcls_tf.search.duplicates import duplicates_of_run
from instcls_tf.search.settings import Settings

OURS = "duplicates"
_LISTED = 10


def measure_duplicates(
    workdir: str, dataset: str, images: int, copies: int, repeats: int, environments: str | None, folder: str
) -> dict[str, Any]:
    """Measures this project, and its peers in the same sitting.

    Args:
      workdir: of the run whose features are used.
      dataset: `folder:PATH`, from which images are drawn, another draw for each repeat.
      images: how many originals.
      copies: how many planted copies of each kind.
      repeats: draws.
      environments: folder of the peers' environments; None to measure this project alone.
      folder: where the images are written, in a folder that is removed afterwards.

    Returns:
      By tool: `precision`, `recall`, `seconds` (lists, one of each draw), `recall_by_kind` (of all draws), and `wrong`,
      some of the pairs that are no planted copies; or `failure`.

    Raises:
      UserError: the images are not right, or there is no run.
    """
    if not dataset.startswith(PREFIX):
        raise UserError(f"--dataset={dataset}: must be folder:PATH, files are copied")
    progress = Progress(visible=True)
    tools = [OURS, *(PEERS if environments else ())]
    told: dict[str, list[tuple[Planted, Told]]] = {tool: [] for tool in tools}
    with tempfile.TemporaryDirectory(dir=folder) as own:
        for seed in range(repeats):
            root = os.path.expanduser(dataset.removeprefix(PREFIX))
            planted = plant(root, os.path.join(own, f"images_{seed}"), images, copies, seed)
            for tool in tools:
                answer = (
                    _ours(workdir, planted) if tool == OURS else ask(tool, planted.folder, str(environments), progress)
                )
                told[tool].append((planted, answer))
    return {"images": images, "copies": copies * len(CHANGES), "tools": {tool: judged(told[tool]) for tool in tools}}


def _ours(workdir: str, planted: Planted) -> Told:
    start = time.monotonic()
    found = duplicates_of_run(workdir, f"{PREFIX}{planted.folder}", "train", None, None, Settings())
    names = found.images.names
    pairs = {frozenset((names[pair.first], names[pair.second])) for pair in found.near}
    return Told(pairs, time.monotonic() - start)


def judged(draws: list[tuple[Planted, Told]]) -> dict[str, Any]:
    """The figures of one tool; see `measure_duplicates`."""
    failures = [told.failure for _, told in draws if told.failure]
    if failures:
        return {"failure": failures[0]}
    right = {kind: 0 for kind in CHANGES}
    total = {kind: 0 for kind in CHANGES}
    figures: dict[str, list[float]] = {"precision": [], "recall": [], "seconds": []}
    wrong: list[list[str]] = []
    for planted, told in draws:
        truth = {frozenset((name, original)): kind for name, (kind, original) in planted.copies.items()}
        hits = truth.keys() & told.pairs
        for pair, kind in truth.items():
            total[kind] += 1
            right[kind] += pair in hits
        figures["precision"].append(round(len(hits) / max(1, len(told.pairs)), 4))
        figures["recall"].append(round(len(hits) / len(truth), 4))
        figures["seconds"].append(round(told.seconds, 1))
        wrong += sorted(sorted(pair) for pair in told.pairs - truth.keys())
    by_kind = {kind: round(right[kind] / max(1, total[kind]), 4) for kind in CHANGES}
    return {**figures, "recall_by_kind": by_kind, "wrong_pairs": len(wrong), "wrong": wrong[:_LISTED]}
