"""Features of image files that are named one by one, from Python."""

from __future__ import annotations

import numpy as np

from instcls_tf.checks import require_value
from instcls_tf.data.decoding import reading_of
from instcls_tf.data.listed_files import Paths, listed, listed_files
from instcls_tf.distributed import workers
from instcls_tf.errors import UserError, shown, some_of
from instcls_tf.evaluation.features import extract
from instcls_tf.evaluation.recipes import BACKBONE, KINDS
from instcls_tf.evaluation.subject import refuse_untrained
from instcls_tf.run.encoder import load_encoder
from instcls_tf.run.workdir import load_run


def embed(paths: Paths, workdir: str, *, features: str = BACKBONE) -> np.ndarray:
    """Features of image files by a run's encoder, seen as where the run is judged.

    Args:
      paths: of JPEG, PNG, WebP and other files that `--dataset=folder:PATH` takes; one alone is a list of one.
      workdir: the run's folder.
      features: `backbone`, which k-NN and linear classifiers are for, or `projection`, which the loss compares.

    Returns:
      `[n, F]` float32, in the order of `paths`.

    Raises:
      UserError: there is no run, its method has not trained such features, or a file is missing or cannot be read;
        names it.
    """
    require_value("features", features, features in KINDS, "one of " + ", ".join(KINDS))
    config = load_run(workdir)
    refuse_untrained(config, features)
    paths = listed(paths)
    if not paths:
        raise UserError("embed: wanted at least one path")
    workers.start(config.seed)
    encoder = load_encoder(workdir)
    source = listed_files(paths, reading_of(config))
    found = extract(
        encoder.get_layer("backbone") if features == BACKBONE else encoder,
        source,
        image_size=config.image_size,
        center_crop_fraction=config.center_crop_fraction,
    )
    reasons = workers.merged(source.bad.reasons)
    if reasons:
        sentences = (f"{shown(name)}: {reason}" for name, reason in sorted(reasons.items()))
        count = f"{len(reasons)} of {len(paths)} files"
        raise UserError(f"embed: cannot read {count}: {some_of(sentences, 3, '; ')}")
    return found.vectors
