"""Repeats the self-check of an export in a runtime of its format; ends with status 1 if it computes something else.

Where absl-py is not installed, `python -m instcls_tf.export.self_check PATH` does it with NumPy and the runtime alone.
The last line of standard output is one JSON object: `format`, `runtime`, `metric`, `error`, `tolerance`, `images`.
An `error` that is not finite is null.

Examples:
  python -m scripts.check_export exported/digits
  python -m scripts.check_export exported/digits_torch --runtime=timm
"""

from flags import command, export
from instcls_tf.distributed.launcher import refuse_several
from instcls_tf.report.answer import Answer

export.define_check()


def main() -> None:
    refuse_several("check_export")
    from instcls_tf.export import self_check

    result = self_check.run(export.folder(), export.flags.FLAGS.runtime)
    command.give(Answer(result._asdict(), self_check.described(result)))
    self_check.refuse_difference(result)


if __name__ == "__main__":
    command.run(main, __doc__, export.take_folder)
