"""Measures a part by itself; the last line of standard output is one JSON object. The first word says what.

Examples:
  python -m scripts.benchmark input --dataset=folder:/data/photos --image_size=224
  horovodrun -np 2 python -m scripts.benchmark classifier --num_instances=262144 --batch_rows=1024
  horovodrun -np 2 python -m scripts.benchmark hard_negatives --num_instances=50000
"""

import json

from flags import benchmark, command
from instcls_tf.launcher import launched_rank_and_size


def main() -> None:
    result = _MEASURES[benchmark.FLAGS.subject](benchmark.FLAGS)
    if (launched_rank_and_size() or (0, 1))[0] == 0:
        print(json.dumps(result), flush=True)


def _input(values) -> dict:
    from instcls_tf.benchmark.input import measure_input

    return measure_input(benchmark.input_config(), seconds=values.seconds, batch_size=values.images_per_batch)


def _classifier(values) -> dict:
    settings = benchmark.classifier_benchmark()
    settings.validate()
    from instcls_tf.benchmark.classifier import measure_classifier

    return measure_classifier(settings)


def _hard_negatives(values) -> dict:
    from instcls_tf.benchmark.hard_negatives import measure_hard_negatives

    return measure_hard_negatives(values.num_instances, values.embedding_size, values.hard_negatives, values.repeats)


_MEASURES = {"input": _input, "classifier": _classifier, "hard_negatives": _hard_negatives}

if __name__ == "__main__":
    command.run(main, __doc__, before_parsing=benchmark.take_subject)
