"""Which room of the project imports which, read from the sources; `python -m tests.import_graph` draws it.

A room is a folder of the package, or a module that lies beside the folders. Imports inside of functions count: they
only come later. Those under TYPE_CHECKING count between rooms, where they are a dependency like others, but not between
modules, where they import nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("instcls_tf", "flags", "scripts")
DRAWING = ROOT / "docs" / "import_graph.svg"

Graph = dict[str, set[str]]


class Import(NamedTuple):
    """One module named by another."""

    module: str
    imported: str
    for_types: bool


def modules() -> dict[str, Path]:
    """The sources by the names that they are imported by."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> list[Import]:
    """All that the sources import, other packages included."""
    known = modules()
    return [
        Import(module, imported, for_types)
        for module, path in known.items()
        for imported, for_types in _imports_of(ast.parse(path.read_text(encoding="utf-8")), known)
    ]


def _imports_of(tree: ast.AST, known: dict[str, Path], for_types: bool = False) -> Iterator[tuple[str, bool]]:
    for node in ast.iter_child_nodes(tree):
        inside = for_types or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
        if isinstance(node, ast.Import):
            yield from ((name.name, for_types) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from package import module` imports a module, `from module import function` the module that has it.
            names = (f"{node.module}.{name.name}" for name in node.names)
            yield from ((name if name in known else str(node.module), for_types) for name in names)
        else:
            yield from _imports_of(node, known, inside)


def room_of(module: str) -> str:
    """The room of one of the project's modules."""
    parts = module.split(".")
    return parts[1] if parts[0] == "instcls_tf" and len(parts) > 1 else parts[0]


def graph_of_rooms() -> Graph:
    """The rooms that each room imports. The face of the package, `instcls_tf` itself, is none: it names all."""
    known = modules()
    graph: Graph = {room_of(module): set() for module in known if module != "instcls_tf"}
    for module, imported, _ in imports():
        if module != "instcls_tf" and imported in known and room_of(imported) != room_of(module):
            graph[room_of(module)].add(room_of(imported))
    return graph


def graph_of_modules() -> Graph:
    """The modules that each module imports when it is loaded or used."""
    known = modules()
    graph: Graph = {module: set() for module in known if module != "instcls_tf"}
    for module, imported, for_types in imports():
        if module in graph and imported in graph and not for_types:
            graph[module].add(imported)
    return graph


def circles(graph: Graph) -> list[str]:
    """What imports itself by way of others: one circle for each node that closes one."""
    found, done = [], set()

    def walk(node: str, way: list[str]) -> None:
        if node in way:
            found.append(" -> ".join([*way[way.index(node) :], node]))
        elif node not in done:
            for following in sorted(graph[node]):
                walk(following, [*way, node])
            done.add(node)

    for node in sorted(graph):
        walk(node, [])
    return found


# ---------------------------------------------------------------------------------------------------------- the drawing

_WIDTH, _HEIGHT, _ROW, _PAPER = 112, 30, 88, 860
# Rows are shifted to the left and to the right in turn, so that few arrows run behind boxes.
_SHIFT = 0.26


def depths(graph: Graph) -> dict[str, int]:
    """How many rooms lie above each one on the longest way to it; every arrow leads down.

    Raises:
      ValueError: there is a circle.
    """
    if circles(graph):
        raise ValueError(f"no room of a circle lies below the others: {'; '.join(circles(graph))}")

    def depth(room: str) -> int:
        return 1 + max((depth(above) for above in graph if room in graph[above]), default=-1)

    return {room: depth(room) for room in sorted(graph)}


def _places(graph: Graph) -> dict[str, tuple[float, float]]:
    """The middle of each room's box; within a row, in the order of the places from which a room is imported."""
    depth = depths(graph)
    places: dict[str, tuple[float, float]] = {}
    for level in range(max(depth.values()) + 1):
        row = [room for room in depth if depth[room] == level]
        above = {room: [x for other, (x, _) in places.items() if room in graph[other]] or [0.0] for room in row}
        row.sort(key=lambda room: (sum(above[room]) / len(above[room]), room))
        for place, room in enumerate(row):
            share = (place + 0.5 + (-_SHIFT if level % 2 else _SHIFT)) / len(row)
            places[room] = _PAPER * share, _ROW * level + 76
    return places


def draw(graph: Graph) -> str:
    """The rooms and their arrows as SVG; an arrow that others imply is pale."""
    places, arrows = _places(graph), sum(map(len, graph.values()))
    height = max(y for _, y in places.values()) + 40
    title = f"{len(graph)} rooms, {arrows} arrows (who imports whom), no circle; pale arrows follow from the others"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_PAPER} {height:.0f}" font-family="sans-serif">',
        "<style>@media (prefers-color-scheme: dark) { .paper { fill: #f6f6f6 } }</style>",
        f'<rect class="paper" width="{_PAPER}" height="{height:.0f}" fill="white"/>',
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#666"/></marker>',
        f'<text x="16" y="28" font-size="15">{escape(title)}</text>',
    ]
    pale = {(room, below) for room in graph for below in graph[room] if _is_implied(graph, room, below)}
    every = sorted((room, below) for room in graph for below in graph[room])
    for arrow in [*sorted(pale), *(arrow for arrow in every if arrow not in pale)]:
        lines.append(_arrow(places[arrow[0]], places[arrow[1]], arrow in pale))
    for room, (x, y) in sorted(places.items()):
        lines.append(
            f'<rect x="{x - _WIDTH / 2:.1f}" y="{y - _HEIGHT / 2:.1f}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"'
            f' fill="#e8f0fe" stroke="#4a6fa5"/><text x="{x:.1f}" y="{y + 5:.1f}" font-size="14"'
            f' text-anchor="middle">{escape(room)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def _is_implied(graph: Graph, room: str, below: str) -> bool:
    def reaches(start: str) -> bool:
        return start == below or any(map(reaches, graph[start]))

    return any(reaches(other) for other in graph[room] if other != below)


def _arrow(start: tuple[float, float], end: tuple[float, float], pale: bool) -> str:
    (x0, y0), (x1, y1) = (start[0], start[1] + _HEIGHT / 2), (end[0], end[1] - _HEIGHT / 2)
    bend = (y1 - y0) / 2
    style = 'stroke="#e4e4e4"' if pale else 'stroke="#666" marker-end="url(#tip)"'
    curve = f"M{x0:.1f} {y0:.1f}C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
    return f'<path d="{curve}" fill="none" {style}/>'


if __name__ == "__main__":
    DRAWING.write_text(draw(graph_of_rooms()), encoding="utf-8")
