"""Recipes that do something else than their user means: what to take instead, and how long either takes at best."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from instcls_tf.config import (
    BN_MOMENTUM,
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
from instcls_tf.distributed import gpus, partition
from instcls_tf.pretraining import short_runs
from instcls_tf.pretraining.speed import measured_rate, products_of, products_of_step
from instcls_tf.progress import in_words

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
# Multiplications a second of a worker that is slower than any: what fits it needs no measurement.
_SLOWEST = 1e9


def warnings_of(config: PretrainConfig, source: Source, num_workers: int, begins: bool) -> Iterator[str]:
    """What is to be looked at on this machine whenever it is started, and the `sentences` of a run that begins.

    Its speed is measured if there is something to say, in a tenth of a second.
    """
    import tensorflow as tf

    rate = functools.cache(lambda: measured_rate(config, num_workers))
    on_cpu = not tf.config.list_physical_devices("GPU")
    if on_cpu and gpus.are_there():
        yield f"{gpus.LEFT_OUT}; {gpus.REMEDY}"
    if begins:
        yield from sentences(config, source, rate, on_cpu, num_workers)


def sentences(
    config: PretrainConfig,
    source: Source,
    rate: Callable[[], float],
    on_cpu: bool,
    num_workers: int = 1,
) -> Iterator[str]:
    """What should be looked at before a run begins, one sentence each. No TensorFlow.

    Args:
      config: the recipe.
      source: its images.
      rate: measures multiplications a second of this machine, of all workers; called if there is something to say.
      on_cpu: whether TensorFlow sees no GPU.
      num_workers: T, whom a recipe that is named must fit.
    """
    side = shorter_side(source)
    preset = _SMALL_IMAGES if side and side <= _SMALL_SIDE else _PHOTOS
    better = PretrainConfig.from_flagfile(preset, workdir=config.workdir, dataset=config.dataset)
    case = _Case(
        config=config,
        num_images=source.num_instances,
        side=side,
        better=better,
        preset=f"--flagfile=flags/presets/{preset}.flags",
        fits=better.groups_per_batch >= num_workers,
        rate=rate,
        on_cpu=on_cpu,
        num_workers=num_workers,
    )
    for advise in (_of_steps_in_an_epoch, _of_standstill, _of_large_network, _of_narrow_network):
        yield from advise(case)
    yield from short_runs.sentences(config, case.num_images)
    yield from _of_image_size(case)


class _Case(NamedTuple):
    """A recipe on its images on this machine, and what may be named in its place."""

    config: PretrainConfig
    num_images: int  # N
    side: float | None  # the images' own, in pixels, see `shorter_side`
    better: PretrainConfig  # a preset for images of this size
    preset: str  # its flag
    fits: bool  # whether all workers have a BN group of its batch
    rate: Callable[[], float]  # multiplications a second of all workers
    on_cpu: bool
    num_workers: int  # T

    def times(self, better: PretrainConfig) -> str:
        """How long another recipe takes at best, and this one."""
        per_second = self.rate()
        own, others = (in_words(products_of(recipe, self.num_images) / per_second) for recipe in (self.config, better))
        return f"{others} at best instead of {own} {_basis(per_second)}"


def _of_steps_in_an_epoch(case: _Case) -> Iterator[str]:
    """What takes whole epochs, each a step or a few: the training, or the prior."""
    config, count = case.config, case.num_images
    if not config.batch_size > count >= _FEWEST:
        yield from _of_prior(case)
        return
    size = max(case.num_workers, min(case.better.batch_size, 2 ** int(np.log2(count / _FEW_STEPS))))
    has_groups = config.replace(batch_size=size).groups_per_batch >= case.num_workers
    groups = "" if has_groups else f" --micro_batch={size // case.num_workers}"
    is_preset = case.fits and case.better.batch_size < count
    or_preset = f", or {case.preset}: {case.times(case.better)}" if is_preset else ""
    yield (
        f"--batch_size={config.batch_size} is more than the {count} images: an epoch is a single step; take"
        f" --batch_size={size}{groups} ({partition.steps_per_epoch(count, size)} steps an epoch){or_preset}"
    )


def _of_standstill(case: _Case) -> Iterator[str]:
    """The watchdog is of several workers, and sees nothing of a step but its begin and its end."""
    config, workers = case.config, case.num_workers
    products = products_of_step(config, case.num_images)
    if workers == 1 or not 2 * products / (_SLOWEST * workers) > config.stall_timeout > 0:
        return
    seconds = products / case.rate()
    if 2 * seconds > config.stall_timeout:
        yield (
            f"--stall_timeout={config.stall_timeout:g} ends a job in which nothing moves for so many seconds, and a"
            f" step of {min(config.batch_size, case.num_images)} images takes {in_words(seconds)} at best"
            f" {_basis(case.rate())}: give a larger one, or a smaller batch"
        )


def _of_large_network(case: _Case) -> Iterator[str]:
    if case.on_cpu and case.config.encoder == RESNET50:
        smaller = case.better if case.fits else case.config.replace(encoder=RESNET18)
        what = case.preset if case.fits else f"--encoder={RESNET18}"
        yield f"--encoder={RESNET50} without a GPU: take {what}: {case.times(smaller)}"


def _of_narrow_network(case: _Case) -> Iterator[str]:
    width = case.config.width_multiplier
    if case.on_cpu and round(64 * width) < _FEWEST_CHANNELS and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0":
        yield (
            f"--width_multiplier={width:g} without a GPU: of so few channels oneDNN's convolutions"
            " have written beyond their memory, and results may be wrong; take"
            f" --width_multiplier={_FEWEST_CHANNELS / 64:g}, or set TF_ENABLE_ONEDNN_OPTS=0, which is slower"
        )


def _of_image_size(case: _Case) -> Iterator[str]:
    config, better, side = case.config, case.better, case.side
    if side is None:
        return
    or_preset = f", or {case.preset}" if case.fits else ""
    if config.image_size >= _MUCH_LARGER * side:
        fitting = config.replace(image_size=max(32, 8 * round(side / 8)))
        yield (
            f"--image_size={config.image_size} is {config.image_size / side:.1f} times the images' own {side:.0f}"
            f" pixels: take --image_size={fitting.image_size}{or_preset}: {case.times(fitting)}"
        )
    elif config.image_size <= _MUCH_SMALLER * side and config.image_size < _PHOTOGRAPHS:
        larger = better if case.fits else config.replace(image_size=better.image_size)
        yield (
            f"--image_size={config.image_size} leaves little of images of {side:.0f} pixels: take"
            f" --image_size={better.image_size}{or_preset}: {case.times(larger)}"
        )


def _of_prior(case: _Case) -> Iterator[str]:
    """Burn-in is counted in epochs, and of few steps each it leaves BN's statistics nearly as they were."""
    config, count = case.config, case.num_images
    # Statistics that are not a random network's, or class weights that are not the prior's.
    is_elsewhere = config.init or config.extend_from or config.contrast_epochs
    is_running = config.method == INSTANCE and config.classifier_init == RAW_RUNNING_BN
    steps = partition.steps_per_epoch(count, config.batch_size)
    remains = BN_MOMENTUM ** (config.bn_burn_in * steps)
    if is_elsewhere or not is_running or count < _TRIAL or remains <= _REMAINS:
        return
    updates = int(np.ceil(np.log(_HARDLY_REMAINS) / np.log(BN_MOMENTUM)))
    size = 2 ** int(np.log2(max(1.0, config.bn_burn_in * count / updates)))
    has_groups = config.replace(batch_size=size).groups_per_batch >= case.num_workers
    or_batch = f", or --batch_size={size}" if has_groups and config.bn_burn_in else ""
    yield (
        f"--bn_burn_in={config.bn_burn_in} with --batch_size={config.batch_size} of {count} images is"
        f" {config.bn_burn_in * steps} update(s) of BN's statistics before the first class weights are taken:"
        f" {remains:.0%} of the initial ones remain, nearly as with --classifier_init={RAW_FIXED_BN}; take"
        f" --bn_burn_in={-(-updates // steps)}{or_batch}"
    )


def _basis(per_second: float) -> str:
    billions = f"{per_second / 1e9:.0f} billion a second"
    return f"(by the networks' multiplications, at the {billions} of a bare matrix product here)"


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
