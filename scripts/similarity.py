"""Cosine of instances to their own and to other class weights (Fig. 4): four initialisations and the run.

With a histogram, WORKDIR/similarity.png, and same-category retrieval by the class weights. With --index the run's class
weights serve as an index of its images instead: what they find alike or unlike all others, by name and as a picture, in
WORKDIR/similarity_index.json and .png. `duplicates` looks at the pixels as well, and tells copies from what is alike.

Examples:
  python -m scripts.similarity --workdir=runs/digits
  horovodrun -np 2 python -m scripts.similarity --workdir=runs/photos --index --threshold=0.95
"""

from flags import command, evaluation

evaluation.define_similarity()


def main() -> None:
    workdir, values = evaluation.required("workdir"), evaluation.checked_similarity()
    from instcls_tf.report import similarity

    name = "similarity_index" if values.index else "similarity"
    if values.index:
        answer = similarity.index_with_picture(workdir, values.data_dir, values.threshold, values.listed)
    else:
        answer = similarity.similarities_with_picture(workdir, values.data_dir, values.instances)
    command.give(answer, name, workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
