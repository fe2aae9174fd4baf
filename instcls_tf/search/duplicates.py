"""Copies, leaks, look-alikes, contradicting labels and outliers of a dataset, by a run's features and by pixels.

Features and hashes only propose pairs; a near-duplicate is what the pixels confirm (`verify`), however young the run.
What the features alone find alike is listed apart, from a cosine that is told in percentiles of the set's own nearest
neighbours: of what is usual among these images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.data.decoding import reading_of
from instcls_tf.data.overlap import common_files
from instcls_tf.data.source import Source, notes_of
from instcls_tf.data.sources import chosen_split, open_source
from instcls_tf.data.squares import squares_of
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError, shown, some_of
from instcls_tf.evaluation.subject import judged_config
from instcls_tf.progress import Progress
from instcls_tf.run.encoder import load_encoder
from instcls_tf.run.workdir import same_dataset
from instcls_tf.search.age import Age, age_of
from instcls_tf.search.candidates import (
    Candidates,
    Neighbours,
    neighbours_by_features,
    orientations,
    pairs_of_neighbours,
    pairs_to_compare,
)
from instcls_tf.search.groups import connected, dropped
from instcls_tf.search.images import Images, at_places, files_of, images_of, joined
from instcls_tf.search.settings import Settings
from instcls_tf.search.signatures import hashing
from instcls_tf.search.verify import SIDE, Verdict, compare

# Pairs whose images are in memory at a time, 12 KB each.
_BLOCK_PAIRS = 20_000
_NOT_COMPARED = Verdict(0.0, False)


class Pair(NamedTuple):
    """Two images."""

    first: int
    second: int
    cosine: float  # of their features
    percentile: float  # of the set's own nearest cosines that are not above it
    similarity: float = 0.0  # of their pixels; 0 if they were not found to be near-duplicates
    is_mirrored: bool = False


class Outlier(NamedTuple):
    """An image far from all others."""

    place: int
    nearest: int
    cosine: float  # the mean of those to its neighbours


class Duplicates(NamedTuple):
    """What was found; pairs of two images that the split is held against are left out."""

    images: Images
    near: list[Pair]  # the most similar pixels first
    alike: list[Pair]  # the most similar features first
    groups: list[list[int]]  # that near-duplicates connect: of a chain, two need not be the same picture
    one_file: list[list[int]]  # images that are one file of the split: links to it, and other names
    alike_groups: list[list[int]]
    outliers: list[Outlier]
    drop: list[int]  # each is a near-duplicate of one that is not in it
    threshold: float  # the cosine from which images are alike
    age: Age

    def is_leak(self, pair: Pair) -> bool:
        """Whether the two are of different sets."""
        return bool(self.images.of_source[pair.first] != self.images.of_source[pair.second])

    @property
    def conflicts(self) -> list[list[int]]:
        """Groups of near-duplicates, and files with several names, whose labels contradict each other."""
        label, grouped = self.images.label, {place for group in self.groups for place in group}
        all_groups = [*self.groups, *(group for group in self.one_file if group[0] not in grouped)]
        return [group for group in all_groups if len({label(place) for place in group if label(place)}) > 1]


def duplicates_of_run(
    workdir: str,
    dataset: str | None,
    split: str | None,
    data_dir: str | None,
    against: tuple[str | None, str] | None,
    settings: Settings,
    center_crop_fraction: float | None = None,
) -> Duplicates:
    """Everything that is doubtful about a split; all workers together.

    Args:
      workdir: the run's folder.
      dataset: its images; None for the run's own.
      split: which part; None for what the run was trained on, `train` of another dataset.
      data_dir: TFDS's folder; None for the run's own.
      against: a dataset (None for the same) and its split, whose images must not be in this one.
      settings: how to look.
      center_crop_fraction: what the encoder sees of an image; None for the run's own.

    Raises:
      UserError: no run, no checkpoint, no such dataset, the two have images in common, or a setting is out of range.
    """
    settings.validate()
    hashing()
    config = judged_config(workdir, center_crop_fraction)
    split = chosen_split(config, dataset, split)
    dataset, data_dir = dataset or config.dataset, data_dir or config.data_dir
    wanted = [(dataset, split), *([(against[0] or dataset, against[1])] if against else [])]
    if len({(same_dataset(name), part) for name, part in wanted}) < len(wanted):
        raise UserError(f"--against={split}: is the split itself, wanted another split or --against_dataset")
    sources = [open_source(name, part, data_dir, reading=reading_of(config)) for name, part in wanted]
    if against:
        _refuse_common_images(*sources)
    progress = workers.start(config.seed, notes_of(*sources))
    encoder = load_encoder(workdir)
    seen = {"image_size": config.image_size, "center_crop_fraction": config.center_crop_fraction}
    images = joined(
        [images_of(workdir, encoder, source, wanted[i][1], seen, progress) for i, source in enumerate(sources)]
    )
    if len(images.ids) < 2:
        raise UserError(f"--dataset={dataset}: fewer than two images can be read")
    progress.say("comparing with an untrained network")
    age = age_of(config, sources[0], encoder)
    if age.is_too_young:
        progress.say(f"warning: {age.sentence()}")
    found = find(images, settings, age, progress)
    progress.close()
    return found


def _refuse_common_images(source: Source, other: Source) -> None:
    """An image is no copy of itself: it would be listed to be dropped, and no other would be left."""
    common = common_files(source, other)
    if common:
        raise UserError(
            f"--against: {len(common)} file(s) are on both sides ({some_of(map(shown, common))}), wanted two sets"
            f" without a common image"
        )


def find(images: Images, settings: Settings, age: Age, progress: Progress) -> Duplicates:
    """What `duplicates_of_run` finds, from features and signatures; all workers together.

    Copies and neighbours are sought among files, of which one with several names would else be its own neighbour. What
    is found of a file holds for all of its names; an outlier is told by its first one.
    """
    count = len(images.ids)
    files = files_of(images)
    firsts = np.flatnonzero(files == np.arange(count))  # [m] the places of different files
    progress.say(f"neighbours of {len(firsts)} images")
    found = _find_among(at_places(images, firsts), settings, progress)
    links = np.stack([files, np.arange(count)], axis=1)[files < np.arange(count)]  # [l, 2] a name, and a later one
    copies = firsts[np.array([pair[:2] for pair in found.near], np.int64).reshape(-1, 2)]
    groups = connected(np.concatenate([copies, links]), count)
    names = np.split(np.argsort(files, kind="stable"), np.cumsum(np.bincount(files)[firsts])[:-1])  # of each file
    near, alike = (_of_all_names(pairs, [places.tolist() for places in names]) for pairs in (found.near, found.alike))
    return Duplicates(
        images,
        sorted(near, key=lambda pair: (-pair.similarity, pair.first, pair.second)),
        sorted(alike, key=lambda pair: (-pair.cosine, pair.first, pair.second)),
        [group for group in groups if len({*files[group].tolist()}) > 1],
        [group for group in connected(links, count) if images.of_source[group[0]] == 0],
        connected(np.array([pair[:2] for pair in alike]), count),
        [Outlier(int(firsts[one.place]), int(firsts[one.nearest]), one.cosine) for one in found.outliers],
        dropped(copies, images.pixels, images.of_source > 0, files),
        found.threshold,
        age,
    )


class _Found(NamedTuple):
    """What was found among images of which no two are one file."""

    near: list[Pair]
    alike: list[Pair]
    outliers: list[Outlier]
    threshold: float


def _find_among(images: Images, settings: Settings, progress: Progress) -> _Found:
    count = len(images.ids)
    if count < 2:
        return _Found([], [], [], 1.0)
    k = min(settings.neighbors, count - 1)
    neighbours = neighbours_by_features(images.vectors, k)
    candidates = pairs_to_compare(images.signatures, neighbours.places, k + 1)
    is_own = _is_own(candidates.pairs, images.of_source)
    candidates = Candidates(*(part[is_own] for part in candidates))
    verdicts = _verdicts(images, candidates, progress)
    is_near = np.array([verdict.similarity >= settings.similarity for verdict in verdicts], bool)
    usual = usual_cosines(neighbours, images.of_source, connected(candidates.pairs[is_near], count))
    threshold = float(np.percentile(usual, settings.percentile))
    near = [
        _pair(images, usual, first, second, verdict)
        for (first, second), verdict, good in zip(candidates.pairs.tolist(), verdicts, is_near)
        if good
    ]
    alike = _alike(images, neighbours, usual, threshold, {(pair.first, pair.second) for pair in near})
    return _Found(near, alike, _outliers(neighbours, images.of_source, settings.listed), threshold)


def _of_all_names(pairs: list[Pair], names: list[list[int]]) -> list[Pair]:
    """Pairs of files as pairs of their names: each name of the one with the first of the other.

    Args:
      pairs: of the places of files.
      names: of each file the places of its names, rising.
    """
    all_pairs = []
    for pair in pairs:
        first, second = names[pair.first], names[pair.second]
        for one, other in [*((first[0], name) for name in second), *((name, second[0]) for name in first[1:])]:
            all_pairs.append(pair._replace(first=min(one, other), second=max(one, other)))
    return all_pairs


def usual_cosines(neighbours: Neighbours, of_source: np.ndarray, groups: list[list[int]]) -> np.ndarray:
    """Cosines of the split's images to their nearest others, rising; copies, whose nearest is a copy, are left out.

    If there is nothing but copies, all count.
    """
    is_usual = of_source == 0
    is_usual[[place for group in groups for place in group]] = False
    return np.sort(neighbours.cosines[is_usual if is_usual.any() else slice(None), 0])


def _is_own(pairs: np.ndarray, of_source: np.ndarray) -> np.ndarray:
    """`[p]` bool, of each pair whether one is of the split: what is held against it is not cleaned."""
    return (of_source[pairs] == 0).any(axis=1)


def _pair(images: Images, usual: np.ndarray, first: int, second: int, verdict: Verdict = _NOT_COMPARED) -> Pair:
    cosine = float(images.vectors[first] @ images.vectors[second])
    percentile = 100 * float(np.searchsorted(usual, cosine, side="right")) / len(usual)
    return Pair(first, second, cosine, percentile, verdict.similarity, verdict.is_mirrored)


def _alike(
    images: Images,
    neighbours: Neighbours,
    usual: np.ndarray,
    threshold: float,
    near: set[tuple[int, int]],
) -> list[Pair]:
    """Neighbours from the threshold on, near-duplicates left out."""
    places = np.where(neighbours.cosines >= threshold, neighbours.places, np.arange(len(images.ids))[:, None])
    pairs = np.concatenate([*pairs_of_neighbours(places)])
    own = pairs[_is_own(pairs, images.of_source)].tolist()
    return [_pair(images, usual, first, second) for first, second in own if (first, second) not in near]


def _outliers(neighbours: Neighbours, of_source: np.ndarray, listed: int) -> list[Outlier]:
    """The split's images that are farthest from their neighbours."""
    means = neighbours.cosines.mean(axis=1)
    own = np.flatnonzero(of_source == 0)
    order = own[np.argsort(means[own], kind="stable")][:listed]
    return [Outlier(int(place), int(neighbours.places[place, 0]), float(means[place])) for place in order]


def _verdicts(images: Images, candidates: Candidates, progress: Progress) -> list[Verdict]:
    """Of each candidate; the workers share them out, and each gets all."""
    begin, end = collectives.own_bounds(len(candidates.pairs))
    own: list[Verdict] = []
    for start in range(begin, end, _BLOCK_PAIRS):
        block = slice(start, min(start + _BLOCK_PAIRS, end))
        squares = _squares(images, np.unique(candidates.pairs[block]))
        for (first, second), correlations in zip(candidates.pairs[block].tolist(), candidates.correlations[block]):
            is_there = first in squares and second in squares
            chosen = orientations(correlations)
            own.append(compare(squares[first], squares[second], chosen) if is_there else _NOT_COMPARED)
            progress("comparing pixels", len(own), end - begin)
    rows = np.array([[verdict.similarity, verdict.is_mirrored] for verdict in own], np.float32).reshape(-1, 2)
    gathered = collectives.all_gather(tf.constant(rows), "verdicts").numpy()
    return [Verdict(float(similarity), bool(is_mirrored)) for similarity, is_mirrored in gathered]


def _squares(images: Images, places: np.ndarray) -> dict[int, np.ndarray]:
    """The pixels of some images by their places."""
    found = {}
    for number, source in enumerate(images.sources):
        chosen = places[images.of_source[places] == number]
        by_id = dict(zip(images.ids[chosen].tolist(), chosen.tolist()))
        for square in squares_of(source, np.sort(images.ids[chosen]), SIDE):
            found[by_id[square.instance_id]] = square.pixels
    return found
