"""Flags of `reproduce`."""

from __future__ import annotations

from absl import flags

from flags import given, paths
from instcls_tf.distributed.job import refuse_launcher
from instcls_tf.errors import UserError
from instcls_tf.report.answer import Answer

FLAGS = flags.FLAGS

# What says which runs are made, of which --render starts none.
_OF_RUNS = ("claim", "scale", "dataset", "workdir", "seeds", "epochs", "dry_run")


def define() -> None:
    """The flags of `reproduce`."""
    flags.DEFINE_string("claim", None, "The claim's id, or `all`.")
    flags.DEFINE_string(
        "scale", "digits", "`digits` (minutes), `cifar10` or `fashion` (hours), `imagenet` (--dry_run only)."
    )
    flags.DEFINE_string(
        "dataset",
        None,
        "Images of --scale=cifar10 or fashion, with train and test: the first 500 of each class, and all 10,000.",
    )
    paths.define("workdir", "runs/claims", "Folder that holds the runs.")
    paths.define("claims", "docs/claims.yaml", "What the paper claims.")
    paths.define("results", "docs/results.jsonl", "What was measured, a line for each run.")
    paths.define("page", "docs/results.md", "With --render: the page.")
    flags.DEFINE_integer("seeds", None, "Seeds of each run instead of the claim's.", lower_bound=1)
    flags.DEFINE_integer("epochs", None, "One length instead of the claim's, for trials.", lower_bound=1)
    flags.DEFINE_bool("dry_run", False, "Print the commands of the runs that are missing, and hours; start none.")
    flags.DEFINE_bool("render", False, "Write the page from the claims and the results; start no run.")


def answer() -> Answer:
    """What the parsed command line asks for.

    Raises:
      UserError: a flag is missing, does not fit, or is left without any effect by another one; or a launcher has
        started it: each worker would make all runs, which the launcher kills with it.
    """
    refuse_launcher("reproduce")
    from instcls_tf.claims import reproduce
    from instcls_tf.claims.ledger import read_ledger

    ledger = read_ledger(FLAGS.claims)
    given.refuse(_OF_RUNS if FLAGS.render else ("page",), f"left out with{'' if FLAGS.render else 'out'} --render")
    if FLAGS.render:
        return reproduce.ledger_page(ledger, FLAGS.results, FLAGS.page)
    if FLAGS.claim is None:
        raise UserError(f"--claim is missing: wanted one of {', '.join(['all', *ledger.claims])}, or --render")
    scale = ledger.scale(FLAGS.scale)
    asked = ledger.chosen(FLAGS.claim)
    if FLAGS.claim != "all" and scale.name not in asked[0].epochs:
        wanted = ", ".join(asked[0].epochs)
        raise UserError(f"--scale={scale.name}: --claim={FLAGS.claim} is not tried there, wanted one of {wanted}")
    chosen = [claim.tried(scale.name, FLAGS.seeds, FLAGS.epochs) for claim in asked]
    at = reproduce.Places(FLAGS.workdir, FLAGS.results, FLAGS.dataset)
    if FLAGS.dry_run:
        return reproduce.plan(chosen, scale, at)
    if scale.name in ("cifar10", "fashion") and FLAGS.dataset is None:
        raise UserError(f"--dataset is missing: wanted folder:PATH, the images of --scale={scale.name}")
    return reproduce.reproduce(chosen, scale, at)
