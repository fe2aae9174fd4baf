"""Figures of matplotlib as PNG files: the one place that sets it up, and that writes what it has drawn.

Matplotlib is imported when something is drawn, and not before: results do not need it.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, Literal

from instcls_tf import files
from instcls_tf.errors import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure, of inches; without pyplot, so that it belongs to nobody's window and needs no closing."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def add_legend(owner: Any, handles: list, names: list[str], **options: Any) -> Legend:
    """A legend whose names are drawn as they are.

    Names come from data and from the command line. Matplotlib would set "$" as mathematics, and fail where it is none,
    and some of its versions leave out what begins with "_".

    Args:
      owner: a figure, or its axes.
      handles: what the names belong to.
      names: one per handle.
      **options: of matplotlib's `legend`.
    """
    legend = owner.legend(handles, [str(index) for index in range(len(names))], **options)
    for text, name in zip(legend.get_texts(), names):
        text.set_parse_math(False)
        text.set_text(shown(name))
    return legend


def save_figure(path: str, figure: Figure, dpi: int = 110) -> None:
    """Writes a PNG file.

    Raises:
      UserError: the file cannot be written.
    """
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # of a script that the font lacks: a box stands in its place
        figure.savefig(picture, dpi=dpi, format="png")
    files.write(path, picture.getvalue())
