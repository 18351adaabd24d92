"""Where trained networks, renders and table rows are kept between runs, and how files are written whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of that name in ~/.cache/msd_teach, or in what the environment variable MSD_TEACH_CACHE names."""
    return Path(os.environ.get("MSD_TEACH_CACHE") or "~/.cache/msd_teach").expanduser() / name


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end: the file is whole or not there, even after a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_atomically(value: object, path: Path) -> None:
    """Writes what `torch.load` reads, whole or not at all."""
    import torch

    with whole(path) as partial:
        torch.save(value, partial)
