"""Says what a run will need before it is launched: memory per worker, bytes on the wire, and the largest N that fits.

With --measure_seconds it times some steps on this machine, and says how long the run will take here. Takes all flags
of pretrain. The last line of standard output is one JSON object, sizes in bytes, times in seconds.

Examples:
  python -m scripts.plan --flagfile=flags/presets/photos.flags --dataset=folder:PATH --measure_seconds=20 --device=cpu
  python -m scripts.plan --flagfile=flags/presets/imagenet.flags --num_instances=1281167 --workers=64 --memory_limit=32
"""

from flags import command, plan

plan.define()


def main() -> None:
    (config, source), values = plan.checked_config(), plan.FLAGS
    from instcls_tf.plan.answer import plan_run

    limits = (values.num_instances, values.workers, values.memory_limit)
    command.give(plan_run(config, *limits, values.device, values.output, source, values.measure_seconds))


if __name__ == "__main__":
    command.run(main, __doc__)
