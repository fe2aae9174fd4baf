"""Recipes that do something else than their user means: what to take instead, and how long either takes at best."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from instcls_tf.config import (
    BN_MOMENTUM,
    FLOAT32,
    INSTANCE,
    RAW_FIXED_BN,
    RAW_RUNNING_BN,
    RESNET18,
    RESNET50,
    PretrainConfig,
)
from instcls_tf.data.folder import FolderSource
from instcls_tf.data.source import Source
from instcls_tf.data.tfds import TfdsSource
from instcls_tf.distributed import gpus
from instcls_tf.encoder.sizes import sizes_of
from instcls_tf.pretraining import short_runs

# Views as large as the files need no warning, nor do crops that are shown somewhat larger than they are.
_MUCH_LARGER, _MUCH_SMALLER = 2.0, 0.25
# Below it details of photographs are lost, from it on smaller views are a matter of time.
_PHOTOGRAPHS = 64
_SMALL_IMAGES, _PHOTOS = "small_images", "photos"
_SMALL_SIDE = 48
# An epoch of so few images is a step or two in any case; of more it should have several steps.
_FEWEST, _FEW_STEPS = 8, 4
# Channels of the first convolution from which on oneDNN's backward passes of TensorFlow 2.15 keep to their memory.
_FEWEST_CHANNELS = 16
# Initial statistics of BN that remain when the prior begins: more than so much spoils it, so little does not any more.
# Fewer images than these are a trial of the set-up.
_REMAINS, _HARDLY_REMAINS, _TRIAL = 0.5, 0.2, 100
# Files whose headers are looked at.
_HEADERS = 32
# Training takes a forward pass, and a backward pass of twice its products.
_PASSES = 3
_PRODUCT, _REPEATS = 1024, 3
# Multiplications a second of a worker that is slower than any: what fits it needs no measurement.
_SLOWEST = 1e9


def warnings_of(config: PretrainConfig, source: Source, num_workers: int) -> Iterator[str]:
    """`sentences` for this machine: its speed is measured if there is something to say, in a tenth of a second."""
    import tensorflow as tf

    rate = functools.cache(lambda: measured_rate(config, num_workers))
    on_cpu = not tf.config.list_physical_devices("GPU")
    yield from sentences(config, source, rate, on_cpu, num_workers, gpus.are_there())


def sentences(
    config: PretrainConfig,
    source: Source,
    rate: Callable[[], float],
    on_cpu: bool,
    num_workers: int = 1,
    has_gpus: bool = False,
) -> Iterator[str]:
    """What should be looked at before a run begins, one sentence each. No TensorFlow.

    Args:
      config: the recipe.
      source: its images.
      rate: measures multiplications a second of this machine, of all workers; called if there is something to say.
      on_cpu: whether TensorFlow sees no GPU.
      num_workers: T, whom a recipe that is named must fit.
      has_gpus: whether the machine has some, for TensorFlow to see.
    """
    if on_cpu and has_gpus:
        yield f"{gpus.LEFT_OUT}; {gpus.REMEDY}"
    side = shorter_side(source)
    preset = _SMALL_IMAGES if side and side <= _SMALL_SIDE else _PHOTOS
    better = PretrainConfig.from_flagfile(preset, workdir=config.workdir, dataset=config.dataset)
    count, name = source.num_instances, f"--flagfile=flags/presets/{preset}.flags"
    fits = better.groups_per_batch >= num_workers
    if config.batch_size > count >= _FEWEST:
        size = max(num_workers, min(better.batch_size, 2 ** int(np.log2(count / _FEW_STEPS))))
        groups = "" if -(-size // config.micro_batch) >= num_workers else f" --micro_batch={size // num_workers}"
        or_preset = f", or {name}: {_times(config, better, count, rate)}" if fits and better.batch_size < count else ""
        yield (
            f"--batch_size={config.batch_size} is more than the {count} images: an epoch is a single step; take"
            f" --batch_size={size}{groups} ({-(-count // size)} steps an epoch){or_preset}"
        )
    else:
        yield from _of_prior(config, count, num_workers)
    # The watchdog is of several workers, and sees nothing of a step but its begin and its end.
    if num_workers > 1 and 2 * products_of_step(config, count) / (_SLOWEST * num_workers) > config.stall_timeout > 0:
        seconds = products_of_step(config, count) / rate()
        if 2 * seconds > config.stall_timeout:
            yield (
                f"--stall_timeout={config.stall_timeout:g} ends a job in which nothing moves for so many seconds, and a"
                f" step of {min(config.batch_size, count)} images takes {_duration(seconds)} at best"
                f" {_basis(rate())}: give a larger one, or a smaller batch"
            )
    if on_cpu and config.encoder == RESNET50:
        what, smaller = (name, better) if fits else (f"--encoder={RESNET18}", config.replace(encoder=RESNET18))
        yield f"--encoder={RESNET50} without a GPU: take {what}: {_times(config, smaller, count, rate)}"
    is_narrow = round(64 * config.width_multiplier) < _FEWEST_CHANNELS
    if on_cpu and is_narrow and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0":
        yield (
            f"--width_multiplier={config.width_multiplier:g} without a GPU: of so few channels oneDNN's convolutions"
            " have written beyond their memory, and results may be wrong; take"
            f" --width_multiplier={_FEWEST_CHANNELS / 64:g}, or set TF_ENABLE_ONEDNN_OPTS=0, which is slower"
        )
    yield from short_runs.sentences(config, count)
    if side is None:
        return
    or_preset = f", or {name}" if fits else ""
    if config.image_size >= _MUCH_LARGER * side:
        fitting = config.replace(image_size=max(32, 8 * round(side / 8)))
        yield (
            f"--image_size={config.image_size} is {config.image_size / side:.1f} times the images' own {side:.0f}"
            f" pixels: take --image_size={fitting.image_size}{or_preset}: {_times(config, fitting, count, rate)}"
        )
    elif config.image_size <= _MUCH_SMALLER * side and config.image_size < _PHOTOGRAPHS:
        larger = better if fits else config.replace(image_size=better.image_size)
        yield (
            f"--image_size={config.image_size} leaves little of images of {side:.0f} pixels: take"
            f" --image_size={better.image_size}{or_preset}: {_times(config, larger, count, rate)}"
        )


def _of_prior(config: PretrainConfig, count: int, num_workers: int) -> Iterator[str]:
    """Burn-in is counted in epochs, and of few steps each it leaves BN's statistics nearly as they were."""
    # Statistics that are not a random network's, or class weights that are not the prior's.
    is_elsewhere = config.init or config.extend_from or config.contrast_epochs
    is_running = config.method == INSTANCE and config.classifier_init == RAW_RUNNING_BN
    steps = -(-count // config.batch_size)
    remains = BN_MOMENTUM ** (config.bn_burn_in * steps)
    if is_elsewhere or not is_running or count < _TRIAL or remains <= _REMAINS:
        return
    updates = int(np.ceil(np.log(_HARDLY_REMAINS) / np.log(BN_MOMENTUM)))
    size = 2 ** int(np.log2(max(1.0, config.bn_burn_in * count / updates)))
    or_batch = (
        f", or --batch_size={size}" if -(-size // config.micro_batch) >= num_workers and config.bn_burn_in else ""
    )
    yield (
        f"--bn_burn_in={config.bn_burn_in} with --batch_size={config.batch_size} of {count} images is"
        f" {config.bn_burn_in * steps} update(s) of BN's statistics before the first class weights are taken:"
        f" {remains:.0%} of the initial ones remain, nearly as with --classifier_init={RAW_FIXED_BN}; take"
        f" --bn_burn_in={-(-updates // steps)}{or_batch}"
    )


def _times(config: PretrainConfig, better: PretrainConfig, count: int, rate: Callable[[], float]) -> str:
    per_second = rate()
    own, others = (_duration(products_of(recipe, count) / per_second) for recipe in (config, better))
    return f"{others} at best instead of {own} {_basis(per_second)}"


def _basis(per_second: float) -> str:
    billions = f"{per_second / 1e9:.0f} billion a second"
    return f"(by the networks' multiplications, at the {billions} of a bare matrix product here)"


def products_of(config: PretrainConfig, num_instances: int) -> float:
    """Multiplications of the encoder in a whole run."""
    epochs = config.for_instances(num_instances).all_epochs
    return _products_of(config, epochs * num_instances)


def products_of_step(config: PretrainConfig, num_instances: int) -> float:
    """The same of one step, over all workers."""
    return _products_of(config, min(config.batch_size, num_instances))


def _products_of(config: PretrainConfig, images: int) -> float:
    return float(sizes_of(config).products) * _PASSES * config.views * images


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(1.0, seconds):.0f} seconds"


def shorter_side(source: Source) -> float | None:
    """The median of the images' shorter sides in pixels, of some of them; None where it is not known beforehand."""
    if isinstance(source, TfdsSource):
        shape = source.builder.info.features["image"].shape[:2]
        return None if None in shape else float(min(shape))
    if not isinstance(source, FolderSource):
        return None  # digits are meant to be enlarged, records tell nothing
    places = np.unique(np.linspace(0, source.num_instances - 1, _HEADERS).astype(int))
    sides = [
        side
        for side in map(_side_of_file, (os.path.join(source.root, source.paths[int(place)]) for place in places))
        if side
    ]
    return float(np.median(sides)) if sides else None


def _side_of_file(path: str) -> int | None:
    from PIL import Image

    if not os.path.isfile(path):  # a pipe would be waited for
        return None
    with contextlib.suppress(Exception), warnings.catch_warnings():  # files that cannot be read are told of later
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            return min(image.size)
    return None


def measured_rate(config: PretrainConfig, num_workers: int) -> float:
    """Multiplications a second of a matrix product in the recipe's number type, times the workers."""
    import tensorflow as tf

    dtype = tf.float32 if config.precision == FLOAT32 else tf.as_dtype(config.precision.removeprefix("mixed_"))
    factor = tf.cast(tf.random.stateless_uniform([_PRODUCT, _PRODUCT], [0, 0]), dtype)
    tf.reduce_sum(factor @ factor).numpy()  # threads and caches
    started = time.perf_counter()
    for _ in range(_REPEATS):
        tf.reduce_sum(factor @ factor).numpy()
    return num_workers * _REPEATS * _PRODUCT**3 / (time.perf_counter() - started)
