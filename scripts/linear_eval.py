"""Accuracy of a linear classifier on a run's frozen encoder: the paper's protocol, or with --cached a quick one.

The protocol trains on augmented images and reports the last epoch. --cached trains on stored features of the images as
they are, at the best of several learning rates, chosen on a part of the training images (never on the test split).

Examples:
  horovodrun -np 8 python -m scripts.linear_eval --workdir=runs/imagenet --data_dir=/data/tfds
  python -m scripts.linear_eval --workdir=runs/digits --cached --normalize_features=standardize
"""

from flags import command, evaluation, recipes
from instcls_tf.evaluation.recipes import CachedRecipe, LinearRecipe

evaluation.define()
evaluation.define_dataset()
evaluation.define_feature_files()
evaluation.define_linear()
recipes.define(LinearRecipe, CachedRecipe)


def main() -> None:
    workdir, files, cached = evaluation.required("workdir"), evaluation.feature_files(), evaluation.FLAGS.cached
    recipe = recipes.cached() if cached else recipes.linear()
    evaluation.refuse_files_without_cached(files)
    subject = None if files else evaluation.subject()
    from instcls_tf.evaluation.commands import cached_linear_of_run, linear_of_run

    result = cached_linear_of_run(subject, recipe, files) if cached else linear_of_run(subject, recipe)
    evaluation.answer("linear_eval", workdir, result)


if __name__ == "__main__":
    command.run(main, __doc__)
