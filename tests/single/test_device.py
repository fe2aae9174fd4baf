"""The device of a worker, on a machine that has GPUs as far as TensorFlow's Python is told."""

from __future__ import annotations

import ctypes

import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from instcls_tf.distributed import collectives, cores, device, workers
from instcls_tf.distributed import gpus as own_gpus
from instcls_tf.distributed import hosts as machines
from instcls_tf.errors import UserError

NAMED = "TF_NUM_INTRAOP_THREADS"


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


@pytest.mark.parametrize("size", [1, 2])
def test_a_wrong_number_of_threads_is_no_lateness(gpus, monkeypatch, size):
    monkeypatch.setattr(collectives, "_size", size)
    monkeypatch.setattr(collectives, "_local_size", size)
    monkeypatch.setenv(cores.THREADS, "abc")
    with pytest.raises(UserError, match=r"^INSTCLS_THREADS='abc' in the environment: wanted the number of threads per"):
        device.take()


def test_a_gpu_is_taken_though_the_threads_are_given(gpus, monkeypatch):
    """One worker, which TensorFlow refuses another number of threads."""
    taken = []
    monkeypatch.setenv(cores.THREADS, str(cores.allowed() + 1))
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda mine, kind: taken.append((mine, kind)))
    device.take()
    assert taken == [(gpus[0], "GPU")]


@pytest.mark.parametrize(
    ("count", "taken"),
    [
        (8, [0, 2, 3, 4, 5, 6, 7]),
        (7, [0, 1, 2, 3, 4, 5, 6]),  # the one that failed is not seen any more
        (2, [0, 1, 0, 1, 0, 1, 0]),
    ],
)
def test_a_gpu_that_was_left_out_is_nobody_s(monkeypatch, count, taken):
    """The second of eight, whose worker has failed: seven go on, and as many on a host of which all are well."""
    hosts = machines.without_one(machines.parse("a:8,b:7"), "a", 1)
    monkeypatch.setenv(own_gpus.UNUSED, machines.unused_gpus(hosts))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(range(count)))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda mine, grows: None)
    monkeypatch.setattr(collectives, "_local_size", 7)
    given = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda mine, kind: given.append(mine))
    for rank in range(14):
        monkeypatch.setattr(collectives, "_rank", rank)
        monkeypatch.setattr(collectives, "_local_rank", rank % 7)
        device._take_gpu()
    assert given == taken + [local_rank % count for local_rank in range(7)]


@pytest.mark.parametrize(("quota", "environment", "threads"), [(1, {}, [1]), (None, {}, []), (1, {NAMED: "2"}, [])])
def test_one_worker_keeps_to_a_quota(monkeypatch, quota, environment, threads):
    """TensorFlow would start a thread for each core of the machine."""
    for name in (cores.THREADS, NAMED):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = []
    monkeypatch.setattr(cores, "affinity", lambda: 8)
    monkeypatch.setattr(cores, "quota", lambda: quota)
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", given.append)
    device.take()
    assert given == threads


class FalseCuda:
    """A driver of two GPUs."""

    def cuInit(self, _):
        return 0

    def cuDeviceGet(self, handle, number):
        handle._obj.value = 70 + number
        return 0 if number < 2 else 101

    def cuDeviceGetPCIBusId(self, address, length, handle):
        address.value = f"0000:{handle.value}:00.0".encode()
        return 0 if length >= 13 else 1


def test_where_a_gpu_is_plugged_in(gpus, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": FalseCuda()}[name])
    monkeypatch.setattr(context.context(), "_visible_device_list", gpus[1:])
    assert device.pci_address() == "0000:71:00.0"
    monkeypatch.setattr(FalseCuda, "cuInit", lambda self, _: 100)
    assert device.pci_address() is None
    monkeypatch.setattr(context.context(), "_visible_device_list", [])
    assert device.pci_address() is None


@pytest.mark.parametrize(
    ("others", "is_refused"),
    [
        ([("a", "0000:70", "0,1"), ("a", "0000:71", "0,1"), ("a", "0000:70", "0,1")], True),
        ([("a", "0000:70", "0"), ("a", "0000:71", "1")], False),  # shown one each, by Slurm or by a script
        ([("a", "0000:70", None), ("b", "0000:70", None)], False),
        ([("a", None, ""), ("a", None, "")], False),  # on CPUs
    ],
)
def test_workers_that_share_a_gpu(monkeypatch, others, is_refused):
    """NCCL would end in "Duplicate GPU detected", after every restart again."""
    refuse = workers._refuse_shared_gpus.__wrapped__
    monkeypatch.setattr(workers, "everybodys", lambda own: others)
    monkeypatch.setattr(collectives, "has_nccl", lambda: False)
    refuse()
    monkeypatch.setattr(collectives, "has_nccl", lambda: True)
    if not is_refused:
        return refuse()
    sentence = (
        r"3 workers on a, 2 GPU\(s\) \(CUDA_VISIBLE_DEVICES=0,1\): wanted one for each, so -np or -H with at most 2"
    )
    with pytest.raises(UserError, match=sentence):
        refuse()
    unset = [(host, address, None) for host, address, _ in others]
    monkeypatch.setattr(workers, "everybodys", lambda own: unset)
    with pytest.raises(UserError, match=r"\(CUDA_VISIBLE_DEVICES is not set\)"):
        refuse()
