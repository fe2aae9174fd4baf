"""Flags of `prepare` and `show_views`."""

from __future__ import annotations

from absl import flags

from flags import pretraining


def define_prepare() -> None:
    """The flags of `prepare`."""
    flags.DEFINE_string("dataset", None, "`folder:PATH`: the images to copy; PATH/{train,test,val} if there are any.")
    flags.DEFINE_string("output", None, "Folder that receives the shards and index.json.")
    flags.DEFINE_integer("shard_megabytes", 256, "Size at which a new shard begins, in 2^20 bytes.")


def define_show_views() -> None:
    """The flags of `show_views`: those of the recipe that views depend on, and what to draw."""
    pretraining.define(only=VIEW_FLAGS)
    flags.DEFINE_integer("images", 8, "Rows of the picture: images, spread over the dataset by --seed.")
    flags.DEFINE_integer("columns", 8, "Views of each image, besides the image itself.")
    flags.DEFINE_string("output", None, "PNG file to write.")


VIEW_FLAGS = (
    "dataset",
    "data_dir",
    "tfds_split",
    "image_size",
    "augmentation",
    "crop_min_area",
    "color_strength",
    "blur_probability",
    "seed",
)
