"""Latents of the pocket model, moved from grey towards their prompts: must questions carry noise, whose, and where?

    python -m msd_teach study latents

They are free, or those of the pictures of a coordinate network. The prompt is the unit: all rows have the same ones,
so that rows are compared in pairs, and `resampled` are Fréchet distances of the same resampled prompts in every row.
Chapter 08 reads what is free; `question` is what chapter 09 answers with, and docs/studies.md says how it was chosen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..denoisers import Denoiser, counted
from ..distill import StepInfo, distill
from ..latent.prior import DiffusionPrior
from ..measure.features import Clip
from ..measure.images import frechet_distance, resamplings
from ..pocket import WEIGHTS, version
from ..pocket.data import load_renders, meaning
from ..pocket.judge import Judge
from ..pocket.world import COLOURS, KINDS, VIEWS, Prompt
from ..render.images import GridImage
from ..sampling import sample
from ..schedules import Settings, SigmaLaw, above, annealed, geometric, sigmas_around
from ..targets import MSD, MeanShift, Method, Target
from ..tensors import noise_like, per_item
from .records import Record, Table

RECIPE = 1  # raise it whenever a figure moves: rows of older recipes do not count
FALLING = geometric(8.0, 0.1)  # λ, in standard deviations of a latent
SHARE = 0.5  # of the way to its target that a step of gradient descent takes
GREY, START = 0.6, 0.3  # the picture that free latents start from, and the noise on its latent
RATE, AGAIN = 1e-2, 4  # of Adam, and its steps a target, for coordinate networks
RENDERS, EACH = 4000, 12  # the reference: of so many held-out renders, the first of every kind and view
REPEATS = 200
PART = 24  # prompts that are moved together
DDIM, TRUTH = "DDIM, 30 steps", "renders"  # not distilled: what is to be had


def below_two(level: float) -> float:
    """The opposite of above(2)."""
    return 1 - above(2.0)(level)


def any_order(u: Tensor, progress: float) -> Tensor:
    """The levels of the annealing at random: as often each, but in no order."""
    return FALLING.start ** (1 - u) * FALLING.end**u


@dataclass(frozen=True, repr=False, eq=False)
class Asked(Settings):
    """D(x + share·λn; λ) as the target, with λ by any law, one for each item, and n fresh or one for the whole run."""

    law: SigmaLaw
    share: float
    fresh: bool

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        denoise = counted(denoise)
        λ = self.law(torch.rand(len(x), dtype=torch.float64, generator=generator), progress)
        once = 2**32 + (0 if generator is None else generator.initial_seed())
        n = noise_like(x, generator if self.fresh else torch.Generator().manual_seed(once))
        return Target(denoise(x + self.share * per_item(λ, x) * n, λ), 1.0, denoise.calls, float(λ.mean()))


METHODS: dict[str, Method] = {
    "noisy (SDS annealed)": MeanShift(FALLING, 1.0),
    "clean (mean shift)": MeanShift(FALLING),
    "half of the noise": MeanShift(FALLING, 0.5),
    "three quarters of it": MeanShift(FALLING, 0.75),
    "noisy above 1": MeanShift(FALLING, above(1.0)),
    "noisy above 2": MeanShift(FALLING, above(2.0)),
    "noisy above 4": MeanShift(FALLING, above(4.0)),
    "noisy below 2": MeanShift(FALLING, below_two),
    "one noise for all": Asked(annealed(FALLING), 1.0, fresh=False),
    "half of one noise": Asked(annealed(FALLING), 0.5, fresh=False),
    "MSD exact, Heun": MSD("exact", FALLING, sigmas_around()),
}
COSTLY = "MSD exact, Heun"
NOISES = {
    "noisy": (1.0, True), "clean": (0.0, True), "half of the noise": (0.5, True),
    "one noise for all": (1.0, False), "half of one noise": (0.5, False),
}  # fmt: skip
MIDDLE = FALLING(0.5)
ORDERS: dict[str, SigmaLaw] = {"levels in any order": any_order, "one level": annealed(geometric(MIDDLE, MIDDLE))}
UNORDERED: dict[str, Method] = {
    f"{noise}, {order}": Asked(law, *NOISES[noise]) for order, law in ORDERS.items() for noise in NOISES
}


class Row(NamedTuple):
    """A method at a guidance scale, with one seed; `image` is "latents" where they are free, "grid" for `GridImage`."""

    method: str
    scale: float
    seed: int
    image: str = "latents"


class Sizes(NamedTuple):
    """`colours` prompts of each kind and view, `steps` of a question each."""

    colours: int
    steps: int


SIZES = Sizes(colours=3, steps=40)


def rows() -> list[Row]:
    """Those of chapter 08, then what the question of chapter 09 needs besides, and last, at one scale and seed, exact
    draws, at 48 times the price."""
    cheap = [name for name in (TRUTH, DDIM, *METHODS) if name != COSTLY]
    first = [Row(name, s, seed) for s in (1.0, 3.0) for seed in range(2) for name in cheap]
    return list(dict.fromkeys([*first, *question(), Row(COSTLY, 3.0, 0)]))


def question() -> list[Row]:
    """The pruned design of docs/studies.md, one seed after the other, the free latents first."""
    names = ["noisy (SDS annealed)", "clean (mean shift)", "half of the noise", "noisy above 2"]
    fixed = ["one noise for all", "half of one noise"]
    ends = [f"{noise}, {order}" for order in ORDERS for noise in ("noisy", "clean")]
    everywhere = {"latents": [DDIM, *names, *fixed], "grid": names}
    at_three = {"latents": list(UNORDERED), "grid": [*fixed, *ends]}
    return [
        Row(name, s, seed, image)
        for seed in range(2)
        for image in ("latents", "grid")
        for s in (3.0, 1.0, 8.5)
        for name in everywhere[image] + (at_three[image] if s == 3.0 else [])
    ]


def prompts(colours: int, first: int = 0) -> list[str]:
    """Every kind in every view, in several colours; those from another `first` colour are others, up to 2."""
    known, asked = list(COLOURS), list(product(range(colours), KINDS, VIEWS))
    return [str(Prompt(kind, known[(n + first) % len(known)], view)) for n, (_, kind, view) in enumerate(asked)]


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


def on_grid(
    prior: DiffusionPrior,
    denoise: Denoiser,
    method: Method,
    count: int,
    targets: int,
    again: int,
    rate: float,
    generator: torch.Generator,
) -> Iterator[tuple[StepInfo, Tensor]]:
    """Distils `count` coordinate networks from grey, with `again` steps of Adam a target: the record of each target, and
    the pictures (count, 3, H, W) in [0, 1] after it."""
    image = GridImage(prior.side, count, generator=generator)
    optimizer = torch.optim.Adam(image.parameters(), rate)

    def render(_: torch.Generator | None) -> Tensor:
        return prior.encode(image())

    for info in distill(render, optimizer, denoise, method, targets, None, None, generator, again):
        yield info, image().detach()


def moved(row: Row, sizes: Sizes) -> tuple[Tensor, Tensor, int]:
    """Latents of all prompts where a method leaves them (for DDIM: samples), their pictures (N, 3, H, W) in [0, 1], and
    the denoiser calls for each."""
    said = prompts(sizes.colours)
    parts = [
        _moved(row, said[i : i + PART], sizes.steps, torch.Generator().manual_seed(1_000 * (1 + i) + row.seed))
        for i in range(0, len(said), PART)
    ]
    x, pictures, calls = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(pictures), max(calls)


def _moved(row: Row, said: Sequence[str], steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    prior = judges()[0]
    denoise = counted(prior.denoiser(said, scale=row.scale))
    if row.method == DDIM:
        levels = prior.sigmas(30, ddim=True)
        with torch.no_grad():
            *_, x = sample(denoise, prior.start(len(said), sigma=levels[0], generator=generator), levels, "euler")
            return x, prior.decode(x), denoise.calls
    method = (METHODS | UNORDERED)[row.method]
    if row.image == "grid":
        *_, (last, pictures) = on_grid(prior, denoise, method, len(said), steps, AGAIN, RATE, generator)
        return prior.encode(pictures), pictures, last.calls
    x = start(prior, len(said), generator).requires_grad_()
    optimizer = torch.optim.SGD([x], SHARE * len(said))  # the loss is a mean over the batch
    *_, last = distill(lambda _: x, optimizer, denoise, method, steps, generator=generator)
    return x.detach(), prior.decode(x.detach()), last.calls


def compute(row: Row, sizes: Sizes) -> Record:
    """Computes a row."""
    near, others = reference(sizes.colours)
    if row.method == TRUTH:
        return distances(others, near)
    began = time.perf_counter()
    x, pictures, calls = moved(row, sizes)
    seconds = time.perf_counter() - began
    size = round(x.square().mean().sqrt().item(), 4)
    return {"size": size, "calls": calls, "seconds": round(seconds, 1)} | judged(pictures, prompts(sizes.colours), near)


@torch.no_grad()
def judged(pictures: Tensor, said: list[str], near: Tensor) -> Record:
    """What the judge makes of pictures (N, 3, H, W) in [0, 1], in shares and one by one, and their `distances`."""
    _, judge, clip = judges()
    right = judge.decide(2 * pictures - 1) == meaning(said)[:, :3]
    kind, colour, view = right.double().mean(0).tolist()
    each = "".join(str(int(all_)) for all_ in right.all(1))
    return {"kind": kind, "colour": colour, "view": view, "right": each} | distances(
        clip.pictures(2 * pictures - 1), near
    )


def distances(features: Tensor, near: Tensor) -> Record:
    """The Fréchet distance from the reference, and those of resampled prompts, the same ones in each row."""
    return {
        "frechet": frechet_distance(features, near),
        "resampled": [round(frechet_distance(features[i], near), 6) for i in resamplings(len(features), REPEATS)],
    }


def table(
    sizes: Sizes = SIZES, folder: Path = Table.folder
) -> Table:  # RESULTS by name would make chapter 08 wait for all
    """The table, to be filled and written."""
    settings = {"recipe": RECIPE, "sizes": sizes._asdict(), "model": version()}
    return Table("latents", settings, lambda row: compute(Row(**row), sizes), folder)
