"""The answer of `duplicates`: its files below a run's folder, and a page that shows the images.

WORKDIR/duplicates.csv       every pair, near-duplicates first
WORKDIR/duplicates.json      the answer: numbers, and the most telling of each kind by name
WORKDIR/duplicates_drop.txt  files that could go, one a line; nothing is deleted
WORKDIR/duplicates.html      the page
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

from instcls_tf import files
from instcls_tf.distributed import workers
from instcls_tf.report.answer import Answer, Picture, Written
from instcls_tf.report.thumbnails import figure, paragraph, section, thumbnails_of, write_page
from instcls_tf.run.workdir import load_run
from instcls_tf.search.duplicates import Duplicates, Pair, duplicates_of_run
from instcls_tf.search.settings import Settings

_COLUMNS = (
    *("group", "kind", "first", "second", "first_split", "second_split", "similarity", "mirrored"),
    *("cosine", "percentile", "first_label", "second_label", "leak", "labels_differ"),
    *("first_dataset", "second_dataset"),
)
# Groups of each kind, and images of a group, on the page.
_SHOWN_GROUPS, _SHOWN_IMAGES = 100, 12
_NO_COPIES = _ONE_FILE, _ALIKE, _OUTLIERS = "One file", "Alike, but not the same picture", "Outliers"
_CHAIN = "A chain: not all of these are the same picture; each that is marked is a copy of one that is not"


def duplicates_with_page(workdir: str, settings: Settings, **images: Any) -> Answer:
    """`duplicates_of_run`, to be written below the run's folder; all workers together.

    Raises:
      UserError: see `duplicates_of_run`; or a file cannot be written, which is tried before the images are read.
    """
    load_run(workdir)  # the folder is one of a run, before anything is tried there
    workers.start()
    place = os.path.join(workdir, "duplicates")
    workers.on_rank_0(lambda: _refuse_unwritable(place))
    found = duplicates_of_run(workdir, settings=settings, **images)
    return Answer(
        summary(found, settings),
        picture=Picture(f"{place}.html", lambda path: write_duplicates(path, found)),
        files=(
            Written(f"{place}.csv", lambda path: files.write(path, table_of(found))),
            Written(f"{place}_drop.txt", lambda path: files.write(path, drop_list(found))),
        ),
    )


def _refuse_unwritable(place: str) -> None:
    for ending in (".csv", "_drop.txt", ".json", ".html"):
        files.refuse_unwritable(f"{place}{ending}", "workdir")


def summary(found: Duplicates, settings: Settings) -> dict[str, Any]:
    """The JSON object of the command."""
    names, listed = found.images.names, settings.listed
    leaks = [pair for pair in found.near if found.is_leak(pair)]
    by_size = sorted(found.groups, key=lambda group: (-len(group), group))
    outliers = [
        {
            "image": names[outlier.place],
            **_of_a_set(found, "nearest", outlier.nearest),
            "cosine": round(outlier.cosine, 4),
        }
        for outlier in found.outliers
    ]
    threshold = {"cosine": round(found.threshold, 6), "percentile": settings.percentile}
    age = {"found": round(found.age.found, 4), "found_untrained": round(found.age.found_untrained, 4)}
    return {
        "examples": int((found.images.of_source == 0).sum()),
        "against": int((found.images.of_source > 0).sum()),
        "unreadable": found.images.unreadable,
        "sets": list(found.images.sets),
        "groups": len(found.groups),
        "near_duplicates": len(found.near),
        "one_file": len(found.one_file),
        "alike": len(found.alike),
        "alike_groups": len(found.alike_groups),
        "leaks": len(leaks),
        "label_conflicts": len(found.conflicts),
        "drop": len(found.drop),
        "threshold": threshold,
        "similarity": settings.similarity,
        "too_young": found.age.is_too_young,
        "other_views": {**age, "images": found.age.images},
        "listed_groups": [[_called(found, place) for place in group] for group in by_size[:listed]],
        "listed_one_file": [[names[place] for place in group] for group in found.one_file[:listed]],
        "listed_alike": [{**_both(found, pair), "cosine": round(pair.cosine, 4)} for pair in found.alike[:listed]],
        "listed_leaks": [_both(found, pair) for pair in leaks[:listed]],
        "listed_conflicts": [_with_labels(found, group) for group in found.conflicts[:listed]],
        "outliers": outliers,
    }


def _called(found: Duplicates, place: int) -> str:
    """An image's name, with its set if it is of what the split is held against: that may have the same names."""
    name = found.images.names[place]
    return f"{name} ({found.images.set_of(place)})" if found.images.of_source[place] else name


def _of_a_set(found: Duplicates, key: str, place: int) -> dict[str, str]:
    return {key: found.images.names[place], f"{key}_set": found.images.set_of(place)}


def _both(found: Duplicates, pair: Pair) -> dict[str, str]:
    return {**_of_a_set(found, "first", pair.first), **_of_a_set(found, "second", pair.second)}


def _with_labels(found: Duplicates, group: list[int]) -> list[dict[str, str]]:
    return [{**_of_a_set(found, "image", place), "label": found.images.label(place)} for place in group]


def table_of(found: Duplicates) -> bytes:
    """Every pair as a line of CSV; bytes of names that are no UTF-8 stay."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(_COLUMNS)
    for kind, pairs, groups in (
        ("near-duplicate", found.near, found.groups),
        (_ONE_FILE.lower(), _pairs_of_one_file(found), found.one_file),
        ("alike", found.alike, found.alike_groups),
    ):
        table.writerows(_rows(found, kind, pairs, groups))
    return file.getvalue().encode("utf-8", "surrogateescape")


def _pairs_of_one_file(found: Duplicates) -> list[Pair]:
    """The first name of each file with each other; what is seen of them is the same."""
    return [Pair(group[0], place, 1.0, 100.0) for group in found.one_file for place in group[1:]]


def _rows(found: Duplicates, kind: str, pairs: list[Pair], groups: list[list[int]]) -> Iterator[list[object]]:
    images = found.images
    group_of = {place: number for number, group in enumerate(groups) for place in group}
    for pair in pairs:
        both = pair.first, pair.second
        labels = [images.label(place) for place in both]
        is_near = kind == "near-duplicate"
        yield [
            group_of[pair.first],
            kind,
            *(images.names[place] for place in both),
            *(images.splits[images.of_source[place]] for place in both),
            round(pair.similarity, 4) if is_near else "",
            int(pair.is_mirrored) if is_near else "",
            round(pair.cosine, 6),
            round(pair.percentile, 2),
            *labels,
            int(found.is_leak(pair)),
            int(all(labels) and labels[0] != labels[1]),
            *(images.sources[images.of_source[place]].name for place in both),
        ]


def drop_list(found: Duplicates) -> bytes:
    """The names of images that could go, one a line; a line's end within a name is written as in C."""
    names = [found.images.names[place].replace("\n", "\\n") for place in found.drop]
    return "".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape")


def write_duplicates(path: str, found: Duplicates) -> None:
    """Writes the page: leaks and contradictions first, then groups of copies, look-alikes and outliers."""
    leaks = connected_leaks(found)
    told = {group[0] for group in leaks}  # an image is in one group
    conflicts = [group for group in found.conflicts if group[0] not in told]
    told |= {group[0] for group in conflicts}
    others = [group for group in found.groups if group[0] not in told]
    kinds = {
        "In both sets": leaks,
        "Copies with different labels": conflicts,
        "Near-duplicates": others,
        _ONE_FILE: [group for group in found.one_file if group[0] not in told],
        _ALIKE: found.alike_groups,
        _OUTLIERS: [[outlier.place, outlier.nearest] for outlier in found.outliers],
    }
    shown = {title: [group[:_SHOWN_IMAGES] for group in groups[:_SHOWN_GROUPS]] for title, groups in kinds.items()}
    uris = _thumbnails(found, {place for groups in shown.values() for group in groups for place in group})
    drop = set(found.drop)
    gone = drop | {place for names in found.one_file for place in names[1:]}
    parts = [paragraph(found.age.sentence()[0].upper() + found.age.sentence()[1:] + ".", True)] * found.age.is_too_young
    for title, groups in shown.items():
        total = len(kinds[title])
        count = f"{total}" if total == len(groups) else f"{len(groups)} of {total}"
        parts.append(f"<h2>{title} ({count})</h2>")
        for group, whole in zip(groups, kinds[title]):
            figures = [_figure(found, uris, place, place in drop) for place in group]
            is_copies = title not in _NO_COPIES
            parts.append(section(figures, _CHAIN if is_copies and is_chain(found, gone, whole) else ""))
    write_page(path, f"Duplicates among {len(found.images.ids)} images", parts)


def connected_leaks(found: Duplicates) -> list[list[int]]:
    """Groups of near-duplicates with images of both sets."""
    sets = found.images.of_source
    return [group for group in found.groups if len({int(sets[place]) for place in group}) > 1]


def is_chain(found: Duplicates, gone: set[int], group: list[int]) -> bool:
    """Whether more of a group stays than one image, or than what the split is held against.

    Args:
      found: what was found.
      gone: what is dropped, and each file's names but one.
      group: of near-duplicates.
    """
    kept = [place for place in group if place not in gone]
    return len(kept) > 1 and any(found.images.of_source[place] == 0 for place in kept)


def _figure(found: Duplicates, uris: dict[int, str], place: int, is_dropped: bool) -> str:
    images = found.images
    about = " · ".join(filter(None, [images.set_of(place), images.label(place)]))
    return figure(uris.get(place), images.names[place], about, is_dropped)


def _thumbnails(found: Duplicates, places: set[int]) -> dict[int, str]:
    images, uris = found.images, {}
    for number, source in enumerate(images.sources):
        chosen: Sequence[int] = [place for place in places if images.of_source[place] == number]
        by_id = {int(images.ids[place]): place for place in chosen}
        uris.update({by_id[instance_id]: uri for instance_id, uri in thumbnails_of(source, by_id).items()})
    return uris
