"""Says what a run will need before it is launched: memory per worker, bytes on the wire, and the largest N that fits.

Takes all flags of pretrain. The last line of standard output is one JSON object, sizes in bytes.

Example:
  python -m scripts.plan --flagfile=flags/presets/imagenet.flags --num_instances=1281167 --workers=64 --memory_limit=32
"""

from flags import command, plan

plan.define()


def main() -> None:
    config, values = plan.checked_config(), plan.FLAGS
    from instcls_tf.plan.answer import plan_run

    limits = (values.num_instances, values.workers, values.memory_limit)
    command.give(plan_run(config, *limits, values.device, values.output))


if __name__ == "__main__":
    command.run(main, __doc__)
