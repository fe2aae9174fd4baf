"""Folders with everything that people keep in folders."""

import os
import socket
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from instcls_tf.config import PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.folder import refuse_picture_among_images
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from instcls_tf.plan.answer import plan_run
from instcls_tf.report.comparison import compare_runs
from instcls_tf.report.view_grid import draw_views
from instcls_tf.run.workdir import begin_run
from tests.images import write_images

SIZE = 8


def plant(folder) -> set[str]:
    """Twenty-odd problems; returns the names of those that are no images."""
    folder.mkdir()
    random = np.random.default_rng(0)

    def noise(height, width, channels=3):
        return random.integers(0, 256, [height, width, channels], np.uint8)

    good = Image.fromarray(noise(40, 50))
    jpeg = tf.io.encode_jpeg(noise(60, 60)).numpy()
    png = tf.io.encode_png(noise(60, 60)).numpy()
    # What is no image
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "cut_at_its_head.jpg").write_bytes(jpeg[:20])
    (folder / "cut.png").write_bytes(png[: len(png) // 2])
    (folder / "text.jpg").write_text("I am no picture")
    (folder / "binary.webp").write_bytes(b"RIFF\x00\x00\x00\x00WEBPVP8 nonsense")
    (folder / "pages.gif").write_bytes(b"GIF89a")
    os.symlink(folder / "nowhere", folder / "broken_link.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # A socket's path may not be long.
        listener.bind("socket.jpg")
        os.chdir(here)
    bomb = bytearray(png)
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bomb)
    bad = {path.name for path in folder.iterdir()}
    # What is none of the dataset's
    (folder / "folder.jpg").mkdir()
    (folder / "zero").mkdir()
    (folder / "notes.txt").write_text("no image")
    # What is an image
    good.convert("CMYK").save(folder / "cmyk.jpg")
    good.convert("L").save(folder / "grey.jpg")
    good.convert("RGBA").save(folder / "alpha.png")
    good.convert("P").save(folder / "palette.png")
    good.convert("1").save(folder / "bits.png")
    Image.fromarray(np.full([9, 9], 40_000, np.uint16)).save(folder / "sixteen.png")
    good.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", (50, 40))])
    good.save(folder / "modern.webp")
    good.save(folder / "old.bmp")
    Image.fromarray(noise(1, 1)).save(folder / "dot.png")
    Image.fromarray(noise(10, 8000)).save(folder / "wide.jpg")
    good.save(folder / "new\nline.jpg")
    good.save(os.path.join(os.fsencode(folder), b"bytes_\xff.png"), "png")
    good.save(folder / "été 写真.JPEG")
    good.save(folder / "UPPER.PNG")
    (folder / "png_inside.jpg").write_bytes(png)
    os.symlink(folder / "UPPER.PNG", folder / "link.png")
    return bad


@pytest.mark.parametrize("workers", [1, 2])
def test_exactly_the_bad_files_are_reported(tmp_path, workers):
    bad = plant(tmp_path / "tree")
    source = open_source(f"folder:{tmp_path / 'tree'}")
    assert source.num_instances == len(bad) + 17
    settings = {"image_size": SIZE, "batch_size": 7, "micro_batch": 2, "num_workers": workers}
    seen = []
    for rank in range(workers):
        for _, ids, _ in pipeline.inference_batches(source, rank=rank, **settings).as_numpy_iterator():
            seen += ids[ids >= 0].tolist()
    assert {os.path.basename(name) for name in source.bad.reasons} == bad
    assert sorted(seen) == [i for i, path in enumerate(source.paths) if path not in bad]
    reasons = {os.path.basename(name): reason for name, reason in source.bad.reasons.items()}
    assert reasons["empty.jpg"] == "empty" and reasons["text.jpg"] == "not an image"
    assert reasons["pipe.jpg"] == reasons["socket.jpg"] == "not a regular file"
    assert reasons["broken_link.jpg"] == "no such file or directory"
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["bomb.png"] == "3600000000 pixels, more than --max_pixels=120000000"


def test_rare_kinds_have_the_right_colours(tmp_path):
    colour = Image.new("RGB", (50, 40), (200, 100, 50))
    colour.convert("CMYK").save(tmp_path / "0.jpg")
    colour.save(tmp_path / "1.webp", lossless=True)
    Image.fromarray(np.full([9, 9], 40_000, np.uint16)).save(tmp_path / "2.png")
    colour.save(tmp_path / "3.gif", save_all=True, append_images=[Image.new("RGB", (50, 40))])
    load = open_source(f"folder:{tmp_path}").loader()
    for index, expected in enumerate([(200, 100, 50), (200, 100, 50), (156, 156, 156), (200, 100, 50)]):
        pixels = load(tf.constant(index, tf.int64)).numpy()
        assert np.abs(pixels.astype(int) - expected).max() <= 3, index


def test_order_is_that_of_whole_paths(tmp_path):
    for name in ("a.jpg", "a/b.jpg", "a-b.jpg", "a0.jpg", "a/b/c.jpg", "B.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    paths = tuple(open_source(f"folder:{tmp_path}").paths)
    assert paths == tuple(sorted(paths)) and len(paths) == 6


def test_names_that_are_not_text_reach_the_file(tmp_path):
    for index, name in enumerate([b"\xff\xfe.png", b"new\nline.png"]):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(tf.io.encode_png(np.full([3, 3, 3], 10 + index, np.uint8)).numpy())
    source = open_source(f"folder:{tmp_path}")
    greys = {path: int(source.loader()(tf.constant(i, tf.int64))[0, 0, 0]) for i, path in enumerate(source.paths)}
    assert greys == {"new\nline.png": 11, os.fsdecode(b"\xff\xfe.png"): 10}


def of_show_views(config, output):
    draw_views(config, output, images=1, columns=1)


def of_compare(config, output):
    compare_runs({"a": config.workdir}, output)


def of_plan(config, output):
    plan_run(config, 1000, 1, 8.0, "cpu", output)


@pytest.mark.parametrize(
    ("command", "place", "picture"),
    [
        (of_show_views, "views.png", "views.png"),
        (of_plan, "new/plan.jpg", "plan.jpg"),
        (of_compare, "results", "comparison.png"),
        (of_compare, "", "comparison.png"),
    ],
)
def test_a_picture_among_the_images_is_refused(tmp_path, command, place, picture):
    """It would be an image of the dataset, and a run that began before could not go on."""
    photos, output = tmp_path / "photos", str(tmp_path / "photos" / place)
    write_images(photos, ["0.jpg", "1.jpg"])
    config = PretrainConfig(dataset=f"folder:{photos}", workdir=str(tmp_path / "run"))
    begin_run(config)
    with pytest.raises(UserError) as refusal:
        command(config, output)
    assert str(refusal.value) == (
        f"--output={output}: lies among the images of --dataset=folder:{photos}, of which {picture} would be one,"
        f" wanted a place outside"
    )
    assert sorted(os.listdir(photos)) == ["0.jpg", "1.jpg"]


def test_pictures_beside_the_images_are_written(tmp_path):
    write_images(tmp_path / "photos", ["train/a/0.jpg", "test/a/1.jpg"])
    dataset = f"folder:{tmp_path / 'photos'}"
    for place in ("photos/views.png", "photos/results/views.png", "views.png", "photos/train/a/views.txt"):
        refuse_picture_among_images(dataset, str(tmp_path / place), "")
    refuse_picture_among_images("digits", "views.png", "")
    for place in ("photos/train/views.png", "photos/test/a/views.png", "photos/val/x.PNG"):
        with pytest.raises(UserError):
            refuse_picture_among_images(dataset, str(tmp_path / place), "")
