"""Pretrains an encoder by classifying every image of a dataset as a class of its own.

SIGTERM, SIGUSR1 and Ctrl-C: all workers save in that very step, and end with 75; the same command goes on later.
Examples:
  python -m scripts.pretrain --flagfile=flags/presets/digits.flags --workdir=runs/digits
  python -m scripts.launch -np 8 pretrain --dataset=folder:/data/photos --workdir=runs/photos --epochs=200
"""

from flags import command, given, pretraining
from instcls_tf.distributed import watchdog
from instcls_tf.pretraining.preflight import open_training_data
from instcls_tf.run import signals

pretraining.define()


def main() -> None:
    with signals.heeded():
        config = pretraining.config_from_flags()
        source = open_training_data(config, given=given.by_user())
        with watchdog.watching(config.stall_timeout, config.workdir):
            from instcls_tf.pretraining.pretrain import pretrain
            from instcls_tf.report.page import picture_of

            if pretrain(config, source) and config.report and not signals.received():
                command.give_page(picture_of(config.workdir))


if __name__ == "__main__":
    command.run(main, __doc__)
