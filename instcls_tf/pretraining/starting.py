"""The start of a run: `--init`, the gap of its prior, and the gauges that hold the run against it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import tensorflow as tf

from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import RANDOM, RAW_BATCH_BN, PretrainConfig
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, workers
from instcls_tf.encoder.networks import make_encoder
from instcls_tf.errors import UserError, shown
from instcls_tf.evaluation.online_gauge import OnlineGauge, start_in
from instcls_tf.evaluation.similarity import gap_of_weights
from instcls_tf.evaluation.unseen import fill_statistics, has_seen_nothing
from instcls_tf.files import is_there
from instcls_tf.initial.start import initialize_encoder, load_starting_encoder
from instcls_tf.pretraining.steps import Steps
from instcls_tf.progress import Progress
from instcls_tf.run.metrics import metrics_path, read_metrics

# Steps after which less than a twentieth is left of the moving statistics that BN has begun with.
_SETTLED = 30
# Instances whose views the gap is measured with.
_GAP_INSTANCES = 1000


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
    config: PretrainConfig,
    encoder: tf.keras.Model,
    source: Source,
    progress: Progress,
    begins: bool,
    first_step: int = 0,
) -> OnlineGauge | None:
    """The gauges of a run, which have seen its start; None without `--gauge_every`. All workers together."""
    if not config.gauge_every:
        return None
    logged = {} if begins else _logged_start(config.workdir)
    has_seen = begins and not has_seen_nothing(encoder)
    per_measurement = Steps(config, source.num_instances).per_epoch * config.gauge_every
    settles = 0 if has_seen else max(0, _SETTLED - first_step) // per_measurement
    gauge = OnlineGauge(config, encoder, source, progress.say, logged, settles)
    if has_seen:
        gauge.measure_start()
    elif not logged:  # it begins without a prior, was cut before its first gauge, or had no gauges until now
        start = _copy_of(encoder, config) if begins else _kept_start(config, progress)
        if start is not None:
            fill_statistics(start, config, source)
            gauge.measure_start(start)
    return gauge


def _copy_of(encoder: tf.keras.Model, config: PretrainConfig) -> tf.keras.Model:
    """Whose statistics are for judging alone: the run trains from those that it has."""
    copy = make_encoder(config, config.precision)
    copy.set_weights(encoder.get_weights())
    return copy


def _logged_start(workdir: str) -> dict[str, float]:
    """What rank 0 finds: another worker's file system may show it another log for a while."""
    found: dict[str, float] = {}
    if collectives.rank() == 0:
        with contextlib.suppress(UserError):  # it cannot be read: whoever writes it says so
            found = start_in(read_metrics(workdir)) if is_there(metrics_path(workdir)) else {}
    return workers.everybodys(found)[0]


def _kept_start(config: PretrainConfig, progress: Progress) -> tf.keras.Model | None:
    """The encoder that the run started from, if all workers can read it."""
    encoder, problem = None, ""
    try:
        encoder = load_starting_encoder(config.workdir, config, config.precision)
    except UserError as error:
        problem = str(error)
    problem = next(filter(None, workers.everybodys(problem)), "")
    if problem:
        progress.say(f"the gauges have no start to be held against: {problem}")
    return None if problem else encoder
