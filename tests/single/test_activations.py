"""Whether activations are kept, by the memory that is free."""

from __future__ import annotations

import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.distributed.memory import free_bytes
from instcls_tf.encoder.bn_groups import Groups
from instcls_tf.encoder.sizes import sizes_of
from instcls_tf.pretraining import activations

CONFIG = PretrainConfig(encoder="resnet18", stem="small", width_multiplier=0.25, image_size=32, batch_size=128)


def write(path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_of_the_machine(tmp_path):
    assert free_bytes(tmp_path, tmp_path) is None
    write(tmp_path / "meminfo", "MemTotal:       24000 kB\nMemFree:  1 kB\nMemAvailable:   20000 kB\n")
    assert free_bytes(tmp_path, tmp_path) == 20000 * 1024
    assert free_bytes() > 0


@pytest.mark.parametrize("place", ["", "slurm", "slurm/job_7"])
@pytest.mark.parametrize(
    ("line", "root", "limit", "used", "files"),
    [
        ("0::/slurm/job_7", "", "memory.max", "memory.current", "inactive_file"),
        (
            "9:cpu,memory:/slurm/job_7",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_memory_of_control_groups(tmp_path, place, line, root, limit, used, files):
    """The limit of the own group, and of each that it is in; files that are only kept count as free."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemAvailable:   20000 kB\n")
    write(proc / "self" / "cgroup", f"3:cpuset:/elsewhere\n{line}\n")
    folder = groups / root / place
    write(folder / limit, "max\n")
    write(folder / used, "3000000\n")
    assert free_bytes(proc, groups) == 20000 * 1024
    write(folder / limit, "10000000\n")
    assert free_bytes(proc, groups) == 7_000_000
    write(folder / "memory.stat", f"anon 5\n{files} 1000000\n")
    assert free_bytes(proc, groups) == 8_000_000
    write(folder / used, "12000000\n")
    assert free_bytes(proc, groups) == 0


@pytest.mark.parametrize(("precision", "bytes_of_a_value"), [("float32", 4), ("mixed_bfloat16", 2)])
@pytest.mark.parametrize(
    ("num_instances", "workers", "instances"),
    [(1000, 1, 128), (1000, 2, 64), (1000, 3, 64), (100, 1, 100), (100, 2, 64), (50, 2, 50)],
)  # groups of 64: two of them, or one where there are no more images
def test_bytes_of_all_groups(precision, bytes_of_a_value, num_instances, workers, instances):
    sizes = sizes_of(CONFIG)
    values = sizes.activations + 2 * sizes.largest_activation
    expected = instances * 2 * values * bytes_of_a_value
    assert activations.activation_bytes(CONFIG.replace(precision=precision), num_instances, workers) == expected


@pytest.mark.parametrize(
    ("recompute", "micro_batch", "free", "expected"),
    [
        ("always", 64, 10**12, Groups(True, False)),
        ("never", 64, 0, Groups(True, True)),
        ("auto", 64, 10**12, Groups(True, True)),
        ("auto", 64, 10**8, Groups(True, False)),
        ("auto", 64, None, Groups(True, False)),  # nobody knows
        ("auto", 128, 10**12, Groups(False, False)),  # one group
        ("never", 128, 10**12, Groups(False, False)),
    ],
)
def test_groups(monkeypatch, recompute, micro_batch, free, expected):
    monkeypatch.setattr(activations, "free_bytes", lambda: free)
    config = CONFIG.replace(recompute=recompute, micro_batch=micro_batch)
    for num_instances, full_batch in [(1000, 128), (128, 128), (100, 100)]:  # 100: there is no larger batch than N
        groups = activations.groups_of(config, num_instances)
        assert groups == expected._replace(in_batch=full_batch / micro_batch)


def test_no_batch_goes_beyond_a_window():
    """Of PIC: 1,000 images are shown in windows of 125, so no batch has all of its 256."""
    config = CONFIG.replace(batch_size=256, micro_batch=25)
    pic = config.replace(method="pic")
    assert activations.groups_of(pic, 1000).in_batch == 5
    assert activations.activation_bytes(pic, 1000, 1) == activations.activation_bytes(config, 125, 1)


def test_at_most_60_percent_of_what_is_free(monkeypatch):
    needed = activations.activation_bytes(CONFIG, 1000, 1)
    for free, kept in [(needed / 0.599, True), (needed / 0.601, False)]:
        monkeypatch.setattr(activations, "free_bytes", lambda free=free: free)
        assert activations.groups_of(CONFIG, 1000).kept == kept
