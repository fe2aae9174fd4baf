"""`--precision=auto`: what the machine computes in, and what a run keeps."""

from __future__ import annotations

import os
import stat

import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.run import precision
from instcls_tf.run.workdir import begin_run

AUTO = PretrainConfig(precision="auto")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16 avx512f\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16x\nbugs\t: avx512_bf16\n", False),
        ("Features\t: fp asimd bf16\n", False),  # aarch64: never measured
        ("", False),
    ],
)
def test_processors(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert precision.processor_computes_in_bfloat16(tmp_path / "cpuinfo") == expected
    assert not precision.processor_computes_in_bfloat16(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("echo 9.0; echo 8.0", True),
        ("echo 8.6; echo 7.0", False),
        ("echo 'No devices were found'", False),
        ("exit 9", False),
        ("true", False),
    ],
)
def test_gpus(tmp_path, monkeypatch, says, expected):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{says}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert precision.gpu_computes_in_bfloat16() == expected


def test_a_machine_without_the_tool(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not precision.gpu_computes_in_bfloat16()


@pytest.mark.parametrize(("computes", "expected"), [(True, "mixed_bfloat16"), (False, "float32")])
def test_auto_is_what_the_machine_has(monkeypatch, computes, expected):
    monkeypatch.setattr(precision, "computes_in_bfloat16", lambda: computes)
    assert precision.with_precision(AUTO).precision == expected


@pytest.mark.parametrize("has_gpu", [True, False])
@pytest.mark.parametrize("gpu_computes", [True, False])
def test_the_processor_answers_only_without_a_gpu(tmp_path, monkeypatch, has_gpu, gpu_computes):
    """GPU and processor differ, so that each answer tells whose it is."""
    (tmp_path / "cpuinfo").write_text(f"flags\t: {'fpu' if gpu_computes else 'avx512_bf16'}\n")
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho {'8.0' if gpu_computes else '7.5'}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(precision, "_PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(precision.gpus, "can_be_loaded", lambda: has_gpu)
    answer = precision.computes_in_bfloat16.__wrapped__()
    assert answer == (gpu_computes if has_gpu else not gpu_computes)


@pytest.mark.parametrize("given", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_others_stay(given):
    assert precision.with_precision(AUTO.replace(precision=given)).precision == given


@pytest.mark.parametrize(
    ("given", "computes", "told"),
    [
        ("float32", False, None),
        ("mixed_float16", False, "features are judged in float32"),
        ("mixed_bfloat16", True, "features are judged in float32"),
        ("mixed_bfloat16", False, "float32 may be ten times as fast"),
    ],
)
def test_what_a_user_is_told(monkeypatch, given, computes, told):
    monkeypatch.setattr(precision, "computes_in_bfloat16", lambda: computes)
    note = precision.note_of(AUTO.replace(precision=given))
    assert note is None if told is None else note.endswith(told)


@pytest.mark.parametrize("kept", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_run_keeps_its_own_on_any_machine(tmp_path, kept):
    config = AUTO.replace(workdir=str(tmp_path))
    begin_run(config.replace(precision=kept))
    (tmp_path / "checkpoints").mkdir()
    # Nothing is saved yet: another run may take its place.
    assert precision.with_precision(config).precision == precision.with_precision(AUTO).precision
    (tmp_path / "checkpoints" / "ckpt-00000001.index").touch()
    assert precision.with_precision(config).precision == kept
