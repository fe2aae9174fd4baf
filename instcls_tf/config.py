"""The recipe of a pretraining run: every setting, its default and its limits. Plain Python, no TensorFlow.

The defaults are the paper's and stand only here; the command-line flags and the layers take theirs from this class.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from instcls_tf import flagfiles
from instcls_tf.checks import (
    as_flag_gives_it,
    background_colour,
    check_sampled_classes,
    check_seed,
    check_start,
    refuse_beyond_epochs,
    refuse_given,
    refuse_without_effect,
    refuse_workers_without_group,
    require,
    require_above_zero,
    require_numbers,
    require_one_of,
    require_path_for_tensorflow,
    require_zero_or_more,
    require_zero_to_below_one,
)
from instcls_tf.errors import UserError

RESNET50, RESNET18, RESNET10 = ENCODERS = ("resnet50", "resnet18", "resnet10")
RESNET_DEPTHS = {RESNET50: (3, 4, 6, 3), RESNET18: (2, 2, 2, 2), RESNET10: (1, 1, 1, 1)}  # blocks of the four stages
IMAGENET_STEM, SMALL_STEM = STEMS = ("imagenet", "small")
SIMCLR_VIEWS, DIGIT_VIEWS, PLAIN_VIEWS = AUGMENTATIONS = ("simclr", "digits", "none")
MARGINAL, CROSS_ENTROPY = SMOOTHING_LOSSES = ("marginal", "cross_entropy")
RAW_RUNNING_BN, RAW_BATCH_BN, RAW_FIXED_BN, RANDOM = CLASSIFIER_INITS = (
    "raw_running_bn", "raw_batch_bn", "raw_fixed_bn", "random",
)  # fmt: skip
FLOAT32, MIXED_BFLOAT16, MIXED_FLOAT16, AUTO = PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "auto")
BFLOAT16, INT8 = "bfloat16", "int8"
ALWAYS, NEVER = "always", "never"
RECOMPUTE = (AUTO, ALWAYS, NEVER)
PRODUCTS_DTYPES, STORAGE_DTYPES = (FLOAT32, BFLOAT16), (FLOAT32, BFLOAT16, INT8)
OPERATIONS, XLA = "operations", "xla"
CLASS_PASSES = (AUTO, OPERATIONS, XLA)
CACHE_IN_MEMORY = "ram"

LARGEST_MAX_PIXELS = 2**29 // 3  # Pillow opens nothing larger: half a GiB of RGB

INSTANCE, SIMCLR, MOCO_V2, PIC, DIET = METHODS = ("instance", "simclr", "moco_v2", "pic", "diet")
ADAMW, SGD = DIET_OPTIMIZERS = ("adamw", "sgd")

# The settings that are one of a few words.
CHOICES = {
    "method": METHODS,
    "diet_optimizer": DIET_OPTIMIZERS,
    "augmentation": AUGMENTATIONS,
    "encoder": ENCODERS,
    "stem": STEMS,
    "smoothing_loss": SMOOTHING_LOSSES,
    "classifier_init": CLASSIFIER_INITS,
    "precision": PRECISIONS,
    "recompute": RECOMPUTE,
    "class_weights_dtype": STORAGE_DTYPES,
    "class_momentum_dtype": STORAGE_DTYPES,
    "class_products_dtype": PRODUCTS_DTYPES,
    "class_passes": CLASS_PASSES,
}

# tau where --temperature is left out. SimCLR's paper has .1 on ImageNet and .5 on CIFAR-10; DIET's logits have none.
TEMPERATURES = {INSTANCE: 0.15, SIMCLR: 0.2, MOCO_V2: 0.2, PIC: 0.2, DIET: 1.0}
ADAMW_WEIGHT_DECAY = 0.05  # DIET's for AdamW, which decouples it from the gradient
# Published for 1.28 million images; fewer take a part of them that is as large or larger.
LARGEST_QUEUE, LARGEST_WINDOW = 2**16, 2**17

REFERENCE_BATCH_SIZE = 4096  # at which `learning_rate` is meant, as in the paper
BN_MOMENTUM = 0.9  # what remains of the moving statistics after each batch

# Seconds. Reading a batch from a slow disk, or compiling the first step, takes minutes.
STALL_TIMEOUT = 900.0

# What only one method has; the classification's prior and smoothing are on by default, and left out elsewhere.
_OF_CLASSIFICATION = (
    "extend_from", "sampled_classes", "prior_every", "contrast_epochs", "batch_contrast", "class_weights_dtype",
    "class_momentum_dtype", "class_products_dtype", "class_passes",
)  # fmt: skip
_OWN = {
    INSTANCE: _OF_CLASSIFICATION,
    MOCO_V2: ("moco_queue", "moco_momentum"),
    PIC: ("pic_recent_negatives", "pic_window", "pic_stride"),
    DIET: ("diet_label_smoothing", "diet_optimizer"),
}
_OF_CLASS_WEIGHTS, _WITHOUT_CLASS_WEIGHTS = ("class_weight_decay", "class_momentum"), (SIMCLR, MOCO_V2)


class Window(NamedTuple):
    """PIC's window, which slides over the instances: how many are in it, W, and by how many it moves on, S."""

    size: int
    stride: int


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Settings of `pretrain`, one per command-line flag of the same name (see `flags/` for their descriptions)."""

    workdir: str = ""
    dataset: str = "imagenet2012"
    data_dir: str | None = None
    tfds_split: str = "train"
    max_bad_fraction: float = 0.01
    # Above the 108 million pixels of telephones' cameras: 0.36 GB in each thread that decodes.
    max_pixels: int = 120_000_000
    background: str = "white"
    cache: str | None = None
    image_size: int = 224
    augmentation: str = SIMCLR_VIEWS
    crop_min_area: float = 0.2
    color_strength: float = 1.0
    blur_probability: float = 0.5
    center_crop_fraction: float = 0.875
    encoder: str = RESNET50
    width_multiplier: float = 1.0
    stem: str = IMAGENET_STEM
    mlp_head: bool = True
    embedding_size: int = 128
    zero_init_last_gamma: bool = True
    init: str | None = None
    batch_size: int = 4096
    views: int = 2
    micro_batch: int = 64
    recompute: str = AUTO
    method: str = INSTANCE
    epochs: int = 1000
    exposures: int = 0
    extend_epochs: int = 0
    extend_from: str | None = None
    warmup_epochs: float = 10
    learning_rate: float = 0.48
    scale_learning_rate: bool = True
    classifier_learning_rate_factor: float = 1.0
    weight_decay: float = 1e-4
    class_weight_decay: float | None = None
    momentum: float = 0.9
    class_momentum: float | None = None
    temperature: float = None  # type: ignore[assignment] # `__post_init__` takes the method's
    smoothing: float = 0.2
    hard_negatives: int = 100
    smoothing_loss: str = MARGINAL
    classifier_init: str = RAW_RUNNING_BN
    bn_burn_in: int = 1
    sampled_classes: int = 0
    prior_every: int = 0
    contrast_epochs: int = 0
    batch_contrast: float = 0.0
    batch_contrast_temperature: float = 0.2
    moco_queue: int | None = None
    moco_momentum: float = 0.999
    pic_recent_negatives: int = 65536
    pic_window: int | None = None
    pic_stride: int | None = None
    diet_label_smoothing: float = 0.8
    diet_optimizer: str = ADAMW
    precision: str = FLOAT32
    class_weights_dtype: str = FLOAT32
    class_momentum_dtype: str = FLOAT32
    class_products_dtype: str = FLOAT32
    class_passes: str = AUTO
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 1
    keep_checkpoints: int = 2
    online_knn_every: int = 0
    gauge_every: int = 1
    report: bool = True
    stall_timeout: float = STALL_TIMEOUT
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.temperature is None:
            object.__setattr__(self, "temperature", TEMPERATURES.get(self.method, TEMPERATURES[INSTANCE]))
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, as_flag_gives_it(getattr(self, field.name), str(field.type)))

    def validate(self, num_workers: int = 1, begins: bool = True) -> None:
        """Checks what can be known before the data are opened.

        Args:
          num_workers: T.
          begins: whether it is a run's first start; a run that began with what is now refused elsewhere goes on.

        Raises:
          UserError: one sentence naming the flag, its value and what is wanted.
        """
        if not self.workdir:
            raise UserError("--workdir is missing: name the folder that receives the run")
        require_numbers(self)
        require_path_for_tensorflow("workdir", self.workdir)
        for name in ("dataset", "data_dir", "tfds_split", "init", "cache"):
            # Several lines would be several flags in run.flags.
            require(self, name, not set("\n\r") & set(getattr(self, name) or ""), "one line")
        for name, choices in CHOICES.items():
            require_one_of(self, name, choices)
        for name in ("image_size", "embedding_size", "batch_size", "views", "micro_batch", "epochs", "log_every"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require_above_zero(self, "temperature", "batch_contrast_temperature", "classifier_learning_rate_factor")
        require(self, "width_multiplier", 1 / 128 < self.width_multiplier <= 64, "above 1/128 (a channel), at most 64")
        require_zero_or_more(self, "learning_rate", "weight_decay", "class_weight_decay", "warmup_epochs")
        require_zero_or_more(self, "batch_contrast", "stall_timeout", "bn_burn_in", "sampled_classes")
        require_zero_or_more(self, "checkpoint_every", "hard_negatives", "exposures", "extend_epochs", "prior_every")
        require_zero_or_more(self, "contrast_epochs", "max_steps", "online_knn_every", "gauge_every")
        require(self, "max_pixels", 1 <= self.max_pixels <= LARGEST_MAX_PIXELS, f"1 to {LARGEST_MAX_PIXELS}")
        background_colour(self.background)
        require(self, "keep_checkpoints", self.keep_checkpoints >= 1, "at least 1")
        check_seed(self)
        require_zero_to_below_one(self, "smoothing", "momentum", "class_momentum")
        require_zero_to_below_one(self, "moco_momentum", "diet_label_smoothing")
        for name in ("crop_min_area", "center_crop_fraction"):
            require(self, name, 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        require(self, "color_strength", 0 <= self.color_strength <= 2.5, "0 to 2.5")
        for name in ("blur_probability", "max_bad_fraction"):
            require(self, name, 0 <= getattr(self, name) <= 1, "0 to 1")
        require(self, "batch_size", self.batch_size >= num_workers, f"at least the {num_workers} workers")
        refuse_workers_without_group(self, num_workers)
        require(self, "hard_negatives", self.hard_negatives >= 1 or self.smoothing == 0, "at least 1, or --smoothing=0")
        check_sampled_classes(self)
        self._validate_method(begins)

    def _validate_method(self, begins: bool) -> None:
        require(self, "pic_recent_negatives", self.pic_recent_negatives >= 1, "at least 1")
        for name, least in (("moco_queue", 1), ("pic_window", 0), ("pic_stride", 1)):
            value = getattr(self, name)
            require(self, name, value is None or value >= least, f"at least {least}")
        if not self.exposures:
            refuse_beyond_epochs(self, begins)
        for method, names in _OWN.items():
            if method != self.method and (begins or method == INSTANCE):
                refuse_given(self, names, f"is of --method={method}, --method={self.method} has nothing of the kind")
        if self.method in _WITHOUT_CLASS_WEIGHTS and begins:
            refuse_given(self, _OF_CLASS_WEIGHTS, f"is of class weights, --method={self.method} has none")
        check_start(self)
        refuse_without_effect(self, begins)
        if self.method == MOCO_V2:
            require(self, "views", self.views == 2, "2 with --method=moco_v2, a query and its key")
        if self.method == DIET:
            none = TEMPERATURES[DIET]
            require(self, "temperature", self.temperature == none, "left out with --method=diet, which has none")
        if self.method in (SIMCLR, MOCO_V2) or self.contrast_epochs or self.batch_contrast:
            require(self, "views", self.views >= 2, "at least 2, which are compared with each other")

    def validate_with_data(self, num_instances: int, num_workers: int = 1, begins: bool = True, flag: str = "") -> None:
        """Checks what depends on the number of instances.

        Args:
          num_instances: N.
          num_workers: T.
          begins: as for `validate`.
          flag: the one that N is given by; empty where it is that of `dataset`.

        Raises:
          UserError: one sentence naming the flag, its value and what is wanted.
        """
        if num_instances < num_workers:
            has = f"--{flag}={num_instances}:" if flag else f"--dataset={self.dataset}: has {num_instances} instances,"
            raise UserError(f"{has} must be at least the {num_workers} workers")
        refuse_beyond_epochs(self.for_instances(num_instances), begins)
        of_dataset = f"the number of instances of --dataset={self.dataset}, {num_instances}"
        instances = f"--{flag}={num_instances}" if flag else of_dataset
        if self.smoothing and self.method == INSTANCE:
            require(self, "hard_negatives", self.hard_negatives < num_instances, f"below {instances}")
        require(self, "sampled_classes", self.sampled_classes <= num_instances, f"at most {instances}")
        window = self.window(num_instances)
        if window is not None:
            most = instances if flag else f"the {num_instances} instances of --dataset={self.dataset}"
            require(self, "pic_window", window.size <= num_instances, f"at most {most}")
            is_whole = not begins or window.stride <= window.size
            require(self, "pic_stride", is_whole, f"at most the window, {window.size}")

    def window(self, num_instances: int) -> Window | None:
        """PIC's sliding window over the instances; None for ordinary epochs."""
        if self.method != PIC or self.pic_window == 0:
            return None
        size = self.pic_window or min(LARGEST_WINDOW, max(1, num_instances // 8))
        return Window(size, self.pic_stride or max(1, size // 8))

    def queue_size(self, num_instances: int) -> int:
        """Keys in MoCo's queue: not many more than half of the instances, it would hold keys of the batch's own."""
        return self.moco_queue or min(LARGEST_QUEUE, max(1, num_instances // 2))

    @property
    def effective_class_weight_decay(self) -> float:
        """Of the class weights, the encoder's unless told otherwise."""
        if self.class_weight_decay is not None:
            return self.class_weight_decay
        decoupled = self.method == DIET and self.diet_optimizer == ADAMW
        return ADAMW_WEIGHT_DECAY if decoupled else self.weight_decay

    @property
    def effective_class_momentum(self) -> float:
        """Momentum factor of the class weights, the encoder's unless told otherwise."""
        return self.momentum if self.class_momentum is None else self.class_momentum

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

    @property
    def all_epochs(self) -> int:
        """The length of the run, its extension included."""
        return self.epochs + self.extend_epochs

    def for_instances(self, num_instances: int) -> PretrainConfig:
        """The recipe for N images: `exposures` as `epochs`."""
        return self.replace(epochs=max(self.epochs, -(-self.exposures // num_instances)), exposures=0)

    def replace(self, **changes: Any) -> PretrainConfig:
        """A copy with some settings changed; a change of method takes its temperature along."""
        if changes.get("method", self.method) != self.method and self.temperature == TEMPERATURES[self.method]:
            changes.setdefault("temperature", None)
        return dataclasses.replace(self, **changes)

    def as_flags(self) -> str:
        """The text of `run.flags`: an absl flagfile that replays the run."""
        return "\n".join([*flagfiles.lines_of(self), flagfiles.RUN_FLAGS_END]) + "\n"

    @classmethod
    def from_flagfile(cls, path_or_preset: str, **settings: Any) -> PretrainConfig:
        """The recipe of a flagfile, such as a run's `run.flags`, or of a preset by its name (`photos`).

        Args:
          path_or_preset: the file, or the name.
          **settings: fields that are to be otherwise; they win. `epochs` set `exposures` to 0, unless given as well.

        Raises:
          UserError: no such preset or field, with the nearest one, or a value that is not fit.
        """
        flagfiles.refuse_unknown(cls, settings)
        return cls(**{**flagfiles.values_of(cls, path_or_preset), **flagfiles.with_length(settings)})
