"""The images among which duplicates are sought: names, labels, features and signatures, of one split or of two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.data.names import names_of
from instcls_tf.data.overlap import same_files
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, workers
from instcls_tf.evaluation.feature_store import stored_features
from instcls_tf.evaluation.recipes import BACKBONE
from instcls_tf.evaluation.unreadable import tell_of_unreadable
from instcls_tf.progress import Progress
from instcls_tf.search.neighbours import unit_rows
from instcls_tf.search.signatures import Signatures, signatures_of


class Images(NamedTuple):
    """The images that are compared: those of a split, and behind them those that it is held against."""

    sources: tuple[Source, ...]
    splits: tuple[str, ...]
    of_source: np.ndarray  # [n] which of the sources, 0 for the split itself
    ids: np.ndarray  # [n] in its source
    names: list[str]
    labels: np.ndarray  # [n], -1 if unknown
    vectors: np.ndarray  # [n, F] float32 of length 1
    signatures: Signatures

    @property
    def pixels(self) -> np.ndarray:
        """`[n]`, how many each image has."""
        return self.signatures.sizes.astype(np.int64).prod(axis=1)

    @property
    def unreadable(self) -> int:
        """How many images of the sources could not be read, and are not among these."""
        return sum(source.num_instances for source in self.sources) - len(self.ids)

    @property
    def sets(self) -> tuple[str, ...]:
        """What people call the split and what it is held against: by the datasets as well where these are two."""
        datasets = [source.name for source in self.sources]
        if len(set(datasets)) == 1:
            return self.splits
        return tuple(f"{name} {split}" for name, split in zip(datasets, self.splits))

    def set_of(self, place: int) -> str:
        """Which of them an image is of."""
        return self.sets[self.of_source[place]]

    def label(self, place: int) -> str:
        """The class of an image, empty if unknown."""
        names = self.sources[self.of_source[place]].class_names
        return names[self.labels[place]] if names and self.labels[place] >= 0 else ""


def images_of(
    workdir: str, encoder: tf.keras.Model, source: Source, split: str, seen: dict, progress: Progress
) -> Images:
    """The images of a source that is open, with features and signatures; all workers together.

    Args:
      workdir: the run's folder.
      encoder: of the run.
      source: the images.
      split: its name.
      seen: `image_size` and `center_crop_fraction`, see `stored_features`.
      progress: of both passes.
    """
    stored = stored_features(workdir, encoder, source, split, progress=progress, **seen)
    signatures = signatures_of(source, progress)
    ids, rows, places = np.intersect1d(stored.ids, signatures.ids, return_indices=True)
    if len(ids) < len(stored.ids):  # since the features were computed
        tell_of_unreadable(source, ids, progress)
    vectors = getattr(stored, BACKBONE)
    return Images(
        (source,),
        (split,),
        np.zeros(len(ids), np.int32),
        ids,
        names_of(source, ids),
        stored.labels[rows],
        unit_rows(vectors if len(rows) == len(vectors) else vectors[rows]),
        Signatures(*(part[places] for part in signatures)),
    )


def joined(parts: list[Images]) -> Images:
    """The images of several sources, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Images(
        tuple(part.sources[0] for part in parts),
        tuple(part.splits[0] for part in parts),
        np.concatenate([np.full(len(part.ids), place, np.int32) for place, part in enumerate(parts)]),
        np.concatenate([part.ids for part in parts]),
        [name for part in parts for name in part.names],
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.vectors for part in parts]),
        Signatures(*(np.concatenate(columns) for columns in zip(*(part.signatures for part in parts)))),
    )


def at_places(images: Images, places: np.ndarray) -> Images:
    """Some of the images, `[m]` places in rising order; all of them without a copy."""
    if len(places) == len(images.ids):
        return images
    return images._replace(
        of_source=images.of_source[places],
        ids=images.ids[places],
        names=[images.names[place] for place in places.tolist()],
        labels=images.labels[places],
        vectors=images.vectors[places],
        signatures=Signatures(*(part[places] for part in images.signatures)),
    )


def files_of(images: Images) -> np.ndarray:
    """`[n]`, of each image the first one of its source that is the same file; all workers together.

    As rank 0 finds it: to the others, the files may be something else for a moment.
    """
    files = np.arange(len(images.ids))
    if collectives.rank() == 0:
        for number, source in enumerate(images.sources):
            places = np.flatnonzero(images.of_source == number)
            files[places] = places[same_files(source, images.ids[places])]
    return workers.total(files if collectives.rank() == 0 else np.zeros_like(files), "files").astype(np.int64)
