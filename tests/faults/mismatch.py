"""Two workers that are not in the same collective: `--differs=name`, `shape` or `dtype` of worker 1's tensor."""

from __future__ import annotations

from absl import flags

from flags import command
from instcls_tf import stamps
from instcls_tf.distributed import collectives, watchdog

flags.DEFINE_enum("differs", None, ["name", "shape", "dtype"], "What of worker 1's tensor.")
FLAGS = flags.FLAGS


def main() -> None:
    import tensorflow as tf

    with watchdog.watching(5.0, ""):
        collectives.init()
        stamps.stamp("summing", 3, 10)
        odd = FLAGS.differs if collectives.rank() == 1 else None
        dtype = tf.float64 if odd == "dtype" else tf.float32
        values = tf.ones([3 if odd == "shape" else 2], dtype)

        @tf.function(autograph=False)
        def total(values: tf.Tensor) -> tf.Tensor:
            return collectives.sum_over_workers(values, "another_sum" if odd == "name" else "sum")

        total(values)


if __name__ == "__main__":
    command.run(main, __doc__ or "")
