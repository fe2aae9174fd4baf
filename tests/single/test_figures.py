"""Figures: names as they are, without a display."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from instcls_tf.report.figures import add_legend, new_figure, save_figure
from tests.commands import ROOT


def pixels_of(name: str, path) -> np.ndarray:
    from PIL import Image

    figure = new_figure(2, 1)
    axes = figure.subplots()
    (line,) = axes.plot([0, 1], [0, 1])
    legend = add_legend(axes, [line], [name])
    assert [text.get_text() for text in legend.get_texts()] == [name]
    save_figure(str(path), figure)
    return np.asarray(Image.open(path).convert("L"))


@pytest.mark.parametrize("name", ["$$", "$a$", "$\\frac$", "_hidden", "a_{b}", "\\$", "\N{CJK UNIFIED IDEOGRAPH-6771}"])
def test_names_of_a_legend_are_drawn(tmp_path, name, recwarn):
    drawn = pixels_of(name, tmp_path / "x.png")
    assert (drawn != pixels_of("", tmp_path / "y.png")).any()
    assert not recwarn.list


def test_a_name_that_is_no_text_is_drawn_escaped():
    axes = new_figure(2, 1).subplots()
    (text,) = add_legend(axes, axes.plot([0, 1]), [b"caf\xe9".decode(errors="surrogateescape")]).get_texts()
    assert text.get_text() == r"'caf\udce9'"


def test_mathematics_is_not_set(tmp_path):
    """In mathematics, spaces make no difference."""
    first, second = (pixels_of(name, tmp_path / "x.png") for name in ("$a b$", "$ab$"))
    assert first.shape != second.shape or (first != second).any()


def test_drawing_modules_do_without_matplotlib_until_they_draw():
    names = ("correlation", "figures", "memory_curves", "pictures", "scaling")
    modules = ["instcls_tf.plan.answer", *(f"instcls_tf.report.{name}" for name in names)]
    program = f"import sys, {', '.join(modules)}; print('matplotlib' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout == "False\n"
