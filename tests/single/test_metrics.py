"""`metrics.jsonl` as crashes and editors leave it."""

from __future__ import annotations

import json

import pytest

from instcls_tf.errors import UserError
from instcls_tf.report.pictures import load_metrics
from instcls_tf.run.log import MetricsLog
from instcls_tf.run.metrics import read_metrics

LINES = [{"step": 10, "loss": 2.5}, {"step": 20, "loss": 2.25}, {"step": 30, "loss": 0.1}]
# None of them a number of steps.
STEPS = [b'"10"', b"null", b"true", b"[10]", b"NaN", b"Infinity", b"1" + b"0" * 400]
TEXTS = [json.dumps(line).encode() for line in LINES]


def test_reads_every_line(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*TEXTS, b""]))
    assert read_metrics(str(tmp_path)) == LINES
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "kept", "skipped"),
    [
        ([TEXTS[0], b"", *TEXTS[1:], b""], LINES, (1, 2)),
        ([*TEXTS[:2], TEXTS[2][:-5]], LINES[:2], (1, 3)),
        ([TEXTS[0], b"\0" * 100, TEXTS[1], b""], LINES[:2], (1, 2)),
        ([TEXTS[0], b"\0" * 100 + TEXTS[1], b""], LINES[:2], None),
        ([b"\xff\xfe", b"[1]", TEXTS[0] + b"\r", b""], LINES[:1], (2, 1)),
        ([b"[" * 100_000, TEXTS[0], b""], LINES[:1], (1, 1)),
        ([b"{}", b'{"loss": 1.0}', TEXTS[0], b""], LINES[:1], (2, 1)),
        ([TEXTS[0], *(b'{"step": %b}' % step for step in STEPS), b""], LINES[:1], (len(STEPS), 2)),
        ([b""], [], None),
    ],
    ids=[
        *("empty line", "cut", "NULs", "NULs before a line", "other things", "brackets", "no step", "other steps"),
        "empty file",
    ],
)
def test_skips_what_is_no_object_with_one_warning(tmp_path, capsys, content, kept, skipped):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(content))
    assert read_metrics(str(tmp_path)) == kept
    warning = "warning: {}: skipped {} line(s) that are no JSON objects with a step, the first is line {}\n"
    assert capsys.readouterr().err == (warning.format(path, *skipped) if skipped else "")
    # The other readers: a picture, and a run that goes on.
    assert list(load_metrics(str(tmp_path)).get("step", [])) == [line["step"] for line in kept]
    MetricsLog(str(tmp_path), first_step=20).close()
    capsys.readouterr()
    assert read_metrics(str(tmp_path)) == kept[:2]
    assert capsys.readouterr().err == ""


def test_no_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError) as refusal:
        read_metrics(str(tmp_path))
    assert str(refusal.value) == f"--workdir={tmp_path}: holds no run ({path}: No such file or directory)"
    assert load_metrics(str(tmp_path)) == {}
