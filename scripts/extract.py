"""Features of any dataset, labelled or not, by a run's encoder: `backbone`, `projection`, `labels`, `ids`, `paths`.

A path is that below the folder of the split, or the name that the dataset itself gives an image (digits: the id).

They are also kept below WORKDIR/features, where the other evaluations find them; that folder may be deleted any time.
Once images of a run's own folder are gone or have come, the others compute theirs again: here the ids are the run's.

Examples:
  python -m scripts.extract --workdir=runs/digits --split=test --output=features/digits_test.npz
  python -m scripts.extract --workdir=runs/photos --output=photos.parquet
  horovodrun -np 2 python -m scripts.extract --workdir=runs/photos --dataset=folder:/data/more --output=features/more
"""

from flags import command, evaluation
from instcls_tf.report.answer import Answer

evaluation.define_extract()


def main() -> None:
    workdir, output, values = evaluation.required("workdir"), evaluation.required("output"), evaluation.FLAGS
    from instcls_tf.evaluation.commands import extract_of_run

    images = values.dataset, values.data_dir, values.split
    result = extract_of_run(workdir, *images, output, values.center_crop_fraction, values.format)
    command.give(Answer(result), "extract", workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
