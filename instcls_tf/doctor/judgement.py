"""What is said of the machines' descriptions and of what was measured, and what to do about it. No TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instcls_tf.distributed import cores, gpus
from instcls_tf.distributed.ports import is_open_to_others
from instcls_tf.doctor.finding import OK, PROBLEM, WARNING, Finding, judge
from instcls_tf.errors import some_of

_MEGABYTE, _GIGABYTE = 1e6, 1e9
_SHARED_MEMORY = 256 * 2**20
_CLOCK_SECONDS = 1.0
# Below it, saving a checkpoint of a gigabyte takes longer than a minute.
_WRITE_BYTES_PER_SECOND = 2e7
_FREE_BYTES = 2e9
# Messages that take longer than the work of a step are what the step waits for.
_LARGEST_SHARE = 1.0
# What a sum of one number takes between machines, at most, where the network and the processors are free.
_LATENCY_SECONDS = 0.02


def of_machines(found: Sequence[dict[str, Any]]) -> list[Finding]:
    """From what each worker tells of its machine, in the order of ranks."""
    return [_versions(found), _build(found), _threads(found), _memory(found), _ports(found)]


def _differing(found: Sequence[dict[str, Any]], name: str) -> list[str]:
    """`worker 1 on b: ...` for those that tell something else than worker 0."""
    return [
        f"worker {rank} on {machine['host']} {machine[name]}"
        for rank, machine in enumerate(found)
        if machine[name] != found[0][name]
    ]


def _versions(found: Sequence[dict[str, Any]]) -> Finding:
    own = found[0]["versions"]
    told = ", ".join(f"{name} {version}" for name, version in own.items())
    lacking = [name for name, version in own.items() if version == "none"]
    others = [
        f"worker {rank} on {machine['host']} has {name} {machine['versions'][name]}, worker 0 {own[name]}"
        for rank, machine in enumerate(found)
        for name in own
        if machine["versions"][name] != own[name]
    ]
    codes = _differing(found, "code")
    return judge(
        "versions", told, {"versions": own, "code": found[0]["code"]},
        (bool(others), PROBLEM, some_of(others, separator="; "),
         "the same environment on all hosts: ./scripts/setup.sh"),
        (bool(codes), PROBLEM, f"the package's code differs: {some_of(codes)}, worker 0 {found[0]['code']}",
         "the same version of the project on all hosts"),
        (bool(lacking), PROBLEM, f"not installed: {', '.join(lacking)}", "./scripts/setup.sh installs all of it"),
    )  # fmt: skip


def _build(found: Sequence[dict[str, Any]]) -> Finding:
    machine = found[0]
    lacking = [each["host"] for each in found if not each["horovod"]]
    mpirun = [each["host"] for each in found if not each["mpirun"]]
    kernels = _differing(found, "kernels")
    homes = [each["host"] for each in found if not each["home_is_writable"]]
    return judge(
        "build", f"Horovod, mpirun and {len(machine['kernels'])} libraries of kernels are there",
        {"mpirun": machine["mpirun"], "horovod": machine["horovod"], "kernels": machine["kernels"]},
        (bool(lacking), PROBLEM, f"Horovod is not compiled for TensorFlow on {some_of(lacking)}", "./scripts/setup.sh"),
        (bool(mpirun), PROBLEM, f"no mpirun on {some_of(mpirun)}", "./scripts/setup.sh, or activate the environment"),
        (bool(kernels), PROBLEM, f"kernels differ: {some_of(kernels)}, worker 0 {machine['kernels']}",
         "python -m instcls_tf.classifier.kernels.build on all hosts"),
        (len(machine["kernels"]) < 2, WARNING, "no kernels for the classifier or for views: slower on CPUs",
         "python -m instcls_tf.classifier.kernels.build, which needs g++"),
        (bool(homes), WARNING, f"the home folder cannot be written on {some_of(homes)}",
         "set HOME to a folder that can"),
    )  # fmt: skip


def _threads(found: Sequence[dict[str, Any]]) -> Finding:
    threads = [machine["threads"] for machine in found]
    told = [f"worker {rank} on {machine['host']} {machine['threads']}" for rank, machine in enumerate(found)]
    bound = [
        machine["host"]
        for machine in found
        if machine["is_bound"] and machine["allowed_cores"] < machine["cores"] // machine["workers"]
    ]
    confined = {
        f"{machine['allowed_cores']} of {machine['cores']} on {machine['host']}"
        for machine in found
        if not machine["is_bound"] and machine["allowed_cores"] < machine["cores"]
    }
    idle = [machine["host"] for machine in found if machine["share"] > machine["threads"]]
    crowded = [
        machine["host"]
        for machine in found
        if machine["workers"] > machine["cores" if machine["is_bound"] else "allowed_cores"]
    ]
    return judge(
        "threads", f"{threads[0]} per worker", {"threads": threads},
        (len(set(threads)) > 1, PROBLEM, f"differ: {some_of(told)}; a run would be refused, as sums round differently",
         f"scripts.launch sees to it; with another launcher set {cores.THREADS}={min(threads)} for all workers"),
        (bool(crowded), WARNING, f"more workers than cores on {some_of(dict.fromkeys(crowded))}",
         "fewer workers there"),
        (bool(idle), WARNING, f"{threads[0]} per worker; cores are left idle on {some_of(dict.fromkeys(idle))}",
         "hosts with as many cores per worker, or more workers where cores are"),
        (bool(bound), OK, f"{threads[0]} per worker, who may run on some of the cores alone on"
         f" {some_of(dict.fromkeys(bound))}",
         "if the others are yours as well: no binding (scripts.launch binds nothing), more --cpus-per-task with Slurm"),
        (bool(confined), OK, f"{threads[0]} per worker, who share {some_of(sorted(confined))}",
         "if the others are yours as well: more --cpus-per-task with Slurm, --cpus and --cpuset-cpus of the container"),
    )  # fmt: skip


def _memory(found: Sequence[dict[str, Any]]) -> Finding:
    free = [machine["free_memory"] or 0 for machine in found]
    small = [
        machine["host"]
        for machine in found
        if machine["workers"] > 1 and (machine["shared_memory"] or _SHARED_MEMORY) < _SHARED_MEMORY
    ]
    return judge(
        "memory", f"{min(free) / _GIGABYTE:.1f} GB free at least", {"free_bytes": free},
        (bool(small), WARNING, f"/dev/shm is smaller than 256 MiB on {some_of(dict.fromkeys(small))}, through which"
         " workers of a machine exchange tensors", "docker run --shm-size=1g"),
    )  # fmt: skip


def _ports(found: Sequence[dict[str, Any]]) -> Finding:
    told = {f"worker {rank} on {machine['host']}": machine["listening"] for rank, machine in enumerate(found)}
    is_open = [f"{who} {place}" for who, places in told.items() for place in places if is_open_to_others(place)]
    on_one_host = len({machine["host"] for machine in found}) == 1
    return judge(
        "ports", "nothing listens beyond this machine", {"listening": told},
        (bool(is_open) and on_one_host, WARNING, f"listens to other machines: {some_of(is_open)}",
         "python -m scripts.launch, under which one machine's workers listen on loopback alone"),
        (bool(is_open), OK, f"workers listen to each other: {some_of(is_open)}",
         "a network that only trusted machines reach"),
    )  # fmt: skip


def of_transport(found: Sequence[dict[str, Any]]) -> list[Finding]:
    """From what each worker tells of Horovod and its devices, once it has joined the others."""
    own, counts = found[0], [each["gpus"] for each in found]
    few = [each["host"] for each in found if 0 < each["gpus"] < each["workers"]]
    left_out = [each["host"] for each in found if each["has_gpus"] and not each["gpus"]]
    uneven = len({count > 0 for count in counts}) > 1
    transport = judge(
        "transport", f"{own['transport']}, {own['workers_in_all']} worker(s)", {"transport": own["transport"]},
        (own["transport"] == "Gloo", WARNING, "Gloo: slow on CPUs, and anybody can connect to its ports",
         "python -m scripts.launch, or horovodrun --mpi"),
    )  # fmt: skip
    devices = judge(
        "GPUs", f"{sum(counts)} seen" if any(counts) else "none: CPUs compute", {"gpus": counts},
        (bool(left_out), PROBLEM, f"{gpus.LEFT_OUT} on {some_of(dict.fromkeys(left_out))}", gpus.REMEDY),
        (uneven, PROBLEM, "some workers have GPUs, others none", "hosts of one kind, or CUDA_VISIBLE_DEVICES= for all"),
        (bool(few), WARNING, f"fewer GPUs than workers on {some_of(few)}", "one worker per GPU"),
        (any(counts) and not own["nccl"], WARNING, "Horovod has no NCCL: GPUs exchange through memory of the host",
         "HOROVOD_GPU_OPERATIONS=NCCL ./scripts/setup.sh"),
    )  # fmt: skip
    return [transport, devices]


def of_clocks(seconds: float) -> Finding:
    """From the largest difference between the workers' clocks."""
    return judge(
        "clocks", f"differ by {seconds * 1e3:.0f} ms", {"seconds": seconds},
        (seconds > _CLOCK_SECONDS, WARNING, f"differ by {seconds:.1f} s: the earliest error may not be the cause",
         "NTP on all hosts"),
    )  # fmt: skip


def of_collectives(measured: dict[str, float]) -> Finding:
    """From latency and bandwidth."""
    latency = measured["latency_seconds"]
    sums, gathers = (measured[f"{kind}_bytes_per_second"] / _MEGABYTE for kind in ("sum", "gather"))
    told = f"{latency * 1e3:.1f} ms for one number, {sums:.0f} and {gathers:.0f} MB/s in sums and gathers"
    return judge(
        "collectives", told, measured,
        (latency > _LATENCY_SECONDS, WARNING, told, "look for other work on the hosts, and at ping between them"),
    )  # fmt: skip


def of_misfit(says: str, wanted: str, figures: dict[str, Any]) -> Finding:
    """A step of these flags that does not fit into the memory of a worker, and what takes less."""
    return Finding("step", PROBLEM, says, f"{wanted}; python -m scripts.plan says what fits", figures)


def work_of(measured: dict[str, float | None]) -> float:
    """Seconds of a worker's encoder and classifier, of what was measured of them."""
    return sum(measured[part] or 0.0 for part in ("encoder_seconds", "classifier_seconds"))


def needed_rate(measured: dict[str, float | None], share: dict[str, Any]) -> float | None:
    """Images per second that the worker with the most of a batch has to decode; arguments as in `of_step`."""
    return None if measured["classifier_seconds"] is None else share["local_images"] / work_of(measured)


def of_step(measured: dict[str, float | None], wire_bytes: int, share: dict[str, Any]) -> Finding:
    """From the parts of a step of these flags.

    Args:
      measured: seconds of the parts; None of a classifier that does not fit beside the run's.
      wire_bytes: that a worker sends in a step.
      share: what a worker computes in that time, and of which recipe, for rates.
    """
    work, messages = work_of(measured), measured["communication_seconds"] or 0.0
    told = f"{work:.3f} s of work, {messages:.3f} s of messages ({wire_bytes / _MEGABYTE:.2f} MB from each worker)"
    if measured["classifier_seconds"] is None:
        told += "; the classifier alone does not fit beside the run's, and is not in it"
        return judge("step", told, {**measured, "wire_bytes": wire_bytes, **share})
    return judge(
        "step", told, {**measured, "wire_bytes": wire_bytes, **share},
        (messages > _LARGEST_SHARE * work, WARNING, f"{told}: the network is what a step waits for",
         "a faster network (of several, OMPI_MCA_btl_tcp_if_include and NCCL_SOCKET_IFNAME name one), a larger"
         " --batch_size, or fewer hosts"),
    )  # fmt: skip


def of_workdir(path: str, measured: dict[str, Any]) -> Finding:
    """From whether it is shared, and its speed."""
    if measured["problem"]:
        return Finding(
            "workdir", PROBLEM, measured["problem"], "a folder with room on NFS or another shared file system", measured
        )
    written, read = (measured[f"{kind}_bytes_per_second"] for kind in ("write", "read"))
    speed = f"{written / _MEGABYTE:.0f} MB/s written, {read / _MEGABYTE:.0f} MB/s read"
    free = measured["free_bytes"]
    told = f"{path}: {speed}, {free / _GIGABYTE:.0f} GB free"
    return judge(
        "workdir", told, measured,
        (free < _FREE_BYTES, WARNING, told, "room for three checkpoints: python -m scripts.plan says how large one is"),
        (written < _WRITE_BYTES_PER_SECOND, WARNING, told, "--checkpoint_every, or another file system"),
    )  # fmt: skip


def of_decoding(
    rates: Sequence[float], needed: float | None, is_kept: bool = False, can_be_kept: bool = False
) -> Finding:
    """From the images that each worker decodes per second, and what a step of these flags needs of each.

    Args:
      rates: images per second of each worker.
      needed: of each worker; None if no step was measured.
      is_kept: whether the recipe has a cache, so that steps do not wait for the decoding.
      can_be_kept: whether these images could have one.
    """
    told = f"{min(rates):.0f} images/s decoded by the slowest worker"
    if is_kept:
        figures = {"images_per_second": list(rates), "needed": None}
        return judge("images", f"{told}, each image once: --cache keeps them for the steps", figures)
    cache = "--cache=ram, which decodes each image once, " if can_be_kept else ""
    wanted = "" if needed is None else f", {needed:.0f} needed"
    return judge(
        "images", told + wanted, {"images_per_second": list(rates), "needed": needed},
        (needed is not None and min(rates) < needed, WARNING, f"{told}{wanted}: steps wait for images",
         f"{cache}smaller images (python -m scripts.prepare), more cores per worker, or a local copy of the data"),
    )  # fmt: skip
