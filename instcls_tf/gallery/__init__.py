"""A page to look through a set of images by what a run has learned, from the disk and without a server."""
