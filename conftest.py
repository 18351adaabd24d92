"""The budget of this run, in the environment of every kernel; chapters are tests too (book/chapters.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
BUDGET = os.environ.setdefault("MSD_TEACH_BUDGET", "smoke")
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

# The kernels inherit these.
os.environ["MSD_TEACH_STATIC"] = "1"
if BUDGET == "smoke":  # tests neither read nor fill the user's cache
    os.environ.setdefault("MSD_TEACH_CACHE", str(ROOT / "executed" / "smoke" / "cache"))
if WORKERS > 1:  # they share the cores: two kernels with two threads each thrash on two cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Chapters have a line each in the terminal; only the process that starts the others has one."""
    config = session.config
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):
        from book.progress import Progress

        workers = config.getoption("numprocesses", None) or 1
        config.pluginmanager.register(Progress(BUDGET, workers, terminal.write_line))


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """`python_files` lets pytest find the chapters; they are notebooks, not modules."""
    if module_path.parent != ROOT / "notebooks":
        return None
    from book.chapters import ChapterFile

    return ChapterFile.from_parent(parent, path=module_path)
