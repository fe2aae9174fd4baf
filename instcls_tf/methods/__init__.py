"""The rivals: losses and state of other methods for the same encoder, views, data and workers."""
