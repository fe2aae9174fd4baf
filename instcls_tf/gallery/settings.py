"""What a gallery shows: settings and their limits. No TensorFlow."""

from __future__ import annotations

import dataclasses

from instcls_tf.checks import require, require_one_of
from instcls_tf.evaluation.recipes import BACKBONE, KINDS

AUTO, UMAP, PCA = LAYOUTS = ("auto", "umap", "pca")


@dataclasses.dataclass(frozen=True)
class GallerySettings:
    """Settings of `gallery`, one per flag of the same name (see `flags/gallery.py` for their descriptions)."""

    features: str = BACKBONE
    layout: str = AUTO
    neighbors: int = 12
    thumbnail_size: int = 64
    max_images: int = 100_000

    def validate(self) -> None:
        """Checks what can be known before the run is opened.

        Raises:
          UserError: one sentence naming the flag, its value and what is wanted.
        """
        require_one_of(self, "features", KINDS)
        require_one_of(self, "layout", LAYOUTS)
        require(self, "neighbors", 1 <= self.neighbors <= 100, "1 to 100")
        require(self, "thumbnail_size", 8 <= self.thumbnail_size <= 512, "8 to 512 pixels")
        require(self, "max_images", self.max_images >= 2, "at least 2")
