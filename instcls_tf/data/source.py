"""What a source of images is: the contract between those that open one and those that read it.

A source is a set of images, each with a stable instance id in `[0, num_instances)` and perhaps a class label. There are
two kinds. Some are read at random: `loader()` turns an id into an image. The others are streams of records, which can
only be read one after the other: `records()` yields them with their ids, `loader()` turns one into an image. An image
that cannot be read is empty, `[0, 0, 3]`, and its name and the reason are in the source's `bad`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Union

import numpy as np

from instcls_tf.data.decoding import BadImages, Reading
from instcls_tf.data.manifest import Changes

if TYPE_CHECKING:
    from instcls_tf.data.records import Shards


class Images(Protocol):
    """What both kinds of sources have."""

    @property
    def name(self) -> str:
        """As it is given to `--dataset`."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes that labels count, two at least; None if there are no labels."""

    @property
    def num_instances(self) -> int:
        """The number of images, and so of instance ids."""

    @property
    def bad(self) -> BadImages:
        """What could not be read so far."""

    @property
    def changes(self) -> Changes:
        """How the images differ from those with which the run began that they were opened for."""

    @property
    def reading(self) -> Reading | None:
        """How encoded images become pixels; None where they are pixels already."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user about what was found with the images and is not in the source."""

    def loader(self) -> Callable[[Any], Any]:
        """A graph function to an image, uint8 `[H, W, 3]`: from its id, or from its record without id and label."""

    def ids_digest(self) -> bytes:
        """64 bits of which image has which id: the same on all workers, or they would train on different labels."""

    def content_digest(self) -> str:
        """A hash of what the source is: another file, another size or time of one, another way to read change it."""

    def name_of(self, instance_id: int) -> str | int:
        """What people call an image: its path, or its id where it has none."""

    def holds_images_in(self, folder: str) -> bool:
        """Whether images are taken from this folder: a run that begins there would take itself for images."""

    def manifest_path(self, workdir: str) -> str | None:
        """The file in a run's folder that says which image has which id; None where the images themselves do."""

    def write_manifest(self, workdir: str) -> tuple[str, ...]:
        """Writes or extends that file; returns the names of images that have another size than it says."""


class RandomAccessSource(Images, Protocol):
    """Images that are read in any order."""

    random_access: ClassVar[Literal[True]]

    @property
    def labels(self) -> np.ndarray:
        """`[N]` int32, -1 if unknown."""

    def content_of(self, instance_id: int) -> bytes:
        """An image as it is stored; empty if it cannot be read."""


class StreamedSource(Images, Protocol):
    """Records that are read one after the other."""

    random_access: ClassVar[Literal[False]]

    @property
    def reading(self) -> Reading:
        """How encoded images become pixels."""

    @property
    def shards(self) -> Shards:
        """The files."""

    def parse(self, serialized: Any, instance_id: Any) -> tuple[Any, Any, Any]:
        """One record as `((encoded image, name), instance id int64, label int32)`."""

    def records(self, begin: int, end: int, in_order: bool = False) -> Any:
        """The records `begin` to `end` as a dataset of what `parse` returns; `in_order`: by ascending ids."""


Source = Union[RandomAccessSource, StreamedSource]


class FixedIds:
    """For sources whose images keep their ids without being written down: no run needs a manifest of them."""

    changes: ClassVar[Changes] = Changes()
    notes: ClassVar[tuple[str, ...]] = ()

    def name_of(self, instance_id: int) -> str | int:
        """Their images have no name but their id."""
        return int(instance_id)

    def holds_images_in(self, folder: str) -> bool:
        """No folder is searched for images."""
        return False

    def manifest_path(self, workdir: str) -> str | None:
        """There is none."""
        return None

    def write_manifest(self, workdir: str) -> tuple[str, ...]:
        """Does nothing."""
        return ()


def notes_of(*sources: Images) -> tuple[str, ...]:
    """What the user should know of the sources, with their names, each thing once."""
    return tuple(dict.fromkeys(note_about(source.name, note) for source in sources for note in source.notes))


def note_about(name: str, note: str) -> str:
    """A note with the name of what it is about; a warning says first that it is one."""
    text = note.removeprefix("warning: ")
    return f"{'warning: ' if text != note else ''}{name}: {text}"


def classes_that_tell(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """The classes that labels count, by the classes that a dataset names.

    None of fewer than two: each judgement of a single class is 100 %, whatever the network, so its images are images
    without labels.
    """
    return tuple(names) if names is not None and len(names) > 1 else None


def digest_of_ids(num_instances: int, names: Iterable[bytes] = ()) -> bytes:
    """`Images.ids_digest` of images that these names identify, in the order of ids."""
    digest = hashlib.blake2b(str(num_instances).encode(), digest_size=8)
    for name in names:
        digest.update(name + b"\0")
    return digest.digest()


def digest_of_content(source: Images, parts: Iterable[bytes]) -> str:
    """`Images.content_digest` of a source that consists of these parts."""
    # Features that are on disk have it in their key: another value and all of them would be computed anew.
    about = f"{source.name} {source.num_instances} {source.class_names}"
    if source.reading is not None:
        about += f" {source.reading}"
    digest = hashlib.sha256(about.encode("utf-8", "surrogateescape"))
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def file_identity(root: str, path: str) -> bytes:
    """A file's path with its size and time."""
    try:
        status = os.stat(os.path.join(root, path))
        return os.fsencode(path) + f" {status.st_size} {status.st_mtime_ns}\n".encode()
    except OSError:  # a broken link is skipped when images are read
        return os.fsencode(path) + b" -\n"
