"""Pretraining: the run from top to bottom, its step, and what is checked before it."""
