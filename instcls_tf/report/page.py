"""`WORKDIR/report.html`: one page about a run, which needs nothing beside it and asks nobody for anything.

It is written from what is in the workdir, whatever state the run is in: before its first line of the log, unfinished,
or with a log that a crash or an editor has spoilt. Everything that comes from files is escaped.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import platform
import shlex
from collections.abc import Iterable
from html import escape
from importlib import metadata
from typing import NamedTuple

import numpy as np
from PIL import Image

from instcls_tf import files
from instcls_tf.classifier.expected_loss import expected_losses
from instcls_tf.config import INSTANCE, PretrainConfig
from instcls_tf.data.decoding import reading_of
from instcls_tf.data.labelled import open_splits
from instcls_tf.data.source import Source
from instcls_tf.data.sources import open_training_source
from instcls_tf.errors import UserError, shown
from instcls_tf.report import page_style
from instcls_tf.report.answer import Picture
from instcls_tf.report.charts import Line, Mark, chart
from instcls_tf.run.checkpoint_choice import prefixes, step_of
from instcls_tf.run.metrics import metrics_path, read_metrics
from instcls_tf.run.workdir import RESULTS, has_checkpoints, load_run, run_flags_path
from instcls_tf.workdir_files import PAGE_NAME

_MARKS = {"loss_expected_start": "expected start", "loss_floor": "floor"}
_MOST_RESULTS = 40
_VIEWED_IMAGES, _VIEWS = 5, 7
_PACKAGES = ("instcls-tf", "tensorflow", "numpy", "keras-cv", "horovod")


class Neighbours(NamedTuple):
    """An image and those that are most like it."""

    names: list[str]  # [1 + k], its own first
    cosines: list[float]  # [k]
    pixels: np.ndarray  # [1 + k, S, S, 3] uint8


class _Run(NamedTuple):
    """What is known of a run."""

    workdir: str
    data_dir: str | None
    config: PretrainConfig
    lines: list[dict]
    source: Source | None
    problem: str  # why there is no source
    total: int | None  # steps of the whole recipe


def page_path(workdir: str) -> str:
    """Where the page of a run is."""
    return os.path.join(workdir, PAGE_NAME)


def picture_of(workdir: str, data_dir: str | None = None, neighbours: Iterable[Neighbours] = ()) -> Picture:
    """The page about a run, still to be written; arguments as `write_page`."""
    return Picture(page_path(workdir), lambda _: write_page(workdir, data_dir, neighbours))


def write_page(workdir: str, data_dir: str | None = None, neighbours: Iterable[Neighbours] = ()) -> str:
    """Writes the page about a run.

    Args:
      workdir: the run's folder.
      data_dir: TFDS's folder; None for the run's own.
      neighbours: some images with those that are most like them; none if nobody has looked for them.

    Returns:
      The path of the page.

    Raises:
      UserError: there is no run, or the page cannot be written.
    """
    run = _open(workdir, data_dir)
    sections = [
        ("Training", _charts(run)),
        ("Results", _results(run)),
        ("What the network saw", _views(run)),
        ("Neighbours", _neighbours(list(neighbours))),
        ("Settings", _settings(run.config)),
        ("Environment", _environment()),
        ("Next", _next(run)),
    ]
    title = f"Run in {shown(os.path.basename(os.path.abspath(workdir)))}"
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections)
    page = page_style.page(title, f"<h1>{escape(title)}</h1><p>{escape(_state(run))}</p>{body}")
    files.write(page_path(workdir), page.encode("utf-8", "replace"))
    return page_path(workdir)


def _open(workdir: str, data_dir: str | None) -> _Run:
    config = load_run(workdir)
    lines = read_metrics(workdir) if files.is_there(metrics_path(workdir)) else []
    source, problem, total = None, "", None
    try:
        source = open_training_source(config, data_dir, workdir)
    except UserError as error:
        problem = str(error)
    if source is not None:
        from instcls_tf.pretraining.steps import Steps

        instances = _instances(source)
        total = Steps(config.for_instances(instances), instances).total
    return _Run(workdir, data_dir or config.data_dir, config, lines, source, problem, total)


def _instances(source: Source) -> int:
    """How many the run has classes for, without those that were added since."""
    return source.num_instances - len(source.changes.added)


def _last_step(run: _Run) -> int:
    return int(max((line["step"] for line in run.lines), default=0))


def _state(run: _Run) -> str:
    """How far the run is, in a sentence or two."""
    about = f"{shown(run.config.dataset)}, --method={run.config.method}. "
    if run.source is not None:
        about = f"{_instances(run.source):,} images of {about}"
    step = _last_step(run)
    if not step:
        return f"{about}No step has been logged yet."
    if run.total is None:
        return f"{about}Step {step}; how many there will be is not known without the images."
    done = "finished" if step >= run.total else "unfinished"
    return f"{about}Step {step} of {run.total}: {done}."


# --------------------------------------------------------------------------------------------------------------- charts


def _line(lines: list[dict], key: str, name: str = "") -> Line:
    """The numbers that were logged under a name, over the steps; what is no finite number is left out."""
    points = [(line["step"], line.get(key)) for line in lines]
    kept = [
        (float(step), float(value)) for step, value in points if isinstance(value, (int, float)) and _is_number(value)
    ]
    return Line(name or key, [step for step, _ in kept], [value for _, value in kept])


def _instance_accuracy(run: _Run) -> list[Line]:
    """In the epochs of NT-Xent alone it is another quantity: views are told from those of the batch."""
    contrasts = [line for line in run.lines if _is_contrast(line, run.config)]
    rest = [line for line in run.lines if not _is_contrast(line, run.config)]
    found = [_line(contrasts, "instance_top1", "images told from the batch's")] if contrasts else []
    return [*found, _line(rest, "instance_top1", "images told from all others")]


def _is_contrast(line: dict[str, float], config: PretrainConfig) -> bool:
    epoch = line.get("epoch", math.inf)
    return _is_number(epoch) and epoch <= config.contrast_epochs


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _charts(run: _Run) -> str:
    lines = run.lines
    charts = [
        _loss_chart(run),
        chart("Instance accuracy", "step", "fraction", _instance_accuracy(run)),
        chart("k-NN accuracy", "step", "fraction", [_line(lines, "knn_top1", "20-NN on the test split")]),
        chart("Throughput", "step", "images per second", [_line(lines, "images_per_second")]),
    ]
    gauges = {"gauge_agreement": "Gauge: agreement of the neighbours of two views", "rank_me": "Gauge: effective rank"}
    for key, title in gauges.items():
        line = _line(lines, key)
        if line.xs:
            charts.insert(2, chart(title, "step", key, [line]))
    return f'<div class="charts">{"".join(charts)}</div>'


def _loss_chart(run: _Run) -> str:
    found = [_line(run.lines, "loss")]
    weight, note = run.config.batch_contrast, ""
    if weight:
        part = [
            {"step": line["step"], "part": line["loss"] - weight * line["contrast_loss"]}
            for line in run.lines
            if _is_number(line.get("loss")) and _is_number(line.get("contrast_loss"))
        ]
        found.append(_line(part, "part", "of it the classification"))
        note = f"The loss is the classification's and {weight:g} times NT-Xent between the views of a batch."
    return chart("Loss", "step", "loss", found, _marks(run), note)


def _marks(run: _Run) -> list[Mark]:
    """What the loss of the classification starts near and cannot fall below."""
    values: dict[str, float] = {}
    if run.config.method == INSTANCE and run.source is not None:
        config = run.config
        sizes = (_instances(run.source), config.embedding_size, config.temperature, config.sampled_classes)
        values = expected_losses(*sizes)
    for line in run.lines:
        values.update({key: line[key] for key in _MARKS if _is_number(line.get(key))})
    return [Mark(name, values[key]) for key, name in _MARKS.items() if key in values]


# -------------------------------------------------------------------------------------------------------------- results


def _results(run: _Run) -> str:
    """What commands have left in the workdir, as tables."""
    found, now = [], max(map(step_of, prefixes(run.workdir)), default=0)
    for name in RESULTS:
        values = _numbers_of(os.path.join(run.workdir, f"{name}.json"))
        if values:
            rows = [(key, value) for key, value in values.items()][:_MOST_RESULTS]
            found.append(f"<h3>{name}</h3>{_age(values.get('step', ''), now)}{_pairs(rows)}")
    return "".join(found) or "<p>No evaluation has been made yet.</p>"


def _age(step: str, now: int) -> str:
    """A sentence about a result that is of an earlier step of the run than its newest checkpoint."""
    if not step.isdecimal() or int(step) >= now:
        return ""
    return f"<p>Of step {step}, before the run went on to step {now}: the same command measures it anew.</p>"


def _numbers_of(path: str) -> dict[str, str]:
    """The numbers and words in a result, by their path; nothing if there is none, or it cannot be read."""
    try:
        with open(path, "rb") as file:
            return dict(_flat("", json.load(file)))
    except (OSError, ValueError, RecursionError):
        return {}


def _flat(prefix: str, value: object) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for key, of_key in value.items():
            yield from _flat(f"{prefix}{' · ' if prefix else ''}{key}", of_key)
    elif isinstance(value, float):
        yield prefix, f"{value:.4g}"
    elif isinstance(value, (int, str)):
        yield prefix, shown(value)


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f"<table>{cells}</table>"


# ------------------------------------------------------------------------------------------------------------- pictures


def _views(run: _Run) -> str:
    if run.source is None:
        return f"<p>The images are not there now: {escape(shown(run.problem))}.</p>"
    from instcls_tf.report.view_grid import grid_of_views

    try:
        grid = grid_of_views(run.config, run.source, images=_VIEWED_IMAGES, columns=_VIEWS)
    except UserError as error:
        return f"<p>The views cannot be drawn: {escape(shown(error))}.</p>"
    text = "Each row is an image as a judgement sees it, and then random views of it as the training sees them."
    return f"<p>{text}</p>{_picture(grid, f'{_VIEWED_IMAGES} images with {_VIEWS} views of each')}"


def _neighbours(rows: list[Neighbours]) -> str:
    if not rows:
        return "<p>Not looked for yet; the command <code>gallery</code> shows some here.</p>"
    return "<p>Training images and those whose features are most similar.</p>" + "".join(map(_neighbour_row, rows))


def _neighbour_row(row: Neighbours) -> str:
    strip = np.concatenate([*row.pixels], axis=1)
    others = [f"{name} ({cosine:.2f})" for name, cosine in zip(row.names[1:], row.cosines)]
    items = "".join(f"<li>{escape(one)}</li>" for one in others)
    named = f"<details><summary>{escape(row.names[0])}</summary><ol>{items}</ol></details>"
    return f"<figure>{_picture(strip, f'{row.names[0]} and its {len(others)} nearest images')}{named}</figure>"


def _picture(pixels: np.ndarray, description: str) -> str:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "jpeg", quality=85)
    data = base64.b64encode(encoded.getvalue()).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:image/jpeg;base64,{data}">'


# ------------------------------------------------------------------------------------------------------------- the rest


def _settings(config: PretrainConfig) -> str:
    defaults = PretrainConfig().replace(method=config.method)
    lines = [line for line in config.as_flags().splitlines() if line.startswith("--")]
    kept = set(defaults.as_flags().splitlines())
    changed = "\n".join(shown(line) for line in lines if line not in kept)
    everything = "\n".join(map(shown, lines))
    return (
        f"<p>Settings that are not the defaults:</p><pre>{escape(changed)}</pre>"
        f"<details><summary>All settings</summary><pre>{escape(everything)}</pre></details>"
    )


def _environment() -> str:
    rows = [("Python", platform.python_version()), ("system", platform.platform()), ("processors", str(os.cpu_count()))]
    rows += [(name, _version(name)) for name in _PACKAGES]
    return "<p>Where this page was written.</p>" + _pairs([(name, value) for name, value in rows if value])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _can_be_judged(run: _Run) -> bool:
    """Whether there are labels to learn from, and a test split."""
    try:
        open_splits(run.config.dataset, run.data_dir, reading=reading_of(run.config))
    except UserError:
        return False
    return True


def _next(run: _Run) -> str:
    """Commands that make sense now."""
    workdir = f"--workdir={shlex.quote(run.workdir)}"
    if run.total is None or _last_step(run) < run.total:
        more = f" --max_steps={run.total}" if run.config.max_steps is not None and run.total else ""
        commands = [f"pretrain --flagfile={shlex.quote(run_flags_path(run.workdir))} {workdir}{more}"]
    else:
        commands = [f"knn_eval {workdir}", f"linear_eval {workdir} --cached"] if _can_be_judged(run) else []
        commands.append(f"export {workdir} --format=saved_model --output={shlex.quote(run.workdir + '/saved_model')}")
    if has_checkpoints(run.workdir):
        commands.append(f"gallery {workdir}")
    if run.config.method == INSTANCE and has_checkpoints(run.workdir):
        commands.append(f"similarity {workdir} --index")
    return f"<pre>{escape(chr(10).join(f'python -m scripts.{command}' for command in commands))}</pre>"
