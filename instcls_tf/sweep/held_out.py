"""The images of a sweep as a folder: `train`, what trials see, and `test`, a slice of train that judges them.

Every kind of dataset becomes a folder of image files, links where they are files already. So nothing in training,
online k-NN or evaluation has to know of the slice, and none of its images can reach a trial.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from instcls_tf import files
from instcls_tf.config import PretrainConfig
from instcls_tf.data.folder import FolderSource
from instcls_tf.data.image_header import PNG_SIGNATURE
from instcls_tf.data.labelled import labels_of
from instcls_tf.data.source import Source
from instcls_tf.data.sources import open_training_source
from instcls_tf.errors import UserError


def held_out_folder(workdir: str, config: PretrainConfig, fraction: float, seed: int) -> str:
    """Where a sweep keeps the images of a recipe; another slice or another dataset has another folder."""
    about = f"{config.dataset}\n{config.data_dir}\n{config.tfds_split}\n{fraction}\n{seed}"
    return os.path.join(workdir, f"images-{hashlib.sha256(about.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}")


def write_held_out(folder: str, config: PretrainConfig, fraction: float, seed: int) -> None:
    """Makes the folder, unless it is there; it appears when it is complete.

    Args:
      folder: of `held_out_folder`.
      config: whose training images are divided.
      fraction: of each class, that judges.
      seed: of the division.

    Raises:
      UserError: an image has no label, no class has two images, or the folder lies among them or cannot be written.
      MachineError: the file system fails.
    """
    if files.is_there(folder):
        return
    source = open_training_source(config)
    if isinstance(source, FolderSource) and _is_within(folder, source.root):
        raise UserError(
            f"--dataset={config.dataset}: holds {folder}, wanted a folder for the sweep outside of its images"
        )
    is_held_out = stratified_slice(labels_of(source), fraction, seed)
    if not is_held_out.any():
        raise UserError(f"--dataset={config.dataset}: no class has two images, one to be learned and one to judge")
    scratch = folder + ".new"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        for path, content in _files(source, is_held_out):
            target = os.path.join(scratch, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if isinstance(content, str):
                os.symlink(content, target)
            else:
                with open(target, "wb") as file:
                    file.write(content)
        os.replace(scratch, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the images of the sweep there ({error.strerror})") from error


def refuse_other_images(folder: str, config: PretrainConfig) -> None:
    """Keeps which images a sweep began with, beside their folder, and refuses others in any of its stages.

    Args:
      folder: of `held_out_folder`; it need not be there.
      config: whose training images are looked at.

    Raises:
      UserError: they are others, or it cannot be written which they are.
      MachineError: the file system fails.
    """
    path, images = f"{folder}.txt", open_training_source(config).ids_digest().hex()
    if not files.is_there(path):
        files.write(path, f"{images}\n".encode())
    elif files.read_text(path).strip() != images:
        raise UserError(
            f"--dataset={config.dataset}: has other images than when the sweep began, trials would be compared that"
            f" have seen other ones: bring them back, or give the sweep another workdir"
        )


def _is_within(folder: str, root: str) -> bool:
    """Its images would be found among those of the root."""
    return os.path.relpath(os.path.realpath(folder), os.path.realpath(root)).split(os.sep)[0] != os.pardir


def stratified_slice(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which images are held out: of each class the fraction, but at least one image, and not all.

    Args:
      labels: `[N]` integers; a class of a single image is left whole.
      fraction: in (0, 1).
      seed: two identical seeds give identical slices.

    Returns:
      `[N]` bool.
    """
    random = np.random.default_rng(seed)
    is_held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        is_held_out[members[:count]] = True
    return is_held_out


def _files(source: Source, is_held_out: np.ndarray) -> Iterator[tuple[str, str | bytes]]:
    """Paths below the folder with what each is: the path that it links to, or its content."""
    splits = [("train", "test")[int(held_out)] for held_out in is_held_out]
    if isinstance(source, FolderSource):
        for path, split in zip(source.paths, splits):
            yield os.path.join(split, path), os.path.abspath(os.path.join(source.root, path))
        return
    for instance_id, label, content in _contents(source):
        suffix = "png" if content.startswith(PNG_SIGNATURE) else "jpg"  # of what it is, decoding asks the content
        yield os.path.join(splits[instance_id], f"{label:05}", f"{instance_id:09}.{suffix}"), content


def _contents(source: Any) -> Iterator[tuple[int, int, bytes]]:
    """Ids, labels and encoded images of a source whose images are no files of their own."""
    if not source.random_access:
        records = source.records(0, source.num_instances, in_order=True)
        for (encoded, _), instance_id, label in records.as_numpy_iterator():
            yield int(instance_id), int(label), encoded
        return
    from PIL import Image

    for instance_id, (pixels, label) in enumerate(zip(source.images, source.labels)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        yield instance_id, int(label), file.getvalue()
