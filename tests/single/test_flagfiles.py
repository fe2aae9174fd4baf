"""Flagfiles in the place where they are named, in whatever encoding they come."""

from __future__ import annotations

import codecs

import pytest

from instcls_tf import flagfiles
from instcls_tf.errors import UserError


def test_lines_take_the_place_of_the_file(tmp_path):
    (tmp_path / "a.flags").write_text(f"# a comment\n\n--epochs=3\n  --flagfile={tmp_path}/b.flags \n// another\n")
    (tmp_path / "b.flags").write_text("--dataset=folder:/data/my photos\r\n--seed=1\r--noplain")
    words = ["--seed=0", f"--flagfile={tmp_path}/a.flags", "-flagfile", f"{tmp_path}/b.flags", "--", "--flagfile=no"]
    inner = ["--dataset=folder:/data/my photos", "--seed=1", "--noplain"]
    assert flagfiles.expand(words) == ["--seed=0", "--epochs=3", *inner, *inner, "--", "--flagfile=no"]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.flags").write_text("--epochs=3\n")
    assert flagfiles.expand(["--flagfile=~/a.flags"]) == ["--epochs=3"]


@pytest.mark.parametrize("text", ["--dataset=folder:/data/café\n", "--dataset=folder:/data/東京\n"])
def test_a_byte_order_mark_alone_is_accepted(tmp_path, text):
    (tmp_path / "a.flags").write_bytes(codecs.BOM_UTF8 + text.encode())
    assert flagfiles.expand([f"--flagfile={tmp_path}/a.flags"]) == [text.strip()]


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-16", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-16-le", "UTF-16 or binary data"),
        ("latin-1", "another encoding"),
    ],
)
def test_another_encoding(tmp_path, encoding, found):
    path = tmp_path / "a.flags"
    path.write_bytes("--dataset=folder:/data/café\n".encode(encoding))
    with pytest.raises(UserError) as refusal:
        flagfiles.expand([f"--flagfile={path}"])
    assert str(refusal.value) == f"--flagfile={path}: is in {found}, wanted UTF-8"


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.flags").write_text(f"--flagfile={tmp_path}/b.flags\n")
    (tmp_path / "b.flags").write_text(f"--flagfile={tmp_path}/a.flags\n")
    for word, sentence in [
        (f"--flagfile={tmp_path}", f"--flagfile: cannot read {tmp_path} (Is a directory)"),
        (f"--flagfile={tmp_path}/a.flags", f"--flagfile: {tmp_path}/a.flags names itself"),
        ("--flagfile", "--flagfile is missing the path of a file"),
    ]:
        with pytest.raises(UserError) as refusal:
            flagfiles.expand([word])
        assert str(refusal.value) == sentence
