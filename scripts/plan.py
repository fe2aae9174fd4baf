"""Says what a run will need before it is launched: memory per worker, bytes on the wire, and the largest N that fits.

With --measure_seconds it times some steps on this machine, and says how long the run will take here. With --scaling:
seconds of a step and efficiency against the number of workers, and which part of a step they go into. Takes all flags
of pretrain. The last line of standard output is one JSON object, sizes in bytes, times in seconds.

Examples:
  python -m scripts.plan --flagfile=flags/presets/photos.flags --dataset=folder:PATH --measure_seconds=20 --device=cpu
  python -m scripts.plan --flagfile=flags/presets/imagenet.flags --num_instances=1281167 --workers=64 --memory_limit=32
  python -m scripts.plan --flagfile=flags/presets/imagenet.flags --scaling --doctor=doctor.json --images_per_second=400
"""

from flags import command, plan

plan.define()


def main() -> None:
    command.give(plan.answer())


if __name__ == "__main__":
    command.run(main, __doc__)
