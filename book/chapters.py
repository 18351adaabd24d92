"""Chapters as tests: notebooks/*.py are executed once a budget; executed/<budget>/ keeps the outputs for the book.

conftest.py imports this when pytest meets a chapter, so that other tests need neither jupytext nor nbmake.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from importlib.metadata import version

import jupytext
import nbformat
from nbmake.nb_run import NotebookRun
from nbmake.pytest_items import NotebookFailedException, NotebookFile, NotebookItem

from .depends import ROOT, fingerprint

BUDGET = os.environ["MSD_TEACH_BUDGET"]
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
CORES = os.cpu_count() or 1
TIMEOUT = 600  # seconds a cell


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
        for tag, what in (("solution", "the solution"), ("hide-input", "the plotting code")):
            if tag in cell.metadata.get("tags", []):
                shown |= {"code_prompt_show": f"Show {what}", "code_prompt_hide": f"Hide {what}"}
        if shown:
            cell.metadata["mystnb"] = {**cell.metadata.get("mystnb", {}), **shown}


class Chapter(NotebookItem):
    """One execution of a chapter, skipped when the kept outputs are still right."""

    def runtest(self) -> None:
        key = fingerprint(self.path, BUDGET)
        target = ROOT / "executed" / BUDGET / f"{self.path.stem}.ipynb"
        if target.exists() and nbformat.read(target, 4).metadata.get("msd_teach", {}).get("key") == key:
            self.user_properties.append(("kept", True))
            return
        notebook = jupytext.read(self.path, fmt="py:percent")
        for number, cell in enumerate(notebook.cells):
            cell.id = f"cell-{number}"  # jupytext draws random ones
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)

        started = time.perf_counter()
        result = NotebookRun(target, TIMEOUT).execute()
        seconds = time.perf_counter() - started
        if result.error is not None:
            nbformat.write(result.nb, target)
            raise NotebookFailedException(result)

        tidy(result.nb)
        result.nb.metadata["msd_teach"] = {
            "key": key,
            "budget": BUDGET,
            "seconds": round(seconds, 1),
            "machine": f"{CORES} cores ({platform.machine()}), {WORKERS} chapter{'s' * (WORKERS > 1)} at a time",
            "software": f"Python {platform.python_version()}, torch {version('torch')}",
        }
        nbformat.write(result.nb, target)


class ChapterFile(NotebookFile):
    def collect(self) -> Iterator[Chapter]:  # pyright: ignore[reportIncompatibleMethodOverride]
        yield Chapter.from_parent(self, filename=str(self.path))
