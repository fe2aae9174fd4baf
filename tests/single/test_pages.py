"""The API reference covers the public names and every room."""

from __future__ import annotations

import re

import instcls_tf
from tests.commands import ROOT

API = ROOT / "docs" / "api"


def test_public_names_come_first():
    shown = re.findall(r"^::: instcls_tf\.[\w.]+\.(\w+)$", (API / "index.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(instcls_tf.__all__)


def test_every_room_has_its_page_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    for room in (path.parent.name for path in (ROOT / "instcls_tf").glob("*/__init__.py")):
        assert f"::: instcls_tf.{room}\n" in (API / f"{room}.md").read_text()
        assert f"api/{room}.md" in menu


def test_modules_outside_of_rooms_are_on_the_shared_page():
    shared = (API / "shared.md").read_text()
    for module in (ROOT / "instcls_tf").glob("[a-z]*.py"):
        assert shared.count(f"::: instcls_tf.{module.stem}\n") == 1
