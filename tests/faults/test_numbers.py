"""Runs whose numbers are not finite."""

from __future__ import annotations

import re

from instcls_tf.errors import DivergedError
from tests.commands import run_script
from tests.faults.conftest import flags_of, sentence_of


def test_a_run_that_diverges(past, tmp_path):
    """`--learning_rate=1e30`: status 1, one sentence with step, images, last checkpoint and flag; nothing is saved."""
    workdir = tmp_path / "run"
    sentence = sentence_of(
        run_script("pretrain", *flags_of(workdir, past.photos, learning_rate=1e30)), DivergedError.status
    )
    assert re.match(r"step [23]: .* worker 0 \(instances \d+: '\d\d\.png', ", sentence), sentence
    assert sentence.endswith(
        "and the step was not taken on any worker (there is no checkpoint yet); if the run diverged, it needs a lower"
        " --learning_rate than 1e+30 or a longer warm-up"
    )
    assert not (workdir / "checkpoints").exists()
    # The folder is free for the same run at a lower rate.
    finished = run_script("pretrain", *flags_of(workdir, past.photos, max_steps=0))
    assert finished.status == 0, finished.output


def test_a_loss_that_cannot_be(past, tmp_path):
    """After the first epoch a loss above that of random weights is a warning, with the rate that may be too high."""
    flags = flags_of(tmp_path / "run", past.photos, learning_rate=30, warmup_epochs=0, max_steps=4)
    finished = run_script("pretrain", *flags)
    assert finished.status == 0, finished.output
    assert re.search(
        r"^warning: after the first epoch the loss is [\d.]+, above the [\d.]+ of random class weights: the encoder"
        r" learns nothing; is --learning_rate=30 too high, or the warm-up too short\?$",
        finished.stderr,
        re.MULTILINE,
    ), finished.output
