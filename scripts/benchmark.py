"""Measures a part by itself; the last line of standard output is one JSON object. The first word says what.

  input           reading, decoding and views of any images, against decoding alone, a cache and SimCLR's own
  classifier      the classifier's step, against three bare matrix products and plain data parallelism
  step            a whole training step by its parts, and what sending gradients early gains
  encoder         images per second that the encoder trains on; with --environments in turns with PyTorch's ResNet
  hard_negatives  the exact search for hard negatives, against FAISS
  checks          what checks and stamps cost a step, and a checkpoint an epoch
  checkpoint      saving and reading N class weights and their momentum, against bare writing and reading
  gallery         a page of 100,000 synthetic images: written, and drawn by Chromium
  memory          the largest N under a memory limit, against plain data parallelism; some minutes
  scaling         seconds per step and memory per worker against N; some minutes
  duplicates      precision and recall on planted copies, against other tools
Each has flags of its own. Examples:
  python -m scripts.benchmark classifier --help
  horovodrun -np 2 python -m scripts.benchmark classifier --num_instances=262144 --batch_rows=1024
  python -m scripts.benchmark encoder --image_size=128 --precision=mixed_bfloat16 --environments=peers
"""

from flags import benchmark, command
from instcls_tf.benchmark.commands import measure


def main() -> None:
    subject, settings = benchmark.subject_and_settings()
    command.give(measure(subject, **settings))


if __name__ == "__main__":
    command.run(main, __doc__, before_parsing=benchmark.take_subject)
