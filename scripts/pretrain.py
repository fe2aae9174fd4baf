"""Pretrains an encoder by classifying every image of a dataset as a class of its own.

Examples:
  python -m scripts.pretrain --flagfile=flags/presets/digits.flags --workdir=runs/digits
  horovodrun -np 2 python -m scripts.pretrain --flagfile=flags/presets/digits.flags --workdir=runs/digits
  horovodrun -np 8 python -m scripts.pretrain --dataset=folder:/data/photos --workdir=runs/photos --epochs=200
"""

from flags import command, pretraining
from instcls_tf.config import refuse_other_recipe
from instcls_tf.launcher import launched_rank_and_size

pretraining.define()


def main() -> None:
    config = pretraining.config_from_flags()
    config.validate(num_workers=(launched_rank_and_size() or (0, 1))[1])
    refuse_other_recipe(config)  # `pretrain` checks both again; here the answer comes before TensorFlow is imported
    from instcls_tf.pretraining import pretrain

    pretrain(config)


if __name__ == "__main__":
    command.run(main, __doc__)
