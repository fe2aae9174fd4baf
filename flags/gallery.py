"""Flags of `gallery`."""

from __future__ import annotations

from absl import flags

from flags import evaluation, from_dataclass, paths
from instcls_tf.evaluation.recipes import KINDS
from instcls_tf.gallery.settings import LAYOUTS, GallerySettings

_DESCRIPTIONS = {
    "features": "What images are compared by, and placed on the map.",
    "layout": "How the map is made; `auto` is UMAP where umap-learn is installed (pip install '.[umap]'), else PCA.",
    "neighbors": "Images in each list of the nearest.",
    "thumbnail_size": "Side of the thumbnails, in pixels.",
    "max_images": "Of more images than these some are shown, evenly spread.",
}


def define() -> None:
    """The flags of `gallery`."""
    evaluation.define_run()
    paths.define("output", None, "Folder that receives the page; by default WORKDIR/gallery.")
    from_dataclass.define(GallerySettings, _DESCRIPTIONS, choices={"features": KINDS, "layout": LAYOUTS})
    flags.DEFINE_alias("num_neighbors", "neighbors")


def settings() -> GallerySettings:
    """What the parsed command line says, not yet checked."""
    return from_dataclass.read(GallerySettings)
