"""Entry points: thin commands over the package."""
