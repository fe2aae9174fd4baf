"""What is wrong with a set-up before a run finds it out: `python -m scripts.doctor`, also under the launcher."""
