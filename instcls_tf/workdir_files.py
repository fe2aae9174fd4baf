"""What the files of a run's workdir are called. Without imports, so that all who read or write one have its name."""

RUN_FLAGS_NAME = "run.flags"  # the run's recipe
METRICS_NAME = "metrics.jsonl"  # its log
PAGE_NAME = "report.html"  # the page about it
STARTING_WEIGHTS_NAME = "start.safetensors"  # the encoder's before the first step
# Lists of images: which has which id, hashes of their bytes, and which cannot be read.
MANIFEST_NAME, CONTENTS_NAME, BAD_FILES_NAME = "manifest.tsv", "contents.npy", "bad_files.txt"

# The folder of the checkpoints, how the name of each begins, before its step, and the file there that names the newest:
# the last one that a save writes.
CHECKPOINTS_NAME, CHECKPOINT_PREFIX, RECORD_NAME = "checkpoints", "ckpt-", "checkpoint"
