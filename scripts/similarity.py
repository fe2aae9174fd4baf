"""Cosine similarity of instances to their own and to other class weights (Fig. 4): four initialisations and the run.

Example:
  python -m scripts.similarity --workdir=runs/digits
"""

from flags import command, evaluation

evaluation.define()
evaluation.define_similarity()


def main() -> None:
    workdir = evaluation.required("workdir")
    from instcls_tf.evaluation.similarity import similarities_of_run

    result = similarities_of_run(workdir, evaluation.FLAGS.data_dir, evaluation.FLAGS.instances)
    evaluation.answer("similarity", workdir, result)


if __name__ == "__main__":
    command.run(main, __doc__)
