"""Measures a part by itself; the last line of standard output is one JSON object. The first word says what.

Examples:
  python -m scripts.benchmark input --dataset=folder:/data/photos --image_size=224
  python -m scripts.benchmark memory --memory_limit=0.5,1,1.5 --workers=2 --output=memory.png
"""

import json

from flags import benchmark, command


def main() -> None:
    print(json.dumps(benchmark.measure()), flush=True)


if __name__ == "__main__":
    command.run(main, __doc__, before_parsing=benchmark.take_subject)
