"""Measures every export in its own runtime, in environments from the package registry; writes docs/export.md's table.

It takes 13 GB and some minutes for the environments, most of it PyTorch, and six minutes of two cores for the rest.

Examples:
  python -m scripts.export_matrix --environments=environments
  python -m scripts.export_matrix --environments=environments --formats=onnx
"""

from flags import command, evaluation, export
from instcls_tf.distributed.launcher import refuse_several
from instcls_tf.progress import Progress

export.define_matrix()


def main() -> None:
    refuse_several("export_matrix")
    environments = evaluation.required("environments")
    from instcls_tf.benchmark.export_matrix import measure_exports

    values, say = export.flags.FLAGS, Progress(True).say
    command.give(measure_exports(environments, values.page, values.image_size, export.formats(), say))


if __name__ == "__main__":
    command.run(main, __doc__)
