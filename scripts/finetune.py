"""Accuracy after training encoder and classifier together, on a part of the labels or on all of them.

Examples:
  horovodrun -np 2 python -m scripts.finetune --workdir=runs/photos --fraction=0.1
  horovodrun -np 8 python -m scripts.finetune --workdir=runs/imagenet --flagfile=flags/presets/transfer/cifar10.flags
  python -m scripts.finetune --workdir=runs/digits --fraction=0.01 --init=scratch --augmentation=digits
"""

from flags import command, evaluation, recipes
from instcls_tf.report.answer import Answer

evaluation.define_finetune()


def main() -> None:
    workdir, recipe, subject = evaluation.required("workdir"), recipes.finetune(), evaluation.subject()
    from instcls_tf.evaluation.commands import finetune_of_run

    command.give(Answer(finetune_of_run(subject, recipe)), "finetune", workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
