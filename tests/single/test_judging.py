"""The end of a run: signals when nothing is left to lose, and a judgement that fails."""

from __future__ import annotations

import subprocess
import sys

import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.pretraining import judging
from instcls_tf.progress import Progress

# Without TensorFlow, in a process of its own, which a signal may end.
ENDING = """
import os, signal
from instcls_tf.run import signals
with signals.heeded():
    signals.defer()
    os.kill(os.getpid(), signal.SIGTERM)
    print(signals.received(), flush=True)
    signals.finish("the run is saved, but not judged")
    os.kill(os.getpid(), signal.SIGUSR1)
    print("went on", flush=True)
"""


def test_a_signal_ends_at_once_when_all_is_saved():
    found = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (75, "SIGTERM\n")
    assert found.stderr == "SIGUSR1: the run is saved, but not judged\n"


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError(5, "bad disk"), ValueError("broken\nmore lines")])
def test_a_judgement_that_fails_is_a_warning(tmp_path, monkeypatch, capsys, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(judging, "judge_run", fail)
    judging.report_help(PretrainConfig(workdir=str(tmp_path)), Progress(visible=True))
    reason = f"{type(error).__name__}: {error}".replace("\n", " ")
    assert capsys.readouterr().err == f"warning: the run is finished, but not judged: {reason}\n"


def test_what_was_asked_to_stop_in_its_last_step_is_not_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(judging.signals, "_received", "SIGTERM")
    monkeypatch.setattr(judging, "judge_run", lambda *arguments: pytest.fail("has begun"))
    judging.report_help(PretrainConfig(workdir=str(tmp_path)), Progress(visible=True))
    assert "a signal came; python -m scripts.report does it" in capsys.readouterr().err
