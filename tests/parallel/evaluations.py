"""What two workers do to judge a run together, in one process each; rank 0 writes the answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Callable

from instcls_tf.data.sources import open_source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError
from instcls_tf.evaluation import commands
from instcls_tf.evaluation.against_start import judge_run
from instcls_tf.evaluation.embed import embed
from instcls_tf.evaluation.recipes import CachedRecipe, FinetuneRecipe, LinearRecipe
from instcls_tf.evaluation.subject import open_subject
from instcls_tf.report.duplicates import duplicates_with_page
from instcls_tf.report.search import search_with_page
from instcls_tf.run.encoder import load_encoder
from instcls_tf.run.workdir import load_run
from instcls_tf.search.age import age_of
from instcls_tf.search.commands import search_in_run
from instcls_tf.search.settings import Settings

# Rates too high to settle would magnify the rounding of sums over the workers.
CACHED = CachedRecipe(epochs=10, relative_learning_rates=(0.3, 1.0), normalize_features="l2")
LINEAR = LinearRecipe(epochs=2, batch_size=359, learning_rate=1.0, augmentation="digits")
FINETUNE = FinetuneRecipe(
    fraction=0.1, epochs=2, batch_size=64, augmentation="digits", metric="mean_per_class",
    encoder_learning_rate=0.0, classifier_learning_rate=0.1,
)  # fmt: skip


def judge(workdir: Path, photos: Path, output: Path) -> dict[str, dict]:
    """All evaluations of a run on its own images, and features of others, written to `output`."""
    subject = open_subject(str(workdir), None, None, None)
    images = {"dataset": f"folder:{photos}", "split": "train", "data_dir": None}
    return {
        "knn": commands.knn_of_run(subject, "backbone", k=20, temperature=0.07),
        "cached": commands.cached_linear_of_run(subject, CACHED),
        "linear": commands.linear_of_run(subject, LINEAR),
        "finetune": commands.finetune_of_run(subject, FINETUNE),
        "report": judge_run(str(workdir), images=500).result(),
        "extract": commands.extract_of_run(str(workdir), f"folder:{photos}", None, "train", str(output)),
        "search": search_in_run(str(workdir), ["1.jpg", str(photos / "2.jpg")], 3, kind="backbone", **images).summary(),
        "age": age_of(load_run(str(workdir)), open_source("digits"), load_encoder(str(workdir))),
        "refusals": refusals(str(workdir), photos, images),
        "duplicates": duplicates_with_page(str(workdir), Settings(), against=None, **images).result["listed_groups"],
    }


def refusals(workdir: str, photos: Path, images: dict) -> list[list[str]]:
    """What each worker says of a file that only one of them meets, and of a page that only rank 0 may write."""
    named = [photos / "1.jpg", photos.parent / "broken"]
    images = {**images, "kind": "backbone"}
    calls = [
        lambda: embed(named, workdir),
        lambda: search_in_run(workdir, [str(path) for path in named], 1, **images),
        lambda: search_with_page(workdir, ["1.jpg"], 1, str(photos / "1.jpg" / "page.html"), **images),
        lambda: search_in_run(workdir, ["1.jpg"], 1, **images, index_path=str(photos / "1.jpg" / "index")),
    ]
    return workers.everybodys([_refusal(call) for call in calls])


def _refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    *folders, answers = map(Path, sys.argv[1:])
    collectives.init()
    result = judge(*folders)
    if collectives.rank() == 0:
        answers.write_text(json.dumps(result))
