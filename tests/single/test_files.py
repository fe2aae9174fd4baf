"""Results as files, and disks that do not take them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from instcls_tf import files
from instcls_tf.errors import UserError
from tests.commands import ROOT


def test_write(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write(str(path), b"one")
    files.write(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["a.json"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "b").symlink_to(tmp_path / "a")
    files.write(str(tmp_path / "b"), b"one")
    assert (tmp_path / "b").is_symlink()
    assert (tmp_path / "a").read_bytes() == b"one"


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/dev/full", "No space left on device"), ("/proc/x.png", "No such file or directory")],
)
def test_a_file_that_cannot_be_written(path, reason):
    with pytest.raises(UserError) as refusal:
        files.write(path, b"x")
    assert str(refusal.value) == f"{path}: cannot write this file ({reason})"


def test_an_older_file_outlives_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    (tmp_path / "a.json.new").symlink_to("/dev/full")
    with pytest.raises(UserError):
        files.write(str(path), b"x")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_refuses_before_anything_long(tmp_path, monkeypatch):
    sentence = r"^--output=/proc/x\.png: cannot write this file \(No such file or directory\)$"
    with pytest.raises(UserError, match=sentence):
        files.refuse_unwritable("/proc/x.png")
    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new", "sub/new"):
        files.refuse_unwritable(str(tmp_path / name))
    assert sorted(os.listdir(tmp_path)) == ["old", "sub"]
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # so does the system's, on any error
    files.refuse_unwritable(str(tmp_path / "old"))
    assert (tmp_path / "old").read_bytes() == b"old" and not os.listdir(tmp_path / "sub")


@pytest.mark.parametrize("content", ["a\nbé\n", "\ufeffa\nbé\n", "a\r\nbé\r\n", "a\rbé\r"])
def test_text_as_editors_leave_it(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert files.read_text(str(tmp_path / "a.txt")) == "a\nbé\n"


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9\n")
    assert files.read_text(str(path)) == os.fsdecode(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"^--f=x: is in another encoding, wanted UTF-8$"):
        files.decode_text(path.read_bytes(), "--f=x")
    for encoding, found in (("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("utf-16-be", "UTF-16 or binary data")):
        path.write_bytes("東京a".encode(encoding))
        with pytest.raises(UserError) as refusal:
            files.read_text(str(path))
        assert str(refusal.value) == f"{path}: is in {found}, wanted UTF-8"
    with pytest.raises(UserError) as refusal:
        files.read_text(str(tmp_path))
    assert str(refusal.value) == f"{tmp_path}: cannot read this file (Is a directory)"


def test_what_a_killed_process_had_begun_goes_with_the_next_folder(tmp_path):
    """Which is written beside it; one that is still written stays."""
    kill = "import os, sys; from instcls_tf import files\nwith files.whole_folder(sys.argv[1]): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", kill, tmp_path / "killed"], cwd=ROOT).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".writing-")
    with files.whole_folder(str(tmp_path / "one")), files.whole_folder(str(tmp_path / "two")):
        assert not left.exists()
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_process_that_proc_does_not_show_is_running_all_the_same(tmp_path, monkeypatch):
    """On other systems, and of other users where it is hidden: what it writes is not removed."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    pids = (os.getpid(), 1, gone.pid, 10**30)  # 1 is root's, whom tests need not be
    of_machine = files.scratch_prefix(str(tmp_path)).removesuffix(f"{os.getpid()}-")
    for pid in pids:
        (tmp_path / f"{of_machine}{pid}-a").mkdir()
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: not str(path).startswith("/proc/") and exists(path))
    files.scratch_prefix(str(tmp_path))
    left = {int(path.name.split("-")[-2]) for path in tmp_path.iterdir()}
    assert left == {os.getpid(), 1}


def test_looking_again_lists_the_folders_on_the_way(tmp_path, monkeypatch):
    """As NFS has it: a new folder is seen once the one above it was listed."""
    folder, listed, really = tmp_path / "new" / "run", [], os.listdir
    hidden = {str(tmp_path): tmp_path / "new", str(tmp_path / "new"): folder}

    def listdir(path: str) -> list[str]:
        listed.append(path)
        names = really(path)
        if path in hidden:
            hidden[path].mkdir(exist_ok=True)
        return names

    monkeypatch.setattr(os, "listdir", listdir)
    files.look_again(str(folder))
    assert folder.is_dir() and listed == list(map(str, (tmp_path, tmp_path / "new", folder)))
    files.look_again(str(folder))
    assert listed[3:] == [str(folder)]
    files.look_again(str(tmp_path / "absent" / "run"))
