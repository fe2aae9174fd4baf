"""Trained encoders in the formats of other tools."""
