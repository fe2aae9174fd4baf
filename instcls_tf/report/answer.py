"""What a command answers, and in which order: first the result, then its picture.

What a command does has one home: a function of the room that the work belongs to. It takes settings, never flags, and
gives back its result, as an `Answer` where there is a text or a picture as well:

  pretrain                                  pretraining.pretrain
  plan                                      plan.answer, plan.scaling
  knn_eval, linear_eval, finetune, extract  evaluation.commands
  report                                    evaluation.against_start
  detect                                    detection.finetune
  similarity, correlation, compare          report.similarity, report.correlation, report.comparison
  dynamics                                  report.dynamics
  search, duplicates                        report.search, report.duplicates
  show_views                                report.view_grid
  gallery                                   gallery.command
  checkpoint                                report.checkpoints
  doctor                                    doctor.examine
  export, check_export                      export.commands, export.self_check
  prepare                                   data.prepare
  benchmark                                 benchmark.commands
  sweep                                     sweep.run

`flags/` defines and reads flags and measures nothing; a script parses, calls that function and gives its answer, which
`flags/command.py` writes, prints and, last, draws.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

# Memory is told in these.
GIGABYTE = 10**9


class Picture(NamedTuple):
    """A picture that is still to be drawn."""

    path: str  # of a PNG file, or of a page
    draw: Callable[[str], object]  # writes it there


class Written(NamedTuple):
    """A file of the answer that is still to be written."""

    path: str
    write: Callable[[str], object]  # there; raises UserError if it cannot


class Answer(NamedTuple):
    """What a command has found out."""

    result: dict  # the JSON object
    text: str = ""  # for people, printed above it
    text_name: str = ""  # of the file beside the result that keeps the text, if any
    picture: Picture | None = None
    files: tuple[Written, ...] = ()  # besides those of the result and the text
