"""Weighted nearest-neighbour accuracy of a run's frozen features: train split against test split.

Example:
  python -m scripts.knn_eval --workdir=runs/digits --num_neighbors=20
"""

from flags import command, evaluation

evaluation.define()
evaluation.define_knn()


def main() -> None:
    workdir, values = evaluation.required("workdir"), evaluation.FLAGS
    features = evaluation.choice("features", ("backbone", "projection", "pixels"))
    from instcls_tf.evaluation.commands import knn_of_run

    result = knn_of_run(
        workdir, values.dataset, values.data_dir, features, k=values.num_neighbors, temperature=values.knn_temperature
    )
    evaluation.answer("knn_eval", workdir, result)


if __name__ == "__main__":
    command.run(main, __doc__)
