"""Every command of the README exists, and its flags parse."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from tests.commands import ROOT, run_command

README = (ROOT / "README.md").read_text()


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


SCRIPT_CALLS = [words[words.index("-m") + 1 :] for words in _commands() if "-m" in words]


def test_shell_scripts_exist_and_can_be_run():
    scripts = set(re.findall(r"\./(scripts/\w+\.sh)", README))
    assert {"scripts/demo.sh", "scripts/test.sh", "scripts/setup.sh"} <= scripts
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111, script


@pytest.mark.parametrize("words", SCRIPT_CALLS, ids=" ".join)
def test_flags_parse(words):
    module, *flags = words
    check = (
        "import importlib, sys\nfrom absl import flags\n"
        "importlib.import_module(sys.argv[1])\n"
        "assert flags.FLAGS([sys.argv[1], *sys.argv[2:]]) == [sys.argv[1]]\n"
    )
    finished = run_command([sys.executable, "-c", check, module, *flags], timeout=60)
    assert finished.status == 0, finished.output
    if module == "scripts.pretrain":
        check += "from flags import pretraining\npretraining.config_from_flags().validate(8)\n"
        finished = run_command([sys.executable, "-c", check, module, *flags], timeout=60)
        assert finished.status == 0, finished.output


def test_linked_files_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
