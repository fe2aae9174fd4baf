"""Nearest-neighbour accuracy of a run's frozen features, train split against test split: weighted 20-NN, and 1-NN.

Examples:
  python -m scripts.knn_eval --workdir=runs/digits
  horovodrun -np 2 python -m scripts.knn_eval --workdir=runs/photos --dataset=folder:/data/pets --features=projection
  python -m scripts.knn_eval --workdir=runs/digits --train_features=a.npz --test_features=b.npz
"""

from flags import command, evaluation

evaluation.define()
evaluation.define_dataset()
evaluation.define_feature_files()
evaluation.define_knn()


def main() -> None:
    workdir, values, files = evaluation.required("workdir"), evaluation.FLAGS, evaluation.feature_files()
    kind = evaluation.choice("features", ("backbone", "projection", "pixels"))
    subject = None if files else evaluation.subject()
    from instcls_tf.evaluation.commands import knn_of_run

    result = knn_of_run(subject, kind, k=values.num_neighbors, temperature=values.knn_temperature, files=files)
    evaluation.answer("knn_eval", workdir, result)


if __name__ == "__main__":
    command.run(main, __doc__)
