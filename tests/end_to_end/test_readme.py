"""What the pages say is there: flags of commands parse, presets are documented, links and paths lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import instcls_tf
from tests.commands import ROOT, Finished, run_calls

README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
}
PRESETS = sorted((ROOT / "flags" / "presets").glob("*.flags"))
ALL_TEXT = "\n".join(PAGES.values())

# Imports a script, which defines its flags, and parses the others with them as the script does.
_PARSE = """
import importlib, sys
from absl import flags
del sys.argv[0]
importlib.import_module(sys.argv[0])
from flags import benchmark, checkpoint, command, export, launch, pretraining
if sys.argv[0] == "scripts.benchmark":
    benchmark.take_subject()
if sys.argv[0] == "scripts.checkpoint":
    checkpoint.take_words()
if sys.argv[0] == "scripts.check_export":
    export.take_folder()
if sys.argv[0] == "scripts.launch":
    launch.take_command()
command._define_help()
stray = flags.FLAGS(sys.argv)[1:]
assert not stray, stray
if sys.argv[0] == "scripts.pretrain" and not flags.FLAGS["help"].value:
    pretraining.config_from_flags().replace(workdir="somewhere").validate(num_workers=2)
"""


def blocks_of(text: str, languages: str) -> list[str]:
    return re.findall(rf"^```(?:{languages})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shell_lines(text: str) -> list[list[str]]:
    """The words of each line of some shell lines, comments apart."""
    return [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]


def modules_of(text: str) -> list[list[str]]:
    """What follows `python -m` in some shell lines."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if "python -m" in line]
    return [words[words.index("-m") + 1 :] for words in shell_lines("\n".join(lines)) if "-m" in words]


def launched_by(words: list[str]) -> list[list[str]]:
    """The command that the launcher is to start, as one of its own."""
    names = {path.stem for path in (ROOT / "scripts").glob("[a-z]*.py")}
    places = [place for place, word in enumerate(words) if words[0] == "scripts.launch" and word in names]
    return [[f"scripts.{words[places[0]]}", *words[places[0] + 1 :]]] if places else []


def all_modules() -> list[list[str]]:
    blocks = blocks_of(ALL_TEXT, "bash|sh|console")
    presets = [line for path in PRESETS for line in re.findall(r"^# Command:(.*)", path.read_text(), re.MULTILINE)]
    docstrings = [path.read_text().split('"""')[1] for path in (ROOT / "scripts").glob("[a-z]*.py")]
    inline = [span.replace("\n", " ") for span in re.findall(r"`(python -m [^`…]*)", ALL_TEXT)]
    calls = modules_of("\n".join([*blocks, *presets, *docstrings, *inline]))
    calls += [command for words in calls for command in launched_by(words)]
    return list(map(list, dict.fromkeys(map(tuple, calls))))


def all_commands() -> list[list[str]]:
    return [words for words in all_modules() if words[0].startswith("scripts.")]


def test_the_pages_show_commands():
    assert len(modules_of("\n".join(blocks_of(README, "bash")))) >= 3
    assert {words[0] for words in all_commands()} == {
        f"scripts.{path.stem}" for path in (ROOT / "scripts").glob("[a-z]*.py")
    }


@pytest.fixture(scope="module")
def parsed() -> dict[tuple[str, ...], Finished]:
    """All commands, parsed one by one."""
    calls = all_commands()
    preloaded = [f"flags.{path.stem}" for path in (ROOT / "flags").glob("[a-z]*.py")]
    return dict(zip(map(tuple, calls), run_calls(_PARSE, calls, preloaded)))


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_flags_parse(parsed, words):
    finished = parsed[tuple(words)]
    assert finished.status == 0, finished.output


def test_modules_exist():
    for words in all_modules():
        assert importlib.util.find_spec(words[0]), words


def test_tests_that_are_named_exist():
    shown = [words for block in blocks_of(ALL_TEXT, "bash") for words in shell_lines(block)]
    inline = [span.split() for span in re.findall(r"`(pytest [^`]*)`", ALL_TEXT)]
    calls = [words for words in shown + inline if words[:1] == ["pytest"]]
    assert len(calls) >= 5
    paths = [word for words in calls for word in words[1:] if word.startswith("tests")]
    assert len(paths) >= len(calls)
    for path in paths:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_documented(preset):
    assert f"--flagfile={preset.relative_to(ROOT)}" in ALL_TEXT


def test_shell_scripts_exist_and_can_be_run():
    scripts = set(re.findall(r"\./(scripts/\w+\.sh)", ALL_TEXT))
    assert {"scripts/demo.sh", "scripts/test.sh", "scripts/setup.sh"} <= scripts
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111, script


def test_what_could_go_is_listed_from_where_the_commands_are_given(tmp_path):
    (line,) = re.findall(r"`([^`]* < runs/photos/duplicates_drop\.txt)`", PAGES["docs/find.md"])
    folder = tmp_path / "runs" / "photos"
    folder.mkdir(parents=True)
    (tmp_path / "train").mkdir()
    for name in ("a b.jpg", "-l.jpg", "other.jpg"):
        (tmp_path / "train" / name).touch()
    line = line.replace("/data/photos/", f"{tmp_path}/")
    for names in ([], ["-l.jpg", "a b.jpg"]):
        (folder / "duplicates_drop.txt").write_text("".join(f"{name}\n" for name in names))
        finished = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
        shown = finished.stdout.splitlines()
        assert len(shown) == len(names), finished
        assert all(row.endswith(f" {name}") for row, name in zip(shown, names)), finished


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page]):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])  # which also names what is gone
def test_paths_in_the_text_exist(page):
    for path in re.findall(r"`((?:instcls_tf|flags|scripts|tests|docs|docker)/[\w./]+)`", PAGES[page]):
        assert (ROOT / path).exists(), path


def test_new_names_in_the_changelog_are_modules():
    table = re.search(r"\| old name \| new name \|\n(.*?)\n\n", PAGES["CHANGELOG.md"], re.DOTALL).group(1)
    named = re.findall(r"`(instcls_tf[\w.]+)`", "\n".join(row.split("|")[2] for row in table.splitlines()))
    assert len(named) > 30
    for module in named:
        assert Path(ROOT, *module.split(".")).with_suffix(".py").exists(), module


def test_python_examples_use_public_names():
    examples = blocks_of(ALL_TEXT, "python")
    assert examples
    for example in examples:
        ast.parse(example)
        for name in re.findall(r"\binstcls_tf\.(\w+)\(", example):
            assert name in instcls_tf.__all__, name


def test_the_readme_is_short():
    assert len(README.encode()) <= 10 * 1024
