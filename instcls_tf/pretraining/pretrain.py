"""Pretraining, top to bottom: data, encoder, classifier, prior, and the loop over the training steps."""

from __future__ import annotations

import time
from typing import Any

import tensorflow as tf

from instcls_tf import stamps
from instcls_tf.classifier.kernels import passes
from instcls_tf.classifier.prior import initialize_classifier, initialize_new_classes
from instcls_tf.config import AUTO, PretrainConfig
from instcls_tf.data import cache, contents, pipeline
from instcls_tf.data.bad_files import BadFiles
from instcls_tf.data.kernels import views
from instcls_tf.data.source import Source, notes_of
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import shown, some_of
from instcls_tf.evaluation.online_knn import OnlineKnn
from instcls_tf.initial.start import keep_starting_weights
from instcls_tf.methods.simclr import SimCLR
from instcls_tf.pretraining import advice, agreement, finite, growth, judging, opening, preflight, starting
from instcls_tf.pretraining.reporter import EpochReporter
from instcls_tf.pretraining.state import Run, make_run, make_schedule, make_step_of_run
from instcls_tf.pretraining.steps import Steps, note_of_length
from instcls_tf.pretraining.stopping import StopRequest
from instcls_tf.progress import OnProgress, Progress
from instcls_tf.run import signals
from instcls_tf.run.parts import replicated_variables
from instcls_tf.run.precision import note_of as note_of_precision
from instcls_tf.run.precision import with_precision
from instcls_tf.run.workdir import begin_run, forget_images


def pretrain(
    config: PretrainConfig | None = None, source: Source | None = None, *, preset: str | None = None, **settings: Any
) -> dict[str, float]:
    """Pretrains an encoder, or continues the run that the workdir holds; all workers call it.

    `pretrain(dataset="folder:/data/photos", workdir="runs/photos", preset="photos")` needs nothing else. What the
    command does beside it is left to the caller: to heed signals (`run.signals.heeded`), to end a job that stands still
    (`distributed.watchdog.watching`), and to write the page about the run (`report.page.write_page`).

    Args:
      config: the recipe; it is checked as the command checks it.
      source: its training images, if `preflight.open_training_data` has opened them already.
      preset: the name of a preset, or a flagfile, in the place of a recipe.
      **settings: fields of `PretrainConfig`, which win over both.

    Returns:
      The last line of `metrics.jsonl`, empty if no step was made.

    Raises:
      UserError: before the start: a setting, the dataset or the workdir is not right; nothing has been written into the
        workdir then. In the midst of the run: too many images cannot be read, a record file is damaged, or the disk is
        full or not to be written to; the last checkpoint stays, from which the run goes on.
      DivergedError: the numbers of a step are not finite; likewise. A `UserError`, too.
      MachineError: a file system or a machine fails, before the start or later; likewise.
      Stopped: a worker had a signal within `signals.heeded`; the run is saved.
    """
    started = time.monotonic()

    # ---- What the user asked for, before anything is touched
    config = with_precision(preflight.recipe_of_call(config, preset, settings))
    source = preflight.open_training_data(config, source, given=settings)

    # ---- Workers, which agree; and a workdir for this run alone
    stamps.stamp("joining the other workers")
    progress = workers.start(config.seed)
    opened = opening.take_workdir(config, source, progress)
    try:
        return _pretrain(config, source, progress, opened, started)
    finally:
        opened.release()


def _pretrain(
    config: PretrainConfig, source: Source, progress: Progress, opened: opening.Opened, started: float
) -> dict[str, float]:
    is_chief = collectives.rank() == 0

    # ---- Images that are decoded once
    if config.cache:
        with signals.told("stopped before the cache was complete; the same command starts again, and fills it anew"):
            source = cache.with_cache(config, source)

    # ---- Model, new or from the newest checkpoint
    stamps.stamp("making the network")
    steps = Steps(config.for_instances(source.num_instances), source.num_instances)
    schedule = make_schedule(steps)
    prefix, begins = opened.prefix, opened.prefix is None
    run = make_run(config, source.num_instances, schedule, starting.initializer(config, begins, progress))
    online_knn = OnlineKnn(config, run.encoder) if config.online_knn_every else None
    if prefix is not None:
        run = run._replace(origin=opening.origin_of(config, source))
    has_lists = prefix is not None and run.restore(prefix)
    first_step, classifier, hard_negatives = run.step, run.classifier, run.hard_negatives

    # ---- What the images are, by which an earlier run or a later one knows them
    grown, hashes = None, None
    if begins and classifier is not None:
        reading = Progress(is_chief, within=True)
        hashes = growth.contents_of(source, reading)
        grown = growth.find(config, hashes, reading) if config.extend_from else None
        reading.close()

    # ---- The folder of the run
    _announce(source, steps, run.method.note, first_step, progress)
    if length := note_of_length(config, source.num_instances, begins):
        progress.say(length)
    if is_chief and hashes is not None and (copies := growth.note_of_copies(hashes, config.workdir)):
        progress.say(copies)
    if is_chief:
        for warning in advice.warnings_of(config, source, collectives.size(), begins):
            progress.say(f"warning: {warning}")
    if is_chief and not opened.resuming:
        begin_run(config)
    elif is_chief and begins:
        forget_images(config.workdir)
    run = run._replace(origin=opening.origin_of(config, source), clock=opening.clock_of(prefix, started))
    if is_chief:
        _report_changes(config, source, source.write_manifest(config.workdir), progress)
        if hashes is not None:
            contents.write(contents.contents_path(config.workdir), hashes)
    bad_files = BadFiles(config.workdir, source, config.max_bad_fraction, goes_on=not begins)
    stop = StopRequest(run, config.workdir, progress)
    signals.defer()  # from here on there is something to lose

    # ---- Class weights, from the random network or from an earlier run
    if begins:
        heeding = stop.heeded_in(progress, changes_run=True)
        _fill_class_weights(config, run, source, grown, heeding, bad_files, progress)
        if is_chief:
            keep_starting_weights(config.workdir, run.encoder)
        if steps.end == 0:
            run.save(config.workdir, with_lists=False)

    # ---- Training
    gauge = starting.make_gauge(config, run.encoder, source, progress, begins, first_step)
    last_step, window = max(first_step, steps.end), config.window(source.num_instances)
    batches = iter(
        pipeline.training_batches_of(config, source, first_step=first_step, last_step=last_step, window=window)
    )
    contrast = SimCLR(temperature=config.batch_contrast_temperature, name="contrast")
    train_step, contrast_step = (
        stop.with_step(make_step_of_run(run, config, source.num_instances, loss)) for loss in (run.method, contrast)
    )
    reporter = EpochReporter(steps, first_step, progress, online_knn, run.clock, gauge)
    for step in range(first_step, steps.end):
        # ---- Class weights from the network as it is now: after the epochs of contrast, and every so many epochs
        if classifier is not None and steps.takes_prior_again(step):
            heeding = stop.heeded_in(reporter.refresh_progress, changes_run=True)
            initialize_classifier(config, classifier, run.encoder, source, heeding, bad_files)
            reporter.refresh_progress.close()

        # ---- Refresh: hard negatives, at the start of every epoch
        wants_lists = steps.begins_epoch(step) or (step == first_step and not has_lists)
        if hard_negatives is not None and wants_lists and not steps.contrasts(step):
            # Class weights that were just taken again are not to be saved: the step would take them once more.
            heeding = stop.heeded_in(reporter.refresh_progress, changes_run=steps.takes_prior_again(step))
            reporter.refreshed(step, hard_negatives.refresh(heeding))

        # ---- Next batch
        views, instance_ids = reporter.next(batches)
        reporter.show_views(views)

        # ---- Step
        learning_rate = schedule(step)
        make_step = contrast_step if steps.contrasts(step) else train_step
        (output, health), is_asked_to_stop = make_step(views, instance_ids, learning_rate)
        finite.refuse(health, step, instance_ids, config, source.name_of)
        reporter.add(step, output, health.skipped)

        # ---- Save, before anything is written that can fail
        if reporter.is_due(step):
            bad_files.check()
        with_lists = not (steps.ends_epoch(step) or steps.contrasts(step))
        if steps.saves(step):
            run.save(config.workdir, with_lists)
        elif agreement.compares_weights(step):
            agreement.refuse_different_weights(replicated_variables(run.replicated()), step + 1)

        # ---- Report
        if reporter.is_due(step):
            # After the last step there is nothing to stop: it is judged whatever comes.
            heeded = stop.is_asked if step + 1 < steps.end else None
            is_asked_to_stop = reporter.write(step, float(learning_rate), heeded) or is_asked_to_stop
        reporter.show(step)

        # ---- Stop, if a worker had a signal
        if is_asked_to_stop and step + 1 < steps.end:
            reporter.close()
            stop.stop(f"after step {step + 1} of {steps.end}", with_lists=with_lists)
    reporter.close()
    progress.say(f"done: {config.workdir} (checkpoint at step {last_step} of {steps.total})")
    collectives.barrier()  # rank 0 has written all that it writes
    signals.finish(
        f"the run is saved at step {last_step} of {steps.total}, but not judged or drawn:"
        f" python -m scripts.report --workdir={shown(config.workdir)} does it"
    )
    if config.report and first_step < steps.end == steps.total:
        judging.report_help(config, progress)
    return reporter.metrics


def _fill_class_weights(
    config: PretrainConfig,
    run: Run,
    source: Source,
    grown: growth.Growth | None,
    heeding: OnProgress,
    bad_files: BadFiles,
    progress: Progress,
) -> None:
    """Of a run that begins, unless it begins with epochs of contrast: from their network the loop takes them."""
    classifier = run.classifier
    if classifier is not None and grown is not None:
        progress.say(str(grown))
        growth.take_over(run, classifier, grown)
        if grown.is_new.any():
            initialize_new_classes(config, classifier, run.encoder, source, grown.is_new, heeding, bad_files)
    elif classifier is not None and not config.contrast_epochs:
        initialize_classifier(config, classifier, run.encoder, source, heeding, bad_files)
        starting.report_gap(config, source, run.encoder, classifier, progress)


def _announce(source: Source, steps: Steps, note_of_method: str, first_step: int, progress: Progress) -> None:
    config = steps.config
    progress.say(
        f"{source.name}: {source.num_instances} instances = classes, {collectives.size()} worker(s),"
        f" {steps.per_epoch} steps per epoch, {config.all_epochs} epochs"
    )
    for note in notes_of(source):
        progress.say(note)
    progress.say(f"--method={config.method}: {note_of_method}")
    if of_precision := note_of_precision(config):
        progress.say(of_precision)
    if config.effective_warmup_epochs < config.warmup_epochs:
        progress.say(
            f"warm-up: {config.effective_warmup_epochs:g} epochs ({steps.warmup} step(s)), a tenth of the run, instead"
            f" of --warmup_epochs={config.warmup_epochs:g}"
        )
    if config.class_passes != AUTO:
        progress.say(f"--class_passes={config.class_passes}: without compiled kernels")
    elsewhere = config.class_passes != AUTO or bool(tf.config.list_physical_devices("GPU"))
    slower = [] if passes.available() or elsewhere else ["the classifier"]
    slower += [] if views.operations() else ["views"]
    if slower:
        progress.say(
            f"the compiled kernels of {' and of '.join(slower)} are not there, which is slower:"
            " python -m instcls_tf.classifier.kernels.build compiles them"
        )
    if first_step:
        progress.say(f"continuing {config.workdir} from step {first_step}")


def _report_changes(config: PretrainConfig, source: Source, changed: tuple[str, ...], progress: Progress) -> None:
    vanished = source.changes.vanished
    share, warning = "", ""
    if len(vanished) > config.max_bad_fraction * source.num_instances:
        share, warning = f" ({len(vanished) / source.num_instances:.1%}: is a disk not mounted?)", "warning: "
    for begin, paths, what in [
        (warning, vanished, f"are gone{share}, their ids stay unused"),
        ("", source.changes.added, "are new and have ids at the end"),
        ("", changed, "have another size now"),
    ]:
        if paths:
            progress.say(f"{begin}since the run began, {len(paths)} file(s) {what}: {some_of(map(repr, paths))}")
