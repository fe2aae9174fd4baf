"""The list of bad files: each image once, whatever was found wrong with it."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from instcls_tf.data.bad_files import BadFiles
from instcls_tf.data.decoding import BadImages
from instcls_tf.data.manifest import Changes
from instcls_tf.data.sources import DigitsSource
from instcls_tf.distributed import workers
from instcls_tf.errors import UserError
from instcls_tf.workdir_files import BAD_FILES_NAME


def test_a_pass_over_the_images_is_checked_now_and_then_and_at_its_end():
    assert [done for done in range(1, 121) if BadFiles.is_due(done, 120)] == [50, 100, 120]


def test_an_image_counts_once_whatever_the_reasons(tmp_path):
    source = DigitsSource("dark", None, np.zeros([4, 8, 8, 3], np.uint8), np.full([4], -1, np.int32))
    source.bad.add("a\tb.jpg", "empty")
    BadFiles(str(tmp_path), source, 0.25).check()
    source.bad.add("a\tb.jpg", "not an image")
    again = BadFiles(str(tmp_path), source, 0.25)
    again.check()
    assert len(again) == 1
    assert (tmp_path / BAD_FILES_NAME).read_text() == "a\\tb.jpg\tempty\n"


def test_names_cannot_reach_the_terminal_as_escape_codes(tmp_path):
    source = DigitsSource("dark", None, np.zeros([4, 8, 8, 3], np.uint8), np.full([4], -1, np.int32))
    for name in ("\x1b]0;x\x07\x1b[2J.jpg", "b.jpg"):
        source.bad.add(name, "empty")
    sentence = f"2 of 4 images cannot be read, see {tmp_path}/bad_files.txt: " + r"'\x1b]0;x\x07\x1b[2J.jpg', b.jpg"
    with pytest.raises(UserError, match=re.escape(sentence) + "$"):
        BadFiles(str(tmp_path), source, 0.25).check()


def test_a_run_without_a_past_forgets_the_list(tmp_path):
    """Images that were mended since a first start do not count against the second."""
    source = DigitsSource("dark", None, np.zeros([4, 8, 8, 3], np.uint8), np.full([4], -1, np.int32))
    (tmp_path / BAD_FILES_NAME).write_text("a.jpg\tempty\nb.jpg\tempty\n")
    assert len(BadFiles(str(tmp_path), source, 0.25)) == 2
    afresh = BadFiles(str(tmp_path), source, 0.25, goes_on=False)
    assert len(afresh) == 0 and not (tmp_path / BAD_FILES_NAME).exists()
    source.bad.add("b.jpg", "empty")
    afresh.check()
    assert (tmp_path / BAD_FILES_NAME).read_text() == "b.jpg\tempty\n"


def test_what_was_told_is_not_told_again(tmp_path, monkeypatch):
    """Where many images are bad, each check would cost as much as all before it."""
    source = DigitsSource("dark", None, np.zeros([8, 8, 8, 3], np.uint8), np.full([8], -1, np.int32))
    bad_files, told = BadFiles(str(tmp_path), source, 0.5), []
    monkeypatch.setattr(workers, "everybodys", lambda mine: told.append(mine[1]) or [mine, ([], ["f.jpg\tempty"])])
    for name in ("c.jpg", "a.jpg", "c.jpg", "b.jpg"):
        source.bad.add(name, "empty")
        bad_files.check()
    assert told == [["c.jpg\tempty"], ["a.jpg\tempty"], ["b.jpg\tempty"]]
    assert (tmp_path / BAD_FILES_NAME).read_text() == "".join(f"{name}.jpg\tempty\n" for name in "abcf")


def test_only_what_is_met_again_counts(tmp_path):
    """A disk that was away for a while: its images stay in the list, and do not stop the run that goes on."""
    source = DigitsSource("dark", None, np.zeros([8, 8, 8, 3], np.uint8), np.full([8], -1, np.int32))
    (tmp_path / BAD_FILES_NAME).write_text("".join(f"{name}.jpg\tno such file\n" for name in "abcd"))
    bad_files = BadFiles(str(tmp_path), source, 0.25)
    for name in "cd":
        source.bad.add(f"{name}.jpg", "empty")
        bad_files.check()
    assert len(bad_files) == 4
    source.bad.add("e.jpg", "empty")
    with pytest.raises(UserError, match=r"3 of 8 images cannot be read, see .*: c\.jpg, d\.jpg, e\.jpg$"):
        bad_files.check()
    assert len((tmp_path / BAD_FILES_NAME).read_text().splitlines()) == 5


def test_what_was_gone_when_the_run_was_started_again_does_not_count(tmp_path):
    """It is listed, as it is skipped; of the images that are there as large a part may be bad as ever."""
    gone = tuple(f"{index}\t.jpg" for index in range(4))
    source = SimpleNamespace(bad=BadImages(), num_instances=8, root="/photos", changes=Changes(vanished=gone))
    bad_files = BadFiles(str(tmp_path), source, 0.25)
    for name in (*gone, "a.jpg"):
        source.bad.add(f"/photos/{name}", "no such file or directory")
    bad_files.check()
    assert len((tmp_path / BAD_FILES_NAME).read_text().splitlines()) == 5
    source.bad.add("/photos/b.jpg", "empty")
    with pytest.raises(UserError, match=r"2 of 4 images cannot be read, see .*: /photos/a\.jpg, /photos/b\.jpg$"):
        bad_files.check()
