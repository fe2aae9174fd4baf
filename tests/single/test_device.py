"""The device of a worker, on a machine that has GPUs as far as TensorFlow's Python is told."""

from __future__ import annotations

import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from instcls_tf.distributed import collectives, cores, device
from instcls_tf.errors import UserError


@pytest.fixture
def gpus(monkeypatch) -> list[tf.config.PhysicalDevice]:
    """Two that are seen when TensorFlow has computed already: from then on it refuses other devices."""
    monkeypatch.delenv(cores.THREADS, raising=False)
    tf.constant(1.0) + 1.0
    own = context.context()
    found = [tf.config.PhysicalDevice(f"/physical_device:GPU:{place}", "GPU") for place in range(2)]
    monkeypatch.setattr(own, "_physical_devices", [*own._physical_devices, *found])
    monkeypatch.setattr(own, "_visible_device_list", [*own._visible_device_list, *found])
    monkeypatch.setattr(
        own, "_physical_device_to_index", {one: place for place, one in enumerate(own._physical_devices)}
    )
    monkeypatch.setattr(own, "_memory_growth_map", dict.fromkeys(found))
    assert tf.config.list_physical_devices("GPU") == found
    with pytest.raises(RuntimeError):
        tf.config.experimental.set_memory_growth(found[0], True)
    return found


def test_one_worker_goes_on_with_what_tensorflow_has(gpus, monkeypatch):
    """After `load_encoder`, in a notebook."""
    device.take()
    assert tf.config.get_visible_devices("GPU") == gpus
    monkeypatch.setenv(cores.THREADS, str(cores.allowed() + 1))
    before = tf.config.threading.get_intra_op_parallelism_threads()
    device.take()
    assert tf.config.threading.get_intra_op_parallelism_threads() == before


def test_several_workers_must_take_theirs_first(gpus, monkeypatch):
    """Each would compute on the same GPU, and on all cores."""
    monkeypatch.setattr(collectives, "_size", 2)
    monkeypatch.setattr(collectives, "_local_size", 2)
    with pytest.raises(UserError, match=r"^TensorFlow has its devices already, before the workers could take theirs: "):
        device.take()
