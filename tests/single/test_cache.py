"""`--cache`: what is kept of images, in memory and in a file, and the files that are refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instcls_tf.benchmark import step as benchmark_step
from instcls_tf.config import PretrainConfig
from instcls_tf.data import cache, cache_file
from instcls_tf.data.augment import views_of
from instcls_tf.data.cache import with_cache
from instcls_tf.data.decoding import Reading
from instcls_tf.data.folder import FolderSource, open_folder
from instcls_tf.data.limits import Limits, limits_of
from instcls_tf.data.pipeline import training_batches
from instcls_tf.errors import UserError
from instcls_tf.plan.answer import most_cache_bytes

SMALL, LARGE = 12, 11


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images of noise, too small to be shortened, and smooth ones with 20 times the pixels, one of them turned."""
    random = np.random.default_rng(0)
    top = tmp_path / "photos"
    top.mkdir()
    for index in range(SMALL):
        Image.fromarray(random.integers(0, 256, [20 + index, 24, 3], np.uint8)).save(top / f"small{index}.png")
    for index in range(LARGE):
        coarse = Image.fromarray(random.integers(0, 256, [6, 9, 3], np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if index == 0 else 1
        coarse.resize([180 + index, 120], Image.Resampling.BICUBIC).save(top / f"large{index}.jpg", exif=exif)
    return top


def config_of(folder: Path, place: object = "ram", **changes) -> PretrainConfig:
    return PretrainConfig(**{"dataset": f"folder:{folder}", "image_size": 16, "cache": str(place), **changes})


def opened(folder: Path, place: object = "ram", **changes) -> tuple[PretrainConfig, FolderSource, FolderSource]:
    """The recipe, its images, and the same with a cache."""
    config = config_of(folder, place, **changes)
    source = open_folder(config.dataset, "train")
    return config, source, with_cache(config, source)


def batches(config: PretrainConfig, source: FolderSource, workers: int = 1, first: int = 0) -> list:
    """Views and ids of six steps, the shares of all workers joined."""
    settings = {"views": views_of(config), "batch_size": 8, "micro_batch": 2, "num_views": 2, "seed": 3}
    shares = [
        training_batches(
            source, first_step=first, last_step=6, rank=rank, num_workers=workers, **settings
        ).as_numpy_iterator()
        for rank in range(workers)
    ]
    joined = [[np.concatenate(parts) for parts in zip(*step)] for step in zip(*shares)]
    return [(views[ids >= 0], ids[ids >= 0]) for views, ids in joined]


def assert_same(expected: list, found: list) -> None:
    assert len(expected) == len(found)
    for step, other in zip(expected, found):
        for part, same in zip(step, other):
            np.testing.assert_array_equal(part, same)


def images_of(source: FolderSource) -> list[np.ndarray]:
    load = source.loader()
    return [load(np.int64(place)).numpy() for place in range(source.num_instances)]


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"image_size": 224, "crop_min_area": 0.2}, (250_880, 256)),
        ({"image_size": 224, "crop_min_area": 0.01}, (627_200, 256)),  # as with 0.08
        ({"image_size": 28, "augmentation": "digits", "center_crop_fraction": 1.0}, (784, 28)),
    ],
)
def test_limits_follow_from_the_views(changes, limits):
    assert limits_of(PretrainConfig(**changes)) == limits


@pytest.mark.parametrize("augmentation", ["none", "digits", "simclr"])
@pytest.mark.parametrize("center_crop_fraction", [0.5, 0.875, 1.0])
def test_photographs_are_kept_with_no_more_than_is_planned(augmentation, center_crop_fraction):
    """4:3, 3:2 and 16:9 in any size, upright as well; whole pixels are up to a thousandth more."""
    config = PretrainConfig(augmentation=augmentation, center_crop_fraction=center_crop_fraction)
    shorter = np.arange(100, 4000)[:, None]
    sizes = np.concatenate([np.rint(np.hstack([shorter, shorter * shape])) for shape in (1, 4 / 3, 3 / 2, 16 / 9)])
    for turned in (sizes, sizes[:, ::-1]):
        kept = limits_of(config).shortened(turned.astype(np.int64)).prod(axis=1).max()
        assert 0.99 < 3 * kept / most_cache_bytes(config, 1) < 1.005


def test_the_smallest_crop_keeps_the_pixels_of_a_view():
    sizes = np.array([[3000, 4000], [400, 600], [500, 502], [200, 8000], [0, 0]])
    kept = Limits(250_880, 256).shortened(sizes)
    assert kept.tolist() == [[434, 578], [400, 600], [500, 502], [200, 8000], [0, 0]]
    assert Limits(250_880, 256).shortened(np.array([[1000, 40_000]])).tolist() == [[256, 10_240]]


def test_small_images_are_kept_as_they_are_and_large_ones_as_pillow_shrinks_them(folder):
    config, source, kept = opened(folder)
    assert kept.kept.index["kept"].all() and kept.bad is source.bad
    for name, image, found in zip(source.paths, images_of(source), images_of(kept)):
        if name.startswith("small"):
            np.testing.assert_array_equal(found, image)
            continue
        height, width = found.shape[:2]
        assert height * width == pytest.approx(limits_of(config).pixels, rel=0.05)
        assert width / height == pytest.approx(image.shape[1] / image.shape[0], rel=0.02)
        shrunk = Image.fromarray(image).resize([width, height], Image.Resampling.BILINEAR)
        assert np.abs(found.astype(int) - np.asarray(shrunk)).max() <= 1
    assert images_of(kept)[0].shape[0] > images_of(kept)[0].shape[1], "the first large one is upright"


def test_views_of_small_images_are_the_same_to_the_last_bit(folder):
    for path in folder.glob("large*"):
        path.unlink()
    config, source, kept = opened(folder)
    assert_same(batches(config, source), batches(config, kept))


def test_views_of_large_images_differ_little(folder):
    config, source, kept = opened(folder, color_strength=0.0)
    for (views, ids), (others, same_ids) in zip(batches(config, source), batches(config, kept)):
        np.testing.assert_array_equal(ids, same_ids)
        assert 0.0 < np.abs(views.astype(int) - others).mean() < 5.0


def test_views_depend_neither_on_the_number_of_workers_nor_on_a_resume(folder):
    config, _, kept = opened(folder, color_strength=0.0)
    whole = batches(config, kept)
    assert_same(whole, batches(config, kept, workers=2))
    again = with_cache(config, open_folder(config.dataset, "train"))
    assert_same(whole[4:], batches(config, again, workers=3, first=4))


def test_a_file_serves_the_next_run(folder, tmp_path, capsys):
    place = tmp_path / "new" / "photos.cache"
    _, _, kept = opened(folder, place)
    written = place.stat()
    assert written.st_size == kept.kept.num_bytes and os.listdir(place.parent) == [place.name]
    _, _, again = opened(folder, place)
    assert f"--cache={place}: read back, which an earlier run has filled: 23 of 23 images" in capsys.readouterr().err
    assert (place.stat().st_mtime_ns, place.stat().st_ino) == (written.st_mtime_ns, written.st_ino)
    _, _, in_memory = opened(folder)
    for image, *others in zip(*map(images_of, (kept, again, in_memory))):
        assert all(np.array_equal(image, other) for other in others)


def test_what_cannot_be_read_is_not_kept_and_told_of_as_without(folder):
    (folder / "cut.jpg").write_bytes((folder / "large3.jpg").read_bytes()[:2000])
    (folder / "empty.png").write_bytes(b"")
    os.mkfifo(folder / "pipe.jpg")
    _, source, kept = opened(folder)
    assert np.sum(kept.kept.index["kept"] == 0) == 3
    assert {os.path.basename(name) for name in source.bad.reasons} == {"cut.jpg", "empty.png", "pipe.jpg"}
    assert [image.size for image in images_of(kept)].count(0) == 3


def _flip(path: Path, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def _new_image(folder: Path, place: Path) -> None:
    Image.new("RGB", (30, 30)).save(folder / "zebra.png")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda folder, place: _flip(place, -1), "is damaged or cut off: remove it, and it is made anew"),
        (lambda folder, place: _flip(place, 4100), "is damaged or cut off"),
        (lambda folder, place: _flip(place, 30), "is damaged or cut off"),
        (lambda folder, place: os.truncate(place, 9000), "is damaged or cut off"),
        (lambda folder, place: os.truncate(place, 40), "is damaged or cut off"),
        (lambda folder, place: place.write_bytes(b"my thesis"), "must be `ram`, a cache of images, or a file that is"),
        (_new_image, "was made of other images ("),
        (lambda folder, place: os.utime(folder / "small1.png", (1, 1)), "was made of other images ("),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_and_stays(folder, tmp_path, harm, sentence):
    place = tmp_path / "photos.cache"
    opened(folder, place)
    harm(folder, place)
    content = place.read_bytes()
    with pytest.raises(UserError) as refusal:
        opened(folder, place)
    assert str(refusal.value).startswith(f"--cache={place}: {sentence}")
    assert place.read_bytes() == content


def test_a_file_for_other_views_or_another_reading_is_refused(folder, tmp_path):
    place = tmp_path / "photos.cache"
    _, source, _ = opened(folder, place)
    with pytest.raises(UserError, match=r"was made of other sizes \(1280 pixels or a side of 19, wanted 5120 pixels"):
        opened(folder, place, image_size=32)
    config = config_of(folder, place)
    with pytest.raises(UserError, match="was made of other images"):
        with_cache(config, open_folder(config.dataset, "train", reading=Reading(background="black")))
    with_cache(config, source)


def test_a_set_that_does_not_fit_is_refused_with_its_size(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "free_bytes", lambda: 100_000)
    with pytest.raises(UserError) as refusal:
        opened(folder)
    assert str(refusal.value).startswith("--cache=ram: 23 images take 0.07")
    assert " MB, more than 60% of the 0.1 MB of memory that are free" in str(refusal.value)
    place = tmp_path / "photos.cache"
    monkeypatch.setattr(cache_file.Making, "room", lambda self: 10_000)
    with pytest.raises(UserError, match=r"images take .* MB, and the disk has 0.01 MB free: name a file on"):
        opened(folder, place)
    assert os.listdir(tmp_path) == ["photos"], "nothing of it is left"


def test_a_file_that_cannot_be_made(folder, tmp_path):
    with pytest.raises(UserError, match=r"--cache=/proc/photos.cache: cannot be written \("):
        opened(folder, "/proc/photos.cache")
    with pytest.raises(UserError, match=r"cannot read this file \(Is a directory\)"):
        opened(folder, tmp_path)
    place = tmp_path / "photos.cache"
    with cache_file.Making(str(place), 2) as making:
        assert os.path.exists(making.path)
        with pytest.raises(UserError, match="another run is making it: wait until it has, or name another file"):
            opened(folder, place)


def test_a_step_that_is_measured_waits_for_the_cache_as_a_run_does(folder, monkeypatch):
    """Its images are a batch of the folder's, decoded once; their ids are spread over all classes."""
    decoded = []
    monkeypatch.setattr(
        benchmark_step, "with_cache", lambda *given, **settings: decoded.append(given[1]) or with_cache(*given)
    )
    source = open_folder(f"folder:{folder}", "train")
    config = PretrainConfig(cache="ram", image_size=16, batch_size=8, micro_batch=8, hard_negatives=5)
    batches = [(views.shape, sorted(ids.numpy())) for views, ids in benchmark_step._batches(config, source, repeats=2)]
    assert batches == 3 * [((8, 2, 16, 16, 3), [2 * i for i in range(8)])]
    assert [sample.num_instances for sample in decoded] == [8]
