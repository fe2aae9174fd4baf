"""Exports the encoder of a run, without the classifier, for use elsewhere.

Example:
  python -m scripts.export --workdir=runs/digits --format=saved_model --output=exported/digits
"""

from flags import command, evaluation, export

export.define()


def main() -> None:
    workdir, output = evaluation.required("workdir"), evaluation.required("output")
    evaluation.choice("format", export.FORMATS)
    from instcls_tf.checkpoint import load_encoder
    from instcls_tf.config import load_run
    from instcls_tf.export.saved_model import export_saved_model

    export_saved_model(load_encoder(workdir), output, image_size=load_run(workdir).image_size)
    print(output)


if __name__ == "__main__":
    command.run(main, __doc__)
