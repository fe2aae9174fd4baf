"""What the rivals have in common: none of the paper's classifier, and one loss of all views alike."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from instcls_tf.methods.method import Learn, Output, StepBatch, learn_from_all_views
from instcls_tf.run.parts import Slices


class Rival(tf.Module):
    """A `Method` beside the paper's; what one has otherwise, it says itself."""

    classifier = hard_negatives = None

    def network(self, encoder: tf.keras.Model) -> tf.keras.Model:
        """All of the encoder."""
        return encoder

    def replicated(self) -> dict[str, Any]:
        """Nothing for a checkpoint to keep."""
        return {}

    def sliced(self) -> dict[str, Slices]:
        """Nothing for a checkpoint to keep."""
        return {}

    def train(self, batch: StepBatch, learn: Learn) -> Output:
        """As `Method` has it, by the rival's `prepare`, a `Loss`."""
        return learn_from_all_views(self, batch, learn)
