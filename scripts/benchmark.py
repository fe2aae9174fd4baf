"""Measures a part by itself; the last line of standard output is one JSON object. The first word says what.

  input           reading, decoding and views of any images, against decoding alone and SimCLR's recipe
  classifier      the classifier's step, against three bare matrix products and plain data parallelism
  step            a whole training step by its parts, and what sending gradients early gains
  hard_negatives  the exact search for hard negatives, against FAISS
  memory          the largest N under a memory limit, against plain data parallelism; some minutes
  scaling         seconds per step and memory per worker against N; some minutes

Each has flags of its own: python -m scripts.benchmark classifier --help

Examples:
  python -m scripts.benchmark input --dataset=folder:/data/photos --image_size=224
  horovodrun -np 2 python -m scripts.benchmark classifier --num_instances=262144 --batch_rows=1024
  horovodrun -np 2 python -m scripts.benchmark step --flagfile=flags/presets/small_images.flags
  horovodrun -np 2 python -m scripts.benchmark hard_negatives --num_instances=50000
  python -m scripts.benchmark scaling --num_instances=65536,262144,1048576 --workers=2 --output=scaling.png
  python -m scripts.benchmark memory --memory_limit=0.5,1,1.5 --workers=2 --output=memory.png
"""

from flags import benchmark, command
from instcls_tf.launcher import launched_rank_and_size


def main() -> None:
    result = benchmark.measure()
    if (launched_rank_and_size() or (0, 1))[0] == 0:
        command.print_result(result)


if __name__ == "__main__":
    command.run(main, __doc__, before_parsing=benchmark.take_subject)
