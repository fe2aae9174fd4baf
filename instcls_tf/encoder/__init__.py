"""The encoder: ResNets with their head, and batch normalisation in groups."""
