"""How duplicates are sought; checked without TensorFlow."""

from __future__ import annotations

from typing import NamedTuple

from instcls_tf.checks import require_value


class Settings(NamedTuple):
    """How duplicates are sought."""

    neighbors: int = 10  # of each image, by features and by hashes, that are looked at
    similarity: float = 0.92  # of the pixels, from which two images are near-duplicates
    percentile: float = 99.0  # of the set's own nearest cosines, from which two images are alike
    listed: int = 20  # outliers that are wanted

    def validate(self) -> None:
        """Refuses what is out of range.

        Raises:
          UserError: names the flag.
        """
        require_value("neighbors", self.neighbors, self.neighbors >= 1, "at least 1")
        require_value("similarity", self.similarity, 0 < self.similarity <= 1, "above 0 and at most 1")
        require_value("percentile", self.percentile, 0 <= self.percentile <= 100, "between 0 and 100")
        require_value("listed", self.listed, self.listed >= 1, "at least 1")
