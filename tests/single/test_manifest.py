"""The manifest: ids that stay, whatever a file is called; new files at the end, vanished ones reported."""

import numpy as np
import psutil
import pytest

from instcls_tf import stamps
from instcls_tf.data import contents, manifest
from instcls_tf.data.folder import open_folder
from instcls_tf.data.manifest import ImagePaths
from instcls_tf.errors import UserError

ODD_NAMES = [
    b"a.jpg",
    b"b/new\nline.jpg",
    b"c\\n.jpg",
    b"tab\tand\r.png",
    "été/写真.png".encode(),
    b"\xff\xfe.gif",
    b"x\\\\.bmp",
]


def _paths(names):
    lengths = np.array([len(name) for name in names], np.int64)
    return ImagePaths(b"".join(names), np.cumsum(lengths) - lengths, lengths)


def test_every_name_survives_writing_and_reading(tmp_path):
    path = str(tmp_path / "manifest.tsv")
    manifest.write(path, _paths(ODD_NAMES), np.arange(len(ODD_NAMES)) * 10)
    paths, sizes = manifest.read(path)
    assert list(paths.iter_bytes()) == ODD_NAMES
    assert sizes.tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert (tmp_path / "manifest.tsv").read_bytes().splitlines()[:2] == [b"# 7 images", b"0\t0\ta.jpg"]


def test_a_manifest_of_an_earlier_version(tmp_path):
    (tmp_path / "manifest.tsv").write_bytes(b"0\t5\ta.jpg\n1\t6\tb.jpg\n")
    paths, sizes = manifest.read(str(tmp_path / "manifest.tsv"))
    assert list(paths.iter_bytes()) == [b"a.jpg", b"b.jpg"] and sizes.tolist() == [5, 6]


def test_a_manifest_that_is_cut_at_a_line_end(tmp_path):
    """Not taken for one of fewer images, the others of which would be new."""
    path = tmp_path / "manifest.tsv"
    manifest.write(str(path), _paths(ODD_NAMES), np.arange(len(ODD_NAMES)))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    with pytest.raises(UserError, match=f"^{path}: cut off, it has 5 lines of 7: bring it back from a copy$"):
        manifest.read(str(path))
    for text in (lines[0], b"# some images\n" + lines[1], b""):
        path.write_bytes(text)
        with pytest.raises(UserError, match=f"^{path}: "):
            manifest.read(str(path))


@pytest.mark.parametrize("change", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b"\n", b"\r\n")])
def test_a_manifest_that_an_editor_of_another_system_saved(tmp_path, change):
    path = tmp_path / "manifest.tsv"
    manifest.write(str(path), _paths(ODD_NAMES), np.arange(len(ODD_NAMES)))
    path.write_bytes(change(path.read_bytes()))
    paths, sizes = manifest.read(str(path))
    assert list(paths.iter_bytes()) == ODD_NAMES and sizes.tolist() == list(range(len(ODD_NAMES)))


@pytest.mark.parametrize("text", [b"0\t5\ta.jpg\n2\t5\tb.jpg\n", b"0\t5\ta.jpg", b"0\tx\ta.jpg\n", b"0 5 a.jpg\n"])
def test_a_damaged_manifest_is_explained(tmp_path, text):
    path = tmp_path / "manifest.tsv"
    path.write_bytes(text)
    with pytest.raises(UserError, match=f"{path}: damaged"):
        manifest.read(str(path))


def test_a_full_disk_is_one_sentence(tmp_path):
    """The list that was there stays; one that cannot be read is told as well."""
    path = str(tmp_path / "manifest.tsv")
    manifest.write(path, _paths(ODD_NAMES[:1]), np.zeros(1, int))
    (tmp_path / "manifest.tsv.new").symlink_to("/dev/full")
    sentence = rf"^{path}: cannot write the list of images \(No space left on device\)$"
    with pytest.raises(UserError, match=sentence):
        manifest.write(path, _paths(ODD_NAMES), np.zeros(len(ODD_NAMES), int))
    assert list(manifest.read(path)[0].iter_bytes()) == ODD_NAMES[:1]
    with pytest.raises(UserError, match=rf"^{tmp_path}: cannot read the list of images \(Is a directory\)$"):
        manifest.read(str(tmp_path))


def test_merging_keeps_ids_appends_new_files_and_tells_the_vanished():
    merged = manifest.merge(_paths([b"c", b"a", b"e"]), _paths([b"a", b"b", b"c", b"d"]))
    assert list(merged.paths.iter_bytes()) == [b"c", b"a", b"e", b"b", b"d"]
    assert (merged.num_known, merged.vanished.tolist()) == (3, [2])


def _touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * len(name))


def test_a_folder_keeps_its_ids_over_restarts(tmp_path):
    photos, workdir = tmp_path / "photos", tmp_path / "run"
    workdir.mkdir()
    _touch(photos, "b/1.jpg", "b/3.jpg", "d/1.jpg")
    dataset = f"folder:{tmp_path}"
    assert open_folder(dataset, "photos", str(workdir)).write_manifest(str(workdir)) == ()
    _touch(photos, "a/1.jpg", "b/2.jpg")
    (photos / "b/3.jpg").unlink()
    (photos / "d/1.jpg").write_bytes(b"another size")
    source = open_folder(dataset, "photos", str(workdir))
    assert tuple(source.paths) == ("b/1.jpg", "b/3.jpg", "d/1.jpg", "a/1.jpg", "b/2.jpg")
    assert source.changes == (("b/3.jpg",), ("a/1.jpg", "b/2.jpg"))
    assert source.class_names == ("a", "b", "d") and source.labels.tolist() == [1, 1, 2, 0, 1]
    assert source.write_manifest(str(workdir)) == ("d/1.jpg",)
    again = open_folder(dataset, "photos", str(workdir))
    assert tuple(again.paths) == tuple(source.paths) and again.changes == (("b/3.jpg",), ())
    _, sizes = manifest.read(str(workdir / "manifest.tsv"))
    assert sizes.tolist() == [7, 7, 7, 7, 7], "the sizes of when the run began"


def test_the_watchdog_sees_that_many_files_are_looked_at(tmp_path, monkeypatch):
    """Every file takes a network file system its time: the work has moved with each of them, in each of the passes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    _touch(photos, *(f"{number:04d}.jpg" for number in range(2000)))
    before = stamps.last().number
    source = open_folder(f"folder:{photos}", "train")
    assert stamps.last().number >= before + 2000
    before = stamps.last().number
    source.write_manifest(str(tmp_path))
    assert stamps.last().number >= before + 2000
    monkeypatch.setattr(manifest, "_LINES_AT_ONCE", 100)
    before = stamps.last().number
    manifest.write(str(tmp_path / "manifest.tsv"), source.paths, np.zeros(2000, np.int64))
    assert stamps.last().number == before + 20
    before = stamps.last().number
    assert list(contents.exchanged(source, np.arange(50), np.zeros([2000, 2], np.uint64))) == []
    assert stamps.last().number == before + 50


def test_a_million_names_stay_one_block(tmp_path):
    """Merging, writing and reading leave no object per name: 24 MB of letters, 16 of spans and short-lived arrays."""
    names = b"".join(b"class%04d/%07d.jpg" % (i // 1000, i) for i in range(1_000_000))
    lengths = np.full(1_000_000, len(names) // 1_000_000, np.int64)
    paths = ImagePaths(names, np.cumsum(lengths) - lengths, lengths)
    path, before = str(tmp_path / "manifest.tsv"), psutil.Process().memory_info().rss
    manifest.write(path, manifest.merge(paths, paths).paths, lengths)
    read, _ = manifest.read(path)
    assert (len(read), read[999_999]) == (1_000_000, "class0999/0999999.jpg")
    grown = psutil.Process().memory_info().rss - before
    assert grown < 160e6, "a list of a million byte strings alone would be 60 MB more"
