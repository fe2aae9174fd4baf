"""Says what checkpoints a run has, and whether they are whole.

`inspect` lists them with their steps, sizes and origin. `verify` also reads every byte and compares it with the
checksums. Both end with status 2 if a checkpoint is damaged, with 1 if the file system does not read one. The last line
of standard output is one JSON object.

Examples:
  python -m scripts.checkpoint inspect runs/photos
  python -m scripts.checkpoint verify runs/photos --step=4000
"""

from flags import checkpoint, command
from instcls_tf.distributed.launcher import refuse_several

checkpoint.define()


def main() -> None:
    refuse_several("checkpoint")
    action, workdir, step = checkpoint.settings()
    from instcls_tf.report.checkpoints import describe, refuse_damage

    answer = describe(workdir, step, whole=action == checkpoint.VERIFY)
    command.give(answer)
    refuse_damage(answer)


if __name__ == "__main__":
    command.run(main, __doc__, checkpoint.take_words)
