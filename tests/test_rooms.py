"""The staircase of imports: a room asks only the rooms below it (docs/design.md)."""

from __future__ import annotations

import ast
from importlib.util import resolve_name
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "msd_teach"
STEPS = {"plane": 1, "latent": 1, "render": 1, "measure": 2, "pocket": 3, "runs": 4, "lesson": 5}  # the method is 0
TOP = {"__init__.py", "__main__.py"}  # the public names and the command line know every room


def asked(node: ast.AST, folder: str) -> set[str]:
    """The full names of all that an import may bring."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        module = resolve_name("." * node.level + (node.module or ""), folder) if node.level else node.module
        return {f"{module}.{alias.name}" for alias in node.names}
    return set()


def test_imports_are_a_staircase():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        room = place.parts[0] if len(place.parts) > 1 else ""
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for name in asked(node, ".".join(["msd_teach", *place.parts[:-1]])) if str(place) not in TOP else ():
                first, *rest = name.split(".")
                other = rest[0] if first == "msd_teach" and rest and rest[0] in STEPS else ""
                if first == "msd_teach" and other != room and not STEPS.get(other, 0) < STEPS.get(room, 0):
                    wrong.append(f"{place}:{node.lineno} asks {name}")  # type: ignore[attr-defined]
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(STEPS)
    assert not wrong
