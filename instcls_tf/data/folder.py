"""`folder:PATH`: image files in any nesting, read at random; opening one does not import TensorFlow."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from instcls_tf import files
from instcls_tf.data import contents, manifest
from instcls_tf.data.cache_file import CacheFile
from instcls_tf.data.class_folders import ClassFolders, first_folders, in_classes_of_train, unlabelled
from instcls_tf.data.decoding import DEFAULT_READING, BadImages, Reading, decode_file
from instcls_tf.data.image_suffixes import FIRST_SUFFIXES, IMAGE_SUFFIXES
from instcls_tf.data.listing import Listing, is_in_a_listed_folder, list_images
from instcls_tf.data.manifest import Changes, ImagePaths
from instcls_tf.data.source import Images, classes_that_tell, digest_of_content, digest_of_ids, file_identity
from instcls_tf.errors import MachineError, NoSplitError, UserError, shown
from instcls_tf.workdir_files import MANIFEST_NAME

PREFIX = "folder:"
# How many files of equal size a continuation looks into, for images that have come to have others' names.
_LOOKED_INTO = 64
_SPLITS = ("train", "test", "val")
_FIRST_SUFFIXES = tuple(os.fsencode(suffix) for suffix in FIRST_SUFFIXES)


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files below `root`.

    An id is the place of a relative path in byte order, or the one that a manifest has for it. `labels` is int32 `[N]`,
    -1 if unknown; `irregular` lists the ids of what has an image's name but is no file (a broken link, a pipe).
    `reading` says how files become pixels, `notes` are lines for the user about what is not in it. `kept` holds
    images that need not be decoded. `unknown_classes` says for which class folders a split has no labels.
    """

    name: str
    class_names: tuple[str, ...] | None
    root: str
    paths: ImagePaths
    labels: np.ndarray
    irregular: np.ndarray
    changes: Changes = dataclasses.field(default_factory=Changes)
    reading: Reading = DEFAULT_READING
    notes: tuple[str, ...] = ()
    kept: CacheFile | None = None
    unknown_classes: str = ""
    bad: BadImages = dataclasses.field(default_factory=BadImages)
    random_access: ClassVar[Literal[True]] = True

    @property
    def num_instances(self) -> int:
        """The number of images, and so of instance ids."""
        return len(self.paths)

    def ids_digest(self) -> bytes:
        """64 bits of which image has which id."""
        return digest_of_ids(self.num_instances, self.paths.iter_bytes())

    def content_digest(self) -> str:
        """A hash of the files' names, sizes and times."""
        return digest_of_content(self, (file_identity(self.root, path) for path in self.paths))

    def name_of(self, instance_id: int) -> str:
        """The path below `root`."""
        return self.paths[instance_id]

    def content_of(self, instance_id: int) -> bytes:
        """The bytes of a file; none if it cannot be read, also after some patience with the file system."""
        if instance_id in self.irregular:
            return b""
        try:
            return files.content_of(os.path.join(self.root, os.fsdecode(self.paths.bytes_of(instance_id))))
        except (OSError, MachineError):
            return b""

    def holds_images_in(self, folder: str) -> bool:
        """Whether `folder` is `root` or a folder below it from which images are taken."""
        place = os.path.relpath(os.path.realpath(folder), os.path.realpath(self.root))
        if place.split(os.sep)[0] == os.pardir:
            return False
        prefix = b"" if place == os.curdir else os.fsencode(os.path.join(place, ""))
        return any(path.startswith(prefix) for path in self.paths.iter_bytes())

    def spread(self, most: int) -> FolderSource:
        """At most so many of the images, spread evenly over them, with ids from 0."""
        places = np.unique(np.linspace(0, self.num_instances - 1, min(most, self.num_instances)).astype(np.int64))
        paths = ImagePaths(self.paths.block, self.paths.begins[places], self.paths.lengths[places])
        irregular = np.flatnonzero(np.isin(places, self.irregular))
        return dataclasses.replace(self, paths=paths, labels=self.labels[places], irregular=irregular, kept=None)

    def manifest_path(self, workdir: str) -> str:
        """Where a run in `workdir` keeps the ids of the files."""
        return os.path.join(workdir, MANIFEST_NAME)

    def loader(self) -> Callable[[Any], Any]:
        """A graph function from an instance id (int64 scalar) to its image, uint8 `[H, W, 3]`, empty if unreadable."""
        import tensorflow as tf

        # Outside the mapped function: a captured tensor is an input, a constant inside would enter the (2 GB) graph.
        block = tf.constant(self.paths.block)
        begins, lengths = tf.constant(self.paths.begins, tf.int64), tf.constant(self.paths.lengths, tf.int64)
        folder = tf.constant(os.path.join(os.fsencode(self.root), b""))
        irregular = tf.constant(self.irregular, tf.int64)

        def load(instance_id: tf.Tensor) -> tf.Tensor:
            path = folder + tf.strings.substr(block, begins[instance_id], lengths[instance_id])
            readable = tf.reduce_all(irregular != instance_id)
            return decode_file(tf.where(readable, path, ""), path, self.bad, self.reading)

        return load if self.kept is None else self.kept.loader(load)

    def write_manifest(self, workdir: str) -> tuple[str, ...]:
        """Writes or extends the manifest in a run's folder.

        Returns:
          The paths of files that have another size than in the manifest that was there.

        Raises:
          UserError: files have each other's sizes or images: they were renamed.
        """
        path = self.manifest_path(workdir)
        sizes = manifest.file_sizes(self.root, self.paths)
        changed: tuple[str, ...] = ()
        if files.is_there(path):
            _, before = manifest.read(path)
            now = sizes[: len(before)]
            indices = np.flatnonzero((now != before) & (now >= 0) & (before >= 0))
            changed = tuple(self.paths[i] for i in indices)
            if len(changed) > 1 and np.array_equal(np.sort(now[indices]), np.sort(before[indices])):
                raise UserError(
                    f"--dataset={self.name}: {len(changed)} files have changed places since the run began, such as"
                    f" {changed[0]!r} and {changed[1]!r}: each class would go on with the image of another; bring them"
                    f" back, or begin another run in another folder"
                )
            self._refuse_exchanged(workdir, np.union1d(indices, _of_equal_size(now)))
            if len(before) == len(sizes):
                return changed
            sizes[: len(before)] = before
        manifest.write(path, self.paths, sizes)
        return changed

    def _refuse_exchanged(self, workdir: str, ids: np.ndarray) -> None:
        """Refuses files that hold the image of another class, where the run has kept what its images are."""
        path = contents.contents_path(workdir)
        if not len(ids) or not files.is_there(path):
            return
        for instance_id, other in contents.exchanged(self, ids, contents.read(path)):
            raise UserError(
                f"--dataset={self.name}: {self.paths[instance_id]!r} is now the image that {self.paths[other]!r} was"
                f" when the run began: each class would go on with the image of another; bring them back, or begin"
                f" another run in another folder, with --extend_from={workdir} to go on from this one"
            )


def _of_equal_size(sizes: np.ndarray) -> np.ndarray:
    """Ids of at most `_LOOKED_INTO` of the files that others have the size of: their sizes do not tell them apart."""
    _, of_size, count = np.unique(sizes, return_inverse=True, return_counts=True)
    alike = np.flatnonzero((count[of_size.ravel()] > 1) & (sizes >= 0))
    return alike[np.unique(np.linspace(0, len(alike) - 1, min(_LOOKED_INTO, len(alike))).astype(np.int64))]


def open_folder(
    dataset: str, split: str, workdir: str | None = None, reading: Reading = DEFAULT_READING
) -> FolderSource:
    """Lists a folder.

    Args:
      dataset: `folder:PATH`.
      split: `train`, `test`, or another folder below PATH.
      workdir: of a run, whose manifest, if there is one, gives the ids.
      reading: how files become pixels.

    Raises:
      UserError: there is no such folder, or fewer than two images in it; or an image of the run cannot be looked at.
      MachineError: the file system fails.
    """
    top = os.path.expanduser(dataset.removeprefix(PREFIX))
    if not files.is_there(top):
        raise UserError(f"--dataset={dataset}: no such folder")
    if not os.path.isdir(top):
        raise UserError(f"--dataset={dataset}: not a folder, wanted a folder of images")
    root = _split_folder(dataset, top, split)
    paths, irregular, left_out = _list(dataset, root)
    notes = left_out.sentences() + _beside(top, root)
    if not len(paths):
        where = "in that folder" if root == top else f"in {root}"
        where += "".join(f"; {note}" for note in notes)
        raise UserError(f"--dataset={dataset}: no images ({', '.join(IMAGE_SUFFIXES)}) {where}")
    if len(paths) == 1:
        raise UserError(f"--dataset={dataset}: one image only, wanted at least 2 images: every image is a class")
    changes = Changes()
    if workdir and files.is_there(os.path.join(workdir, MANIFEST_NAME)):
        paths, irregular, changes, unknown = _with_known_ids(dataset, workdir, root, paths, irregular)
        notes += unknown
    names, labels, unknown_classes = _labels(dataset, top, root, paths)
    if unknown_classes:
        notes += (f"{unknown_classes}: {root} is taken without labels",)
    return FolderSource(
        dataset, names, root, paths, labels, irregular, changes, reading, notes, unknown_classes=unknown_classes
    )


def root_of(dataset: str, split: str) -> str | None:
    """The folder below which the names of a split's images are paths; None of what is no folder, or is not there."""
    if not dataset.startswith(PREFIX):
        return None
    try:
        return _split_folder(dataset, os.path.expanduser(dataset.removeprefix(PREFIX)), split)
    except NoSplitError:
        return None


def of_files(source: Images, cache: str) -> FolderSource:
    """The images, if `--cache` can keep them.

    Args:
      source: the images.
      cache: where they are to be kept.

    Raises:
      UserError: they are not the files of a folder.
    """
    if isinstance(source, FolderSource):
        return source
    raise UserError(
        f"--cache={shown(cache)}: keeps images of a folder, wanted --dataset=folder:PATH, or no cache with"
        f" --dataset={source.name}"
    )


def refuse_picture_among_images(dataset: str, picture: str, output: str) -> None:
    """Refuses to write a picture where it would be an image of a dataset from then on, and its runs could not go on.

    Args:
      dataset: as `--dataset` names it; only folders are looked at.
      picture: the file.
      output: the value of `--output`, the picture itself or a folder for it.

    Raises:
      UserError: the picture would be one of the images.
    """
    if not dataset.startswith(PREFIX) or not picture.lower().endswith(IMAGE_SUFFIXES):
        return
    top = os.path.expanduser(dataset.removeprefix(PREFIX))
    has_splits = os.path.isdir(os.path.join(top, "train"))
    roots = [os.path.join(top, split) for split in _SPLITS] if has_splits else [top]
    if any(is_in_a_listed_folder(root, picture) for root in roots):
        raise UserError(
            f"--output={output}: lies among the images of --dataset={dataset}, of which {os.path.basename(picture)}"
            f" would be one, wanted a place outside"
        )


def _split_folder(dataset: str, top: str, split: str) -> str:
    if split == "train" and not files.is_folder(os.path.join(top, "train")):
        return top
    candidates = ("test", "val") if split == "test" else (split,)
    for name in candidates:
        if files.is_folder(os.path.join(top, name)):
            return os.path.join(top, name)
    wanted = " or ".join(os.path.join(top, name) for name in candidates)
    raise NoSplitError(f"--dataset={dataset}: no {split} split, wanted a folder {wanted}")


def _beside(top: str, root: str) -> tuple[str, ...]:
    """A note where images lie beside the splits: a folder may have come to be called `train` by chance."""
    splits = [os.path.join(top, name) for name in _SPLITS]
    if root != splits[0]:
        return ()
    try:
        paths = list_images(top, splits).paths
    except OSError:  # a folder may be entered, and not be listed
        return ()
    if not len(paths):
        return ()
    images, are = ("image", "is") if len(paths) == 1 else ("images", "are")
    return (
        f"{root} alone is trained on: {len(paths)} {images} beside train, test and val, such as {paths[0]!r}, {are} not"
        f" used",
    )


def _list(dataset: str, root: str) -> Listing:
    try:
        return list_images(root)
    except OSError as error:
        raise files.error_of(error, f"--dataset={dataset}: cannot list {root} ({error.strerror})") from error


def _with_known_ids(
    dataset: str, workdir: str, root: str, found: ImagePaths, irregular: np.ndarray
) -> tuple[ImagePaths, np.ndarray, Changes, tuple[str, ...]]:
    known, _ = manifest.read(os.path.join(workdir, MANIFEST_NAME))
    odd = np.array([hash(found.bytes_of(i)) for i in irregular], np.int64)
    found, left_out = _without_newer_suffixes(known, found)
    merged = manifest.merge(known, found)
    irregular = np.flatnonzero(np.isin(merged.paths.hashes(), odd)) if len(odd) else irregular
    added = range(merged.num_known, len(merged.paths))
    # What is not looked into now (a hidden folder) may have been when the run began: its images are still there.
    missing = (merged.paths[i] for i in merged.vanished)
    vanished = tuple(path for path in missing if _is_gone(dataset, workdir, os.path.join(root, path)))
    changes = Changes(vanished, tuple(merged.paths[i] for i in added))
    return merged.paths, irregular, changes, left_out


def _is_gone(dataset: str, workdir: str, path: str) -> bool:
    """Whether nothing is there any more; what a folder that fails or forbids hides is not gone."""
    try:
        files.patiently(lambda: os.lstat(path), path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError as error:
        raise UserError(
            f"--dataset={dataset}: it cannot be seen whether {path!r} of the run in --workdir={workdir} is still there"
            f" ({error.strerror}), wanted folders that may be entered"
        ) from error
    return False


def _without_newer_suffixes(known: ImagePaths, found: ImagePaths) -> tuple[ImagePaths, tuple[str, ...]]:
    """What is found of a run that knows the first suffixes only: it may have begun when only they were read."""
    kept = np.array([path.lower().endswith(_FIRST_SUFFIXES) for path in found.iter_bytes()], bool)
    if kept.all() or any(not path.lower().endswith(_FIRST_SUFFIXES) for path in known.iter_bytes()):
        return found, ()
    sentence = f"{np.sum(~kept)} file(s) are left out: the run began with images of {', '.join(FIRST_SUFFIXES)} only"
    return ImagePaths(found.block, found.begins[kept], found.lengths[kept]), (sentence,)


def _labels(dataset: str, top: str, root: str, paths: ImagePaths) -> ClassFolders:
    """Of the images below `root`; see `class_folders`."""
    if root == top:
        return unlabelled(len(paths))
    found, train = first_folders(paths), os.path.join(top, "train")
    if found.names and root != train and files.is_folder(train):
        found = in_classes_of_train(train, first_folders(_list(dataset, train).paths).names, found)
    return found if classes_that_tell(found.names) else unlabelled(len(paths), found.unknown)
