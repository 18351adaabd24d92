"""What runs came to: their pictures judged, and one row for each method and setting."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from ..measure.features import Clip
from ..pocket import WEIGHTS
from ..pocket.data import RESOLUTION, meaning
from ..pocket.evaluate import caption_figures
from ..pocket.judge import Judge
from . import run
from .records import Record

SHOWN = ("method", "image", "scale", "steps", "rate", "model")
AVERAGED = ("prompts", "seed")  # over which a row goes; all other settings, shown or not, are one in it


def report(folder: str | os.PathLike[str]) -> list[Record]:
    """A row for each setting among the finished runs below a folder: figures with standard errors, and their counts.

    Pictures are judged by the pocket model's CLIP and judge, R-precision is over all prompts of the row; `calls` and
    `seconds` are means over its runs.

    Raises:
        ValueError: no finished run there, one that is damaged, or one of pictures or prompts that the pocket model's
            judges do not know; names it.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for result in sorted(Path(folder).rglob(run.RESULT)):
        settings = run.settings_of(result.parent)
        if "prompts" not in settings:
            continue  # a run of something else
        key = {name: value for name, value in settings.items() if name not in AVERAGED}
        groups[json.dumps(key, sort_keys=True)].append(result.parent)
    if not groups:
        raise ValueError(f"folder is {os.fspath(folder)!r}; it must hold finished runs, with {run.RESULT}")
    clip, judge = Clip.from_pretrained(), Judge.from_pretrained(WEIGHTS / "judge")
    rows: list[Record] = []
    for runs in groups.values():
        settings = [run.settings_of(each) for each in runs]
        said = [prompt for each in settings for prompt in each["prompts"]]
        parts = [_judged(each, s["prompts"]) for each, s in zip(runs, settings, strict=True)]
        pictures = torch.cat(parts)
        ends = [run.metrics(each) for each in runs]
        spent = {name: sum(end[name][-1].item() for end in ends) / len(ends) for name in ("calls", "seconds")}
        about = {name: settings[0].get(name) for name in SHOWN}
        rows.append(about | {"runs": len(runs)} | caption_figures(2 * pictures - 1, said, clip, judge) | spent)
    return rows


def _judged(folder: Path, prompts: list[str]) -> Tensor:
    """The pictures of a run, if they and its prompts are of the pocket world."""
    pictures = pictures_of(folder, len(prompts))
    try:
        if pictures.shape[2] != RESOLUTION:
            raise ValueError(f"its pictures have {pictures.shape[2]} pixels a side, not {RESOLUTION}")
        meaning(prompts)
    except ValueError as error:
        raise ValueError(f"{folder} is not for the pocket model's CLIP and judge: {error}") from error
    return pictures


def pictures_of(folder: Path, count: int) -> Tensor:
    """The pictures (count, 3, H, H) in [0, 1] of a finished run, from its result, in which they stand in rows of 8.

    Raises:
        ValueError: a result that is missing or damaged.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(folder / run.RESULT) as page:
            sheet = torch.from_numpy(np.array(page.convert("RGB"))).permute(2, 0, 1) / 255
    except OSError as error:  # so PIL calls damage, too
        raise ValueError(
            f"{folder / run.RESULT} is missing or damaged ({error}); delete it to have it drawn"
        ) from error
    side = sheet.shape[2] // min(count, run.COLUMNS)
    tiles = sheet.unfold(1, side, side).unfold(2, side, side)  # (3, rows, columns, side, side)
    return tiles.flatten(1, 2).movedim(1, 0)[:count]
