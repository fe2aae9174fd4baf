"""Measures a part by itself; the last line of standard output is one JSON object. The first word says what.

Example:
  python -m scripts.benchmark input --dataset=folder:/data/photos --image_size=224
"""

import json

from flags import benchmark, command


def main() -> None:
    result = _MEASURES[benchmark.FLAGS.subject](benchmark.FLAGS)
    print(json.dumps(result), flush=True)


def _input(values) -> dict:
    from instcls_tf.benchmark.input import measure_input

    return measure_input(benchmark.input_config(), seconds=values.seconds, batch_size=values.images_per_batch)


_MEASURES = {"input": _input}

if __name__ == "__main__":
    command.run(main, __doc__, before_parsing=benchmark.take_subject)
