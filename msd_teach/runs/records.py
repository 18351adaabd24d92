"""Figures that take hours: each computed once, kept in the cache, and gathered into a JSON file."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..files import cache_folder, whole

Record = dict[str, Any]
PACKAGE = Path(__file__).parents[1]
RESULTS = (
    PACKAGE / "results" if (PACKAGE / "results").is_dir() else PACKAGE.parent / "results"
)  # installed, or a checkout


def read(name: str) -> Record:
    """A stored table or measurement by its name, such as "table2"; what the paper prints is "paper".

    Raises:
        ValueError: no such name.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise ValueError(
            f"name is {name!r}; it may be one of {', '.join(sorted(p.stem for p in RESULTS.glob('*.json')))}"
        )
    return json.loads(path.read_text("utf-8"))


def place(kind: str, key: Any) -> Path:
    """The cache file of a record: `key` is all that it depends on, in JSON's types."""
    text = json.dumps([kind, key], ensure_ascii=False)
    return cache_folder("records") / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def cached(kind: str, key: Any, compute: Callable[[], Record]) -> Record:
    """The record of this key, computed unless the cache has it; a killed run loses only the record in the making."""
    path = place(kind, key)
    if not path.exists():
        record = compute()
        with whole(path) as partial:
            partial.write_text(json.dumps(record), encoding="utf-8")
    return json.loads(path.read_text("utf-8"))


def write(path: Path, about: Record, rows: Sequence[Record]) -> None:
    """Writes `about`, the commit, the machine, the versions and the rows, one a line."""
    about = about | {
        "commit": commit(),
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    head = json.dumps(about, indent=1, ensure_ascii=False)[:-2]
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    with whole(path) as partial:
        partial.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def select(rows: Sequence[Record], **wanted: Any) -> list[Record]:
    """The rows whose fields have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def summary(rows: Sequence[Record], figure: str) -> tuple[float, float]:
    """Mean of a figure over rows (seeds), and its standard error; NaN for the error of one row.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError(f"rows is empty; it must hold a row for the mean of {figure!r}")
    values = torch.tensor([row[figure] for row in rows], dtype=torch.float64)
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan


def commit() -> str:
    """The commit of the working tree, with "-dirty" if the package differs from it; empty outside of one."""

    def git(*words: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, timeout=30
            ).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return ""

    if not git("ls-files", "runs/records.py"):
        return ""
    return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
