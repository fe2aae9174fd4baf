"""Trials of many settings, fair and resumable: the same minutes and the same number of trials for each arm."""
