"""Writes a folder of images as TFRecord shards, which `--dataset=records:PATH` reads.

Example:
  python -m scripts.prepare --dataset=folder:/data/photos --output=/data/photo_records
"""

from flags import command, data, evaluation

data.define_prepare()


def main() -> None:
    dataset, output = evaluation.required("dataset"), evaluation.required("output")
    from instcls_tf.data.prepare import prepare
    from instcls_tf.run_log import Progress

    images = prepare(dataset, output, evaluation.FLAGS.shard_megabytes, Progress(visible=True))
    command.print_result({"output": output, "images": images})


if __name__ == "__main__":
    command.run(main, __doc__)
