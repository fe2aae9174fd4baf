"""What `benchmark` does for each of its subjects, from settings to the answer; all workers call it, or the only one.

What is wrong with the settings is said before TensorFlow is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from instcls_tf.benchmark.sizes import SYNTHETIC, ClassifierBenchmark
from instcls_tf.checks import require_value
from instcls_tf.config import PretrainConfig
from instcls_tf.data.folder import of_files
from instcls_tf.data.sources import open_training_source
from instcls_tf.distributed.launcher import launched_rank_and_size, refuse_several
from instcls_tf.report.answer import Answer


def measure(subject: str, **settings: Any) -> Answer:
    """Measures a part by itself.

    Args:
      subject: `input`, `classifier`, `step`, `encoder`, `hard_negatives`, `checks`, `checkpoint`, `gallery`, `memory`,
        `scaling` or `duplicates`.
      **settings: arguments of the function of that name below.

    Raises:
      UserError: a setting is out of range, the images are not right, or a launcher has started several workers for what
        one process measures.
    """
    if subject in _ALONE:
        refuse_several(f"benchmark {subject}", _ALONE[subject])
    return _SUBJECTS[subject](**settings)


def _input(config: PretrainConfig, seconds: float, batch_size: int, simclr: str | None) -> Answer:
    from instcls_tf.benchmark.input import measure_input

    return Answer(measure_input(config, seconds=seconds, batch_size=batch_size, simclr=simclr))


def _classifier(settings: ClassifierBenchmark) -> Answer:
    _, num_workers = launched_rank_and_size() or (0, 1)
    settings.validate(num_workers)
    from instcls_tf.benchmark.classifier import measure_classifier

    return measure_classifier(settings)


def _step(config: PretrainConfig, num_instances: int, repeats: int) -> Answer:
    _, num_workers = launched_rank_and_size() or (0, 1)
    config.validate(num_workers)
    _refuse_sizes(num_instances=num_instances, repeats=repeats)
    source = None if config.dataset == SYNTHETIC else open_training_source(config)
    num_instances, flag = (source.num_instances, "") if source else (num_instances, "num_instances")
    config.validate_with_data(num_instances, num_workers, flag=flag)
    if source is not None and config.cache:
        of_files(source, config.cache)
    from instcls_tf.benchmark.step import measure_step

    return Answer(measure_step(config, num_instances, repeats, source))


def _encoder(config: PretrainConfig, images: int, repeats: int, environments: str | None) -> Answer:
    config.validate()
    _refuse_sizes(repeats=repeats)
    from instcls_tf.benchmark.encoder import measure_encoder

    return measure_encoder(config, images, repeats, environments)


def _hard_negatives(num_instances: int, embedding_size: int, k: int, repeats: int) -> Answer:
    from instcls_tf.benchmark.hard_negatives import measure_hard_negatives

    return measure_hard_negatives(num_instances, embedding_size, k, repeats)


def _checks(config: PretrainConfig, num_instances: int, repeats: int, folder: str) -> Answer:
    _, num_workers = launched_rank_and_size() or (0, 1)
    config.validate(num_workers)
    _refuse_sizes(num_instances=num_instances, repeats=repeats)
    config.validate_with_data(num_instances, num_workers, flag="num_instances")
    _refuse_folder(folder)
    from instcls_tf.benchmark.checks import measure_checks

    return Answer(measure_checks(config, num_instances, repeats, folder))


def _checkpoint(num_instances: int, embedding_size: int, repeats: int, folder: str) -> Answer:
    _, num_workers = launched_rank_and_size() or (0, 1)
    _refuse_sizes(embedding_size=embedding_size, repeats=repeats)
    require_value("num_instances", num_instances, num_instances >= num_workers, f"at least the {num_workers} workers")
    _refuse_folder(folder)
    from instcls_tf.benchmark.checkpoint import measure_checkpoint

    return Answer(measure_checkpoint(num_instances, embedding_size, repeats, folder))


def _gallery(num_instances: int, folder: str) -> Answer:
    require_value("num_instances", num_instances, num_instances >= 20, "at least 20")
    _refuse_folder(folder)
    from instcls_tf.benchmark.gallery import measure_gallery

    return Answer(measure_gallery(num_instances, folder))


def _refuse_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        require_value(name, value, value >= 1, "at least 1")


def _refuse_folder(folder: str) -> None:
    require_value("folder", folder, os.path.isdir(folder) and os.access(folder, os.W_OK), "a folder to write into")


def _memory(limits: list[float], sizes: tuple, plain: bool, output: str | None) -> Answer:
    from instcls_tf.benchmark.memory import Sizes, measure_memory

    return measure_memory(limits, Sizes(*sizes), plain=plain, output=output)


def _scaling(numbers: list[int], num_workers: int, settings: ClassifierBenchmark, output: str | None) -> Answer:
    from instcls_tf.benchmark.scaling import measure_scaling

    return measure_scaling(numbers, num_workers, settings, output)


def _duplicates(folder: str, images: int, copies: int, repeats: int, **settings: Any) -> Answer:
    _refuse_sizes(images=images, copies=copies, repeats=repeats)
    _refuse_folder(folder)
    from instcls_tf.benchmark.duplicates import measure_duplicates

    return Answer(measure_duplicates(images=images, copies=copies, repeats=repeats, folder=folder, **settings))


# What one process measures -> its flag for several workers, which it starts itself.
_ALONE = {"input": "", "gallery": "", "memory": "workers", "scaling": "workers", "duplicates": ""}
_SUBJECTS: dict[str, Callable[..., Answer]] = {
    "input": _input,
    "classifier": _classifier,
    "step": _step,
    "encoder": _encoder,
    "hard_negatives": _hard_negatives,
    "checks": _checks,
    "checkpoint": _checkpoint,
    "gallery": _gallery,
    "memory": _memory,
    "scaling": _scaling,
    "duplicates": _duplicates,
}
