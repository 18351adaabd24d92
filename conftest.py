"""Chapters as tests: notebooks/*.py are executed once a budget; executed/<budget>/ keeps the outputs for the book."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbmake.pytest_items import NotebookFile, NotebookItem

ROOT = Path(__file__).parent
BUDGET = os.environ.setdefault("MSD_TEACH_BUDGET", "smoke")
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
CORES = os.cpu_count() or 1

# The kernels inherit these.
os.environ["MSD_TEACH_STATIC"] = "1"
if BUDGET == "smoke":  # tests neither read nor fill the user's cache
    os.environ.setdefault("MSD_TEACH_CACHE", str(ROOT / "executed" / "smoke" / "cache"))
if WORKERS > 1:  # they share the cores: two kernels with two threads each thrash on two cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // WORKERS)))


def fingerprint(chapter: Path) -> str:
    """Hash of all that decides a chapter's outputs: source, package, stored results, pins, budget and named model."""
    files = [chapter, ROOT / "constraints.txt", ROOT / "conftest.py"]
    files += sorted(p for folder in ("msd_teach", "results") for p in (ROOT / folder).rglob("*") if p.is_file())
    digest = hashlib.sha256(f"{BUDGET} {os.environ.get('MSD_TEACH_MODEL', '')}".encode())
    for path in files:
        if "__pycache__" not in path.parts:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def is_progress_bar(output: nbformat.NotebookNode) -> bool:
    return bool(re.search(r"\[\d+:\d\d[<,].*/s\]", output.get("data", {}).get("text/plain", "")))


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Drop timestamps and progress bars, and put into the cells' metadata what Jupyter Book reads only there."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress_bar(output)]
        shown: dict = {}
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                shown["image"] = {"alt": alt}
        if "solution" in cell.metadata.get("tags", []):
            shown["code_prompt_show"] = "Show the solution"
            shown["code_prompt_hide"] = "Hide the solution"
        if shown:
            cell.metadata["mystnb"] = {**cell.metadata.get("mystnb", {}), **shown}


class Chapter(NotebookItem):
    """One execution of a chapter, skipped when the kept outputs are still right."""

    def runtest(self) -> None:
        key = fingerprint(self.path)
        target = ROOT / "executed" / BUDGET / f"{self.path.stem}.ipynb"
        if target.exists() and nbformat.read(target, 4).metadata.get("msd_teach", {}).get("key") == key:
            return
        notebook = jupytext.read(self.path, fmt="py:percent")
        for number, cell in enumerate(notebook.cells):
            cell.id = f"cell-{number}"  # jupytext draws random ones
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)

        self.filename = str(target)
        self.config.option.overwrite = True
        started = time.perf_counter()
        super().runtest()
        seconds = time.perf_counter() - started

        notebook = nbformat.read(target, 4)
        tidy(notebook)
        notebook.metadata["msd_teach"] = {
            "key": key,
            "budget": BUDGET,
            "seconds": round(seconds, 1),
            "machine": f"{CORES} cores ({platform.machine()}), {WORKERS} chapter{'s' * (WORKERS > 1)} at a time",
            "software": f"Python {platform.python_version()}, torch {version('torch')}",
        }
        nbformat.write(notebook, target)


class ChapterFile(NotebookFile):
    def collect(self) -> Generator[Any, Any, Any]:
        yield Chapter.from_parent(self, filename=str(self.path))


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """`python_files` lets pytest find the chapters; they are notebooks, not modules."""
    return ChapterFile.from_parent(parent, path=module_path) if module_path.parent == ROOT / "notebooks" else None
