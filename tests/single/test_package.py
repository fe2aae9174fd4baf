"""The package declares what its code imports, and the lock pins what it declares."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.commands import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = ("instcls_tf", "flags", "scripts")
# Where a distribution is called otherwise than what is imported.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "tomllib": "tomli",  # before Python 3.11
    "absl": "absl-py",
    "faiss": "faiss-cpu",
    "google": "protobuf",
    "umap": "umap-learn",
    "sklearn": "scikit-learn",
}
# What is imported only there comes with an extra, under the name of the extra.
ROOMS_OF_EXTRAS = {
    "detection": ["detection"],
    "benchmark": ["benchmark"],
    "distributed": ["horovod"],
    "export": ["onnx"],
    "evaluation": ["find"],
    "search": ["find"],
    "gallery": ["benchmark", "umap"],
}
# No test needs them: `scripts.export_matrix` installs its own, and maps are made without UMAP as well.
NOT_LOCKED = {"onnx", "umap"}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def pinned() -> dict[str, str]:
    """The versions of the lock that are meant for this Python."""
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    wanted = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate()]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in wanted}


def imports_of(path) -> set[str]:
    """The top-level names of all imports in a file, those within functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def standard_library() -> set[str]:
    if sys.version_info < (3, 10):
        pytest.skip("Python 3.9 does not list its modules")
    return set(sys.stdlib_module_names)


def test_what_the_code_imports_is_declared():
    known = standard_library() | set(OURS)
    checked = set()
    for path in (path for folder in OURS for path in (ROOT / folder).rglob("*.py")):
        extras = ROOMS_OF_EXTRAS.get(path.parent.name, [])
        declared = names(list(itertools.chain(PROJECT["dependencies"], *(EXTRAS[extra] for extra in extras))))
        for module in imports_of(path) - known:
            assert canonicalize_name(DISTRIBUTIONS.get(module, module)) in declared, f"{path}: {module}"
            checked.add(module)
    assert {"tensorflow", "horovod", "faiss", "pycocotools"} <= checked


def test_what_the_tests_import_is_declared():
    known = standard_library() | {*OURS, "tests"}
    declared = names(list(itertools.chain(PROJECT["dependencies"], *EXTRAS.values())))
    for path in (ROOT / "tests").rglob("*.py"):
        for module in imports_of(path) - known:
            names_of_module = {"yaml": "pyyaml", **DISTRIBUTIONS}
            assert canonicalize_name(names_of_module.get(module, module)) in declared, f"{path}: {module}"


def test_nothing_but_the_package_is_installed():
    """`flags` and `scripts` in site-packages would be in the way of others of these names."""
    found = setuptools.find_packages(str(ROOT), **SETTINGS["tool"]["setuptools"]["packages"]["find"])
    assert {name.split(".")[0] for name in found} == {"instcls_tf"}
    assert {f"instcls_tf.{path.parent.name}" for path in (ROOT / "instcls_tf").glob("*/__init__.py")} < set(found)


def test_presets_are_installed_with_the_package():
    """Where `flags/` is not: the link in the clone is followed when the package is built."""
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["instcls_tf"]
    found = {path.name for pattern in patterns for path in (ROOT / "instcls_tf").glob(pattern)}
    assert found == {"py.typed", *(path.name for path in (ROOT / "flags" / "presets").glob("*.flags"))}


def test_dependencies_are_ranges():
    for line in itertools.chain(PROJECT["dependencies"], *EXTRAS.values()):
        assert "==" not in line, line
    assert not names(PROJECT["dependencies"]) & {"pytest", "ruff", "faiss-cpu", "cmake", "horovod"}


@pytest.mark.parametrize("extra", [None, *sorted(set(EXTRAS) - NOT_LOCKED)])
def test_the_lock_pins_what_is_declared(extra):
    lock = pinned()
    for wanted in map(Requirement, EXTRAS[extra] if extra else PROJECT["dependencies"]):
        if wanted.marker and not wanted.marker.evaluate():
            continue
        assert wanted.specifier.contains(lock[canonicalize_name(wanted.name)]), wanted


def test_the_lock_is_exact():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert line.startswith("#") or re.match(r"[\w.-]+==[\w.]+( ;|$)", line), line


def test_requirements_txt_takes_all_locked_extras_but_horovod():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "-c requirements.lock"
    extras = re.fullmatch(r"-e \.\[(.*)\]", lines[1]).group(1).split(",")
    assert sorted(extras) == sorted(set(EXTRAS) - NOT_LOCKED - {"horovod"})


def closure(requirements: list[str]) -> set[str]:
    """What is installed along with them, for this Python."""
    found: dict[str, set[str]] = {}
    todo = [Requirement(line) for line in requirements]
    while todo:
        wanted = todo.pop()
        name, extras = canonicalize_name(wanted.name), {"", *wanted.extras}
        is_meant = wanted.marker is None or wanted.marker.evaluate()
        if not is_meant or extras <= found.get(name, set()):
            continue
        found.setdefault(name, set()).update(extras)
        for needed in map(Requirement, metadata.requires(name) or []):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                todo.append(needed)
    return set(found)


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "Dockerfile.cpu"])
@pytest.mark.skipif(sys.version_info[:2] not in ((3, 10), (3, 11)), reason="the images have Python 3.10 and 3.11")
def test_images_have_nothing_for_tests_and_pages_alone(dockerfile):
    """Such as the driver of a browser, of 170 MB."""
    runs = [extra for extra in EXTRAS if extra not in {"dev", "docs"} | NOT_LOCKED]
    used = closure([*PROJECT["dependencies"], *(line for extra in runs for line in EXTRAS[extra])])
    surplus = closure([*EXTRAS["dev"], *EXTRAS["docs"]]) - used - {"pip"}
    text = (ROOT / "docker" / dockerfile).read_text().replace("\\\n", " ")
    taken_away = set(re.search(r"pip uninstall -qy ([^&]*) && ", text).group(1).split())
    assert surplus - taken_away == set() and {"playwright", "mypy"} <= surplus
    assert taken_away & used == {"cmake"}, "which compiles Horovod"


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "Dockerfile.cpu"])
def test_images_compile_the_kernels_from_what_is_copied(tmp_path, dockerfile):
    """The first stage has these files of the package alone."""
    copied = re.findall(r"^COPY (instcls_tf/\S+) (\S+)$", (ROOT / "docker" / dockerfile).read_text(), re.MULTILINE)
    for source, target in copied:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / target)
        else:
            (tmp_path / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, tmp_path / target)
    # Without the installed package, which Python prefers to a folder that has no `__init__.py`.
    program = (
        "import os, sys; sys.path[1:] = [path for path in sys.path[1:] if not os.path.isdir(f'{path}/instcls_tf')];"
        "from instcls_tf.classifier.kernels import build; print(os.path.relpath(build.__file__),"
        " build.streamed_softmax.LIBRARY.path, build.views.LIBRARY.path)"
    )
    command = [sys.executable, "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = [
        subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=True).stdout
        for folder in (ROOT, tmp_path)
    ]
    assert said[0] == said[1] and said[0].startswith(b"instcls_tf/") and b"/views-" in said[0]


def test_what_pages_are_made_of_is_installed():
    """Files that are no modules come along by name only."""
    (pattern,) = SETTINGS["tool"]["setuptools"]["package-data"]["instcls_tf.gallery"]
    found = {path.name for path in (ROOT / "instcls_tf" / "gallery").glob(pattern)}
    assert found == {"index.html", "gallery.css", "points.js", "gallery.js"}


@pytest.mark.parametrize("asked", [None, "0"])
def test_onednn_is_on_unless_asked_otherwise(asked):
    """TensorFlow decides by the processor, and leaves it off on many."""
    name = "TF_ENABLE_ONEDNN_OPTS"
    environment = {**os.environ, name: asked} if asked else {**os.environ}
    if not asked:
        environment.pop(name, None)
    code = (
        "import os, instcls_tf; from tensorflow.python.util import _pywrap_util_port as port;"
        f" print(os.environ['{name}'], port.IsMklEnabled())"
    )
    told = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True, capture_output=True)
    assert told.stdout.decode().split() == ([asked, "False"] if asked else ["1", "True"])
