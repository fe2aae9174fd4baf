"""Draws instance accuracy against semantic accuracy over a run (Fig. 1b) into WORKDIR/correlation.png.

The run must have measured itself: pretrain with --online_knn_every=1.

Example:
  python -m scripts.correlation --workdir=runs/digits
"""

from flags import command, evaluation

evaluation.define_workdir()


def main() -> None:
    workdir = evaluation.required("workdir")
    from instcls_tf.report.correlation import correlation_of_run

    command.give(correlation_of_run(workdir), "correlation", workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
