"""Renders made once, kept in the cache, and loaded as tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..files import cache_folder, load, save_atomically
from ..tensors import at_least_one
from .world import COLOURS, KINDS, VIEWS, Prompt, random_examples, render

WORLD = 1  # raise it whenever renders change: what older worlds left in the cache is then ignored
SHARD = 500
SEEDS = {"train": 1, "judge": 2, "test": 3}  # no two splits share a scene
RESOLUTION = 64


class Renders(NamedTuple):
    """N examples of the pocket world.

    `image` (N, 3, 64, 64) and `mask` (N, 64, 64) are uint8; `kind`, `colour`, `view` (N,) index KINDS, COLOURS, VIEWS;
    `border` (N,) is the distance in degrees to the next view word; `small` (N,) is boolean; `captions` are N strings.
    """

    image: Tensor
    mask: Tensor
    kind: Tensor
    colour: Tensor
    view: Tensor
    border: Tensor
    small: Tensor
    captions: list[str]

    def pixels(self, index: Tensor) -> Tensor:
        """The chosen images in [-1, 1], as the networks read them."""
        return self.image[index].float() / 127.5 - 1


def load_renders(split: str, count: int) -> Renders:
    """The first `count` examples of a split ("train", "judge" or "test"), rendered now where the cache lacks them.

    Raises:
        ValueError: an unknown split, a count below 1, or a damaged file in the cache; names it.
    """
    from tqdm import tqdm

    if split not in SEEDS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SEEDS)}")
    shards = range(-(-at_least_one("count", count) // SHARD))
    parts = [_shard(split, number) for number in tqdm(shards, f"{split} renders", mininterval=5)]
    image, mask, kind, colour, view, border, small, _ = zip(*parts, strict=True)
    tensors = (torch.cat(column)[:count] for column in (image, mask, kind, colour, view, border, small))
    return Renders(*tensors, captions=[caption for part in parts for caption in part.captions][:count])


def _shard(split: str, number: int) -> Renders:
    path = cache_folder("pocket") / f"renders-{WORLD}" / f"{split}-{number:04d}.pt"
    if not path.exists():
        save_atomically(tuple(_draw(split, number)), path)
    return Renders(*load(path))


def _draw(split: str, number: int) -> Renders:
    generator = torch.Generator().manual_seed(1_000_000 * SEEDS[split] + number)
    scenes, cameras, prompts = random_examples(SHARD, generator)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    image, mask = (part.cpu() for part in render(scenes, cameras.to(device), RESOLUTION))
    return Renders(
        (255 * image).round().byte(),
        (255 * mask).round().byte(),
        torch.tensor([list(KINDS).index(scene.kind) for scene in scenes]),
        torch.tensor([list(COLOURS).index(scene.colour) for scene in scenes]),
        cameras.view(),
        cameras.border_distance(),
        torch.tensor([prompt.small for prompt in prompts]),
        [str(prompt) for prompt in prompts],
    )


def meaning(captions: list[str]) -> Tensor:
    """What captions say, (N, 4): indices of kind, colour, view, and smallness 0 or 1; -1 where one leaves it open."""
    colours, kinds, views = list(COLOURS), list(KINDS), list[str](VIEWS)
    rows: list[tuple[int, int, int, int]] = []
    for prompt in map(Prompt.parse, captions):
        colour = colours.index(prompt.colour) if prompt.colour else -1
        rows.append(
            (kinds.index(prompt.kind), colour, views.index(prompt.view) if prompt.view else -1, int(prompt.small))
        )
    return torch.tensor(rows)


def labels(data: Renders) -> Tensor:
    """True kind, colour and view of renders, (N, 3)."""
    return torch.stack([data.kind, data.colour, data.view], 1)
