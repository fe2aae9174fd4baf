"""Fine-tunes a detector on a run's encoder and evaluates it: AP, AP50, AP75 by COCO's and by VOC 2007's metric.

Examples:
  python -m scripts.detect --workdir=runs/imagenet --dataset=voc/2007
  python -m scripts.detect --workdir=runs/cells --dataset=folder:/data/cells --image_size=256 --pyramid_channels=64
  horovodrun -np 8 python -m scripts.detect --workdir=runs/imagenet --dataset=folder:/data/VOC2007 --init=scratch
"""

from flags import command, detection

detection.define()


def main() -> None:
    config = detection.config_from_flags()
    from instcls_tf.data.decoding import reading_of
    from instcls_tf.detection.sources import open_detection_data
    from instcls_tf.run.workdir import load_run

    reading = reading_of(load_run(config.workdir))
    data = open_detection_data(config.dataset, config.train_split, config.test_split, config.data_dir, reading)
    from instcls_tf.detection.finetune import detect

    command.give(detect(config, *data), "detect", config.workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
