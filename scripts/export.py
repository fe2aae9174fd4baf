"""Exports the encoder of a run, without the classifier, for use elsewhere.

What was written is read back in a runtime of its format and compared before it gets its name. The last line of standard
output is one JSON object: `output`, `format`, `verified_in`, `metric` and `max_error`.

Examples:
  python -m scripts.export --workdir=runs/digits --format=saved_model --output=exported/digits
  python -m scripts.export --workdir=runs/digits --format=onnx --output=exported/digits_onnx
"""

from flags import command, evaluation, export
from instcls_tf.distributed.launcher import refuse_several
from instcls_tf.export.names import FORMAT_NAMES
from instcls_tf.report.answer import Answer

export.define()


def main() -> None:
    refuse_several("export")
    workdir, output = evaluation.required("workdir"), evaluation.required("output")
    format_name = evaluation.choice("format", FORMAT_NAMES)
    from instcls_tf.export.commands import export_of_run

    result = export_of_run(workdir, output, format_name, export.flags.FLAGS.serving_version)
    command.give(Answer(result))


if __name__ == "__main__":
    command.run(main, __doc__)
