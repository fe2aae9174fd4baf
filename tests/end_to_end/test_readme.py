"""Every command of the README, the presets, the scripts' help and the demo exists, and its flags parse."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from tests.commands import ROOT, run_command

README = (ROOT / "README.md").read_text()
PRESETS = sorted((ROOT / "flags" / "presets").glob("*.flags"))

# Imports a script, which defines its flags, and parses the others with them as the script does.
_PARSE = """
import importlib, sys
from absl import flags
del sys.argv[0]
importlib.import_module(sys.argv[0])
from flags import benchmark, command, pretraining
if sys.argv[0] == "scripts.benchmark":
    benchmark.take_subject()
command._define_help()
stray = flags.FLAGS(sys.argv)[1:]
assert not stray, stray
if sys.argv[0] == "scripts.pretrain" and not flags.FLAGS["help"].value:
    pretraining.config_from_flags().replace(workdir="somewhere").validate(num_workers=2)
"""


def commands_of(text: str) -> list[list[str]]:
    """The words of each `python -m scripts.NAME FLAGS` in some shell lines, comments apart."""
    calls = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if "scripts." in line else []
        if "-m" in words:
            calls.append(words[words.index("-m") + 1 :])
    return calls


def all_commands() -> list[list[str]]:
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    presets = [line for path in PRESETS for line in re.findall(r"^# Command:(.*)", path.read_text(), re.MULTILINE)]
    docstrings = [path.read_text().split('"""')[1] for path in (ROOT / "scripts").glob("[a-z]*.py")]
    inline = re.findall(r"`(python -m scripts\.[^`…]*)", README)
    return commands_of("\n".join([*blocks, *presets, *docstrings, *inline]))


def test_the_readme_shows_commands():
    assert len(commands_of(README)) >= 5


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_flags_parse(words):
    finished = run_command([sys.executable, "-c", _PARSE, *words], timeout=60)
    assert finished.status == 0, finished.output


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_documented(preset):
    assert f"--flagfile={preset.relative_to(ROOT)}" in README


def test_shell_scripts_exist_and_can_be_run():
    scripts = set(re.findall(r"\./(scripts/\w+\.sh)", README))
    assert {"scripts/demo.sh", "scripts/test.sh", "scripts/setup.sh"} <= scripts
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111, script


def test_linked_files_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
