"""Says what is wrong with a set-up, and what to do about it, before a run finds it out; also under the launcher.

Versions, build, threads, memory and ports of each machine; transport, GPUs, clocks, latency and bandwidth between all
workers, the workdir, and a step of the given flags of pretrain. The last line of standard output is one JSON object.
The exit status is 2 if a run would fail here.

Examples:
  python -m scripts.doctor --quick
  python -m scripts.launch -np 2 doctor --flagfile=flags/presets/digits.flags --workdir=runs/digits
  python -m scripts.launch -H a:8,b:8 doctor --flagfile=flags/presets/imagenet.flags --dataset=synthetic
"""

from flags import command, doctor

doctor.define()


def main() -> None:
    from instcls_tf.doctor.examine import examine, refuse_problems

    answer = examine(doctor.asked(), doctor.FLAGS.json)
    command.give(answer)
    refuse_problems(answer)


if __name__ == "__main__":
    command.run(main, __doc__)
