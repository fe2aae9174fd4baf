"""Flags of `prepare` and `show_views`."""

from __future__ import annotations

from absl import flags

from flags import paths, pretraining
from instcls_tf.config import PretrainConfig


def define_prepare() -> None:
    """The flags of `prepare`."""
    flags.DEFINE_string("dataset", None, "`folder:PATH`: the images to copy; PATH/{train,test,val} if there are any.")
    paths.define("output", None, "Folder that receives the shards and index.json.")
    flags.DEFINE_integer("shard_megabytes", 256, "Size at which a new shard begins, in 2^20 bytes.")


def define_show_views() -> None:
    """The flags of `show_views`: those of the recipe that views depend on, and what to draw."""
    # The plain image beside its views is what a judgement of the run sees of it.
    pretraining.define(only=(*VIEW_FLAGS, "center_crop_fraction"))
    flags.DEFINE_integer("images", 8, "Rows of the picture: images, spread over the dataset by --seed.")
    flags.DEFINE_integer("columns", 8, "Views of each image, besides the image itself.")
    paths.define("output", None, "PNG file to write.")


def view_config() -> PretrainConfig:
    """Dataset and views as the parsed command line has them, checked."""
    config = pretraining.config_from_flags(workdir="unused")
    config.validate()
    return config


VIEW_FLAGS = (
    "dataset",
    "data_dir",
    "tfds_split",
    "max_pixels",
    "background",
    "image_size",
    "augmentation",
    "crop_min_area",
    "color_strength",
    "blur_probability",
    "seed",
)
