"""One sentence for every setting out of range, and names that a terminal can show."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from instcls_tf.checks import require, require_one_of, require_path_for_tensorflow, require_path_of_text, require_value
from instcls_tf.errors import MachineError, UserError, naming, one_line, shown, some_of


@dataclasses.dataclass
class Settings:
    epochs: int = 0
    stem: str = "big"


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        (lambda s: require(s, "epochs", s.epochs >= 1, "at least 1"), "--epochs=0: must be at least 1"),
        (lambda s: require_one_of(s, "stem", ("imagenet", "small")), "--stem=big: must be one of imagenet, small"),
        (lambda s: require_value("split", "a\nb", False, "a word"), r"--split='a\nb': must be a word"),
    ],
)
def test_the_sentence_names_flag_value_and_what_is_wanted(check, sentence):
    with pytest.raises(UserError) as refusal:
        check(Settings())
    assert str(refusal.value) == sentence


def test_what_is_fit_passes():
    require(Settings(epochs=1), "epochs", True, "at least 1")
    require_one_of(Settings(stem="small"), "stem", ("imagenet", "small"))
    require_value("split", "test", True, "a word")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("café, 東京.jpg", "café, 東京.jpg"),
        ("\x1b]0;x\x07\x1b[2J.jpg", r"'\x1b]0;x\x07\x1b[2J.jpg'"),
        ("a\nb", r"'a\nb'"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"'caf\udce9'"),
        ("\u202egpj.exe", r"'\u202egpj.exe'"),  # turns the direction of what follows
        (0.5, "0.5"),
    ],
)
def test_shown(name, text):
    assert shown(name) == text
    assert one_line(f"{name}") == text.strip("'")


def test_some_of():
    assert some_of(["a", "b"]) == "a, b"
    assert some_of("abc", 3) == "a, b, c" and some_of("abcd", 3, "; ") == "a; b; c; …"
    assert some_of(map(str, itertools.count()), 2) == "0, 1, …"


@pytest.mark.parametrize("path", ["runs/a b", "~/café/東京", "/x/👩‍🔬", "a{b}=(c),d!#$&"])
def test_paths_of_text(path):
    require_path_of_text("workdir", path)
    require_path_for_tensorflow("workdir", path)


@pytest.mark.parametrize("path", ["a\nb", "a\tb", "\x1b[2J", "a\0", b"caf\xe9".decode("utf-8", "surrogateescape")])
def test_paths_that_are_no_text(path):
    for check in (require_path_of_text, require_path_for_tensorflow):
        with pytest.raises(UserError) as refusal:
            check("output", path)
        assert str(refusal.value) == f"--output={path!r}: wanted a path without control characters, in UTF-8"


@pytest.mark.parametrize(
    ("path", "found"), [("lr=[0.1,0.4]", "[ ]"), ("back\\slash", "\\"), ("a*", "*"), ("a?b", "?"), ("exp[1]", "[ ]")]
)
def test_paths_that_tensorflow_reads_as_patterns(path, found):
    require_path_of_text("workdir", path)
    with pytest.raises(UserError) as refusal:
        require_path_for_tensorflow("workdir", path)
    assert str(refusal.value) == (
        f"--workdir={path}: holds {found}, which TensorFlow reads as a pattern, wanted a path without any of [ ] * ? \\"
    )


@pytest.mark.parametrize("kind", [UserError, MachineError])
def test_an_error_of_a_run_names_the_flag_that_was_given_and_keeps_its_kind(kind):
    with pytest.raises(UserError) as refusal, naming("runs"):
        raise kind("--workdir=a: cannot be read")
    assert type(refusal.value) is kind and str(refusal.value) == "--runs=a: cannot be read"
