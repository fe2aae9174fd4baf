"""What runs were put through, rendered from the docstrings of the tests: `python -m tests.faults.reliability`."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "reliability.md"
_HEAD = """# Reliability

Every line is a test that really does it; `pytest tests/faults` runs them all. Rendered by `python -m
tests.faults.reliability`. A [soak](measurements.md#kills-and-resumes) kills and resumes runs again and again.
"""


def cases() -> dict[str, list[tuple[str, str]]]:
    """Names and docstrings of the tests that have one, by the first sentence of their module."""
    found = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        told = [(test.name, " ".join((ast.get_docstring(test) or "").split())) for test in tests]
        title = (ast.get_docstring(tree) or path.stem).splitlines()[0]
        found[f"{title.rstrip('.')} (`tests/faults/{path.name}`)"] = [case for case in told if case[1]]
    return {title: told for title, told in found.items() if told}


def page() -> str:
    """The text of docs/reliability.md."""
    parts = [_HEAD]
    for title, told in cases().items():
        parts.append(f"## {title}\n\n| what is done, and what follows | test |\n|---|---|")
        parts += [f"| {text} | `{name}` |" for name, text in told]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
