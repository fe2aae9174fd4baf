"""`--cache`: decoded images of a folder, shortened to what its views can show, kept for all epochs of a run.

Photographs of many megapixels take far longer to decode than to be seen. They are decoded once, before the first step,
by the workers of a machine together, and shortened; what is smaller is kept as it is, so that its views are the same to
the last bit. The order of images is shuffled over all of them, so that every worker comes to read every image: the
workers of a machine share one cache, in memory (`ram`) or in a file that the next run finds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL

from instcls_tf import files, stamps
from instcls_tf.config import CACHE_IN_MEMORY, PretrainConfig
from instcls_tf.data import cache_file, pillow_reading
from instcls_tf.data.cache_file import CacheFile, Making
from instcls_tf.data.folder import FolderSource, of_files
from instcls_tf.data.limits import limits_of
from instcls_tf.data.source import Source, file_identity
from instcls_tf.data.threads import parallel_calls, without_autotuner
from instcls_tf.distributed import collectives, partition, workers
from instcls_tf.distributed.memory import free_bytes
from instcls_tf.errors import UserError, shown
from instcls_tf.progress import Progress

# Of the free memory; the run needs the rest.
_SHARE = 0.6
_AT_ONCE = 1024
# What pixels depend on besides the images: another version of these makes other ones.
_CODE = ("cache.py", "cache_file.py", "decoding.py", "image_header.py", "limits.py", "pillow_reading.py", "resizing.py")


def with_cache(config: PretrainConfig, source: Source, visible: bool = True) -> FolderSource:
    """The same images, most of which need not be decoded again; all workers together.

    Args:
      config: the recipe, whose `cache` says where they are kept.
      source: its images, files of a folder.
      visible: whether rank 0 says how much there is, and how far it is.

    Raises:
      UserError: there is no room for them, or the file is damaged or holds other images; on all workers alike.
      MachineError: the file system fails; likewise.
    """
    source = of_files(source, str(config.cache))
    path = None if config.cache == CACHE_IN_MEMORY else config.cache
    is_leader = collectives.local_rank() == 0
    made_of = _made_of(config, source) if is_leader and path is not None else {}
    with contextlib.ExitStack() as stack:

        def open_or_make() -> Making | None:
            if not is_leader:
                return None
            if path is not None and files.is_there(path, follow_links=False):
                cache_file.refuse_other_file(path, source.num_instances, made_of)
                return None
            return stack.enter_context(Making(path, source.num_instances))

        making = workers.all_or_none(open_or_make)
        found, is_new = _of_this_machine(making.path if making else str(path), making is not None)
        progress = Progress(visible and collectives.rank() == 0, within=True)
        work = _Work(config, source, CacheFile(found, source.num_instances, is_new), making, progress)
        for part in (work.measure, work.allocate, work.fill) if is_new else (_nothing, _nothing, work.verify):
            workers.all_or_none(part)
        workers.all_or_none(lambda: making.finish(work.cache, made_of) if making else None)
    work.announce(is_new)
    return dataclasses.replace(source, kept=work.cache)


def _nothing() -> None:
    """Where another worker has something to do."""


def _of_this_machine(path: str, is_new: bool) -> tuple[str, bool]:
    """What the first worker of this machine has opened, on all of its workers."""
    host = socket.gethostname()
    found = workers.everybodys([host, collectives.local_rank(), path, is_new])
    return next((path, is_new) for name, local_rank, path, is_new in found if name == host and local_rank == 0)


def _made_of(config: PretrainConfig, source: FolderSource) -> dict[str, str]:
    """What the pixels of a cache depend on, in words."""
    import tensorflow as tf

    images = hashlib.sha256(source.ids_digest() + str(source.reading).encode())
    for name in source.paths:
        stamps.go_on()
        images.update(file_identity(source.root, name))
    code = hashlib.sha256(f"{tf.__version__} {PIL.__version__}".encode())
    for module in _CODE:
        code.update(Path(__file__).with_name(module).read_bytes())
    limits = limits_of(config)
    return {
        "images": images.hexdigest()[:16],
        "sizes": f"{limits.pixels} pixels or a side of {limits.side}",
        "code": code.hexdigest()[:16],
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """What the workers of a machine do for their cache, each for its share of the images."""

    config: PretrainConfig
    source: FolderSource
    cache: CacheFile
    making: Making | None
    progress: Progress

    @property
    def share(self) -> tuple[int, int]:
        return partition.bounds(self.source.num_instances, collectives.local_size(), collectives.local_rank())

    def measure(self) -> None:
        """Writes the sizes that images are to have into the index, by the headers of the files."""
        begin, end = self.share
        limits = limits_of(self.config)
        with ThreadPoolExecutor(parallel_calls()) as pool:
            for first in range(begin, end, _AT_ONCE):
                ids = range(first, min(first + _AT_ONCE, end))
                sizes = limits.shortened(np.array(list(pool.map(self._size_of, ids))))
                self.cache.index["height"][first : ids.stop], self.cache.index["width"][first : ids.stop] = sizes.T
                self.progress("sizes of the images", ids.stop - begin, end - begin)

    def _size_of(self, instance_id: int) -> tuple[int, int]:
        """Height and width by a file's header; 0 if it cannot be read, which is told when it is decoded."""
        if instance_id in self.source.irregular:
            return 0, 0
        path = os.path.join(os.fsencode(self.source.root), self.source.paths.bytes_of(instance_id))
        try:
            with open(path, "rb") as file:
                return pillow_reading.shown_size(file, self.source.reading.max_pixels)[0]
        except (OSError, pillow_reading.UnreadableError):
            return 0, 0

    def allocate(self) -> None:
        """Takes the room that the images need, on the machine's first worker.

        Raises:
          UserError: there is not enough of it.
        """
        if self.making is None:
            return
        needed, room = self.cache.num_bytes, self.making.room()
        what = f"--cache={shown(self.config.cache)}: {self.source.num_instances} images take {_in_words(needed)}"
        if room is not None and needed > room:
            raise UserError(f"{what}, and the disk has {_in_words(room)} free: name a file on another one")
        free = free_bytes()
        if room is None and free is not None and needed > _SHARE * free:
            raise UserError(
                f"{what}, more than {_SHARE:.0%} of the {_in_words(free)} of memory that are free, and the run needs"
                f" some itself: name a file (--cache=FILE), or leave the cache out"
            )
        where = f"{_in_words(free or 0)} of memory" if room is None else f"{_in_words(room)} of the disk"
        self.progress.say(f"{what}, {where} are free; each is decoded once")
        self.making.allocate(needed)

    def fill(self) -> None:
        """Decodes images, shortens them and writes them down."""
        import tensorflow as tf

        from instcls_tf.data.resizing import shrink

        self.cache.map_pixels()
        index, load = self.cache.index, self.source.loader()
        begin, end = self.share
        sizes = tf.constant(np.stack([index["height"], index["width"]], axis=1).astype(np.int32))

        def shortened(instance_id: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = load(instance_id)
            height, width = tf.unstack(sizes[instance_id])
            is_larger = (tf.size(image) > 0) & (height > 0) & (height * width < tf.reduce_prod(tf.shape(image)[:2]))
            return instance_id, tf.cond(is_larger, lambda: shrink(image, height, width), lambda: image)

        images = tf.data.Dataset.range(begin, end).map(shortened, num_parallel_calls=parallel_calls())
        for done, (instance_id, pixels) in enumerate(without_autotuner(images).as_numpy_iterator(), start=1):
            self.cache.write(int(instance_id), pixels)
            self.progress("filling the cache", done, end - begin)
        self.progress.close()

    def verify(self) -> None:
        """Reads this worker's share of a file that was there.

        Raises:
          UserError: its pixels are not those that were written.
        """
        self.cache.map_pixels()
        begin, end = self.share
        with ThreadPoolExecutor(parallel_calls()) as pool:
            for first in range(begin, end, _AT_ONCE):
                ids = range(first, min(first + _AT_ONCE, end))
                if not all(pool.map(self.cache.is_sound, ids)):
                    raise cache_file.damaged(str(self.config.cache))
                self.progress("reading the cache", ids.stop - begin, end - begin)
        self.progress.close()

    def announce(self, is_new: bool) -> None:
        """Says what is kept."""
        kept = int(np.sum(self.cache.index["kept"]))
        how = "filled" if is_new else "read back, which an earlier run has filled"
        self.progress.say(
            f"--cache={shown(self.config.cache)}: {how}: {kept} of {self.source.num_instances} images,"
            f" {_in_words(self.cache.num_bytes)}"
        )


def _in_words(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
