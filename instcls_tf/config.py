"""The recipe of a pretraining run: every setting, its default and its limits. Plain Python, no TensorFlow.

The defaults are the paper's and stand only here; the command-line flags and the layers take theirs from this class.
"""

from __future__ import annotations

import dataclasses
import math
import os

from instcls_tf.errors import UserError

ENCODERS = ("resnet50", "resnet18")
STEMS = ("imagenet", "small")
AUGMENTATIONS = ("simclr", "digits", "none")
SMOOTHING_LOSSES = ("marginal", "cross_entropy")
CLASSIFIER_INITS = ("raw_running_bn", "raw_batch_bn", "raw_fixed_bn", "random")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
CLASS_DTYPES = ("float32", "bfloat16")

# The batch size at which `learning_rate` is meant, as in the paper.
REFERENCE_BATCH_SIZE = 4096

# What may differ between a run and its continuation; everything else is the run's recipe.
NOT_RECIPE = (
    "workdir",
    "data_dir",
    "max_steps",
    "log_every",
    "checkpoint_every",
    "max_bad_fraction",
    "online_knn_every",
)


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Settings of `pretrain`, one per command-line flag of the same name (see `flags/` for their descriptions)."""

    workdir: str = ""
    dataset: str = "imagenet2012"
    data_dir: str | None = None
    tfds_split: str = "train"
    max_bad_fraction: float = 0.01
    image_size: int = 224
    augmentation: str = "simclr"
    crop_min_area: float = 0.2
    color_strength: float = 1.0
    blur_probability: float = 0.5
    encoder: str = "resnet50"
    width_multiplier: float = 1.0
    stem: str = "imagenet"
    mlp_head: bool = True
    embedding_size: int = 128
    zero_init_last_gamma: bool = True
    batch_size: int = 4096
    views: int = 2
    micro_batch: int = 64
    epochs: int = 1000
    warmup_epochs: float = 10
    learning_rate: float = 0.48
    scale_learning_rate: bool = True
    classifier_learning_rate_factor: float = 1.0
    weight_decay: float = 1e-4
    momentum: float = 0.9
    temperature: float = 0.15
    smoothing: float = 0.2
    hard_negatives: int = 100
    smoothing_loss: str = "marginal"
    classifier_init: str = "raw_running_bn"
    bn_burn_in: int = 1
    sampled_classes: int = 0
    precision: str = "float32"
    class_weights_dtype: str = "float32"
    class_momentum_dtype: str = "float32"
    class_products_dtype: str = "float32"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 1
    online_knn_every: int = 0
    max_steps: int | None = None

    def validate(self, num_workers: int = 1) -> None:
        """Checks what can be known before the data are opened.

        Raises:
          UserError: one sentence naming the flag, its value and what is wanted.
        """
        if not self.workdir:
            raise UserError("--workdir is missing: name the folder that receives the run")
        _one_of(self, "encoder", ENCODERS)
        _one_of(self, "stem", STEMS)
        _one_of(self, "augmentation", AUGMENTATIONS)
        _one_of(self, "smoothing_loss", SMOOTHING_LOSSES)
        _one_of(self, "classifier_init", CLASSIFIER_INITS)
        _one_of(self, "precision", PRECISIONS)
        for name in ("class_weights_dtype", "class_momentum_dtype", "class_products_dtype"):
            _one_of(self, name, CLASS_DTYPES)
        for name in ("image_size", "embedding_size", "batch_size", "views", "micro_batch", "epochs", "log_every"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("temperature", "width_multiplier", "classifier_learning_rate_factor"):
            _require(self, name, _finite(self, name) and getattr(self, name) > 0, "a number above 0")
        for name in ("learning_rate", "weight_decay", "warmup_epochs"):
            _require(self, name, _finite(self, name) and getattr(self, name) >= 0, "0 or more")
        for name in ("bn_burn_in", "sampled_classes", "checkpoint_every", "hard_negatives", "online_knn_every"):
            _require(self, name, getattr(self, name) >= 0, "0 or more")
        _require(self, "seed", 0 <= self.seed < 2**31, "0 or more and below 2147483648")
        for name in ("smoothing", "momentum"):
            _require(self, name, 0 <= getattr(self, name) < 1, "0 or more and below 1")
        _require(self, "crop_min_area", 0 < self.crop_min_area <= 1, "above 0 and at most 1")
        _require(self, "color_strength", 0 <= self.color_strength <= 2.5, "0 to 2.5")
        for name in ("blur_probability", "max_bad_fraction"):
            _require(self, name, 0 <= getattr(self, name) <= 1, "0 to 1")
        _require(self, "batch_size", self.batch_size >= num_workers, f"at least the {num_workers} workers")
        if num_workers > 1:
            largest = -(-self.batch_size // (num_workers - 1)) - 1
            _require(
                self,
                "micro_batch",
                self.micro_batch <= largest,
                f"at most {largest}, for each of the {num_workers} workers to have a BN group of"
                f" --batch_size={self.batch_size}",
            )
        _require(self, "max_steps", self.max_steps is None or self.max_steps >= 0, "0 or more")
        _require(
            self, "hard_negatives", self.hard_negatives >= 1 or self.smoothing == 0, "at least 1, or --smoothing=0"
        )
        if self.sampled_classes and self.smoothing:
            raise UserError(
                f"--sampled_classes={self.sampled_classes} works without smoothing only (a hard negative need not be in"
                f" the sample): add --smoothing=0"
            )

    def validate_with_data(self, num_instances: int, num_workers: int = 1) -> None:
        """Checks what depends on the number of instances, N.

        Raises:
          UserError: one sentence naming the flag, its value and what is wanted.
        """
        if num_instances < num_workers:
            raise UserError(
                f"--dataset={self.dataset}: has {num_instances} instances, must be at least the {num_workers} workers"
            )
        if self.smoothing:
            _require(
                self,
                "hard_negatives",
                self.hard_negatives < num_instances,
                f"below the number of instances of --dataset={self.dataset}, {num_instances}",
            )
        if self.sampled_classes:
            fewest = min(self.batch_size, num_instances)
            _require(
                self,
                "sampled_classes",
                fewest <= self.sampled_classes <= num_instances,
                f"between the {fewest} positive classes of a batch and the {num_instances} instances of the dataset",
            )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up, scaled linearly with the batch unless told otherwise."""
        return self.learning_rate * (self.batch_size / REFERENCE_BATCH_SIZE if self.scale_learning_rate else 1.0)

    @property
    def groups_per_batch(self) -> int:
        """BN groups of a full batch, over all workers."""
        return -(-self.batch_size // self.micro_batch)

    @property
    def effective_warmup_epochs(self) -> float:
        """`warmup_epochs`, but a tenth of the run when that is shorter than ten times the warm-up."""
        return min(self.warmup_epochs, self.epochs / 10)

    def replace(self, **changes) -> PretrainConfig:
        """A copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def as_flags(self) -> str:
        """The text of `run.flags`: an absl flagfile that replays the run."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                lines.append(f"--{field.name}={str(value).lower() if isinstance(value, bool) else value}")
        return "\n".join(lines) + "\n"


def _finite(config: PretrainConfig, name: str) -> bool:
    return math.isfinite(getattr(config, name))


def _require(config: PretrainConfig, name: str, holds: bool, wanted: str) -> None:
    if not holds:
        raise UserError(f"--{name}={getattr(config, name)}: must be {wanted}")


def _one_of(config: PretrainConfig, name: str, choices: tuple[str, ...]) -> None:
    _require(config, name, getattr(config, name) in choices, "one of " + ", ".join(choices))


def run_flags_path(workdir: str) -> str:
    """Where a run keeps its recipe."""
    return os.path.join(workdir, "run.flags")


def load_run(workdir: str) -> PretrainConfig:
    """Reads the recipe of the run in `workdir`.

    Raises:
      UserError: there is no run, or its `run.flags` cannot be understood.
    """
    path = run_flags_path(workdir)
    try:
        with open(path) as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise UserError(f"--workdir={workdir}: holds no run ({path}: {error.strerror})") from error
    fields = {field.name: field.type for field in dataclasses.fields(PretrainConfig)}
    values = {}
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, text = line.removeprefix("--").partition("=")
        if name not in fields or not separator:
            raise UserError(f"{path}: cannot understand the line {line!r}")
        values[name] = _parse(text, fields[name], line, path)
    return PretrainConfig(**values)


def _parse(text: str, kind: str, line: str, path: str):
    # Annotations are strings here: "int", "float", "bool", "str", "int | None", "str | None".
    try:
        return {"int": int, "float": float, "bool": _parse_bool, "str": str}[kind.split(" ")[0]](text)
    except ValueError as error:
        raise UserError(f"{path}: cannot understand the line {line!r}") from error


def _parse_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def refuse_other_recipe(config: PretrainConfig) -> bool:
    """Whether `config.workdir` already holds this very run.

    Returns:
      True to continue the run there, False to start one.

    Raises:
      UserError: the folder belongs to a run with other flags, is a file, or cannot be written.
    """
    if os.path.exists(config.workdir) and not os.path.isdir(config.workdir):
        raise UserError(f"--workdir={config.workdir}: is a file, not a folder")
    if not os.path.exists(run_flags_path(config.workdir)):
        _refuse_unwritable(config.workdir)
        return False
    theirs = load_run(config.workdir)
    for field in dataclasses.fields(config):
        before, now = getattr(theirs, field.name), getattr(config, field.name)
        if field.name not in NOT_RECIPE and before != now:
            raise UserError(
                f"--workdir={config.workdir} belongs to a run with --{field.name}={before}, this one has"
                f" --{field.name}={now}: give the same flags to continue it, or another folder"
            )
    _refuse_unwritable(config.workdir)
    return True


def _refuse_unwritable(folder: str) -> None:
    existing = os.path.abspath(folder)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={folder}: cannot write to {existing}")
