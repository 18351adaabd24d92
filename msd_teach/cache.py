"""Where trained networks, renders and table rows are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of that name in ~/.cache/msd_teach, or in what the environment variable MSD_TEACH_CACHE names."""
    return Path(os.environ.get("MSD_TEACH_CACHE", "~/.cache/msd_teach")).expanduser() / name
