"""Pretrains an encoder by classifying every image of a dataset as a class of its own.

Examples:
  python -m scripts.pretrain --flagfile=flags/presets/digits.flags --workdir=runs/digits
  horovodrun -np 2 python -m scripts.pretrain --flagfile=flags/presets/digits.flags --workdir=runs/digits
  horovodrun -np 8 python -m scripts.pretrain --dataset=folder:/data/photos --workdir=runs/photos --epochs=200
"""

from flags import command, pretraining
from instcls_tf.preflight import open_training_data

pretraining.define()


def main() -> None:
    config = pretraining.config_from_flags()
    source = open_training_data(config)
    from instcls_tf.pretraining import pretrain

    pretrain(config, source)


if __name__ == "__main__":
    command.run(main, __doc__)
