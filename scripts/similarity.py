"""Cosine of instances to their own and to other class weights (Fig. 4): four initialisations and the run.

With a histogram, WORKDIR/similarity.png, and same-category retrieval by the rows. With --index the run's rows serve as
an index of its images instead: near-duplicates and outliers of the dataset, by name and as a picture.

Examples:
  python -m scripts.similarity --workdir=runs/digits
  horovodrun -np 2 python -m scripts.similarity --workdir=runs/photos --index --threshold=0.95
"""

from flags import command, evaluation

evaluation.define()
evaluation.define_similarity()


def main() -> None:
    workdir, values = evaluation.required("workdir"), evaluation.FLAGS
    from instcls_tf.report import similarity

    if values.index:
        result = similarity.index_with_picture(workdir, values.data_dir, values.threshold, values.listed)
    else:
        result = similarity.similarities_with_picture(workdir, values.data_dir, values.instances)
    evaluation.answer("similarity", workdir, result)


if __name__ == "__main__":
    command.run(main, __doc__)
