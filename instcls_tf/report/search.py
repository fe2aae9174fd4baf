"""The answer of `search`: names and cosines, and a page that shows the images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from instcls_tf import files
from instcls_tf.data.decoding import DEFAULT_READING, Reading, reading_of
from instcls_tf.data.listed_files import listed_files
from instcls_tf.data.names import names_of
from instcls_tf.data.sources import open_source
from instcls_tf.distributed import workers
from instcls_tf.errors import UserError
from instcls_tf.report.answer import Answer, Picture
from instcls_tf.report.thumbnails import figure, section, thumbnails_of, write_page
from instcls_tf.run.workdir import load_run
from instcls_tf.search.commands import Searched, search_in_run


def search_with_page(
    workdir: str, queries: list[str], k: int, output: str | None, data_dir: str | None, **settings: Any
) -> Answer:
    """`search_in_run`, to be shown on the page `output`; all workers together."""
    if output:
        workers.start()
        workers.on_rank_0(lambda: files.refuse_unwritable(output))
    searched = search_in_run(workdir, queries, k, data_dir=data_dir, **settings)
    picture = Picture(output, lambda path: write_hits(path, searched, data_dir)) if output else None
    return Answer(searched.summary(), picture=picture)


def write_hits(path: str, searched: Searched, data_dir: str | None = None) -> None:
    """Writes a page: each query, and what was found, the most similar first."""
    config = load_run(searched.among.workdir)
    reading = reading_of(config)
    asked = _of_files(searched.queries, reading)  # as the search takes them: a file, or else the name of an image
    names = [query for query in searched.queries if not os.path.isfile(query)]
    names += [hit.name for hits in searched.hits for hit in hits]
    images = thumbnails_by_name(names, searched.among.origin, data_dir or config.data_dir, reading)
    parts = []
    for query, hits in zip(searched.queries, searched.hits):
        found = [figure(images.get(hit.name), hit.name, f"{hit.cosine:.4f}") for hit in hits]
        parts.append(section([figure({**images, **asked}.get(query), query, "query", is_marked=True), *found]))
    write_page(path, f"{len(searched.queries)} queries among {len(searched.among)} images", parts)


def thumbnails_by_name(
    names: list[str],
    origin: tuple[str, str] | None = None,
    data_dir: str | None = None,
    reading: Reading = DEFAULT_READING,
) -> dict[str, str]:
    """Data URIs of images that the dataset and split `origin` has under these names, or else of files.

    A name of the dataset is not looked up on the disk, where another image may have it in the current folder.
    """
    if origin is None:
        return _of_files(names, reading)
    try:
        source = open_source(*origin, data_dir, reading=reading)
    except UserError:  # an index may outlive the images that it was made of
        return _of_files(_absolute(names), reading)
    wanted = set(names)
    known = enumerate(names_of(source, np.arange(source.num_instances)))
    name_of = {place: name for place, name in known if name in wanted}
    found = {name_of[place]: uri for place, uri in thumbnails_of(source, name_of).items()}
    return {**_of_files(_absolute(wanted - set(name_of.values())), reading), **found}


def _absolute(names: Iterable[str]) -> list[str]:
    return [name for name in names if os.path.isabs(name)]


def _of_files(names: Iterable[str], reading: Reading) -> dict[str, str]:
    paths = [name for name in dict.fromkeys(names) if os.path.isfile(name)]
    return {paths[place]: uri for place, uri in thumbnails_of(listed_files(paths, reading), range(len(paths))).items()}
