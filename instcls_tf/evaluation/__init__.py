"""Measures what a network has learned."""
