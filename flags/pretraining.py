"""Flags of `pretrain`: one per field of `PretrainConfig`, whose defaults (the paper's) they take."""

from __future__ import annotations

import dataclasses

from absl import flags

from instcls_tf import config as recipe
from instcls_tf.config import PretrainConfig

FLAGS = flags.FLAGS

_DESCRIPTIONS = {
    "workdir": "Folder of the run: checkpoints, run.flags, metrics.jsonl, TensorBoard. A run found there goes on.",
    "dataset": "`digits` (scikit-learn's scans, built in), `folder:PATH` (any images, any nesting;"
    " PATH/{train,test,val}/CLASS/* when labels exist), `records:PATH` (the output of scripts.prepare), or the"
    " name of a prepared TFDS dataset.",
    "data_dir": "Where TFDS keeps its datasets (TFDS datasets only).",
    "tfds_split": "TFDS's split to train on, or a part of one, such as train[:10%] (TFDS datasets only).",
    "max_bad_fraction": "Stop when more than this fraction of the images cannot be read; the others are skipped and"
    " listed in WORKDIR/bad_files.txt.",
    "image_size": "Side of the square views, in pixels.",
    "augmentation": "The views: `simclr` (the paper's), `digits` (small shifts, rotations, scalings, stroke noise),"
    " `none` (resize and centre crop).",
    "crop_min_area": "Smallest part of the image's area that a `simclr` crop covers; the largest is 1.",
    "color_strength": "Multiplies brightness, contrast, saturation and hue jitter of `simclr` (0.4, 0.4, 0.4, 0.1).",
    "blur_probability": "Share of `simclr` views that are blurred.",
    "encoder": "Backbone.",
    "width_multiplier": "Multiplies the backbone's channels; 1 is the published network.",
    "stem": "`imagenet` (7x7/2 and max pool) or `small` (3x3, for images of about 32 pixels).",
    "mlp_head": "Two-layer MLP head; --nomlp_head is one linear map (Table 2, first row).",
    "embedding_size": "D, the size of embeddings and class weights.",
    "zero_init_last_gamma": "Start each residual block as the identity (last BN gamma 0).",
    "batch_size": "Instances per step, all workers together.",
    "views": "Augmented views per instance and step: the global batch has batch_size x views rows.",
    "micro_batch": "Instances per BN group. A worker encodes its share of a batch group by group, in the memory of"
    " one; runs with the same flags are the same on any number of workers.",
    "epochs": "Length of the run, in epochs (one visit of every instance each).",
    "warmup_epochs": "Linear warm-up, in epochs; at most a tenth of the run.",
    "learning_rate": "Learning rate at a batch size of 4096 (at any batch size with --noscale_learning_rate).",
    "scale_learning_rate": "Scale the learning rate linearly with batch_size / 4096.",
    "classifier_learning_rate_factor": "Multiplies the learning rate of the class weights.",
    "weight_decay": "L2 weight decay, added to the gradient of every variable, class weights included.",
    "momentum": "Momentum factor of SGD.",
    "temperature": "tau of Eq. 1, which the cosines are divided by.",
    "smoothing": "alpha of Eq. 2: the share of the label that goes to the hard negatives; 0 switches smoothing off.",
    "hard_negatives": "K: hard negatives per class, found once per epoch (none with --smoothing=0).",
    "smoothing_loss": "Eq. 3 as printed (`marginal`) or the soft-label `cross_entropy`.",
    "classifier_init": "Class weights from a random network's features (`raw_*`: how its BN normalises), or Gaussian.",
    "bn_burn_in": "Epochs of BN statistics before the features are taken (raw_running_bn only).",
    "sampled_classes": "Classes per step: the batch's own and a uniform sample of the others; 0 for all (Table 3).",
    "precision": "Number type of the encoder's computation; for the classifier see --class_*_dtype.",
    "class_weights_dtype": "How class weights are kept. bfloat16 takes half the memory and is rounded stochastically.",
    "class_momentum_dtype": "How the momentum of class weights is kept.",
    "class_products_dtype": "Number type of the factors in the classifier's matrix products; sums are kept in float32.",
    "seed": "Random seed of weights, order and views.",
    "log_every": "Steps between two lines of metrics.jsonl.",
    "checkpoint_every": "Epochs between two checkpoints; 0 saves at the end only.",
    "online_knn_every": "Epochs between two measurements of 20-NN accuracy (knn_top1 in metrics.jsonl) on the dataset's"
    " labelled train and test splits; 0 for none.",
    "max_steps": "Stop after this many steps of the whole run, for trials (no limit by default); 0 saves the"
    " initialised run.",
}

_CHOICES = {
    "augmentation": recipe.AUGMENTATIONS,
    "encoder": recipe.ENCODERS,
    "stem": recipe.STEMS,
    "smoothing_loss": recipe.SMOOTHING_LOSSES,
    "classifier_init": recipe.CLASSIFIER_INITS,
    "precision": recipe.PRECISIONS,
    "class_weights_dtype": recipe.CLASS_DTYPES,
    "class_momentum_dtype": recipe.CLASS_DTYPES,
    "class_products_dtype": recipe.CLASS_DTYPES,
}

_DEFINE = {
    "int": flags.DEFINE_integer,
    "float": flags.DEFINE_float,
    "bool": flags.DEFINE_bool,
    "str": flags.DEFINE_string,
}


def define(only: tuple[str, ...] | None = None) -> None:
    """Defines the flags; `only` these, for commands that need a few of them."""
    for field in dataclasses.fields(PretrainConfig):
        if only is None or field.name in only:
            description = _DESCRIPTIONS[field.name]
            if field.name in _CHOICES:
                description += " One of: " + ", ".join(_CHOICES[field.name]) + "."
            # Choices and limits are checked by the recipe, whose sentences name flag, value and what is wanted.
            _DEFINE[field.type.split(" ")[0]](field.name, field.default, description)


def config_from_flags() -> PretrainConfig:
    """The recipe that the parsed command line describes."""
    return PretrainConfig(**{field.name: FLAGS[field.name].value for field in dataclasses.fields(PretrainConfig)})
