"""Weights to start from: of a run, a SavedModel or a ResNet from elsewhere; and those that a run has started from."""
