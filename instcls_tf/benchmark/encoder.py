"""How many images per second the encoder trains on, and PyTorch's ResNet in turns with it, in the same sitting.

A step is that of a trained encoder and no more: forward in training mode, backward from a fixed gradient of the
embeddings, the sum of the gradients over the workers, the optimiser's update. The views are random pixels in uint8.
The peers run in processes of their own, which sleep while it is another's turn; of this one, where there are several
workers, Horovod looks for messages a thousand times a second meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.benchmark.environments import interpreter
from instcls_tf.benchmark.timing import slowest
from instcls_tf.checks import require_value
from instcls_tf.config import MIXED_FLOAT16, PretrainConfig
from instcls_tf.distributed import collectives, device, workers
from instcls_tf.encoder import bn_groups, networks
from instcls_tf.errors import UserError
from instcls_tf.optimizer import MomentumSGD
from instcls_tf.pretraining.state import TRIAL_LEARNING_RATE
from instcls_tf.progress import Progress
from instcls_tf.report.answer import Answer

OURS = "this design"
# By name: whether `torch.compile` makes it.
PEERS = {"PyTorch": False, "PyTorch, compiled": True}
GRADIENT = 1e-6

_PROGRAM = os.path.join(os.path.dirname(__file__), "torch_encoder.py")
_STEPS_A_TURN = 5
_PATIENCE_SECONDS = 900  # with a peer, which may compile first

Turn = Callable[[int], float]  # makes so many steps, with all workers; the seconds that they took


class Images(NamedTuple):
    """What a worker encodes in a step."""

    number: int
    pixels: int  # of a side


class Rates(NamedTuple):
    """Images per second of all workers, over the turns."""

    images_per_second: float  # the median
    slowest: float
    fastest: float


def measure_encoder(config: PretrainConfig, images: int, repeats: int, environments: str | None) -> Answer:
    """Measures on random pixels; all workers together.

    Args:
      config: encoder, projection head, image size and precision.
      images: per worker and step, one BN group.
      repeats: turns of each, of five steps.
      environments: folder of the peers' environments, made if they are not there; None for this project alone.

    Returns:
      `by_name`: `images_per_second` (median over the turns, of all workers), `slowest` and `fastest` turn, or the
      `failure` of a peer; `ratio_to_peer`, by name, of the medians.

    Raises:
      UserError: a setting is out of range, or PyTorch's ResNet has no such form, or is no peer of workers on a GPU or
        on several machines.
    """
    require_value("images", images, images >= 2, "at least 2, over which BN takes its statistics")
    if environments is not None:
        _refuse_other_forms(config)
    workers.start(config.seed)
    if environments is not None:
        here = collectives.local_size() == collectives.size() and not tf.config.get_visible_devices("GPU")
        require_value("environments", environments, here, "left out on GPUs and several machines, where no peer runs")
    sizes = Images(images, config.image_size)
    with contextlib.ExitStack() as stack:
        turns, failures = {OURS: _ours(config, sizes)}, {}
        for name, compiled in PEERS.items() if environments is not None else ():
            try:
                python = _python(str(environments))
                turns[name] = stack.enter_context(_peer({**_words(config, sizes), "compiled": compiled}, python))
            except UserError as error:
                failures[name] = str(error)
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for name in list(turns) * repeats:
            if name in failures:
                continue
            try:
                seconds[name].append(slowest(turns[name](_STEPS_A_TURN)))
            except UserError as error:
                failures[name] = str(error)
    in_a_turn = _STEPS_A_TURN * images * collectives.size()
    rates = {name: [in_a_turn / one for one in all_] for name, all_ in seconds.items() if name not in failures}
    return _answer(config, sizes, rates, failures)


def _refuse_other_forms(config: PretrainConfig) -> None:
    forms = {"width_multiplier": 1.0, "stem": "imagenet", "mlp_head": True}
    for name, value in forms.items():
        own = getattr(config, name)
        require_value(name, own, own == value, f"{value} with --environments: the ResNet that torchvision has")
    wanted = "float32 or mixed_bfloat16 with --environments, as PyTorch computes on CPUs"
    require_value("precision", config.precision, config.precision != MIXED_FLOAT16, wanted)


def _ours(config: PretrainConfig, images: Images) -> Turn:
    encoder = networks.make_encoder(config, config.precision)
    optimizer = MomentumSGD(TRIAL_LEARNING_RATE, config.momentum, config.weight_decay)
    groups = bn_groups.Groups(several=False)
    step = encoder_step(config, encoder, optimizer, groups, images.number)
    shape = [images.number, images.pixels, images.pixels, 3]
    pixels = tf.cast(tf.random.uniform(shape, 0, 256, tf.int32), tf.uint8)
    gradient = tf.random.normal([images.number, config.embedding_size], stddev=GRADIENT)

    def turn(steps: int) -> float:
        collectives.barrier()
        start = time.perf_counter()
        for _ in range(steps):
            step(pixels, gradient).numpy()
        return time.perf_counter() - start

    turn(2)
    return turn


def encoder_step(
    config: PretrainConfig,
    encoder: tf.keras.Model,
    optimizer: tf.keras.optimizers.Optimizer,
    groups: bn_groups.Groups,
    group_rows: int,
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A step of the encoder alone, as a `tf.function` of images `[b, H, W, 3]` uint8 and the gradient `[b, D]`.

    Args:
      config: the recipe.
      encoder, optimizer: what is trained, and by what.
      groups, group_rows: see `bn_groups.encode`.

    Returns:
      A function whose value is there when the weights have moved.
    """

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, config.image_size, config.image_size, 3], tf.uint8),
            tf.TensorSpec([None, config.embedding_size]),
        ],
    )
    def step(images: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        is_real = tf.ones([tf.shape(images)[0]], tf.bool)
        encoded = bn_groups.encode(encoder, images, is_real, group_rows, groups)
        gradients = collectives.sum_one_by_one(encoded.backpropagate(gradient), "encoder_gradient")
        optimizer.apply_gradients(zip(gradients, encoder.trainable_variables))
        encoded.update_statistics()
        return encoded.embeddings[0, 0]

    return step


def _python(environments: str) -> str:
    """Of the peers' environment; all workers together."""

    def make() -> str:
        return interpreter(environments, "torch", Progress(visible=True).say) if collectives.rank() == 0 else ""

    return workers.everybodys(workers.all_or_none(make))[0]


def _words(config: PretrainConfig, images: Images) -> dict[str, Any]:
    """What the peers are told; all workers together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = workers.everybodys(free.getsockname()[1])[0]
    return {
        "encoder": config.encoder,
        "embedding_size": config.embedding_size,
        "images": images.number,
        "image_size": images.pixels,
        "precision": config.precision,
        "threads": device.threads(),
        "rank": collectives.rank(),
        "workers": collectives.size(),
        "port": port,
        "learning_rate": TRIAL_LEARNING_RATE,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "gradient": GRADIENT,
        "mean": networks.IMAGENET_MEAN,
        "std": networks.IMAGENET_STD,
    }


@contextlib.contextmanager
def _peer(words: dict[str, Any], python: str) -> Iterator[Turn]:
    """A peer beside this worker that takes turns when asked; all workers together.

    Raises:
      UserError: on all of them, one did not start, or ended; also when it is asked.
    """
    with tempfile.TemporaryFile("w+") as said, contextlib.ExitStack() as stack:

        def start() -> Any:
            command, pipe = [python, _PROGRAM, json.dumps(words)], subprocess.PIPE
            try:
                process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, text=True)
            except OSError as error:
                raise UserError(f"{python}: cannot be started ({error.strerror})") from error
            stack.callback(_end, process)
            return process

        def answer(question: str = "") -> str:
            with contextlib.suppress(BrokenPipeError):  # then there is no answer either
                process.stdin.write(question)
                process.stdin.flush()
            limit = threading.Timer(_PATIENCE_SECONDS, process.kill)
            limit.start()
            line = process.stdout.readline()
            limit.cancel()
            if not line:
                if process.wait() == -signal.SIGKILL:
                    raise UserError(f"PyTorch was ended: no answer in {_PATIENCE_SECONDS} s, or memory ran out")
                said.seek(0)
                last = " ".join(said.read().split())[-200:]
                raise UserError(f"PyTorch ended with status {process.wait()}: {last}")
            return line

        def turn(steps: int) -> float:
            collectives.barrier()
            return workers.all_or_none(lambda: _seconds(answer(f"{steps}\n")))

        process = workers.all_or_none(start)
        workers.all_or_none(answer)
        turn(2)
        yield turn


def _seconds(line: str) -> float:
    try:
        return float(line)
    except ValueError as error:
        raise UserError(f"PyTorch said {line.strip()[:200]!r}, wanted seconds") from error


def _end(process: Any) -> None:
    """It ends when there is nobody to ask it."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()
    process.stdout.close()


def _answer(config: PretrainConfig, images: Images, rates: dict[str, list[float]], failures: dict[str, str]) -> Answer:
    figures = {name: Rates(float(np.median(all_)), min(all_), max(all_)) for name, all_ in rates.items()}
    ours = figures[OURS].images_per_second
    ratios = {name: ours / one.images_per_second for name, one in figures.items() if name != OURS}
    sizes = f"{images.number} images of {images.pixels} px"
    what = f"{config.encoder}, {config.precision}, {collectives.size()} worker(s), {sizes} each"
    lines = [f"| {what} | images per second | slowest to fastest turn | ours against it |", "|---|---|---|---|"]
    for name, one in figures.items():
        ratio = f"{ratios[name]:.2f}" if name in ratios else ""
        lines.append(f"| {name} | {one.images_per_second:.1f} | {one.slowest:.1f} to {one.fastest:.1f} | {ratio} |")
    lines += [f"| {name} | {failure} | | |" for name, failure in failures.items()]
    by_name = {name: one._asdict() for name, one in figures.items()}
    result = {
        "encoder": config.encoder,
        "workers": collectives.size(),
        "threads": device.threads(),
        "images": images.number,
        "image_size": images.pixels,
        "precision": config.precision,
        "by_name": {**by_name, **{name: {"failure": failure} for name, failure in failures.items()}},
        "ratio_to_peer": ratios,
    }
    return Answer(result, "\n".join(lines))
