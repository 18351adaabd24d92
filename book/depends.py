"""What a chapter depends on: the files that decide its outputs, found by reading imports, and a hash of them.

Safe rather than sorry: an import that cannot be resolved counts as the whole package, a result read under a computed
name as all results.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "msd_teach"
# Arrows that no import shows: the bundled model hands itself to the loader.
HANDED_IN = {f"{PACKAGE}.latent.loading": f"{PACKAGE}.pocket"}
# What executes a chapter, whatever it says.
ALWAYS = ("conftest.py", "constraints.txt", "book/chapters.py")


def fingerprint(chapter: Path, budget: str, root: Path = ROOT) -> str:
    """Hash of all that decides a chapter's outputs: its files, the budget and the named model."""
    digest = hashlib.sha256(f"{budget} {os.environ.get('MSD_TEACH_MODEL', '')}".encode())
    for path in sorted(dependencies(chapter, root)):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def dependencies(chapter: Path, root: Path = ROOT) -> set[Path]:
    """The chapter, what it imports of the package, their data files, the stored results that they read, the pins."""
    reader = _Reader(root)
    reader.read(chapter, "")
    return reader.files | {root / name for name in ALWAYS if (root / name).exists()}


class _Reader:
    """Follows imports from file to file and keeps what it finds in `files`."""

    def __init__(self, root: Path):
        self.root, self.files = root, set[Path]()
        self._seen = set[tuple[str, str]]()

    def read(self, path: Path, module: str) -> None:
        """Adds a source, what lies beside it, what it imports and which results it reads."""
        self.files.add(path)
        tree = _tree(path, path.stat().st_mtime_ns)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == PACKAGE:  # without `as` it gives all that hangs on the package
                        self.module(alias.name if alias.asname else PACKAGE)
            elif isinstance(node, ast.ImportFrom):
                where = _absolute(node, module, path)
                if where.split(".")[0] == PACKAGE:
                    for alias in node.names:
                        self.name(where, alias.name)
            elif isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).endswith(
                ("import_module", "__import__")
            ):
                self.everything()
        for name in _results(tree) if module != f"{PACKAGE}.runs.records" else ():
            self.files.update((self.root / "results").glob(f"{name}.json"))

    def module(self, module: str) -> None:
        """A module of the package by its dotted name, and the packages that hold it."""
        path = self.source(module)
        if module == PACKAGE or path is None:  # all public names, or something that is not there
            self.everything()
        elif (module, "") not in self._seen:
            self._seen.add((module, ""))
            outer = module.rpartition(".")[0]
            if outer == PACKAGE:  # its own imports are followed name by name
                self.files.add(self.root / PACKAGE / "__init__.py")
            else:
                self.module(outer)
            if path.name == "__init__.py":
                self.files.update(_data(path.parent))
            else:
                self.files.update(file for file in path.parent.iterdir() if file.is_file() and file.suffix != ".py")
            self.read(path, module)
            if module in HANDED_IN and self.source(HANDED_IN[module]):
                self.module(HANDED_IN[module])

    def name(self, module: str, name: str) -> None:
        """`from module import name`: a submodule, what a package imports from elsewhere, or something of its own."""
        if (module, name) in self._seen:
            return
        self._seen.add((module, name))
        path = self.source(module)
        if path is not None and self.source(f"{module}.{name}"):
            self.module(f"{module}.{name}")
        elif path is None or path.name != "__init__.py":
            self.module(module)
        elif origin := _origin(path, module, name):
            self.files.add(path)
            self.name(*origin)
        else:
            self.module(module)

    def source(self, module: str) -> Path | None:
        path = self.root.joinpath(*module.split("."))
        return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)

    def everything(self) -> None:
        """The whole package, and all results."""
        folders = (self.root / PACKAGE, self.root / "results")
        self.files.update(p for f in folders for p in f.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


@cache
def _tree(path: Path, _changed: int) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""


def _origin(init: Path, package: str, name: str) -> tuple[str, str] | None:
    """Where a package's `__init__` imports a name from; None for a name of its own, or one that stays unknown."""
    for node in _tree(init, init.stat().st_mtime_ns).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                where = _absolute(node, package, init)
                if (alias.asname or alias.name) == name and where.split(".")[0] == PACKAGE and where != package:
                    return where, alias.name
    return None


def _data(folder: Path) -> Iterator[Path]:
    """The data files of a room, with those in folders that hold no code: scripts, weights."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != "__pycache__" and not any(path.glob("*.py")):
            yield from (p for p in path.rglob("*") if p.is_file())
        elif path.is_file() and path.suffix != ".py":
            yield path


def _results(tree: ast.Module) -> set[str]:
    """Names of the stored results that a source reads; "*" where they are not said in so many words."""
    names, mentions = list[str](), 0
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name("records"), attr="read"), args=[ast.Constant(value=name)]):
                names.append(str(name))
            case ast.Attribute(value=ast.Name("records"), attr="read"):
                mentions += 1
            case ast.Attribute(attr="RESULTS") | ast.Constant(value="results"):
                names.append("*")
            case ast.Import(names=aliases) if any(alias.name.endswith(".records") for alias in aliases):
                names.append("*")
            case ast.ImportFrom(module=str(where), names=aliases) if where.endswith("records"):
                names += ["*"] if {alias.name for alias in aliases} & {"read", "RESULTS", "*"} else []
            case ast.ImportFrom(names=aliases) if any(alias.name == "records" and alias.asname for alias in aliases):
                names.append("*")
    literal = [name for name in names if name != "*"]
    return {*names, *(["*"] if mentions > len(literal) else [])}
