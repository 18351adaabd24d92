"""Free latents of the pocket model, moved from grey towards their prompts: must questions carry noise, and where?

    python -m msd_teach latents

No generator of images stands between. The prompt is the unit: all rows have the same ones, so that rows are compared
in pairs, and `resampled` are Fréchet distances of the same resampled prompts in every row. Chapter 08 reads them.
"""

from __future__ import annotations

import time
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..denoisers import Denoiser, counted
from ..distill import distill
from ..latent.prior import DiffusionPrior
from ..measure.features import Clip
from ..measure.images import frechet_distance
from ..pocket import WEIGHTS, version
from ..pocket.data import load_renders, meaning
from ..pocket.judge import Judge
from ..pocket.world import COLOURS, KINDS, VIEWS, Prompt
from ..sampling import sample
from ..schedules import above, geometric, sigmas_around
from ..targets import MSD, MeanShift, Method, Target
from ..tensors import noise_like
from . import records
from .records import Record, Table

RECIPE = 1  # raise it whenever a figure moves: rows of older recipes do not count
FALLING = geometric(8.0, 0.1)  # λ, in standard deviations of a latent
SHARE = 0.5  # of the way to its target that a step of gradient descent takes
GREY, START = 0.6, 0.3  # the picture that runs start from, and the noise on its latent
RENDERS, EACH = 4000, 12  # the reference: of so many held-out renders, the first of every kind and view
REPEATS = 200
DDIM, TRUTH = "DDIM, 30 steps", "renders"  # not distilled: what is to be had


def below_two(level: float) -> float:
    """The opposite of above(2)."""
    return 1 - above(2.0)(level)


def fixed_noise(denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
    """Annealed SDS with one noise for the whole run: as long as fresh noise, but never new."""
    denoise, λ = counted(denoise), FALLING(progress)
    n = noise_like(x, torch.Generator().manual_seed(1 if generator is None else 1 + generator.initial_seed()))
    return Target(denoise(x + λ * n, λ), 1.0, denoise.calls, λ)


METHODS: dict[str, Method] = {
    "noisy (SDS annealed)": MeanShift(FALLING, 1.0),
    "clean (mean shift)": MeanShift(FALLING),
    "half of the noise": MeanShift(FALLING, 0.5),
    "three quarters of it": MeanShift(FALLING, 0.75),
    "noisy above 1": MeanShift(FALLING, above(1.0)),
    "noisy above 2": MeanShift(FALLING, above(2.0)),
    "noisy above 4": MeanShift(FALLING, above(4.0)),
    "noisy below 2": MeanShift(FALLING, below_two),
    "one noise for all": fixed_noise,
    "MSD exact, Heun": MSD("exact", FALLING, sigmas_around()),
}


class Row(NamedTuple):
    """A method at a guidance scale, with one seed."""

    method: str
    scale: float
    seed: int


class Sizes(NamedTuple):
    """`colours` prompts of each kind and view, `steps` of gradient descent."""

    colours: int
    steps: int


SIZES = Sizes(colours=3, steps=40)


def rows() -> list[Row]:
    """All rows, cheapest first; exact draws, at 48 times the price, at one scale and seed."""
    costly = "MSD exact, Heun"
    cheap = [name for name in (TRUTH, DDIM, *METHODS) if name != costly]
    return [Row(name, s, seed) for s in (1.0, 3.0) for seed in range(2) for name in cheap] + [Row(costly, 3.0, 0)]


def prompts(sizes: Sizes) -> list[str]:
    """Every kind in every view, in several colours."""
    colours, asked = list(COLOURS), list(product(range(sizes.colours), KINDS, VIEWS))
    return [str(Prompt(kind, colours[n % len(colours)], view)) for n, (_, kind, view) in enumerate(asked)]


@cache
def judges() -> tuple[DiffusionPrior, Judge, Clip]:
    """The model, and who looks at its pictures."""
    return DiffusionPrior.from_pretrained("pocket"), Judge.from_pretrained(WEIGHTS / "judge"), Clip.from_pretrained()


@cache
def reference(colours: int) -> tuple[Tensor, Tensor]:
    """CLIP's features of held-out renders, as many of each kind and view: those to compare with, and `colours` others."""
    data = load_renders("test", RENDERS)
    order = torch.arange(RENDERS)[~data.small]
    group = len(VIEWS) * data.kind[order] + data.view[order]
    picked = [order[group == g][: EACH + colours] for g in range(len(KINDS) * len(VIEWS))]
    mine, others = torch.cat([p[:EACH] for p in picked]), torch.cat([p[EACH:] for p in picked])
    clip = judges()[2]
    return clip.pictures(data.pixels(mine)), clip.pictures(data.pixels(others))


@torch.no_grad()
def start(prior: DiffusionPrior, count: int, generator: torch.Generator) -> Tensor:
    """Latents (count, 4, h, w) of a grey picture, with noise."""
    grey = prior.encode(torch.full((1, 3, prior.side, prior.side), GREY))
    return grey + START * noise_like(grey.expand(count, *grey.shape[1:]), generator)


def moved(row: Row, sizes: Sizes) -> tuple[Tensor, int]:
    """Latents of all prompts where a method leaves them (for DDIM: samples), and the denoiser calls for each."""
    prior, said = judges()[0], prompts(sizes)
    generator = torch.Generator().manual_seed(1_000 + row.seed)
    denoise = counted(prior.denoiser(said, scale=row.scale))
    if row.method == DDIM:
        levels = prior.sigmas(30, ddim=True)
        with torch.no_grad():
            *_, y = sample(denoise, prior.start(len(said), sigma=levels[0], generator=generator), levels, "euler")
        return y, denoise.calls
    x = start(prior, len(said), generator).requires_grad_()
    optimizer = torch.optim.SGD([x], SHARE * len(said))  # the loss is a mean over the batch
    *_, last = distill(lambda _: x, optimizer, denoise, METHODS[row.method], sizes.steps, generator=generator)
    return x.detach(), last.calls


@torch.no_grad()
def compute(row: Row, sizes: Sizes) -> Record:
    """Computes a row."""
    prior, judge, clip = judges()
    near, others = reference(sizes.colours)
    if row.method == TRUTH:
        return distances(others, near)
    began = time.perf_counter()
    with torch.enable_grad():
        y, calls = moved(row, sizes)
    seconds = time.perf_counter() - began
    pictures = 2 * torch.cat([prior.decode(part) for part in y.split(50)]) - 1
    right = judge.decide(pictures) == meaning(prompts(sizes))[:, :3]
    kind, colour, view = right.double().mean(0).tolist()
    return {
        "kind": kind,
        "colour": colour,
        "view": view,
        "right": "".join(str(int(all_)) for all_ in right.all(1)),
        "size": round(y.square().mean().sqrt().item(), 4),
        "calls": calls,
        "seconds": round(seconds, 1),
        **distances(clip.pictures(pictures), near),
    }


def distances(features: Tensor, near: Tensor) -> Record:
    """The Fréchet distance from the reference, and those of resampled prompts, the same ones in each row."""
    generator = torch.Generator().manual_seed(0)
    again = [torch.randint(len(features), (len(features),), generator=generator) for _ in range(REPEATS)]
    return {
        "frechet": frechet_distance(features, near),
        "resampled": [round(frechet_distance(features[i], near), 6) for i in again],
    }


def table(sizes: Sizes = SIZES, folder: Path = records.RESULTS) -> Table:
    """The table, to be filled and written."""
    settings = {"recipe": RECIPE, "sizes": sizes._asdict(), "model": version()}
    return Table("latents", settings, lambda row: compute(Row(**row), sizes), folder)
