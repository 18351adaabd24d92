"""The staircase of imports: a room asks only the rooms below it (docs/design.md)."""

from __future__ import annotations

import ast
from importlib.util import resolve_name
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "msd_teach"
STEPS = {"plane": 1, "latent": 1, "render": 1, "measure": 2, "pocket": 3, "runs": 4, "lesson": 5}  # the method is 0
TOP = {"__init__.py", "__main__.py"}  # the public names and the command line know every room


def test_imports_are_a_staircase():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        room = place.parts[0] if len(place.parts) > 1 else "the method"
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level and str(place) not in TOP:
                here = ".".join(["msd_teach", *place.parts[:-1]])
                names = resolve_name("." * node.level + (node.module or ""), here).split(".")[1:]
                other = next(
                    (name for name in [*names, *(a.name for a in node.names)][:1] if name in STEPS), "the method"
                )
                below = STEPS.get(other, 0) < STEPS.get(room, 0)
                if room != other and not below:
                    wrong.append(f"{place}:{node.lineno} imports from {other}")
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(STEPS)
    assert not wrong
