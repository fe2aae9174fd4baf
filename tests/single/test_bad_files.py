"""The list of bad files: each image once, whatever was found wrong with it."""

import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from instcls_tf import files
from instcls_tf.data import decoding
from instcls_tf.data.bad_files import BadFiles
from instcls_tf.data.decoding import FAILED, BadImages
from instcls_tf.data.manifest import Changes
from instcls_tf.data.prepare import prepare
from instcls_tf.data.sources import DigitsSource, open_source
from instcls_tf.distributed import workers
from instcls_tf.errors import MachineError, UserError
from instcls_tf.evaluation import features
from instcls_tf.workdir_files import BAD_FILES_NAME
from tests.images import write_images
from tests.single.test_failing_file_systems import Failing


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
    monkeypatch.setattr(workers, "everybodys", lambda mine: told.append(mine[1]) or [mine, ([], ["f.jpg\tempty"], [])])
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


@pytest.mark.parametrize(("times", "reason"), [(3, None), (float("inf"), FAILED)])
def test_a_file_system_that_fails_for_a_moment_makes_no_image_bad(tmp_path, monkeypatch, times, reason):
    """Its content is known as well, by which a later run tells the image from others."""
    monkeypatch.setattr(files, "_PAUSE_SECONDS", 0.0)
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    source, path = open_source(f"folder:{tmp_path}"), tmp_path / "a.jpg"
    content = path.read_bytes()
    monkeypatch.setattr("builtins.open", Failing(open, "a.jpg", times))
    image = decoding._read_slowly(source.bad, source.reading, os.fsencode(path))
    assert source.bad.reasons == ({} if reason is None else {str(path): reason}) and (image.size == 0) == bool(reason)
    monkeypatch.setattr("builtins.open", Failing(open, "a.jpg", times))
    assert source.content_of(0) == (content if reason is None else b"")


@pytest.mark.parametrize(("reasons", "kind"), [(["empty"] * 3, UserError), (["empty", FAILED, FAILED], MachineError)])
def test_too_many_images_that_may_be_sound_are_a_fault_of_the_machine(tmp_path, reasons, kind):
    """Which is to be started again."""
    source = DigitsSource("dark", None, np.zeros([8, 8, 8, 3], np.uint8), np.full([8], -1, np.int32))
    bad_files = BadFiles(str(tmp_path), source, 0.25)
    for name, reason in zip("abc", reasons):
        source.bad.add(f"{name}.jpg", reason)
    with pytest.raises(UserError, match="3 of 8 images cannot be read") as refusal:
        bad_files.check()
    assert type(refusal.value) is kind


def test_records_that_are_whole_at_the_second_look_are_not_damaged(tmp_path):
    """What was left out meanwhile is left out: the run ends, to be started again."""
    write_images(tmp_path / "photos", ["a/0.jpg", "a/1.jpg"])
    prepare(f"folder:{tmp_path / 'photos'}", str(tmp_path / "shards"), shard_megabytes=1)
    source = open_source(f"records:{tmp_path / 'shards'}")
    (shard,) = (tmp_path / "shards").glob("*tfrecord*")
    for wanted, kind, why in (
        (2, MachineError, "for a moment: the file system fails"),
        (3, UserError, "2 of its 3 records"),
    ):
        source.bad._damage.clear()
        source.bad.is_of_machine = False
        source.shards._damaged(os.fsencode(shard), np.int64(wanted))
        for refuse in (BadFiles(str(tmp_path), source, 0.5).check, lambda: features.refuse_damage(source)):
            with pytest.raises(UserError, match=why) as refusal:
                refuse()
            assert type(refusal.value) is kind
