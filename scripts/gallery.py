"""A page to look through a run's images: a map, and for each image the nearest, its hard negatives and its duplicates.

It opens from the disk and asks nobody for anything: WORKDIR/gallery/index.html. Beside it WORKDIR/report.html is
written, a page about the run: loss, accuracy, speed, views, neighbours, settings; and for TensorBoard its
projector.

Examples:
  python -m scripts.gallery --workdir=runs/digits
  python -m scripts.gallery --workdir=runs/photos --layout=pca --max_images=20000 --output=looks/photos
"""

from flags import command, evaluation, gallery

gallery.define()


def main() -> None:
    workdir, values, settings = evaluation.required("workdir"), evaluation.FLAGS, gallery.settings()
    settings.validate()
    from instcls_tf.gallery.command import gallery_of_run

    command.give(gallery_of_run(workdir, values.data_dir, values.output, settings), "gallery", workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
