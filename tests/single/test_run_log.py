"""metrics.jsonl survives crashes, and progress is readable without a terminal."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.progress import Progress, in_words
from instcls_tf.run.log import MetricsLog, StepTimer


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until `clock.now` is set."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


def steps(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_json_objects_at_once(tmp_path):
    log = MetricsLog(str(tmp_path), first_step=0)
    log.write({"step": 10, "loss": 2.5})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 10, "loss": 2.5}\n'
    log.write({"step": 20, "loss": 2.25})
    assert steps(tmp_path) == [10, 20]
    log.close()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    log = MetricsLog(str(tmp_path), first_step=0)
    log.write({"step": 10, "loss": 2.5, "epoch": 0.5})
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = [
        (value.tag, event.step, float(tf.make_ndarray(value.tensor)))
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    ]
    assert events == [("loss", 10, 2.5), ("epoch", 10, 0.5)]


def test_tensorboard_gets_settings_and_views(tmp_path):
    log = MetricsLog(str(tmp_path), first_step=0)
    views = np.random.default_rng(0).integers(0, 256, [3, 2, 4, 4, 3], np.uint8)
    log.show_beginning(7, "--dataset=folder:/\udcff\n--epochs=3\n", views)  # a path of bytes that are no text
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = {
        value.tag: (event.step, tf.make_ndarray(value.tensor))
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert found["settings"][0] == 7
    assert found["settings"][1].item() == b"    --dataset=folder:/?\n    --epochs=3\n"
    width, height, picture = found["views"][1].tolist()
    assert (width, height) == (b"8", b"12")  # a row per image, a column per view
    np.testing.assert_array_equal(tf.io.decode_png(picture).numpy()[4:8, :4], views[1, 0])


def test_a_continued_run_drops_later_and_cut_lines(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (10, 20, 30)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 40, "lo')
    log = MetricsLog(str(tmp_path), first_step=20)
    assert steps(tmp_path) == [10, 20]
    log.write({"step": 30, "loss": 0.5})
    assert steps(tmp_path) == [10, 20, 30]
    log.close()
    assert not (tmp_path / "metrics.jsonl.new").exists()


def test_a_new_run_begins_with_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n')
    MetricsLog(str(tmp_path), first_step=0).close()
    assert steps(tmp_path) == []


def test_progress_without_a_terminal_is_plain_lines(capsys, clock):
    progress = Progress(visible=True)
    progress.say("hello")
    for done in range(1, 11):
        clock.now += 1.0
        progress("prior", done, 10, "detail")
    progress.close()
    # One line per five seconds, counted from the stage's first report, and one at the end.
    assert capsys.readouterr().err.splitlines() == [
        "hello",
        "prior: step 6/10, detail, 0:03 left",
        "prior: step 10/10, detail, took 0:09",
    ]


def test_every_stage_has_a_clock_of_its_own(capsys, clock):
    progress = Progress(visible=True)
    progress("first", 1, 1)
    clock.now += 1000
    progress("second", 501, 1000)  # as after a restart
    clock.now += 90
    progress("second", 551, 1000)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["first: step 1/1, took 0:00", "second: step 551/1000, 13:12 left"]


def test_a_stage_within_another_is_mentioned_when_it_takes_long(capsys, clock):
    progress, within = Progress(visible=True), Progress(visible=True, within=True)
    progress("training", 1, 10)
    for seconds in (1, 4):
        for done in range(4):
            within("search", done, 3)
            clock.now += seconds
        within.close()
    progress("training", 5, 10)
    # Two searches, of 3 and of 12 seconds up to their last report; the stage around them keeps its clock.
    assert capsys.readouterr().err.splitlines() == [
        "search: step 2/3, 0:04 left",
        "search: step 3/3, took 0:12",
        "training: step 5/10, 0:20 left",
    ]


def test_a_line_is_written_in_one_piece(monkeypatch):
    """`mpirun --tag-output` marks pieces, and would leave a mark at the end of a line that comes in two."""
    pieces = []
    monkeypatch.setattr(sys.stderr, "write", pieces.append)
    Progress(visible=True).say("hello")
    assert [piece for piece in pieces if piece] == ["hello\n"]


def test_other_ranks_are_silent(capsys):
    progress = Progress(visible=False)
    progress.say("hello")
    progress("prior", 1, 1)
    progress.close()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_progress_on_a_terminal_is_one_bar_per_stage(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(visible=True)
    for stage in ("first", "second"):
        for done in (1, 2):
            progress(stage, done, 2, f"loss {done}")
    progress.close()
    shown = capsys.readouterr().err
    for text in ("first: 100%", "second: 100%", "2/2", "loss 2"):
        assert text in shown, shown


def test_a_short_stage_within_another_shows_no_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    within = Progress(visible=True, within=True)
    for done in range(3):
        within("search", done, 2)
    within.close()
    assert "search" not in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (125, "2:05"), (108061, "30:01:01")])
def test_time_is_told_as_a_clock_does(capsys, clock, seconds, text):
    line = Progress(visible=True)
    line("prior", 0, 1)
    clock.now += seconds
    line("prior", 1, 1)
    assert capsys.readouterr().err == f"prior: step 1/1, took {text}\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "less than a second"),
        (1.2, "1 second"),
        (100, "100 seconds"),
        (130, "2 minutes"),
        (5399, "90 minutes"),
        (5400, "1.5 hours"),
        (172_000, "47.8 hours"),
        (200_000, "2.3 days"),
    ],
)
def test_time_is_told_in_words(seconds, text):
    assert in_words(seconds) == text


def test_step_timer(clock):
    timer = StepTimer()

    def slow_items():
        for item in (1, 2):
            clock.now += 0.5
            yield item

    items = slow_items()
    assert timer.next(items) == 1
    clock.now += 3.5  # the step itself
    assert timer.report(images=8) == {"images_per_second": 2.0, "data_wait_fraction": 0.125}
    # A report starts anew.
    assert timer.next(items) == 2
    assert timer.report(images=3) == {"images_per_second": 6.0, "data_wait_fraction": 1.0}
    assert timer.report(images=0) == {"images_per_second": 0.0, "data_wait_fraction": 0.0}
    with pytest.raises(StopIteration):
        timer.next(items)


def test_a_log_that_cannot_be_written_warns_once(tmp_path, capsys):
    log = MetricsLog(str(tmp_path), first_step=0)
    log.write({"step": 10, "loss": 2.5})
    path = tmp_path / "metrics.jsonl"
    path.unlink()
    path.mkdir()
    for step in (20, 30):
        log.write({"step": step, "loss": 2.0})
    path.rmdir()
    path.write_text('{"step": 30, "lo')
    log.write({"step": 40, "loss": 1.5})
    log.close()
    assert path.read_text() == '{"step": 30, "lo\n{"step": 40, "loss": 1.5}\n'
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning == f"warning: {path}: cannot be written (Is a directory); the run goes on without its log"
