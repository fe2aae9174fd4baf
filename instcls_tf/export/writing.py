"""How every format is written: aside, with its card, read back in a runtime, and only then under its name."""

from __future__ import annotations

import importlib.util
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from instcls_tf.errors import UserError, reason_of, shown
from instcls_tf.export import card as cards
from instcls_tf.export import self_check
from instcls_tf.export.folder import whole_folder
from instcls_tf.export.subject import Subject


class Format(NamedTuple):
    """One kind of export."""

    name: str  # a word of --format
    write: Callable[[Subject, str], None]  # into an empty folder
    use: str  # Markdown for the card; {folder} and {architecture} are put in
    any_size: bool  # whether images are prepared inside
    card_place: str = ""  # folder of model_card.json below that of the export
    least_cosine: float | None = None  # of formats that round weights, in the place of the relative error
    architecture_of: Callable[[Subject], str] = lambda subject: ""  # torchvision's name; refuses what has none
    needed: tuple[str, ...] = ()  # packages of the extra `onnx`


def refuse_missing_packages(form: Format) -> None:
    """Refuses a format whose packages are not there, before anything long is done for it.

    Raises:
      UserError: names them.
    """
    missing = [name for name in form.needed if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(
            f"--format={form.name}: needs {', '.join(missing)} (pip install '.[onnx]', on CPython 3.10 to 3.12), which"
            f" {'is' if len(missing) == 1 else 'are'} not installed"
        )


def export(form: Format, subject: Subject, output_dir: str) -> dict[str, Any]:
    """Writes an export; it appears when it is complete and has computed what the encoder does.

    Args:
      form: the format.
      subject: what is exported.
      output_dir: folder to write; it may exist if it is empty.

    Returns:
      The model card.

    Raises:
      UserError: `output_dir` holds something already or cannot be written, the encoder has no such format, a package is
        missing, or what was written computes something else.
    """
    refuse_missing_packages(form)
    with whole_folder(output_dir) as folder:
        architecture = form.architecture_of(subject)
        _write(form, subject, folder, output_dir)
        card = cards.card_of(subject, form.name, form.any_size, architecture, form.least_cosine)
        use = form.use.format(folder=output_dir, architecture=architecture)
        cards.write(folder, card, use, form.card_place)
        result = self_check.run(folder)
        if not result.error <= result.tolerance:
            raise UserError(
                f"--output={output_dir}: not written, because {result.runtime} computes something else from it than the"
                f" encoder: the {result.metric} is {result.error:.1e}, at most {result.tolerance:.0e} was expected"
            )
        card.update(verified_in=result.runtime, max_error=result.error)
        cards.write(folder, card, use, form.card_place)
    return card


def _write(form: Format, subject: Subject, folder: str, output_dir: str) -> None:
    try:
        form.write(subject, folder)
    except tf.errors.OpError as error:  # as which TensorFlow raises that a disk is full
        raise UserError(f"--output={output_dir}: cannot be written ({shown(reason_of(error))})") from error
