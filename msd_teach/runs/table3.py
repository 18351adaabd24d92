"""Table 3 and Figure 4 on ten prompts of the pocket world, and the tuning of every method before them.

    python -m msd_teach study tuning
    python -m msd_teach study table3

A method runs as its authors run it, and as tuned. The tuned ones are of equal cost, so many steps of Adam and so many
denoiser calls for a picture, so that a dearer target is followed by more steps. docs/studies.md is the protocol.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..distill import StepInfo
from ..latent.lora import LoRA
from ..latent.prior import DiffusionPrior
from ..measure.images import frechet_distance, resamplings
from ..pocket import version
from ..pocket.evaluate import caption_figures
from ..pocket.world import Prompt, render
from ..sampling import sample
from ..schedules import above, annealed, geometric, linear, sigmas_around, uniform_time, unit_weight
from ..targets import ISM, MSD, PFD, SDI, SDS, VSD, MeanShift, Method
from . import latents, records
from .latents import DDIM, PART, REPEATS, TRUTH, judged, judges, on_grid
from .records import Record, Table
from .tables import chosen_interval
from .text_to_2d import FALLING, METHODS, RATES, STEPS_PER_TARGET, TextTo2D

RECIPE = 1  # raise it whenever a figure moves: rows of older recipes do not count
PROMPTS = (
    "a red house", "a blue car", "a white snowman", "a yellow mug", "an orange chair", "a green tree",
    "a pink rocket", "a yellow duck", "a purple boat", "a cyan robot",
)  # fmt: skip
SEEDS, TRUE = 8, 56  # the first 8 true pictures of each prompt are a row to compare with, the others the reference
RENDER_SEED = 9_700_000  # of true pictures: no split of the renders starts from it
ALONG = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of a run: where its pictures are judged
LOW = geometric(2.5, 0.1)  # λ from where a clean question is nearly as good as a noisy one
DESIGN = ((5e-3, 3.0, 1), (2e-2, 3.0, 2), (5e-3, 7.5, 2), (2e-2, 7.5, 1))  # rate, scale, law: half of all, in balance


class Law(NamedTuple):
    """How a method draws, weighs and answers, and what a guided target costs it in calls, on average."""

    method: Callable[[DiffusionPrior, torch.Generator], Method]
    calls: float


def latent_interval(bandwidth: float) -> tuple[float, float]:
    """The kernel interval of chapter 05, where data have a deviation of .5, for latents, where they have 1."""
    low, high = chosen_interval(bandwidth / 2)
    return 2 * low, 2 * high


def paper_msd(prior: DiffusionPrior, interval: Callable[[float], tuple[float, float]] | None) -> Method:
    """Algorithm 2 with a sampler of eight steps."""
    return MSD("exponential", FALLING, prior.sigmas(8), solver="euler", interval=interval, inversion=1.0)


LAWS: dict[str, tuple[Law, Law]] = {
    "sds": (Law(METHODS["sds"], 2), Law(lambda prior, _: SDS(uniform_time(level=prior.level), unit_weight), 2)),
    "sds-annealed": (Law(METHODS["sds-annealed"], 2), Law(lambda *_: SDS(annealed(LOW), unit_weight), 2)),
    "mean-shift": (Law(METHODS["mean-shift"], 2), Law(lambda *_: MeanShift(LOW), 2)),
    "noisy-then-clean": (Law(METHODS["noisy-then-clean"], 2), Law(lambda *_: MeanShift(FALLING, above(4.0)), 2)),
    "vsd": (
        Law(METHODS["vsd"], 4),
        Law(lambda prior, g: VSD(LoRA(prior, generator=g), uniform_time(level=prior.level), unit_weight), 4),
    ),
    "ism": (
        Law(METHODS["ism"], 4.6),
        Law(lambda prior, _: ISM(0.0, high=linear(0.98, 0.1), level=prior.level), 4.6),
    ),
    "sdi": (
        Law(METHODS["sdi"], 14),
        Law(lambda prior, _: SDI(0.0, linear(0.98, 0.02), level=prior.level), 8),
    ),
    "sdi-3d": (Law(METHODS["sdi-3d"], 16), Law(lambda prior, _: SDI(0.0, level=prior.level), 9)),
    "pfd": (Law(METHODS["pfd"], 28), Law(lambda prior, _: PFD(0.0, level=prior.level), 21)),
    "msd": (
        Law(lambda *_: MSD("exact", FALLING, sigmas_around(4, 10.0)), 16),
        Law(lambda *_: MSD("exact", FALLING, sigmas_around(8, 10.0)), 32),
    ),
    "msd-paper": (
        Law(lambda prior, _: paper_msd(prior, None), 23),
        Law(lambda prior, _: paper_msd(prior, latent_interval), 23),
    ),
}
"""Two laws of each method, the cheapest first; the first is its authors', MSD's with fewer solver steps."""


class Row(NamedTuple):
    """A run of a method by its law (0: as in `METHODS`; 1, 2: of `LAWS`), `again` steps of Adam after each of `targets`.

    Of DDIM `targets` are the steps; nothing but a seed is said of true renders.
    """

    method: str
    law: int = 0
    rate: float = 0.0
    scale: float = 0.0
    targets: int = 0
    again: int = 0
    seed: int = 0


class Sizes(NamedTuple):
    """What a tuned picture costs, `steps` of Adam and denoiser `calls`; `colours` tuning prompts of each kind and view."""

    steps: int
    calls: int
    colours: int


SIZES = Sizes(steps=160, calls=320, colours=2)


def authors(method: str) -> Row:
    """A method as in its authors' code or paper; what they leave open is as in `TextTo2D`."""
    again = STEPS_PER_TARGET.get(method, 1)
    return Row(method, 0, RATES["grid"], TextTo2D.scale, 40 if method == "sdi" else TextTo2D.steps // again, again)


def candidates(method: str, sizes: Sizes) -> list[Row]:
    """The settings that a method is tuned over; none costs more than `sizes` says."""
    rows: list[Row] = []
    for rate, scale, law in DESIGN:
        again = math.ceil(sizes.steps * LAWS[method][law - 1].calls / sizes.calls)
        rows.append(Row(method, law, rate, scale, max(1, sizes.steps // again), again))
    return rows


def best(method: str, sizes: Sizes = SIZES, folder: Path = records.RESULTS) -> Row:
    """The candidate of least Fréchet distance, or of those that its 95 % intervals do not tell from it the one that is
    right most often.

    Raises:
        ValueError: the tuning of the method is not complete.
    """
    rows = [row._asdict() for row in candidates(method, sizes)]
    stored = table("tuning", sizes, folder).stored()
    found = [record for row in rows for record in records.select(stored, **row)]
    done = [record for record in found if "stopped" not in record]
    if len(found) < len(rows) or not done:
        raise ValueError(
            f"tuning of {method!r} has {len(found)} of {len(rows)} settings, {len(done)} of them finite; {HINT}"
        )
    first = min(done, key=lambda record: record["frechet"])

    def tied(record: Record) -> bool:
        apart, bar = records.difference([record], [first], len(done) - 1 or 1)
        return apart <= bar

    chosen = max(filter(tied, done), key=lambda record: (record["right"].count("1"), -record["frechet"]))
    return Row(*(chosen[name] for name in Row._fields))


HINT = "python -m msd_teach study tuning computes what is missing"


def tuning_rows(sizes: Sizes = SIZES) -> list[Row]:
    """All candidates of all methods."""
    return [row for method in LAWS for row in candidates(method, sizes)]


def table3_rows(sizes: Sizes = SIZES, folder: Path = records.RESULTS) -> list[Row]:
    """Renders, DDIM, and every method as tuned and then as its authors run it, what is cheapest first.

    Exact MSD has no authors but this book, and is there as tuned.
    """
    runs = [best(method, sizes, folder) for method in LAWS]
    runs += [authors(method) for method in LAWS if method != "msd"]
    ddim = [Row(DDIM, scale=scale, targets=30) for scale in (3.0, 7.5)]
    return [Row(TRUTH, seed=seed) for seed in range(TRUE)] + [
        row._replace(seed=seed) for row in ddim + runs for seed in range(SEEDS)
    ]


def tuning_prompts(sizes: Sizes) -> list[str]:
    """Every kind in every view, in other colours than those of the table of latents; Table 3's name no view."""
    return latents.prompts(sizes.colours, first=1)


def run(row: Row, said: Sequence[str], generator: torch.Generator) -> Iterator[tuple[StepInfo, Tensor]]:
    """The record of each target of a row, and the pictures of these prompts after it; see `on_grid`."""
    prior = judges()[0]
    make = LAWS[row.method][row.law - 1].method if row.law else METHODS[row.method]
    denoise, method = prior.denoiser(said, scale=row.scale), make(prior, generator)
    return on_grid(prior, denoise, method, len(said), row.targets, row.again, row.rate, generator)


def tune(row: Row, sizes: Sizes) -> Record:
    """Computes a row of the tuning."""
    said = tuning_prompts(sizes)
    ends: list[tuple[StepInfo, Tensor]] = []
    for i in range(0, len(said), PART):
        *_, end = run(row, said[i : i + PART], torch.Generator().manual_seed(2_000_000 + i))
        ends.append(end)
    spent = {"calls": ends[0][0].calls, "seconds": round(sum(info.seconds for info, _ in ends), 1)}
    return spent | judged(torch.cat([x for _, x in ends]), said, latents.reference(sizes.colours)[0])


def table3(row: Row, sizes: Sizes) -> Record:
    """Computes a row of Table 3: what its pictures are worth `along` the run, and their features in CLIP."""
    generator = torch.Generator().manual_seed(RENDER_SEED + row.seed)
    if row.method == TRUTH:
        return {"along": [_figures(true_pictures(generator))]}
    if row.method == DDIM:
        return {"along": [_figures(drawn(row, generator)) | {"calls": 2 * row.targets}]}
    shown = {max(1, round(row.targets * share)) for share in ALONG}
    return {
        "along": [
            {"steps": (info.step + 1) * row.again, "calls": info.calls, "seconds": round(info.seconds, 2)} | _figures(x)
            for info, x in run(row, PROMPTS, generator)
            if info.step + 1 in shown
        ]
    }


def true_pictures(generator: torch.Generator) -> Tensor:
    """A render of each prompt, (10, 3, H, W) in [0, 1], from wherever it may be seen."""
    scenes = [Prompt.parse(said).scene(generator) for said in PROMPTS]
    return render(scenes, Prompt.parse(PROMPTS[0]).cameras(len(PROMPTS), generator)).image  # no prompt names a view


@torch.no_grad()
def drawn(row: Row, generator: torch.Generator) -> Tensor:
    """A DDIM sample of each prompt, (10, 3, H, W) in [0, 1]."""
    prior = judges()[0]
    levels = prior.sigmas(row.targets, ddim=True)
    z = prior.start(len(PROMPTS), sigma=levels[0], generator=generator)
    *_, y = sample(prior.denoiser(PROMPTS, scale=row.scale), z, levels, "euler")
    return prior.decode(y)


def _figures(pictures: Tensor) -> Record:
    """Figures of a picture of each prompt, and the features from which Fréchet distances of many seeds are made."""
    _, judge, clip = judges()
    x = 2 * pictures - 1
    features = clip.pictures(x).cpu().numpy().astype("<f2")
    return caption_figures(x, list(PROMPTS), clip, judge) | {"features": base64.b64encode(features.tobytes()).decode()}


def together(rows: Sequence[Record], at: int = -1, true: Sequence[Record] | None = None) -> Record:
    """The Fréchet distance of the pictures of all rows, one a seed, from true ones, at a place `along` the runs.

    Its "resampled" are those of prompts drawn again, with their true pictures, and of seeds drawn again: the same in
    each call with as many rows, as `records.difference` needs. Of renders themselves ask with the first `SEEDS` rows.

    Raises:
        ValueError: no rows, or too few for a Fréchet distance.
    """
    if true is None:
        true = records.select(records.read("table3")["rows"], method=TRUTH)[SEEDS:]
    x, y = _features(rows, at), _features(true, -1)
    prompts, seeds = resamplings(len(x), REPEATS), resamplings(len(rows), REPEATS, seed=1)
    again = [(x[p][:, s], y[p]) for p, s in zip(prompts, seeds, strict=True)]
    found, *others = (frechet_distance(a.flatten(0, 1), b.flatten(0, 1)) for a, b in [(x, y), *again])
    return {"seed": 0, "frechet": found, "resampled": others}


def _features(rows: Sequence[Record], at: int) -> Tensor:
    """Features (prompts, rows, d) of pictures."""
    if not rows:
        raise ValueError("rows is empty; it must hold a row for each seed")
    texts = [base64.b64decode(row["along"][at]["features"]) for row in rows]
    return torch.stack(
        [torch.from_numpy(np.frombuffer(text, "<f2").astype("f8")).reshape(len(PROMPTS), -1) for text in texts], 1
    )


ROWS = {"tuning": tuning_rows, "table3": table3_rows}


def table(name: str, sizes: Sizes = SIZES, folder: Path = records.RESULTS) -> Table:
    """Table "tuning" or "table3", to be filled and written."""
    compute = {"tuning": tune, "table3": table3}[name]
    settings = {"recipe": RECIPE, "sizes": sizes._asdict(), "prompts": PROMPTS, "model": version()}
    return Table(name, settings, lambda row: compute(Row(**row), sizes), folder)
