"""Where trained networks, renders and table rows are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of that name in ~/.cache/msd_teach, or in what the environment variable MSD_TEACH_CACHE names."""
    return Path(os.environ.get("MSD_TEACH_CACHE", "~/.cache/msd_teach")).expanduser() / name


def save_atomically(value: object, path: Path) -> None:
    """Writes what `torch.load` reads so that the file is whole or not there, even if the process is killed."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    torch.save(value, partial)
    partial.replace(path)
