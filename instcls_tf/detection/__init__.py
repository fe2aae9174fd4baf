"""Detection: a run's encoder as the backbone of a detector."""
