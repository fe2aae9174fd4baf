"""What a run trains with: the paper's instance classification and its rivals, for the same encoder, views and data."""
