"""Every export in its own runtime, in an environment that has nothing else: measured, and written into a page.

The environments have this clone on their path and none of its dependencies. The page's own examples are run as well: a
Python block below a line `<!-- run in NAME [VARIABLE=VALUE] -->` finds `images` and the export that it opens, and is to
leave `features` that are the encoder's.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Callable

import numpy as np

from instcls_tf.benchmark.environments import interpreter
from instcls_tf.errors import UserError
from instcls_tf.export.measure import OTHER_SHAPES, batch_of, name_of
from instcls_tf.export.self_check import relative_error
from instcls_tf.json_text import json_of
from instcls_tf.report.answer import Answer

# Environment, format and runtime.
RUNS = (
    ("tf_2_15", "saved_model", "serving"),
    ("tf_2_20", "saved_model", "serving"),
    ("onnxruntime", "onnx", "onnxruntime"),
    ("onnxruntime", "onnx_int8", "onnxruntime"),
    ("litert", "litert", "litert"),
    ("torch", "torchvision", "torchvision"),
    ("timm", "torchvision", "timm"),
    ("onnxruntime", "detectron2", "numpy"),  # NumPy is there
)
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")}
_EXAMPLE = re.compile(r"<!-- run in (\w+)( \w+=\w+)? -->\n+```python\n(.*?)```", re.DOTALL)
_TABLE = re.compile(r"(<!-- matrix -->\n).*?(<!-- end of the matrix -->)", re.DOTALL)
_ROOT = Path(__file__).resolve().parents[2]


def measure_exports(
    environments: str, page: str, image_size: int, formats: list[str], say: Callable[[str], None]
) -> Answer:
    """Makes the environments, exports a ResNet-50 with random statistics, measures `RUNS`, and runs the examples.

    Args:
      environments: folder that keeps the environments.
      page: Markdown whose examples are run, and whose table is written anew.
      image_size: pixels.
      formats: which are exported and measured; with some alone, the page is left as it is.
      say: told of each step.

    Returns:
      `runs`, as `export.measure.measured` gives them with `environment`, `format` and `bytes`; `examples`, the relative
      error of each; `processor`.

    Raises:
      UserError: an environment cannot be made, or something fails in one.
    """
    environments = os.path.abspath(environments)
    os.makedirs(environments, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=environments) as folder:
        say("exporting")
        exporter = interpreter(environments, "export", say)
        _python(exporter, ["-m", "instcls_tf.benchmark.export_subject", folder, str(image_size), *formats])
        runs = []
        for environment, form, runtime in (run for run in RUNS if run[1] in formats):
            say(f"{form} in {environment}")
            python = interpreter(environments, environment, say)
            runs.append(_run(python, folder, environment, form, runtime))
            say(json_of(runs[-1]))
        examples = []
        is_whole = set(formats) == {form for _, form, _ in RUNS}
        for environment, setting, code in _EXAMPLE.findall(Path(page).read_text("utf-8")) if is_whole else ():
            python = interpreter(environments, environment, say)
            error = _error_of_example(python, folder, image_size, setting, code)
            examples.append({"environment": environment, "setting": setting.strip(), "error": error})
            say(json_of(examples[-1]))
    facts = {"image_size": image_size, "processor": _processor()}
    result = {**facts, "runs": runs, "examples": examples}
    if is_whole:
        _write_table(page, result)
    return Answer(result, table_of(result))


def _run(python: str, folder: str, environment: str, form: str, runtime: str) -> dict[str, Any]:
    words = [f"{folder}/{form}", f"{folder}/reference.npz", runtime]
    found = json.loads(_python(python, ["-m", "instcls_tf.export.measure", *words]).splitlines()[-1])
    return {"environment": environment, "format": form, "bytes": _size(folder, form), **found}


def _error_of_example(python: str, folder: str, image_size: int, setting: str, code: str) -> float:
    """The relative error of what a block of the page leaves in `features`."""
    images = batch_of(3, image_size, image_size)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        np.save(f"{place}/images.npy", images)
        for path in set(re.findall(r'"(exported/\w+)[/"]', code)):
            os.makedirs(f"{place}/exported", exist_ok=True)
            os.symlink(f"{folder}/{_format_of(path)}", f"{place}/{path}")
        program = f"import numpy as np\nimages = np.load('images.npy')\n{code}\nnp.save('features.npy', features)\n"
        name, _, value = setting.strip().partition("=")
        _python(python, ["-c", program], place, {name: value} if name else {})
        expected = np.load(f"{folder}/reference.npz")[name_of(3, image_size, image_size, "features")]
        return relative_error(np.load(f"{place}/features.npy"), expected)


def _format_of(path: str) -> str:
    """`exported/photos` is the SavedModel, `exported/photos_onnx` the ONNX export, …"""
    _, _, form = os.path.basename(path).partition("_")
    return form or "saved_model"


def _python(python: str, words: list[str], folder: str | None = None, variables: dict[str, str] | None = None) -> str:
    """What a program prints.

    Raises:
      UserError: it fails.
    """
    environment = {**os.environ, **_ONE_THREAD, "PYTHONPATH": str(_ROOT), **(variables or {})}
    done = subprocess.run([python, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{python} {' '.join(words)[:200]}: failed: {' '.join(done.stderr.split())[-800:]}")
    return done.stdout


def _size(folder: str, form: str) -> int:
    """Bytes of an export, its cards included."""
    return sum(path.stat().st_size for path in Path(folder, form).rglob("*") if path.is_file())


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        found = re.search(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def table_of(result: dict[str, Any]) -> str:
    """The runs as a table in Markdown; a row for each run and size."""
    lines = [
        "| export | runtime | MB | images | largest error in batches of 1, 3 and 64 | images/s |",
        "|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        sizes = list(dict.fromkeys(tuple(case["size"]) for case in run["cases"]))
        for size in sizes:
            cases = [case for case in run["cases"] if tuple(case["size"]) == size]
            if len(cases) == 1:
                continue
            errors = ", ".join(f"{case['error']:.1e}" for case in cases)
            speeds = ", ".join(f"{case['images_per_second']:.1f}" for case in cases)
            lines.append(
                f"| {run['format']} | {run['runtime']} {run['version']} | {run['bytes'] / 1e6:.1f} |"
                f" {size[0]} x {size[1]} | {run['metric']} {errors} | {speeds} |"
            )
        others = [case["error"] for case in run["cases"] if tuple(case["size"]) in OTHER_SHAPES]
        if others:
            shapes = ", ".join(f"{height} x {width}" for height, width in OTHER_SHAPES)
            lines.append(
                f"| {run['format']} | {run['runtime']} {run['version']} | | {shapes}, alone | {run['metric']}"
                f" {max(others):.1e} at most | |"
            )
    return "\n".join(lines)


def _notes_on(result: dict[str, Any]) -> str:
    steps = ", ".join(
        f"{run['changed']} of {run['trainable']} with TensorFlow {run['version']}"
        for run in result["runs"]
        if "changed" in run
    )
    checks = ", ".join(
        f"{run['self_check']:.1e} ({run['format']}, {run['runtime']} {run['version']})" for run in result["runs"]
    )
    examples = ", ".join(f"{example['error']:.1e}" for example in result["examples"])
    return (
        f"ResNet-50, {result['image_size']} pixels, random BN statistics and gammas, one core of"
        f" {result['processor']}.\n\n- Self-checks: {checks}.\n"
        f"- Trainable variables that one step of SGD changes: {steps}.\n"
        f"- The examples of this page, in the order in which they stand, as they stand: {examples}."
    )


def _write_table(page: str, result: dict[str, Any]) -> None:
    path = Path(page)
    text = path.read_text(encoding="utf-8")
    content = f"{table_of(result)}\n\n{_notes_on(result)}\n\n"
    path.write_text(_TABLE.sub(lambda found: found[1] + content + found[2], text), encoding="utf-8")
