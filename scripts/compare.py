"""Compares runs on one labelled dataset by nearest neighbours, with raw pixels as the baseline: a table and a picture.

Example:
  python -m scripts.compare --runs=untrained=runs/demo/untrained,prior=runs/demo/prior --output=runs/demo
"""

from flags import command, evaluation

evaluation.define_compare()


def main() -> None:
    runs, output = evaluation.named_runs(), evaluation.required("output")
    from instcls_tf.report.comparison import compare_runs

    command.give(compare_runs(runs, output), "compare", output)


if __name__ == "__main__":
    command.run(main, __doc__)
