"""What moved during a run, from the checkpoints that it kept: class weights, embeddings, and what pulls at these.

Prints a table, a line for each checkpoint, and draws WORKDIR/dynamics.png:
  alignment, uniformity   of embeddings (Wang and Isola, 2020); lower is better of both
  norm, turn              mean length of a class weight, and degrees between it now and at the checkpoint before
  visit_turn              how much of that one visit of its image would make now, momentum included, degrees
  own_cosine, hard_cosine of a view to its own class weight and to its class' hard negatives
  own_share, hard_share, rest_share  of the classification's pull: own class, hard ones, all others
  instance_top1           how often a view's own class weight is its nearest
Runs of other methods have the first line only. Pretrain with --keep_checkpoints=1000 to have one for each epoch.

  python -m scripts.dynamics --workdir=runs/photos
"""

from flags import command, evaluation
from instcls_tf.distributed.launcher import refuse_several

evaluation.define_dynamics()


def main() -> None:
    refuse_several("dynamics")
    workdir, values = evaluation.required("workdir"), evaluation.FLAGS
    from instcls_tf.report.dynamics import dynamics_with_picture

    command.give(dynamics_with_picture(workdir, values.data_dir, values.instances), "dynamics", workdir)


if __name__ == "__main__":
    command.run(main, __doc__)
