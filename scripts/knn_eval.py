"""Nearest-neighbour accuracy of a run's frozen features, train split against test split: weighted 20-NN, and 1-NN.

Examples:
  python -m scripts.knn_eval --workdir=runs/digits
  horovodrun -np 2 python -m scripts.knn_eval --workdir=runs/photos --dataset=folder:/data/pets --features=projection
  python -m scripts.knn_eval --workdir=runs/digits --train_features=a.npz --test_features=b.npz
"""

from flags import command, evaluation
from instcls_tf.report.answer import Answer

evaluation.define_knn()


def main() -> None:
    workdir, values, files = evaluation.required("workdir"), evaluation.FLAGS, evaluation.feature_files()
    kind = evaluation.choice("features", evaluation.KNN_FEATURES)
    subject = evaluation.subject(files)
    from instcls_tf.evaluation.commands import knn_of_run

    result = knn_of_run(subject, kind, k=values.num_neighbors, temperature=values.knn_temperature, files=files)
    command.give(Answer(result), evaluation.kept_as("knn_eval", files, kind), workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
