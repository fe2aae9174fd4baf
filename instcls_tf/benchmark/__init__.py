"""Measurements of the parts, by themselves: `python -m scripts.benchmark NAME`."""
