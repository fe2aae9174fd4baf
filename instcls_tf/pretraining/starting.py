"""The start of a run, and the run against it: `--init`, the gap of its prior, the gauges, and the table at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import tensorflow as tf

from instcls_tf import files
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import RANDOM, RAW_BATCH_BN, PretrainConfig
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives
from instcls_tf.errors import UserError, shown
from instcls_tf.evaluation.against_start import WORSE, judge_run
from instcls_tf.evaluation.online_gauge import OnlineGauge, start_in
from instcls_tf.evaluation.similarity import gap_of_weights
from instcls_tf.initial.start import initialize_encoder
from instcls_tf.progress import Progress
from instcls_tf.run.metrics import metrics_path, read_metrics

# Instances whose views the gap is measured with.
_GAP_INSTANCES = 1000
REPORT_NAME = "report.json"


def initializer(config: PretrainConfig, begins: bool, progress: Progress) -> Callable[[tf.keras.Model], None]:
    """What gives a new encoder the weights of `--init`: nothing where there is none, or where the run goes on."""

    def initialize(encoder: tf.keras.Model) -> None:
        if config.init and begins:
            for note in initialize_encoder(encoder, config.init):
                progress.say(f"--init={shown(config.init)}: {note}")

    return initialize


def report_gap(
    config: PretrainConfig, source: Source, encoder: tf.keras.Model, classifier: ShardedClassifier, progress: Progress
) -> None:
    """Says how well class weights from the network of `--init` tell instances apart; all workers together."""
    if not config.init or config.classifier_init == RANDOM:
        return
    training = config.classifier_init == RAW_BATCH_BN
    found = gap_of_weights(config, source, encoder, classifier, _GAP_INSTANCES, training=training)
    progress.say(
        f"the prior from --init: views have cosine {found['intra']:.3f} to their own class weight, {found['inter']:.3f}"
        f" to the others, a gap of {found['gap']:.1%}"
    )


def make_gauge(
    config: PretrainConfig, encoder: tf.keras.Model, source: Source, progress: Progress, begins: bool
) -> OnlineGauge | None:
    """The gauges of a run, which have seen its start if it begins now; None without `--gauge_every`."""
    if not config.gauge_every:
        return None
    has_log = not begins and os.path.exists(metrics_path(config.workdir))
    gauge = OnlineGauge(
        config, encoder, source, progress.say, start_in(read_metrics(config.workdir)) if has_log else {}
    )
    if begins:
        gauge.measure_start()
    return gauge


def report_help(config: PretrainConfig, progress: Progress) -> None:
    """Prints and keeps how the finished run stands against its start; all workers together.

    Nothing that goes wrong with it is a reason to fail a run that is done.
    """
    try:
        found = judge_run(config.workdir, config.data_dir)
        if collectives.rank() == 0:
            files.write(os.path.join(config.workdir, REPORT_NAME), json.dumps(found.result()).encode())
    except (UserError, tf.errors.OpError) as error:
        reason = error if isinstance(error, UserError) else str(error).splitlines()[0]
        progress.say(f"warning: the run is finished, but not judged: {reason}")
        return
    *table, last = found.text().splitlines()
    is_worse = found.verdict() == WORSE
    for line in (*table, f"warning: {last}" if is_worse else last):
        progress.say(line)
