"""Writes a folder of images as TFRecord shards, which `--dataset=records:PATH` reads.

Example:
  python -m scripts.prepare --dataset=folder:/data/photos --output=/data/photo_records
"""

from flags import command, data, evaluation
from instcls_tf.distributed.launcher import refuse_several
from instcls_tf.report.answer import Answer

data.define_prepare()


def main() -> None:
    refuse_several("prepare")
    dataset, output, values = evaluation.required("dataset"), evaluation.required("output"), evaluation.FLAGS
    from instcls_tf.data.prepare import prepare
    from instcls_tf.progress import Progress

    progress = Progress(visible=True)
    images = prepare(dataset, output, values.shard_megabytes, progress, progress.say, values.max_bad_fraction)
    command.give(Answer({"output": output, "images": images}))


if __name__ == "__main__":
    command.run(main, __doc__)
