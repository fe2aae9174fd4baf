"""How commands end: the answer first, then its picture; full disks and closed pipes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from flags import command
from instcls_tf import files
from instcls_tf.errors import UserError
from instcls_tf.report.answer import Answer, Picture, Written
from tests.commands import ROOT, TIMEOUT

RESULT = {"top1": 0.5}


def test_the_answer_is_printed_last_and_written(tmp_path, capsys):
    command.give(Answer(RESULT, "a table", "table.md"), "knn_eval", str(tmp_path))
    assert capsys.readouterr().out == 'a table\n{"top1": 0.5}\n'
    assert (tmp_path / "knn_eval.json").read_text() == '{"top1": 0.5}'
    assert (tmp_path / "table.md").read_text() == "a table\n"


def test_numbers_that_are_not_finite_are_null(tmp_path, capsys):
    """NaN and Infinity are no JSON, whatever Python makes of them."""
    infinite = float("inf")
    result = {"error": infinite, "curve": [1.0, -infinite, (float("nan"), 2)], "of": {"a": infinite, "b": "NaN"}}
    command.give(Answer(result), "check", str(tmp_path))
    wanted = '{"error": null, "curve": [1.0, null, [null, 2]], "of": {"a": null, "b": "NaN"}}'
    assert capsys.readouterr().out == f"{wanted}\n" and (tmp_path / "check.json").read_text() == wanted


def test_names_in_other_encodings_are_escaped(tmp_path, capsys, monkeypatch):
    text = f"± {os.fsdecode(bytes([0xE9]))}"
    command.give(Answer(RESULT, text, "table.md"), "compare", str(tmp_path))
    assert capsys.readouterr().out.splitlines()[0] == r"± \udce9"
    assert (tmp_path / "table.md").read_text() == "± \\udce9\n"
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", output)
    command.give(Answer(RESULT, text))
    assert output.buffer.getvalue().splitlines()[0] == rb"\u00b1 \udce9"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_names_in_an_answer_can_be_given_to_another_command(tmp_path, monkeypatch, encoding):
    """And none can reach the terminal as a command, hide a part of a name or break the print."""
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", output)
    result = {"path": "café ☕😀.jpg", "odd": os.fsdecode(b'\xe9"') + "\x9b2J \u202e\u2028\x7f"}
    command.give(Answer(result), "search", str(tmp_path))
    printed, kept = output.buffer.getvalue().decode(encoding), (tmp_path / "search.json").read_text("utf-8")
    assert json.loads(printed) == json.loads(kept) == result
    odd = r"\udce9\"\u009b2J \u202e\u2028\u007f"
    assert kept == f'{{"path": "café ☕😀.jpg", "odd": "{odd}"}}' and odd in printed
    assert printed.splitlines() == [kept] if encoding == "utf-8" else r"\u2615\ud83d\ude00" in printed


def test_an_answer_without_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command.give(Answer(RESULT))
    assert capsys.readouterr().out == '{"top1": 0.5}\n'
    assert list(tmp_path.iterdir()) == []


def test_only_rank_0_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOROVOD_RANK", "1")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    command.give(Answer(RESULT, picture=Picture(str(tmp_path / "x.png"), None)), "knn_eval", str(tmp_path))
    command.give(None, "detect", str(tmp_path))
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_drawn_when_the_answer_is_out(tmp_path, capsys):
    def draw(path):
        assert json.loads((tmp_path / "detect.json").read_text()) == RESULT
        assert json.loads(capsys.readouterr().out) == RESULT
        open(path, "w").close()

    command.give(Answer(RESULT, picture=Picture(str(tmp_path / "x.png"), draw)), "detect", str(tmp_path))
    assert (tmp_path / "x.png").exists()


def test_a_picture_that_fails_is_a_warning(tmp_path, capsys):
    def draw(path):
        raise KeyError("two\nlines \x1b[2J")

    command.give(Answer(RESULT, picture=Picture(f"{tmp_path}/x.png", draw)), "detect", str(tmp_path))
    said = capsys.readouterr()
    assert json.loads(said.out) == RESULT
    assert said.err.startswith(f"warning: {tmp_path}/x.png could not be drawn (") and "KeyError" in said.err
    assert said.err.count("\n") == 1 and "\x1b" not in said.err


def test_a_disk_that_is_full_does_not_keep_the_answer_from_being_printed(tmp_path, capsys):
    (tmp_path / "detect.json").symlink_to("/dev/full")
    with pytest.raises(UserError) as refusal:
        command.give(Answer(RESULT), "detect", str(tmp_path))
    assert str(refusal.value) == f"{tmp_path}/detect.json: cannot write this file (No space left on device)"
    assert json.loads(capsys.readouterr().out) == RESULT


def test_files_of_an_answer_are_written_before_it_is_printed_and_one_that_fails_keeps_no_other(tmp_path, capsys):
    """Nor the answer, which took hours."""
    table = tmp_path / "table.csv"
    written = [Written(path, lambda path: files.write(path, b"a,b")) for path in ("/dev/full", str(table), "/proc/x")]
    (tmp_path / "detect.json").symlink_to("/dev/full")
    with pytest.raises(UserError) as refusal:
        command.give(Answer(RESULT, files=tuple(written)), "detect", str(tmp_path))
    assert str(refusal.value) == f"{tmp_path}/detect.json: cannot write this file (No space left on device)"
    assert json.loads(capsys.readouterr().out) == RESULT and table.read_bytes() == b"a,b"


_GIVES = """
import sys
from flags import command
from instcls_tf.report.answer import Answer, Picture, Written
def main():
    command.give(Answer({"x": "y" * 200_000}, picture=Picture("p", lambda path: print("drawn", file=sys.stderr))))
command.run(main, "Gives a long answer.")
"""


@pytest.mark.parametrize("arguments", ["", "--help"])
def test_a_reader_that_has_seen_enough(arguments):
    program = f"{sys.executable} -c '{_GIVES}' {arguments}; echo status $? >&2"
    finished = subprocess.run(["sh", "-c", f"({program}) | true"], cwd=ROOT, capture_output=True, text=True)
    assert finished.stderr == ("" if arguments else "drawn\n") + "status 0\n"


def test_standard_output_on_a_full_disk():
    with open("/dev/full", "w") as full:
        finished = subprocess.run(
            [sys.executable, "-c", _GIVES], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert finished.returncode == 2
    assert finished.stderr == "error: standard output: cannot be written (No space left on device)\n"


# Writes a folder; `{wait}` is where a signal finds it.
_WRITING = """
import ctypes, os, sys, threading, time
from flags import command
from instcls_tf import files
from instcls_tf.run import interrupted
interrupted._PATIENCE_SECONDS, interrupted._UNWINDING_SECONDS = 1.0, {unwinding}
target, lock = sys.argv.pop(), ctypes.create_string_buffer(64)
def wait():
    print("waits", flush=True)
    time.sleep(600)
    return 0
def main():
    with files.whole_folder(target):
        print("writes", flush=True)
        {wait}
command.run(main, "Writes a folder.")
"""
_SLEEP = "time.sleep(60)"
# As a library may do with whatever is raised in a call of its own.
_WRAPPED = """try: time.sleep(60)
        except BaseException as error: raise ValueError("some error of a library") from error"""
# Python discards what is raised there.
_IN_DEL = """for _ in range(2): type("Slow", (), {"__del__": lambda self: wait()})()
        wait()"""
_IN_CALLBACK = """slow = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda a, b: wait())
        for _ in range(2): ctypes.CDLL(None).qsort(lock, 2, 1, slow)
        wait()"""
# As a library may do: the exception is lost, and nobody knows.
_LOST = """try: wait()
        except BaseException: wait()"""
# As sweeps and reproductions do.
_GOES_ON = """from instcls_tf.sweep.ownership import interruptible
        with interruptible(): wait()"""
# A lock that is taken twice: the main thread does not come back to Python, and is there when another thread says so.
_STUCK = """threading.Timer(1, print, ["stuck"], {"flush": True}).start()
        [ctypes.CDLL(None).pthread_mutex_lock(lock) for _ in range(2)]"""


def ended(folder, wait: str, number: int, before: str = "", unwinding: float = 60.0) -> tuple[int, str]:
    """How a command ends that a signal finds while it writes into a folder: its status, and what it says of it."""
    program = before + _WRITING.format(wait=wait, unwinding=unwinding)
    words = [sys.executable, "-c", program, str(folder / "new")]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writes\n"
        assert wait != _STUCK or process.stdout.readline() == "stuck\n"
        assert "wait()" not in wait or process.stdout.readline() == "waits\n"
        assert [path.name[:9] for path in folder.iterdir()] == [".writing-"]
        process.send_signal(number)
        if wait == _LOST and unwinding > 2:
            assert process.stdout.readline() == "waits\n"
            time.sleep(3)  # more than the patience, also of a thread that is late
            process.send_signal(number)
        _, said = process.communicate(timeout=TIMEOUT)
    return process.returncode, said


@pytest.mark.parametrize("wait", [_SLEEP, _WRAPPED, _IN_DEL, _IN_CALLBACK], ids=["sleep", "wrapped", "del", "callback"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_one_line_and_nothing_is_left(tmp_path, number, wait):
    """Ctrl-C, `kill`, a closed terminal."""
    assert ended(tmp_path, wait, number) == (128 + number, f"{number.name}: ended before it was done\n")
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_goes_on_says_so(tmp_path):
    said = "SIGTERM: interrupted: the same command goes on where it ended\n"
    assert ended(tmp_path, _GOES_ON, signal.SIGTERM) == (143, said)


def test_a_signal_ends_what_does_not_come_back(tmp_path):
    """What it had begun goes with the next folder there."""
    sentence = "SIGTERM: ended at once, 1 s later still in the same operation\n"
    assert ended(tmp_path, _STUCK, signal.SIGTERM) == (143, sentence)
    with files.whole_folder(str(tmp_path / "next")):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["next"]


@pytest.mark.parametrize(
    ("unwinding", "why"),
    [(60.0, "asked once more"), (1.5, "1.5 s later it had not ended")],
    ids=["again", "in the end"],
)
def test_a_signal_that_is_lost_ends_it_all_the_same(tmp_path, unwinding, why):
    """The second one, when there was time enough for what the first begins; or patience has an end."""
    said = f"SIGTERM: ended at once, {why}\n"
    assert ended(tmp_path, _LOST, signal.SIGTERM, unwinding=unwinding) == (143, said)


def test_what_ends_is_left_to_end(tmp_path):
    """A second signal right after the first, as mpirun sends one, does not disturb the removal."""
    slow = """try: time.sleep(60)
        finally: os.kill(os.getpid(), 15); time.sleep(0.1)"""
    assert ended(tmp_path, slow, signal.SIGTERM) == (143, "SIGTERM: ended before it was done\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    """As SIGHUP is under nohup."""
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert ended(tmp_path, "time.sleep(1)", signal.SIGHUP, before=ignore) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
