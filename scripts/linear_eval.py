"""Accuracy of a linear classifier on a run's frozen encoder: the paper's protocol on augmented images, last epoch.

With --cached: stored features, and the best of several rates, chosen on training images, never on the test split.
Examples:
  horovodrun -np 8 python -m scripts.linear_eval --workdir=runs/imagenet --data_dir=/data/tfds
  python -m scripts.linear_eval --workdir=runs/digits --cached --normalize_features=standardize
"""

from flags import command, evaluation, recipes
from instcls_tf.evaluation.recipes import CachedRecipe
from instcls_tf.report.answer import Answer

evaluation.define_linear()


def main() -> None:
    workdir, files = evaluation.required("workdir"), evaluation.feature_files()
    recipe = recipes.cached() if evaluation.FLAGS.cached else recipes.linear()
    subject = evaluation.subject(files)
    from instcls_tf.evaluation.commands import cached_linear_of_run, linear_of_run

    if isinstance(recipe, CachedRecipe):
        result = cached_linear_of_run(subject, recipe, files)
    else:
        result = linear_of_run(subject, recipe)
    command.give(Answer(result), evaluation.kept_as("linear_eval", files), workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
