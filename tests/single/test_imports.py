"""Who may import whom: one direction, no circle, and no TensorFlow where a mistake is to be answered at once."""

from __future__ import annotations

import ast
import sys
from importlib import metadata

import pytest

import instcls_tf
from tests import import_graph
from tests.commands import run_command
from tests.import_graph import DRAWING, ROOT, Import, circles, draw, graph_of_modules, graph_of_rooms, imports, modules

# From the top; a room imports rooms further down, and beside it only what is listed below.
LEVELS = (
    ("scripts",),
    ("flags",),
    ("claims", "doctor"),
    ("benchmark", "detection", "gallery", "plan", "report", "sweep"),
    ("search",),
    ("evaluation", "export", "initial", "pretraining"),
    ("methods",),
    ("classifier", "data", "run"),
    ("distributed", "encoder"),
    (
        "checks",
        "compiler",
        "config",
        "errors",
        "files",
        "flagfiles",
        "json_text",
        "optimizer",
        "progress",
        "stamps",
        "workdir_files",
    ),
)
SIDEWAYS = {
    ("benchmark", "gallery"),  # of synthetic images
    ("benchmark", "plan"),  # measured beside planned
    ("benchmark", "report"),  # figures
    ("gallery", "report"),  # the page about the run
    ("plan", "report"),
    ("sweep", "report"),
    ("initial", "export"),  # names and files of weights, in the other direction
    ("evaluation", "initial"),  # a run beside its start
    ("pretraining", "initial"),
    ("pretraining", "evaluation"),  # k-NN while a run goes on
    ("classifier", "data"),  # the contrastive prior is a pass over the images
    ("encoder", "distributed"),  # BN statistics of all workers
    ("detection", "report"),  # figures
    ("checks", "errors"),
    ("config", "checks"),
    ("config", "errors"),
    ("config", "flagfiles"),
    ("files", "errors"),
    ("flagfiles", "errors"),
    ("flagfiles", "files"),
    ("json_text", "errors"),
    ("progress", "errors"),
    ("progress", "stamps"),
}
# What a command imports before it has checked its flags, and what does its work without TensorFlow.
WITHOUT_TENSORFLOW = (
    "flags.pretraining",
    "instcls_tf.config",
    "instcls_tf.classifier.tiles",
    "instcls_tf.classifier.kernels.streamed_softmax",
    "instcls_tf.run.workdir",
    "instcls_tf.data.sources",
    "instcls_tf.pretraining.advice",
    "instcls_tf.pretraining.preflight",
    "instcls_tf.search.settings",
    *(module for module in modules() if module.startswith(("instcls_tf.plan", "instcls_tf.sweep"))),
)


def test_rooms_import_downwards():
    level = {room: place for place, rooms in enumerate(LEVELS) for room in rooms}
    graph = graph_of_rooms()
    assert graph.keys() == level.keys(), "each room has a level, and no other"
    beside = {(room, other) for room in graph for other in graph[room] if level[other] == level[room]}
    assert beside == SIDEWAYS
    assert [(room, other) for room in graph for other in sorted(graph[room]) if level[other] < level[room]] == []


def test_nothing_imports_itself_by_way_of_others():
    assert circles(graph_of_rooms()) == []
    assert circles(graph_of_modules()) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b -> d -> b"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_are_read_from_all_places():
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from instcls_tf.run import encoder\n"
        "class A:\n    def f(self):\n        from instcls_tf.config import PretrainConfig\n        import os.path\n"
    )
    found = list(import_graph._imports_of(ast.parse(source), modules()))
    assert found == [
        ("typing", False),
        ("instcls_tf.run.encoder", True),
        ("instcls_tf.config", False),
        ("os.path", False),
    ]


def importers(package: str) -> set[str]:
    found: list[Import] = imports()
    return {module for module, imported, _ in found if imported == package or imported.startswith(f"{package}.")}


def test_horovod_has_one_door():
    assert importers("horovod") == {"instcls_tf.distributed.collectives"}


def test_what_compiles_the_kernels_is_no_part_of_what_runs_them():
    assert importers("instcls_tf.classifier.kernels.build") == set()


def test_the_package_knows_no_command_line():
    for package in ("absl", "flags", "scripts"):
        assert {module for module in importers(package) if module.startswith("instcls_tf")} == set()


_IMPORTS = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    if {"tensorflow", "horovod"} & set(sys.modules):
        sys.exit(f"{module} imports them")
"""


def test_no_tensorflow_is_imported():
    finished = run_command([sys.executable, "-c", _IMPORTS, *WITHOUT_TENSORFLOW])
    assert finished.status == 0, finished.output


def test_type_checkers_see_the_public_names():
    tree = ast.parse((ROOT / "instcls_tf" / "__init__.py").read_text())
    conditions = {ast.unparse(node.test): node for node in tree.body if isinstance(node, ast.If)}
    block = conditions["TYPE_CHECKING"]
    seen = {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert seen == {name: f"instcls_tf.{home}" for name, home in instcls_tf._HOMES.items()}
    assert instcls_tf.__all__ == sorted(instcls_tf._HOMES)
    for name in instcls_tf.__all__:
        assert getattr(instcls_tf, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'instcls_tf' has no attribute 'typo'"):
        instcls_tf.typo  # noqa: B018
    assert (ROOT / "instcls_tf" / "py.typed").exists()


def test_help_shows_each_public_name():
    assert {name for name in instcls_tf.__all__ if name not in instcls_tf.__doc__} == set()
    assert 'preset="photos"' in instcls_tf.__doc__


def test_the_version_is_that_of_the_project(monkeypatch):
    line = f'version = "{instcls_tf.__version__}"'
    assert line in (ROOT / "pyproject.toml").read_text().splitlines()

    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_installed)
    assert f'version = "{instcls_tf.__version__}"' == line


def test_the_drawing_is_up_to_date():
    assert DRAWING.read_text(encoding="utf-8") == draw(graph_of_rooms()), "python -m tests.import_graph draws it anew"
