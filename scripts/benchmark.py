"""Measures a part by itself; the last line of standard output is one JSON object. The first word says what.

Examples:
  python -m scripts.benchmark input --dataset=folder:/data/photos --image_size=224
  horovodrun -np 2 python -m scripts.benchmark classifier --num_instances=262144 --batch_rows=1024
  horovodrun -np 2 python -m scripts.benchmark step --flagfile=flags/presets/small_images.flags
  horovodrun -np 2 python -m scripts.benchmark hard_negatives --num_instances=50000
  python -m scripts.benchmark scaling --num_instances=65536,262144,1048576 --workers=2 --output=scaling.png
  python -m scripts.benchmark memory --memory_limit=0.5,1,1.5 --workers=2 --output=memory.png
"""

import json

from flags import benchmark, command
from instcls_tf.launcher import launched_rank_and_size


def main() -> None:
    result = benchmark.measure()
    if (launched_rank_and_size() or (0, 1))[0] == 0:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    command.run(main, __doc__, before_parsing=benchmark.take_subject)
