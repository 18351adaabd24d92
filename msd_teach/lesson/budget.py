"""What a chapter may compute: `smoke` in tests, `laptop` in the published book, `gpu` at the paper's sizes."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

NAMES = ("smoke", "laptop", "gpu")
NAME = os.environ.get("MSD_TEACH_BUDGET", "laptop")
if NAME not in NAMES:
    raise ValueError(f"MSD_TEACH_BUDGET is {NAME!r}; it may be one of {', '.join(NAMES)}")


def pick(*, smoke: T, laptop: T, gpu: T | None = None) -> T:
    """The value for the current budget (environment variable MSD_TEACH_BUDGET); `gpu` falls back to `laptop`."""
    if NAME == "smoke":
        return smoke
    return laptop if NAME == "laptop" or gpu is None else gpu
