"""The manifest of a checkpoint, `ckpt-STEP.json`: which files it has, and what run they belong to. No TensorFlow.

It is written last, when all files are whole and on the disk. A checkpoint without one was made by an earlier version,
or by a save that ended just before its last step: then TensorFlow's own checksums tell whether it is whole.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
from typing import Callable

from instcls_tf import files, stamps
from instcls_tf.errors import MachineError, UserError, shown

_FORMAT = 1
_BLOCK = 2**22


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a checkpoint is of. What is empty is not known and agrees with everything.

    Args:
      run_id: of the run.
      recipe: its flags, but for those that may change.
      dataset: a digest of which image has which id.
    """

    run_id: str = ""
    recipe: dict[str, str] = dataclasses.field(default_factory=dict)
    dataset: str = ""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A checkpoint's files and origin.

    Args:
      step: completed steps.
      workers: how many have written it.
      rows: of each tensor that is split over the workers, how many it has in all.
      origin: the run.
      files: bytes and checksum of each, by name.
      seconds: of wall time that the run had taken by then; 0 where that is not known.
    """

    step: int
    workers: int
    rows: dict[str, int]
    origin: Origin
    files: dict[str, tuple[int, str]]
    seconds: float = 0.0


def path_of(prefix: str) -> str:
    """Where the manifest of a checkpoint is."""
    return prefix + ".json"


def file_facts(path: str) -> tuple[int, str]:
    """Bytes and checksum (BLAKE2b, 128 bits) of a file.

    Raises:
      OSError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            stamps.go_on()
        return file.tell(), digest.hexdigest()


def write(path: str, manifest: Manifest) -> None:
    """Writes a manifest; on the disk when this returns.

    Raises:
      OSError: it cannot be written.
    """
    text = json.dumps({"format": _FORMAT, **dataclasses.asdict(manifest)}, indent=1)
    with files.whole_file(path) as file:
        file.write(text.encode())


def read(prefix: str) -> Manifest | None:
    """The manifest of a checkpoint; None where it has none.

    Raises:
      UserError: it is damaged, or of a later version.
      MachineError: the file system fails.
    """
    path = path_of(prefix)
    try:
        found = json.loads(_found(_content, path))
        if found.pop("format") != _FORMAT:
            raise UserError(f"{shown(path)}: was written by a later version of this program")
        found["files"] = {name: tuple(facts) for name, facts in found["files"].items()}
        return Manifest(**{**found, "origin": Origin(**found["origin"])})
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{shown(path)}: damaged; without this file the checkpoint is judged by TensorFlow's own checksums"
        ) from error


def _found(look: Callable[[str], files.Result], path: str) -> files.Result:
    """What `look` finds at a path, whose file is lost where that raises an OSError.

    Raises:
      MachineError: the file is there, perhaps, but cannot be read.
    """
    try:
        return files.patiently(lambda: look(path), path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        raise MachineError(f"{shown(path)}: cannot be read ({error.strerror})") from error


def _size_of(path: str) -> tuple[int, str]:
    return os.path.getsize(path), ""


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def damage(prefix: str, whole: bool) -> str:
    """What is wrong with the files of a checkpoint, as far as its manifest tells; empty if nothing is.

    Args:
      prefix: of the checkpoint.
      whole: whether to read all files, for their checksums, or to look at their sizes alone.

    Raises:
      MachineError: the file system fails: whether the checkpoint is whole is not known.
    """
    try:
        manifest = read(prefix)
    except MachineError:
        raise
    except UserError as error:
        return str(error)
    if manifest is None:
        index = prefix + ".index"
        return "" if files.is_there(index) else f"{shown(index)}: is missing"
    for name, (size, checksum) in manifest.files.items():
        path = os.path.join(os.path.dirname(prefix), name)
        try:
            now = _found(file_facts if whole else _size_of, path)
        except OSError as error:
            return f"{shown(path)}: " + ("is missing" if isinstance(error, FileNotFoundError) else f"{error.strerror}")
        if now[0] != size:
            return f"{shown(path)}: has {now[0]} bytes, {size} were written"
        if whole and now[1] != checksum:
            return f"{shown(path)}: damaged, its checksum is {now[1][:8]}…, {checksum[:8]}… was written"
    return ""


def difference(found: Origin, wanted: Origin) -> str:
    """How a checkpoint's origin differs from the run that wants to go on from it, with both values; empty if not."""
    if found.run_id and wanted.run_id and found.run_id != wanted.run_id:
        return f"belongs to another run ({found.run_id}) than this folder's ({wanted.run_id})"
    for name, before in found.recipe.items():
        if wanted.recipe.get(name, before) != before:
            return f"was made with --{name}={before}, this run has --{name}={wanted.recipe[name]}"
    if found.dataset and wanted.dataset and found.dataset != wanted.dataset:
        return (
            f"was made with other images under the same --dataset (their digest was {found.dataset}, now it is"
            f" {wanted.dataset})"
        )
    return ""


def files_of(prefix: str) -> list[str]:
    """The paths of all files that bear a checkpoint's name, in an order in which they may be removed one by one."""
    # Without manifest and index a checkpoint is none: these go first.
    found = glob.glob(glob.escape(prefix) + ".*")
    return sorted(found, key=lambda path: (not path.endswith(".json"), not path.endswith(".index"), path))
