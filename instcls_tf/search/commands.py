"""What `search` does: builds or reads an index, lets images into it, and asks it; all workers call it together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from instcls_tf import files
from instcls_tf.checks import require_value
from instcls_tf.data.decoding import reading_of
from instcls_tf.data.folder import root_of
from instcls_tf.data.image_suffixes import IMAGE_SUFFIXES
from instcls_tf.data.listing import list_images
from instcls_tf.data.names import names_of
from instcls_tf.data.source import Source, note_about
from instcls_tf.data.sources import chosen_split, open_source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError, shown
from instcls_tf.evaluation.recipes import BACKBONE
from instcls_tf.evaluation.subject import judged_config
from instcls_tf.evaluation.unreadable import named
from instcls_tf.progress import Progress
from instcls_tf.search.index import Hit, Index


class Searched(NamedTuple):
    """Queries, and what was found for each."""

    among: Index
    queries: list[str]
    hits: list[list[Hit]]
    not_added: int = 0  # images that were to join, and cannot be read

    def summary(self) -> dict:
        """What `search` answers: `hits`, of all queries one after the other, each with `query`, `path` and `cosine`.

        `unreadable` counts images that are not searched because they cannot be read.
        """
        hits = [
            {"query": query, "path": hit.name, "cosine": round(hit.cosine, 6)}
            for query, found in zip(self.queries, self.hits)
            for hit in found
        ]
        about = {"examples": len(self.among), "unreadable": self.among.unreadable + self.not_added}
        return {"queries": self.queries, **about, "hits": hits}


def search_in_run(
    workdir: str,
    queries: list[str],
    k: int,
    *,
    dataset: str | None,
    split: str | None,
    data_dir: str | None,
    kind: str | None,
    center_crop_fraction: float | None = None,
    index_path: str | None = None,
    add: Sequence[str] = (),
) -> Searched:
    """The images most similar to some queries.

    Args:
      workdir: the run's folder.
      queries: image files, or names of images of the index.
      k: how many for each.
      dataset: what is searched; None for the run's own.
      split: which part; None for what the run was trained on, `train` of another dataset.
      data_dir: TFDS's folder; None for the run's own.
      kind: of features; None for `backbone`.
      center_crop_fraction: what is seen of an image; None for the run's own.
      index_path: a file of `Index.save`, which is searched if it is there, and written if not; None for no file. One
        that is there knows its images, features and crop: the arguments about these are to be None or the same.
      add: files and folders of images that join the index, those that have not joined it before.

    Raises:
      UserError: what is wrong with the run, the images, the queries or the file.
      MachineError: the file system fails, so that it is not known whether there is an index.
    """
    require_value("k", k, k >= 1, "at least 1")
    added, notes = _files_of(add)
    workers.start()
    for note in notes:
        _say(note)
    is_kept = index_path is not None and workers.of_rank_0(lambda: files.is_there(str(index_path)))
    if is_kept:
        if dataset is not None:
            raise UserError(
                f"--dataset={shown(dataset)}: --index={shown(index_path)} has images already, give one of them"
            )
        index = Index.load(str(index_path), workdir)
        _refuse_contradictions(index, str(index_path), split, kind, center_crop_fraction)
        if index.unreadable:
            _say(f"warning: {index.unreadable} image(s) could not be read when --index={shown(index_path)} was made")
        if added:
            _refuse_unwritable(str(index_path))
    else:
        source, split = _open(workdir, dataset, split, data_dir, center_crop_fraction)
        _refuse_early(queries, k, source, split, added)
        if index_path is not None:
            _refuse_unwritable(index_path)
        index = Index.of_source(
            workdir, source, split, kind=kind or BACKBONE, center_crop_fraction=center_crop_fraction
        )
    before = len(index)
    not_added = _add(index, added)
    if index_path is not None and (len(index) > before or not is_kept):
        workers.on_rank_0(lambda: index.save(str(index_path)))
    return Searched(index, queries, _ask(index, queries, k), not_added)


def _refuse_unwritable(path: str) -> None:
    workers.on_rank_0(lambda: files.refuse_unwritable(path, "index"))


def _refuse_contradictions(
    index: Index, path: str, split: str | None, kind: str | None, center_crop_fraction: float | None
) -> None:
    """What an index is of is not changed by flags."""
    for flag, wanted, found in (
        ("split", split, index.origin[1] if index.origin else "none"),
        ("features", kind, index.kind),
        ("center_crop_fraction", center_crop_fraction, index.center_crop_fraction),
    ):
        if wanted is not None and wanted != found:
            raise UserError(
                f"--{flag}={wanted}: --index={shown(path)} was made with {found}, leave the flag out or name a new file"
            )


def _add(index: Index, paths: list[str]) -> int:
    """Lets images join an index that are not in it, and tells of them; how many cannot be read."""
    if not paths:
        return 0
    before = len(index)
    new = _unknown(paths, set(index.names), index.origin)
    unread = index.add(new)
    there = f", {len(paths) - len(new)} were in it already" if len(new) < len(paths) else ""
    _say(f"{len(index) - before} images added to {before}{there}")
    if unread:
        _say(f"warning: {len(unread)} image(s) of --add cannot be read and are left out: {named(unread, {})}")
    return len(unread)


def _unknown(paths: list[str], names: set[str], origin: tuple[str, str] | None) -> list[str]:
    """Absolute paths that are not among the names of an index, where images of a folder go by paths below it."""
    root = root_of(*origin) if origin else None

    def is_known(path: str) -> bool:
        if path in names or root is None:
            return path in names
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        return os.path.relpath(path, root) in names or os.path.relpath(real, os.path.realpath(root)) in names

    return [path for path in paths if not is_known(path)]


def _say(text: str) -> None:
    Progress(visible=collectives.rank() == 0).say(text)


def _open(
    workdir: str, dataset: str | None, split: str | None, data_dir: str | None, center_crop_fraction: float | None
) -> tuple[Source, str]:
    config = judged_config(workdir, center_crop_fraction)
    split = chosen_split(config, dataset, split)
    source = open_source(dataset or config.dataset, split, data_dir or config.data_dir, reading=reading_of(config))
    return source, split


def _files_of(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """The image files that are meant, and lines about what is not read of their folders.

    They are absolute paths and once each, those of folders in the order of their names.
    """
    found, notes = [], []
    for path in paths:
        if os.path.isdir(path):
            try:
                listing = list_images(path)
            except OSError as error:
                raise UserError(f"--add={shown(path)}: cannot be read ({error.strerror})") from error
            found += [os.path.join(os.path.abspath(path), name) for name in listing.paths]
            empty = [] if len(listing.paths) else [f"no images ({', '.join(IMAGE_SUFFIXES)}) in that folder"]
            notes += [note_about(f"--add={shown(path)}", note) for note in [*empty, *listing.left_out.sentences()]]
        elif os.path.exists(path):
            found.append(os.path.abspath(path))
        else:
            raise UserError(f"--add={shown(path)}: no such file or folder")
    return list(dict.fromkeys(found)), notes


def _refuse_early(queries: list[str], k: int, source: Source, split: str, added: list[str]) -> None:
    """Before features are computed, where the images are known without reading them."""
    unknown = [query for query in queries if not os.path.isfile(query)]
    has_names = source.random_access and (unknown or added)
    names = set(names_of(source, np.arange(source.num_instances))) if has_names else set()
    total = source.num_instances + len(_unknown(added, names, (source.name, split)))
    require_value("k", k, k <= total, f"between 1 and the {total} images that are searched")
    for query in unknown:
        if source.random_access and query not in names:
            raise _unknown_query(query, source.name)


def _unknown_query(query: str, among: str) -> UserError:
    if os.path.isdir(query):
        return UserError(f"--query={shown(query)}: is a folder, wanted image files, or names of images of {among}")
    return UserError(f"--query={shown(query)}: no such file, and no image of {among} has this name")


def _ask(index: Index, queries: list[str], k: int) -> list[list[Hit]]:
    """Files are read; other queries are names, whose features the index has."""
    is_file = [os.path.isfile(query) for query in queries]
    vectors = np.zeros([len(queries), index.vectors.shape[1]], np.float32)
    place_of = {name: place for place, name in enumerate(index.names)} if not all(is_file) else {}
    for row, query in enumerate(queries):
        if not is_file[row]:
            if query not in place_of:
                raise _unknown_query(query, "the index")
            vectors[row] = index.vectors[place_of[query]]
    vectors[is_file] = index.embed([query for query, there in zip(queries, is_file) if there])
    return index.search(vectors, k)
