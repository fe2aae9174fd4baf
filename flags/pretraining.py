"""Flags of `pretrain`: one per field of `PretrainConfig`, whose defaults (the paper's) they take."""

from __future__ import annotations

from typing import Any

from absl import flags

from flags import from_dataclass
from instcls_tf import config as recipe
from instcls_tf.config import PretrainConfig
from instcls_tf.run.precision import with_precision
from instcls_tf.run.workdir import with_length_begun

FLAGS = flags.FLAGS

DESCRIPTIONS = {
    "workdir": "Folder of the run: checkpoints, run.flags, metrics.jsonl, TensorBoard. A run found there goes on.",
    "dataset": "`digits` (scikit-learn's scans, built in), `folder:PATH` (any images, any nesting;"
    " PATH/{train,test,val}/CLASS/* when labels exist), `records:PATH` (the output of scripts.prepare), or the"
    " name of a prepared TFDS dataset.",
    "data_dir": "Where TFDS keeps its datasets (TFDS datasets only).",
    "tfds_split": "TFDS's split to train on, or a part of one, such as train[:10%] (TFDS datasets only).",
    "max_bad_fraction": "Stop when more than this fraction of the images cannot be read; the others are skipped and"
    " listed in WORKDIR/bad_files.txt.",
    "max_pixels": "Images that declare more pixels than this are not decoded but listed as unreadable.",
    "background": "What transparent images are laid on: `white`, `grey`, `black`, or a colour #rrggbb.",
    "cache": "Where decoded images of a folder are kept, shortened to what views can show: `ram`, or a file, which is"
    " made if it is not there and serves later runs on the same images. For photographs of many pixels, whose decoding"
    " takes longer than all else. None by default. A run that goes on may change the place, but has a cache or none.",
    "image_size": "Side of the square views, in pixels.",
    "augmentation": "The views: `simclr` (the paper's), `digits` (small shifts, rotations, scalings, stroke noise),"
    " `none` (resize and centre crop).",
    "crop_min_area": "Smallest part of the image's area that a `simclr` crop covers; the largest is 1.",
    "color_strength": "Multiplies brightness, contrast, saturation and hue jitter of `simclr` (0.8, 0.8, 0.8, 0.2).",
    "blur_probability": "Share of `simclr` views that are blurred.",
    "center_crop_fraction": "What is seen of an image when the run is judged (features, k-NN, linear evaluation,"
    " fine-tuning): the centred square whose side is this fraction of the image's shorter one. 0.875 is the"
    " usual `resize to 256, crop 224`; 1 is the largest square, for small images.",
    "encoder": "Backbone.",
    "width_multiplier": "Multiplies the backbone's channels; 1 is the published network.",
    "stem": "`imagenet` (7x7/2 and max pool) or `small` (3x3, for images of about 32 pixels).",
    "mlp_head": "Two-layer MLP head; --nomlp_head is one linear map (Table 2, first row).",
    "embedding_size": "D, the size of embeddings and class weights.",
    "zero_init_last_gamma": "Start each residual block as the identity (last BN gamma 0).",
    "init": "Weights to start from in the place of random ones: the folder of a run or of a Keras SavedModel, or a file"
    " of a ResNet's weights as torchvision names them (.safetensors, .npz, .pth; also of timm, DINO and MoCo v2). A run"
    " that goes on does not need it any more.",
    "batch_size": "Instances per step, all workers together.",
    "views": "Augmented views per instance and step: the global batch has batch_size x views rows.",
    "micro_batch": "Instances per BN group. A worker encodes its share of a batch group by group; runs with the"
    " same flags are the same on any number of workers. What is kept of each in memory: see --recompute.",
    "method": "What is learned from the views: `instance` is the paper's classification of instances; the others are"
    " its rivals, see docs/methods.md.",
    "epochs": "Length of the run, in epochs (one visit of every instance each).",
    "exposures": "The run is longer than --epochs if it takes that to show so many images in all, each time with all"
    " its views: a few images are shown for more epochs than many. --epochs after a flagfile with it sets it to 0.",
    "extend_epochs": "Epochs after those, with a warm-up and a cosine of their own: a finished run goes on when it is"
    " given them. The result is that of --epochs and --extend_epochs together, not of one longer run. Once they have"
    " begun, their number stays.",
    "extend_from": "Folder of a run on an earlier state of the set. Images that it knows, by their bytes, keep class"
    " weights and momentum, wherever they lie now; new ones get theirs from its network; those that are gone lose them."
    " A run of its own begins with that, in --workdir.",
    "warmup_epochs": "Linear warm-up, in epochs; at most a tenth of the run.",
    "learning_rate": f"Learning rate at a batch size of {recipe.REFERENCE_BATCH_SIZE} (at any batch size with"
    " --noscale_learning_rate).",
    "scale_learning_rate": f"Scale the learning rate linearly with batch_size / {recipe.REFERENCE_BATCH_SIZE}.",
    "classifier_learning_rate_factor": "Multiplies the learning rate of the class weights.",
    "weight_decay": "L2 weight decay, added to the gradient of every variable, class weights included.",
    "class_weight_decay": "Weight decay of the class weights alone; by default that of all (with --method=diet and"
    f" AdamW {recipe.ADAMW_WEIGHT_DECAY}, decoupled).",
    "momentum": "Momentum factor of SGD.",
    "class_momentum": "Momentum factor of the class weights alone; by default that of all.",
    "temperature": "tau, which the cosines are divided by (Eq. 1); by default that of the method: "
    + ", ".join(f"{tau} for `{method}`" for method, tau in recipe.TEMPERATURES.items() if method != recipe.DIET)
    + "; `diet` has none.",
    "smoothing": "alpha of Eq. 2: the share of the label that goes to the hard negatives; 0 switches smoothing off.",
    "hard_negatives": "K: hard negatives per class, found once per epoch (none with --smoothing=0).",
    "smoothing_loss": "Eq. 3 as printed (`marginal`) or the soft-label `cross_entropy`.",
    "classifier_init": "Class weights from a random network's features (`raw_*`: how its BN normalises), or Gaussian.",
    "bn_burn_in": "Epochs of BN statistics before the features are taken (raw_running_bn only).",
    "sampled_classes": "Negatives of each row: so many classes, drawn uniformly for each step, the same for all rows"
    " (Table 3); 0 for all classes. The row's own class comes on top; where it was drawn, there is one negative less."
    " Only with --smoothing=0.",
    "prior_every": "Epochs after which the class weights are taken from the trained network again, as --classifier_init"
    " says; 0 takes them at the begin only.",
    "contrast_epochs": "So many epochs train with NT-Xent between the views of the batch alone (SimCLR); then the class"
    " weights are taken from that network and the instance classification begins.",
    "batch_contrast": "Weight of NT-Xent between the views of the batch, added to the instance classification; 0 for"
    " none.",
    "batch_contrast_temperature": "tau of NT-Xent with --batch_contrast and --contrast_epochs.",
    "moco_queue": f"Keys in MoCo's queue; by default {recipe.LARGEST_QUEUE}, or half of the images if those are fewer.",
    "moco_momentum": "How much of MoCo's key encoder stays in each step. Its batch normalisation is shuffled among the"
    " BN groups of a worker, which takes effect where a worker has at least two of them.",
    "pic_recent_negatives": "Instances before the batch, the latest first, whose classes are PIC's negatives.",
    "pic_window": f"Images in the window that PIC slides over all; by default {recipe.LARGEST_WINDOW}, or an eighth of"
    " the images if those are fewer; 0 for ordinary epochs.",
    "pic_stride": "Images by which PIC's window moves on; by default an eighth of the window.",
    "diet_label_smoothing": "Share of DIET's labels that is spread evenly over all classes.",
    "diet_optimizer": "Of DIET's class weights. AdamW's learning rate is the published 1e-3 at a batch of 256, times"
    " --classifier_learning_rate_factor, and follows the schedule.",
    "recompute": "Whether a worker with several BN groups encodes each again for the backward pass, in the memory of"
    " one: `always`, `never`, or (`auto`) unless all activations fit into 60 % of the free memory; always on GPUs. The"
    " result is the same to the last bit; encoding again takes up to a third more time.",
    "precision": "Number type of the encoder's computation; for the classifier see --class_*_dtype. `auto` is"
    " mixed_bfloat16 where the GPU or the processor computes in it (AVX512_BF16, AMX), float32 elsewhere; run.flags"
    " says which, and a run keeps it.",
    "class_weights_dtype": "How class weights are kept. bfloat16 takes half the memory of float32; int8, with a scale"
    " for each class, about a quarter. Both are rounded stochastically.",
    "class_momentum_dtype": "How the momentum of class weights is kept, likewise.",
    "class_products_dtype": "Number type of the factors in the classifier's matrix products; sums are kept in float32.",
    "class_passes": "What computes the classifier's passes: `auto` is the compiled kernels where they are there (CPUs),"
    " else TensorFlow's operations; `operations` these; `xla` these, of which XLA makes one for each tile of classes;"
    " it compiles for seconds first, on GPUs with ptxas and libdevice. The result is the same up to rounding.",
    "seed": "Random seed of weights, order and views.",
    "log_every": "Steps between two lines of metrics.jsonl.",
    "checkpoint_every": "Epochs between two checkpoints; 0 saves at the end only.",
    "keep_checkpoints": "How many of the newest checkpoints stay: more than one, to go back if the newest is damaged.",
    "online_knn_every": "Epochs between two measurements of 20-NN accuracy (knn_top1 in metrics.jsonl) on the dataset's"
    " labelled train (of a --tfds_split within it that part) and test splits; 0 for none.",
    "gauge_every": "Epochs between two measurements that need no labels, on a few hundred of the run's images"
    " (gauge_agreement, rank_me in metrics.jsonl), about 1 % of the time of an epoch; 0 for none.",
    "report": "Judge the run when it is finished, against its starting weights and raw pixels, as scripts.report does.",
    "stall_timeout": "Seconds that one of several workers may stand still. Then the job is ended, with a sentence that"
    " says which worker is where: one may be stopped or stuck, and the others would wait for ever. 0 for no limit.",
    "max_steps": "Stop after this many steps of the whole run, for trials (no limit by default); 0 saves the"
    " initialised run.",
}

# --dataset may name a folder as well, but is part of the recipe and stays as it was given.
PATHS = ("data_dir", "extend_from", "init", "cache")


def define(only: tuple[str, ...] | None = None, flag_values: flags.FlagValues = FLAGS) -> None:
    """Defines the flags; `only` these, for commands that need a few of them."""
    from_dataclass.define(
        PretrainConfig, DESCRIPTIONS, choices=recipe.CHOICES, path_names=PATHS, only=only, flag_values=flag_values
    )


def config_from_flags(flag_values: flags.FlagValues = FLAGS, **others: Any) -> PretrainConfig:
    """The recipe that the parsed command line describes; `others` are settings that have no flag in this command."""
    return with_precision(with_length_begun(from_dataclass.read(PretrainConfig, flag_values=flag_values, **others)))
