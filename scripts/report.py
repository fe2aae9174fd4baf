"""Did it help? A run beside the weights it started from and raw pixels: same images, same k-NN, gauges without labels.

Writes WORKDIR/report.json, and WORKDIR/report.html, a page about the run with its curves, views and settings.

Examples:
  python -m scripts.report --workdir=runs/photos
  python -m scripts.launch -np 2 report --workdir=runs/photos --dataset=folder:/data/labelled --images=2000
"""

from flags import command, evaluation
from instcls_tf.report.answer import Answer

evaluation.define_report()


def main() -> None:
    workdir, values = evaluation.required("workdir"), evaluation.FLAGS
    from instcls_tf.evaluation.against_start import judge_run
    from instcls_tf.report import page

    found = judge_run(workdir, values.data_dir, values.images, values.dataset)
    answer = Answer(found.result(), found.text(), picture=page.picture_of(workdir, values.data_dir))
    command.give(answer, "report", workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
