"""`gallery`: from a run to a page to look through its images."""

from __future__ import annotations

import os
import time

import numpy as np

from instcls_tf.config import INSTANCE, PretrainConfig
from instcls_tf.data.folder import refuse_picture_among_images
from instcls_tf.data.source import notes_of
from instcls_tf.data.sources import chosen_split, open_training_source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError, shown
from instcls_tf.evaluation import feature_store
from instcls_tf.evaluation.subject import refuse_untrained
from instcls_tf.gallery import layout, neighbours, pages, projector, subject
from instcls_tf.gallery.settings import GallerySettings
from instcls_tf.progress import Progress
from instcls_tf.report import page
from instcls_tf.report.answer import Answer
from instcls_tf.run import checkpoint
from instcls_tf.run.encoder import load_encoder
from instcls_tf.run.workdir import load_run

# Rows of neighbours on the page about the run.
_REPORTED = 6


def gallery_of_run(workdir: str, data_dir: str | None, output: str | None, settings: GallerySettings) -> Answer | None:
    """Writes a page to look through the images of a run; the page about the run, `WORKDIR/report.html`, is to follow.

    All workers compute the features together, the rest is done by rank 0.

    Args:
      workdir: the run's folder.
      data_dir: TFDS's folder; None for the run's own.
      output: the folder of the page; None for `WORKDIR/gallery`.
      settings: what is shown.

    Returns:
      `output`, `images` that are shown, `of` how many, `layout`, `near_duplicates` (pairs), `bytes`, `seconds` and
      `report`, which is still to be written; None on ranks above 0.

    Raises:
      UserError: a setting is out of range, there is no run or checkpoint, its images are not there, or the folder is
        not fit to be written to.
    """
    started = time.monotonic()
    settings.validate()
    config = load_run(workdir)
    refuse_untrained(config, settings.features)
    output = output or os.path.join(workdir, "gallery")
    refuse_picture_among_images(config.dataset, os.path.join(output, "sprites", "00000.jpg"), output)
    pages.refuse_unfit(output)
    layout.method_of(settings.layout, 2)  # whether it is installed, before anything takes long
    source = open_training_source(config, data_dir, workdir)
    progress = workers.start(config.seed, notes_of(source))
    stored = feature_store.stored_features(
        workdir,
        load_encoder(workdir),
        source,
        chosen_split(config, None, None),
        image_size=config.image_size,
        center_crop_fraction=config.center_crop_fraction,
        progress=progress,
    )
    if collectives.rank() > 0:
        return None
    ids = subject.known_ids(workdir, config, stored.ids)
    if len(ids) < len(stored.ids):
        progress.say(f"{len(stored.ids) - len(ids)} image(s) were added since the run, and are not shown")
    chosen = subject.some_of(source, ids, settings.max_images)
    if len(chosen.ids) < 2:
        raise UserError(f"--dataset={config.dataset}: {len(chosen.ids)} image(s) can be read, wanted at least 2")
    parent = os.path.dirname(os.path.abspath(output))
    with subject.thumbnails_of(
        chosen, settings.thumbnail_size, config.center_crop_fraction, parent, progress
    ) as thumbnails:
        exhibit = _exhibit(workdir, config, settings, chosen, stored, thumbnails, progress)
        size = pages.write_gallery(output, exhibit)
        rows = neighbour_rows(exhibit)
        projector.write_projector(workdir, exhibit, getattr(stored, settings.features)[chosen.rows])
    progress.close()
    report = page.page_path(workdir)
    result = {
        "output": output,
        "images": len(exhibit.names),
        "of": source.num_instances,
        "layout": layout.method_of(settings.layout, len(exhibit.names)),
        "near_duplicates": len(exhibit.twins.pairs),
        "bytes": size,
        "seconds": round(time.monotonic() - started, 1),
        "report": report,
    }
    text = f"Open {shown(os.path.join(output, 'index.html'))} and {shown(report)} in a browser."
    return Answer(result, text, picture=page.picture_of(workdir, data_dir, rows))


def _exhibit(
    workdir: str,
    config: PretrainConfig,
    settings: GallerySettings,
    chosen: subject.Shown,
    stored: feature_store.Stored,
    thumbnails: np.ndarray,
    progress: Progress,
) -> pages.Exhibit:
    vectors = getattr(stored, settings.features)
    vectors = vectors if len(chosen.rows) == len(vectors) else vectors[chosen.rows]
    k = min(settings.neighbors, len(vectors) - 1)
    progress.say(f"nearest others among {len(vectors)} images")
    nearest = neighbours.nearest_others(vectors, k)
    method = layout.method_of(settings.layout, len(vectors))
    progress.say(f"map by {method.upper()}")
    placed = layout.lay_out(vectors, method, config.seed)
    named = chosen.source.class_names is not None
    return pages.Exhibit(
        title=shown(f"{config.dataset}, seen by {workdir}"),
        about=_about(chosen, settings, placed.sentence),
        names=chosen.names(),
        places=placed.places,
        thumbnails=thumbnails,
        lists=[
            pages.Others(
                "nearest",
                "Nearest instances",
                f"By cosine of {settings.features} features.",
                nearest.places,
                nearest.cosines,
            ),
            *_lists_of_classes(workdir, config, chosen, k),
        ],
        ranks=neighbours.outlier_ranks(nearest),
        twins=neighbours.near_duplicates(nearest, thumbnails),
        labels=np.asarray(stored.labels)[chosen.rows] if named else None,
        class_names=chosen.source.class_names,
    )


def _lists_of_classes(workdir: str, config: PretrainConfig, chosen: subject.Shown, k: int) -> list[pages.Others]:
    """By class weights, which the paper's method has; they are all 0 until it has begun, after `contrast_epochs`."""
    if config.method != INSTANCE:
        return []
    prefix = checkpoint.newest(workdir)
    rows = subject.class_weights(prefix, chosen)
    if not rows.any():
        return []
    weights = neighbours.nearest_others(rows, k)
    hint = "The instances whose class weights are most similar."
    lists = subject.hard_negatives(prefix, chosen, config.hard_negatives)
    if lists is None and config.smoothing:
        hint += " The next epoch's hard negatives are these; the checkpoint ends an epoch and holds no lists of it."
    found = [pages.Others("weights", "Neighbours of the class weight", hint, weights.places, weights.cosines)]
    if lists is not None:
        hint = f"Of this epoch, from the run's checkpoint: the first of {config.hard_negatives} that are shown here."
        found.append(pages.Others("hard", "Hard negatives", hint, _first_shown(lists, k)))
    return found


def _first_shown(lists: np.ndarray, k: int) -> np.ndarray:
    """The first k members of each list that are shown, `[n, k]`; -1 where there are fewer."""
    order = np.argsort(lists < 0, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(lists, order, axis=1)


def _about(chosen: subject.Shown, settings: GallerySettings, sentence: str) -> str:
    total, count = chosen.source.num_instances, len(chosen.ids)
    if count == total:
        return f"All {total:,} images. {sentence}"
    if count == settings.max_images:
        return (
            f"{count:,} of {total:,} images, evenly spread (--max_images={count}); neighbours and duplicates are looked"
            f" for among these. {sentence}"
        )
    return f"{count:,} of {total:,} images; the others cannot be read, or were added since the run. {sentence}"


def neighbour_rows(exhibit: pages.Exhibit) -> list[page.Neighbours]:
    """Some images, evenly spread, with their nearest others, for the page about the run."""
    nearest, count = exhibit.lists[0], len(exhibit.names)
    found = []
    for image in np.linspace(0, count - 1, min(_REPORTED, count)).round().astype(int).tolist():
        others = nearest.places[image, :8].tolist()
        pixels = np.stack([exhibit.thumbnails[i] for i in (image, *others)])
        cosines = [] if nearest.cosines is None else nearest.cosines[image, : len(others)].tolist()
        found.append(page.Neighbours([shown(exhibit.names[i]) for i in (image, *others)], cosines, pixels))
    return found
