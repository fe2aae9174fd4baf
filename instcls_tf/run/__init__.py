"""What a run keeps on disk: recipe, checkpoints, log."""
