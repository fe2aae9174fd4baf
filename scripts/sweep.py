"""Tries settings of several arms, with the same number of trials and of minutes for each, and compares the best.

A sweep that was interrupted goes on with the same command. Examples:
  python -m scripts.sweep --spec=sweep.toml
  python -m scripts.sweep --spec=sweep.toml --final
  python -m scripts.sweep --spec=sweep.toml --picture=accuracy.png
"""

from flags import command, sweep

sweep.define()


def main() -> None:
    path, values = sweep.path_of_spec(), sweep.checked()
    from instcls_tf.sweep import run
    from instcls_tf.sweep.spec import read_spec

    spec = read_spec(path, sweep.config_of)
    if values.dry_run:
        command.give(run.plan_of_sweep(spec, final=values.final))
    elif values.picture:
        command.give(run.picture_of_sweep(spec, values.picture))
    else:
        command.give(run.run_sweep(spec, final=values.final), "sweep", spec.workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
