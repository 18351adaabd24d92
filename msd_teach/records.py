"""Figures that take hours: each computed once, kept in the cache, and gathered into a JSON file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .cache import cache_folder

Record = dict[str, Any]


def place(kind: str, key: Any) -> Path:
    """The cache file of a record: `key` is all that it depends on, in JSON's types."""
    text = json.dumps([kind, key], ensure_ascii=False)
    return cache_folder("records") / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def cached(kind: str, key: Any, compute: Callable[[], Record]) -> Record:
    """The record of this key, computed unless the cache has it; a killed run loses only the record in the making."""
    path = place(kind, key)
    if not path.exists():
        record = compute() | {"commit": commit()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(record))
        partial.rename(path)
    return json.loads(path.read_text())


def write(path: Path, about: Record, rows: Sequence[Record]) -> None:
    """Writes `about`, the machine, the versions and the rows, one a line."""
    about = about | {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    head = json.dumps(about, indent=1, ensure_ascii=False)[:-2]
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')


def select(rows: Sequence[Record], **wanted: Any) -> list[Record]:
    """The rows whose fields have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def summary(rows: Sequence[Record], figure: str) -> tuple[float, float]:
    """Mean of a figure over rows (seeds), and its standard error; NaN for the error of one row."""
    values = torch.tensor([row[figure] for row in rows], dtype=torch.float64)
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan


def commit() -> str:
    """The commit of the working tree; empty outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
