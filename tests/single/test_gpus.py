"""Whether a machine has GPUs, from files as NVIDIA's driver leaves them."""

from __future__ import annotations

import re

import pytest

from instcls_tf.distributed import gpus
from tests.commands import ROOT


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A driver and two GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("version", "nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    return tmp_path / "version", tmp_path


@pytest.mark.parametrize(
    ("visible", "are_there"),
    [
        (None, True),
        ("1,0", True),
        ("0,1", True),
        ("0,-1", True),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", True),
        ("MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2", True),
        ("", False),
        ("-1", False),
        ("-1,0", False),
        ("none", False),
        ("NoDevFiles", False),
    ],
)
def test_gpus_that_are_hidden(machine, monkeypatch, visible, are_there):
    """The same for the warning of GPUs that TensorFlow leaves alone as for the number type that they compute in."""
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(gpus, "find_library", {"cudnn": "libcudnn.so.8"}.get)
    assert gpus.are_there(*machine) == gpus.can_be_loaded(*machine) == are_there


def test_a_machine_without_the_library(machine, monkeypatch):
    """A driver alone leaves TensorFlow on the processor."""
    monkeypatch.setattr(gpus, "find_library", lambda name: None)
    monkeypatch.setattr(gpus, "_has_module", lambda name: False)
    assert gpus.are_there(*machine) and not gpus.can_be_loaded(*machine)


def test_a_container_without_devices(machine):
    """It sees the driver of its host."""
    for number in (0, 1):
        (machine[1] / f"nvidia{number}").unlink()
    assert not gpus.are_there(*machine)


def test_a_machine_without_a_driver(machine):
    machine[0].unlink()
    assert not gpus.are_there(*machine)


def test_what_is_to_be_installed_is_the_tensorflow_of_the_lock():
    (version,) = re.findall(r"and-cuda\]==([\d.]+)", gpus.REMEDY)
    lock = (ROOT / "requirements.lock").read_text()
    assert re.search(rf"^tensorflow=={re.escape(version)} ", lock, re.MULTILINE)
