"""Pictures as files, and one sentence where that is not possible."""

from __future__ import annotations

import os

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from instcls_tf.errors import UserError


def refuse_unwritable(path: str) -> None:
    """Makes the folder of a picture and tries to write there, before anything long is measured for it.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path, "ab"):
            pass
    except OSError as error:
        raise UserError(f"--output={path}: cannot write this file ({error.strerror})") from error


def save_figure(path: str, figure: plt.Figure) -> None:
    """Writes a PNG file and closes the figure.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        refuse_unwritable(path)
        figure.savefig(path, dpi=110, format="png")
    except OSError as error:
        raise UserError(f"--output={path}: cannot write this file ({error.strerror})") from error
    finally:
        plt.close(figure)
