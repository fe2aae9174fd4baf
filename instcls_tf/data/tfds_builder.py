"""Finds a prepared TFDS dataset on this machine, and says what is wrong with a name.

TFDS asks a bucket on the network about what it does not find, and waits for minutes where a firewall drops packets. So
nothing is opened here that is not on the disk, and the code of builders is asked for names and versions only.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from instcls_tf.errors import UserError, some_of

if TYPE_CHECKING:
    import tensorflow_datasets as tfds
    from etils import epath

_NAMED = 10


def open_builder(dataset: str, data_dir: str | None, others: str) -> Any:
    """The `tfds.core.DatasetBuilder` of a prepared dataset.

    Args:
      dataset: TFDS's name, `NAME[/CONFIG][:VERSION]`.
      data_dir: TFDS's data directory; None for its default.
      others: what else a dataset may be, for the sentence about a name that is none.

    Raises:
      UserError: no such dataset, configuration or version, not prepared, or damaged.
    """
    refuse_path(dataset)
    import tensorflow_datasets as tfds

    visibility = tfds.core.visibility
    # Not the community's datasets, whose list is on the network.
    with _quiet_absl(), visibility.set_availables_tmp([visibility.DatasetType.TFDS_PUBLIC]):
        name, config, version = _parse(dataset, data_dir, others)
        code, folders = _code(name), _folders(name, data_dir)
        if code is None and not folders:
            meant = _did_you_mean(dataset, tfds.list_builders(with_community_datasets=False))
            raise UserError(f"--dataset={dataset}: no such dataset, wanted {others} or a TFDS name{meant}")
        config = _config(dataset, code, folders, config)
        _refuse_unprepared(dataset, _Versions.of(code, folders, config), version, data_dir)
        try:
            return tfds.builder(dataset, data_dir=data_dir)
        # TFDS raises almost anything on files that were cut or are of an old kind.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"--dataset={dataset}: TFDS cannot open what is prepared of it ({reason})") from error


def refuse_path(dataset: str) -> None:
    """Says what was meant by a path without a prefix.

    Raises:
      UserError: `dataset` can only be a path.
    """
    if dataset.startswith(("/", "./", "../", "~")) or dataset in (".", ".."):
        raise UserError(f"--dataset={dataset}: did you mean {_as_path(dataset)}?")


def _as_path(dataset: str) -> str:
    is_prepared = os.path.exists(os.path.join(os.path.expanduser(dataset), "index.json"))
    return f"{'records' if is_prepared else 'folder'}:{dataset}"


def _did_you_mean(dataset: str, names: list[str]) -> str:
    close = [_as_path(dataset)] if os.path.isdir(dataset) else difflib.get_close_matches(dataset, names, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _parse(dataset: str, data_dir: str | None, others: str) -> tuple[str, str | None, str | None]:
    """`(name, configuration, version)`."""
    from tensorflow_datasets.core import naming

    try:
        name, arguments = naming.parse_builder_name_kwargs(dataset)
    except ValueError as error:
        _refuse_version(dataset, data_dir)
        wanted = f"wanted {others} or a TFDS name, NAME[/CONFIG][:1.2.3]"
        raise UserError(f"--dataset={dataset}: no such dataset, {wanted}{_did_you_mean(dataset, [])}") from error
    if name.namespace:
        _refuse_version(dataset, data_dir)
        wanted = f"wanted {others} or a name of TFDS itself"
        raise UserError(f"--dataset={dataset}: datasets of {name.namespace!r} cannot be read, {wanted}")
    config, version = arguments.pop("config", None), arguments.pop("version", None)
    if arguments:
        raise UserError(f"--dataset={dataset}: wanted a TFDS name without arguments ({next(iter(arguments))})")
    return name.name, config, version


def _refuse_version(dataset: str, data_dir: str | None) -> None:
    """Raises UserError if a dataset is known by the name in front of what is no version, or no configuration."""
    from tensorflow_datasets.core import naming

    path, _, version = dataset.partition(":")
    word, _, config = path.partition("/")
    if not re.fullmatch(r"\w+", word, re.ASCII):
        return
    name = naming.parse_builder_name_kwargs(word)[0].name
    code, folders = _code(name), _folders(name, data_dir)
    if code is None and not folders:
        return
    if not version:
        raise UserError(f"--dataset={dataset}: cannot be understood, wanted {word}[/CONFIG][:1.2.3]")
    known = _Versions.of(code, folders, _config(dataset, code, folders, config or None)).known()
    raise UserError(f"--dataset={dataset}: no version {version!r}, wanted one of {known}")


def _code(name: str) -> type | None:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError:
        return None


def _folders(name: str, data_dir: str | None) -> list[epath.Path]:
    """Where data of this name are."""
    from etils import epath
    from tensorflow_datasets.core.utils import file_utils

    folders = (epath.Path(root).expanduser() / name for root in file_utils.list_data_dirs(data_dir))
    return [folder for folder in folders if folder.is_dir()]


def _config(dataset: str, code: Any, folders: list[epath.Path], config: str | None) -> str | None:
    """The configuration that is meant; None if the dataset has none."""
    from tensorflow_datasets.core import dataset_builder

    known = dict.fromkeys(code.builder_configs if code else ())
    known.update(dict.fromkeys(name for folder in folders for name in _configs_in(folder)))
    if config is not None and config not in known:
        have = f"wanted one of {some_of(known)}" if known else "it has none"
        raise UserError(f"--dataset={dataset}: no configuration {config!r}, {have}")
    if config is None and code and code.BUILDER_CONFIGS:
        default = code.default_builder_config or code.BUILDER_CONFIGS[0]
        return default.name
    if config is None and known:
        defaults = (dataset_builder.load_default_config_name(folder) for folder in folders)
        config = next(filter(None, defaults), None)
        if config is None and not any(_versions_in(folder) for folder in folders):
            path = dataset.partition(":")[0]
            raise UserError(f"--dataset={dataset}: wanted one of its configurations, {path}/{some_of(known)}")
    return config


def _configs_in(folder: epath.Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _versions_in(entry))


def _versions_in(folder: epath.Path) -> list[tfds.core.Version]:
    from tensorflow_datasets.core.utils import version

    return version.list_all_versions(folder)


class _Versions(NamedTuple):
    """Of a dataset's configuration; the code's first is its own choice."""

    in_code: list[tfds.core.Version]
    prepared: list[tfds.core.Version]

    @classmethod
    def of(cls, code: Any, folders: list[epath.Path], config: str | None) -> _Versions:
        in_code = []
        # The data may be of a configuration that the code no longer has, or not yet.
        if code and (config is None or config in code.builder_configs):
            chosen = code.builder_configs.get(config)
            in_code = [(chosen and chosen.version) or code.VERSION, *code.SUPPORTED_VERSIONS]
            in_code += chosen.supported_versions if chosen else []
        prepared = {version for folder in folders for version in _versions_in(folder / (config or ""))}
        return cls(in_code, sorted(prepared))

    def known(self) -> str:
        """All of them, for a sentence."""
        return some_of(dict.fromkeys(map(str, sorted({*self.in_code, *self.prepared}))))


def _refuse_unprepared(dataset: str, versions: _Versions, version: str | None, data_dir: str | None) -> None:
    """Raises UserError unless the version that is wanted, or would be taken, is on the disk."""
    prepared = versions.prepared
    if version is not None:
        if any(candidate.match(version) for candidate in prepared):
            return
        if not any(candidate.match(version) for candidate in versions.in_code):
            raise UserError(f"--dataset={dataset}: no version {version!r}, wanted one of {versions.known()}")
    elif prepared and (not versions.in_code or versions.in_code[0] in prepared):
        return
    where = f" --data_dir={data_dir}" if data_dir else ""
    said = f"run first: tfds build {dataset}{where}"
    if data_dir and not os.path.isdir(os.path.expanduser(data_dir)):
        said += f" (there is no folder {data_dir})"
    elif prepared:
        there = (f"{dataset.removesuffix(f':{version}')}:{found}" for found in prepared[-_NAMED:])
        said += f", or name a version that is there: {', '.join(there)}"
    raise UserError(f"--dataset={dataset}: not prepared, {said}")


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Keeps TFDS's remarks about folders and versions off the terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
