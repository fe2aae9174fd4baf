"""Images by what a run's encoder makes of them: built without training, grown, searched, kept in a file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from instcls_tf import files
from instcls_tf.checks import require_value
from instcls_tf.config import PretrainConfig
from instcls_tf.data.decoding import Reading, reading_of
from instcls_tf.data.listed_files import Paths, listed, listed_files
from instcls_tf.data.names import names_of
from instcls_tf.data.source import Source, notes_of
from instcls_tf.data.sources import DigitsSource, chosen_split, open_source
from instcls_tf.distributed import workers
from instcls_tf.encoder.networks import encoder_digest
from instcls_tf.errors import UserError, shown
from instcls_tf.evaluation import feature_store, features
from instcls_tf.evaluation.recipes import BACKBONE, KINDS
from instcls_tf.evaluation.subject import judged_config, refuse_untrained
from instcls_tf.run.encoder import load_encoder
from instcls_tf.search.neighbours import nearest_rows, unit_rows

_FORMAT = 1


class Hit(NamedTuple):
    """An image that a search has found."""

    name: str
    cosine: float
    position: int  # in the index


class _Seen(NamedTuple):
    """What the vectors of an index depend on."""

    encoder: str  # a hash of its weights
    kind: str  # of `KINDS`
    image_size: int
    center_crop_fraction: float
    max_pixels: int
    background: str


class Index:
    """Names and features of images, to be searched by cosine.

    Features are those of the nearest-neighbour evaluation: the backbone's, averaged over all places, in inference mode,
    of the centred square that the run's recipe shows. `Index.of_run` makes one, `Index.load` reads one from a file.

    Args:
      workdir: of the run whose encoder makes the features.
      vectors: `[N, F]`, of any length.
      names: of the N images.
      kind: of the features, `backbone` or `projection`.
      center_crop_fraction: what is seen of an image; None for the run's own.
      encoder: of the run, where it is at hand.
      origin: dataset and split that the first images came from, if any.
      unreadable: how many of these could not be read, and are not in the index.

    Attributes:
      workdir, origin, unreadable: as given.
      vectors: `[N, F]` float32 of length 1.
      names: of the N images, in the order in which they came.
      kind, center_crop_fraction: of what the features are.
    """

    def __init__(
        self,
        workdir: str,
        vectors: np.ndarray,
        names: Sequence[str],
        *,
        kind: str = BACKBONE,
        center_crop_fraction: float | None = None,
        encoder: Any = None,
        origin: tuple[str, str] | None = None,
        unreadable: int = 0,
    ):
        require_value("features", kind, kind in KINDS, "one of " + ", ".join(KINDS))
        config = judged_config(workdir, center_crop_fraction)
        self.workdir, self.origin, self.unreadable = workdir, origin, unreadable
        self._encoder = load_encoder(workdir) if encoder is None else encoder
        self._seen = _seen(config, kind, encoder_digest(self._encoder))
        self.vectors, self.names = unit_rows(vectors), list(names)
        self._embedder: features.Embedder | None = None

    @classmethod
    def of_run(
        cls,
        workdir: str,
        dataset: str | None = None,
        split: str | None = None,
        *,
        data_dir: str | None = None,
        kind: str = BACKBONE,
        center_crop_fraction: float | None = None,
    ) -> Index:
        """The images of a dataset by a run's encoder; features that the run has kept are not computed again.

        All workers call it together, and each gets the whole.

        Args:
          workdir: the run's folder.
          dataset: as `--dataset` names it; None for the run's own.
          split: which part; None for what the run was trained on, `train` of another dataset.
          data_dir: TFDS's folder; None for the run's own.
          kind: `backbone`, or `projection`: the head's output, to which class weights are compared.
          center_crop_fraction: what is seen of an image; None for the run's own.

        Raises:
          UserError: no run, no checkpoint or no such dataset.
        """
        workdir = os.path.expanduser(workdir)
        config = judged_config(workdir, center_crop_fraction)
        split = chosen_split(config, dataset, split)
        source = open_source(dataset or config.dataset, split, data_dir or config.data_dir, reading=reading_of(config))
        return cls.of_source(workdir, source, split, kind=kind, center_crop_fraction=center_crop_fraction)

    @classmethod
    def of_source(
        cls,
        workdir: str,
        source: Source,
        split: str,
        *,
        kind: str = BACKBONE,
        center_crop_fraction: float | None = None,
    ) -> Index:
        """The same of a source that is open; see `of_run`."""
        require_value("features", kind, kind in KINDS, "one of " + ", ".join(KINDS))
        config = judged_config(workdir, center_crop_fraction)
        refuse_untrained(config, kind)
        progress = workers.start(config.seed, notes_of(source))
        encoder = load_encoder(workdir)
        stored = feature_store.stored_features(
            workdir,
            encoder,
            source,
            split,
            image_size=config.image_size,
            center_crop_fraction=config.center_crop_fraction,
            progress=progress,
        )
        progress.close()
        if not len(stored.ids):
            raise UserError(f"--dataset={source.name}: no image of the split can be read")
        names = names_of(source, stored.ids)
        return cls(
            workdir,
            getattr(stored, kind),
            names,
            kind=kind,
            center_crop_fraction=config.center_crop_fraction,
            encoder=encoder,
            origin=(source.name, split),
            unreadable=source.num_instances - len(names),
        )

    @property
    def kind(self) -> str:
        return self._seen.kind

    @property
    def center_crop_fraction(self) -> float:
        return self._seen.center_crop_fraction

    def __len__(self) -> int:
        return len(self.names)

    def add(self, images: Paths | np.ndarray, names: Sequence[str] | str | None = None) -> list[str]:
        """Lets more images into the index; nothing is trained.

        Args:
          images: paths of files or one path, uint8 images `[n, H, W, 3]`, or features `[n, F]` of this run's encoder.
          names: of the n images, or of the one; the paths themselves if None.

        Returns:
          The names of images that could not be read, and are not in the index.

        Raises:
          UserError: features of another width, or not as many names as images.
        """
        names = self._names_of(images) if names is None else [names] if isinstance(names, str) else list(names)
        vectors, is_read, _ = self._vectors_of(images)
        if len(names) != len(is_read):
            raise UserError(f"names: has {len(names)}, wanted one for each of the {len(is_read)} images")
        self.vectors = np.concatenate([self.vectors, vectors])
        self.names += [name for name, good in zip(names, is_read) if good]
        return [name for name, good in zip(names, is_read) if not good]

    def search(self, queries: Paths | np.ndarray, k: int = 20, *, exact: bool = False) -> list[list[Hit]]:
        """The k images most similar to each query, those of equal cosine in the order in which they came.

        Args:
          queries: paths of files or one path, uint8 images `[n, H, W, 3]`, or features `[n, F]` of this run's encoder.
          k: how many.
          exact: also for thousands of queries among millions of images.

        Returns:
          A list of hits for each query, also if it is one.

        Raises:
          UserError: k is out of range, a query cannot be read, or the features have another width.
        """
        require_value("k", k, 1 <= k <= len(self), f"between 1 and the {len(self)} images that are searched")
        cosines, places = nearest_rows(self.vectors, self.embed(queries), k, exact)
        return [
            [Hit(self.names[place], float(cosine), int(place)) for cosine, place in zip(*row)]
            for row in zip(cosines, places)
        ]

    def embed(self, queries: Paths | np.ndarray) -> np.ndarray:
        """Features as the index holds them, `[n, F]` float32 of length 1; see `search` for arguments and errors."""
        vectors, is_read, reasons = self._vectors_of(queries)
        if not is_read.all():
            name, reason = min(reasons.items())
            raise UserError(f"--query={shown(name)}: cannot be read ({shown(reason)})")
        return vectors

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index to a file of plain arrays; an older one stays until this one is complete.

        Raises:
          UserError: the file cannot be written.
        """
        about: dict[str, Any] = {"format": _FORMAT, "workdir": os.path.abspath(self.workdir), "origin": self.origin}
        about.update(self._seen._asdict(), unreadable=self.unreadable)
        text = b"".join(os.fsencode(name) + b"\0" for name in self.names)
        try:
            with files.whole_file(os.fspath(path)) as file:
                np.savez(
                    file,
                    vectors=self.vectors,
                    names=np.frombuffer(text, np.uint8),
                    about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                )
        except OSError as error:  # of NumPy without a `strerror`
            raise UserError(f"{shown(path)}: cannot write this index ({error.strerror or error})") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], workdir: str | None = None) -> Index:
        """Reads an index.

        Args:
          path: what `save` has written.
          workdir: of the run; None for the folder that it was in then.

        Raises:
          UserError: no such file, no index, or one of another encoder than the run has now.
        """
        about, vectors, names = _read(os.fspath(path))
        folder = about["workdir"] if workdir is None else workdir
        origin = tuple(about["origin"]) if about["origin"] else None
        seen = _Seen(**{name: about[name] for name in _Seen._fields})
        workers.start()
        fraction = seen.center_crop_fraction
        unreadable = about.get("unreadable", 0)  # files of earlier versions do not tell
        index = cls(
            folder,
            vectors,
            names,
            kind=seen.kind,
            center_crop_fraction=fraction,
            origin=origin,
            unreadable=unreadable,
        )
        if index._seen != seen:
            raise UserError(
                f"{shown(path)}: was made by another encoder than --workdir={shown(folder)} has now, build it anew"
            )
        return index

    def _names_of(self, images: Paths | np.ndarray) -> list[str]:
        if isinstance(images, np.ndarray):
            return [str(len(self) + place) for place in range(len(images))]
        return listed(images)

    def _vectors_of(self, images: Paths | np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
        """Rows `[m, F]` of length 1 of the images that can be read, which of the n these are, and why not the rest."""
        if isinstance(images, np.ndarray) and images.ndim == 2:
            if images.shape[1] != self.vectors.shape[1]:
                raise UserError(f"features: have a width of {images.shape[1]}, the index of {self.vectors.shape[1]}")
            return unit_rows(images), np.ones(len(images), bool), {}
        source: Source
        if isinstance(images, np.ndarray):
            source = DigitsSource("images", None, images, np.full([len(images)], -1, np.int32))
        else:
            source = listed_files(images, Reading(self._seen.max_pixels, self._seen.background))
        vectors = np.zeros([source.num_instances, self.vectors.shape[1]], np.float32)
        is_read = np.zeros([source.num_instances], bool)
        if source.num_instances:
            size, fraction = self._seen.image_size, self._seen.center_crop_fraction
            for batch in features.stream(self._embed(), source, image_size=size, center_crop_fraction=fraction):
                vectors[batch.ids], is_read[batch.ids] = batch.outputs[0], True
        return unit_rows(vectors[is_read]), is_read, workers.merged(source.bad.reasons)

    def _embed(self) -> features.Embedder:
        """One graph for all queries."""
        if self._embedder is None:
            model = self._encoder if self._seen.kind != BACKBONE else self._encoder.get_layer(BACKBONE)
            self._embedder = features.Embedder(model)
        return self._embedder


def _seen(config: PretrainConfig, kind: str, digest: str) -> _Seen:
    reading = dataclasses.astuple(reading_of(config))
    return _Seen(digest, kind, config.image_size, config.center_crop_fraction, *reading)


def _read(path: str) -> tuple[dict[str, Any], np.ndarray, list[str]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            names = [os.fsdecode(name) for name in file["names"].tobytes().split(b"\0")[:-1]]
            vectors = file["vectors"]
            if about["format"] != _FORMAT or vectors.ndim != 2 or len(vectors) != len(names):
                raise ValueError
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot read this index ({error.strerror or 'no index'})") from error
    except Exception as error:  # of damaged archives, NumPy and zipfile raise almost anything
        raise UserError(f"{shown(path)}: is no index of images, wanted a file that Index.save has written") from error
    return about, vectors, names
