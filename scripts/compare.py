"""Compares runs on one labelled dataset by nearest neighbours, with raw pixels as the baseline: a table and a picture.

Example:
  python -m scripts.compare --runs=untrained=runs/demo/untrained,prior=runs/demo/prior --output=runs/demo
"""

import os

from flags import command, evaluation

evaluation.define_compare()


def main() -> None:
    runs, output = evaluation.named_runs(), evaluation.required("output")
    from instcls_tf.report.comparison import compare_runs, format_table

    table = compare_runs(runs, os.path.join(output, "comparison.png"))
    with open(os.path.join(output, "comparison.md"), "w") as file:
        file.write(format_table(table) + "\n")
    print(format_table(table))
    evaluation.answer("compare", output, table)


if __name__ == "__main__":
    command.run(main, __doc__)
