"""The answer of `search`: names and cosines, and a page that shows the images."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from instcls_tf import files
from instcls_tf.data.listed_files import listed_files
from instcls_tf.data.names import names_of
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from instcls_tf.report.answer import Answer, Picture
from instcls_tf.report.thumbnails import figure, section, thumbnails_of, write_page
from instcls_tf.search.commands import Searched, search_in_run


def search_with_page(
    workdir: str, queries: list[str], k: int, output: str | None, data_dir: str | None, **settings: Any
) -> Answer:
    """`search_in_run`, to be shown on the page `output`; all workers together."""
    if output:
        files.refuse_unwritable(output)
    searched = search_in_run(workdir, queries, k, data_dir=data_dir, **settings)
    picture = Picture(output, lambda path: write_hits(path, searched, data_dir)) if output else None
    return Answer(searched.summary(), picture=picture)


def write_hits(path: str, searched: Searched, data_dir: str | None = None) -> None:
    """Writes a page: each query, and what was found, the most similar first."""
    names = [*searched.queries, *(hit.name for hits in searched.hits for hit in hits)]
    images = thumbnails_by_name(names, searched.among.origin, data_dir)
    parts = []
    for query, hits in zip(searched.queries, searched.hits):
        found = [figure(images.get(hit.name), hit.name, f"{hit.cosine:.4f}") for hit in hits]
        parts.append(section([figure(images.get(query), query, "query", is_marked=True), *found]))
    write_page(path, f"{len(searched.queries)} queries among {len(searched.among)} images", parts)


def thumbnails_by_name(
    names: list[str], origin: tuple[str, str] | None = None, data_dir: str | None = None
) -> dict[str, str]:
    """Data URIs of images that are files, or that the dataset and split `origin` has under these names."""
    paths = [name for name in dict.fromkeys(names) if os.path.isfile(name)]
    found = {paths[place]: uri for place, uri in thumbnails_of(listed_files(paths), range(len(paths))).items()}
    missing = set(names) - found.keys()
    if not missing or origin is None:
        return found
    try:
        source = open_source(*origin, data_dir)
    except UserError:  # an index may outlive the images that it was made of
        return found
    known = enumerate(names_of(source, np.arange(source.num_instances)))
    name_of = {place: name for place, name in known if name in missing}
    return {**found, **{name_of[place]: uri for place, uri in thumbnails_of(source, name_of).items()}}
