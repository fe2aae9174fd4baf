"""Draws a grid of views: what the network will see. Each row is an image and then random views of it.

Examples:
  python -m scripts.show_views --flagfile=flags/presets/photos.flags --dataset=folder:/data/photos --output=views.png
  python -m scripts.show_views --workdir=runs/photos --output=views.png
"""

from flags import command, data, evaluation
from instcls_tf.distributed.launcher import refuse_several

data.define_show_views()


def main() -> None:
    refuse_several("show_views")
    output, values = evaluation.required("output"), evaluation.FLAGS
    config = data.view_config()
    from instcls_tf.progress import Progress
    from instcls_tf.report.view_grid import draw_views

    say = Progress(visible=True).say
    draw_views(config, output, images=values.images, columns=values.columns, say=say)
    command.say(output)


if __name__ == "__main__":
    command.run(main, __doc__)
