"""Copies, leaks between splits, contradicting labels, look-alikes and outliers among images; nothing is deleted.

Features and hashes propose pairs, pixels confirm near-duplicates: encoded anew, resized, cut at the borders, mirrored,
brightened. Writes WORKDIR/duplicates.csv (all pairs), .json, .html, and duplicates_drop.txt, which has copies only.

Examples:
  python -m scripts.duplicates --workdir=runs/photos
  python -m scripts.duplicates --workdir=runs/photos --against=test
  python -m scripts.duplicates --workdir=runs/photos --dataset=folder:/data/new --against_dataset=folder:/data/photos
"""

from flags import command, evaluation, search

search.define_duplicates()


def main() -> None:
    workdir, settings = evaluation.required("workdir"), search.duplicates_settings()
    from instcls_tf.report.duplicates import duplicates_with_page

    command.give(duplicates_with_page(workdir, **settings), "duplicates", workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
