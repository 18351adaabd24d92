"""Tables 1 and 2 of the paper: its evaluation in the plane, every method under one protocol.

    python -m msd_teach tables --budget laptop

Rows are computed in the order in which they are missed, and kept in a cache, one file each, so that a killed run goes
on where it was, and one that is not finished can be written as far as it got.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..denoisers import Denoiser, IdealDenoiser, counted
from ..files import cache_folder
from ..measure import plane as metrics
from ..plane import densities, learned
from ..plane.learned import train_denoiser
from ..plane.mixture import GaussianMixture
from ..plane.points import distill_points
from ..sampling import karras_sigmas, sample
from ..schedules import (
    annealed,
    dreamfusion_weight,
    linear,
    sigmas_around,
    uniform_sigma,
    uniform_time,
    unit_weight,
)
from ..targets import MSD, SDI, SDS, MeanShift, Method, Target
from ..tensors import noise_like
from . import records
from .intervals import chosen_interval
from .records import Record, Table

# Raise the 1 whenever a figure moves: rows of older recipes, cached or stored, do not count.
RECIPE = 1 + learned.RECIPE
DENSITIES = {"fractal": densities.fractal, "spiral": densities.spiral, "pinwheel": densities.pinwheel}
REFERENCE = 4000  # points of the density that precision, recall and MMD compare with
RATE = 0.08  # of Adam
START, END = 0.316 / math.sqrt(2), 0.003  # λ_paper = .316 is a standard deviation of .316/√2
BANDWIDTH = linear(START, END)
DDIM = karras_sigmas(32, 0.002, 5.0)
SIGMAS = karras_sigmas(16, 0.002, 5.0)  # of the sum of scores, with Euler's method


def perfect_draws(samples: int) -> Method:
    """MSD with draws of the product density that no solver has touched: data, with its weights.

    One read of the data set gives all weights, and so any number of draws: one call. Raises ValueError for a denoiser
    that has no data.
    """

    def method(denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        if not isinstance(denoise, IdealDenoiser):
            raise ValueError(
                f"denoise is {denoise!r}; perfect draws need an IdealDenoiser, which has data to draw from"
            )
        λ = BANDWIDTH(progress)
        return Target(denoise.posterior_sample(x, λ, samples, generator).mean(0), 1.0, 1, λ)

    return method


METHODS: dict[str, Callable[[int], Method]] = {
    "SDS, t uniform": lambda n: SDS(uniform_time(), samples=n),
    "SDS, σ uniform": lambda n: SDS(uniform_sigma(), samples=n),
    "SDS annealed": lambda n: SDS(annealed(BANDWIDTH), unit_weight, n),
    "SDI": lambda n: SDI(),
    "mean shift": lambda n: MeanShift(BANDWIDTH),
    "MSD sum, full": lambda n: MSD("exponential", BANDWIDTH, SIGMAS, n, "euler"),
    "MSD sum, chosen": lambda n: MSD("exponential", BANDWIDTH, SIGMAS, n, "euler", interval=chosen_interval),
    "MSD exact": perfect_draws,
    "MSD exact, Heun": lambda n: MSD("exact", BANDWIDTH, sigmas_around(), n),
}
"""Each method from the number N of samples in one update; SDI and mean shift know only N = 1."""

PRINTED = "SDS, Section 4.1"


def printed_sds(denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
    """SDS as Section 4.1 prints it, w (z − D(z; σ))/σ at z = x + σn: the −n is missing, the mean is the same."""
    u = torch.rand(len(x), dtype=torch.float64, generator=generator)
    sigma = uniform_time()(u, progress)
    z = x + sigma[:, None].to(x) * noise_like(x, generator)
    return Target(x - z + denoise(z, sigma), dreamfusion_weight(sigma), 1, float(sigma.mean()))


class Sizes(NamedTuple):
    """`data` points of the ideal denoiser, `side`² optimised points, `steps` of Adam, `iterations` of training."""

    data: int
    side: int
    steps: int
    iterations: int


PROTOCOL = Sizes(data=10_000, side=25, steps=150, iterations=4096)
SMOKE = Sizes(data=1000, side=9, steps=40, iterations=100)
SIZES = {"smoke": SMOKE, "laptop": PROTOCOL, "gpu": PROTOCOL}  # gpu has more rows, of the same size


class Row(NamedTuple):
    """One row of Table 2 with one seed, or of Table 1 at a `progress` (0 to 1) of the annealing."""

    density: str
    denoiser: str
    method: str
    samples: int
    seed: int
    progress: float | None = None


def table2_rows(budget: str) -> list[Row]:
    """The rows of Table 2 at a budget, those that chapter 06 leans on first; `gpu` adds the paper's sample sizes."""
    runs = [("mean shift", 1, 5), ("DDIM", 1, 5), ("SDS, t uniform", 1, 5), ("SDS annealed", 1, 5)]
    runs += [("MSD exact", 1, 5), ("SDS annealed", 17, 5), ("MSD sum, full", 1, 5), ("MSD exact, Heun", 1, 3)]
    runs += [("MSD sum, chosen", 1, 5), ("SDS, σ uniform", 1, 5), ("SDI", 1, 5)]
    if budget == "smoke":
        return [Row("fractal", "ideal", name, n, seed) for name, n, _ in runs for seed in range(2)]
    runs += [("SDS, t uniform", 17, 5), ("SDS, σ uniform", 17, 5), ("MSD exact", 10, 2), ("MSD exact, Heun", 10, 2)]
    runs += [("MSD sum, chosen", 10, 2)]  # over the full interval the samples of the sum are all the same
    if budget == "gpu":
        runs += [("SDS, t uniform", 1000, 2), ("SDS, σ uniform", 1000, 2), ("SDS annealed", 1000, 1)]
        runs += [("MSD exact", 1000, 2), ("MSD sum, chosen", 100, 1), ("MSD exact, Heun", 100, 1)]
    return [
        Row(density, denoiser, name, n, seed)
        for denoiser, most in (("ideal", 5), ("learned", 3))  # of which each seed trains a network
        for name, n, seeds in runs
        if (denoiser, name) != ("learned", "MSD exact")  # a network has no data to draw from
        and (denoiser, name, n > 1) != ("ideal", "MSD exact, Heun", True)  # many perfect draws cost what one does
        for seed in range(min(seeds, most))
        for density in DENSITIES
    ]


def table1_rows(budget: str) -> list[Row]:
    """The rows of Table 1: the efficiency of every update at the first, middle and last bandwidth."""
    draws, names = {"smoke": 8, "laptop": 100, "gpu": 1000}[budget], ["fractal"] if budget == "smoke" else DENSITIES
    return [
        Row(name, "ideal", method, draws, seed, progress)
        for seed in range(2 if budget == "smoke" else 3)
        for method in (PRINTED, *METHODS)
        if method != "MSD exact, Heun" or seed == 0  # as much work as all others together
        for name in names
        for progress in (0.0, 0.5, 1.0)
    ]


def denoiser_of(row: Row, sizes: Sizes) -> Denoiser:
    """The ideal denoiser of a data set drawn with the row's seed, or a network trained with it."""
    density = DENSITIES[row.density]()
    if row.denoiser == "learned":
        return train_denoiser(density, iterations=sizes.iterations, seed=row.seed, cache=cache_folder("denoisers"))
    return IdealDenoiser(density.sample(sizes.data, generator=stream(row.seed, "data")).float())


def start_points(sizes: Sizes) -> Tensor:
    """The lattice over [−1.5, 1.5]² where every optimisation starts, (side², 2)."""
    axis = torch.linspace(-1.5, 1.5, sizes.side)
    return torch.cartesian_prod(axis, axis)


def final_points(row: Row, denoise: Denoiser, sizes: Sizes) -> tuple[Tensor, int]:
    """Where a method leaves the lattice after `steps` of Adam (for DDIM: samples), and the calls for each point."""
    generator = stream(row.seed, row.method)
    x = start_points(sizes)
    if row.method == "DDIM":
        denoise = counted(denoise)
        *_, y = sample(denoise, float(DDIM[0]) * torch.randn(x.shape, generator=generator), DDIM, "euler")
        return y, denoise.calls
    *_, (y, last) = distill_points(x, denoise, METHODS[row.method](row.samples), sizes.steps, RATE, generator)
    return y, last.calls


def judge(x: Tensor, density: GaussianMixture, seed: int) -> dict[str, float]:
    """NLL (mean and median), precision, recall and MMD² of points against the density."""
    reference = density.sample(REFERENCE, generator=stream(seed, "reference"))
    precision, recall = metrics.precision_recall(x.double(), reference)
    mmd = metrics.mmd2(x.double(), reference)
    mean, median = metrics.nll(density, x.double()), -float(density.log_prob(x.double()).median())
    return {"nll": mean, "nll_median": median, "precision": precision, "recall": recall, "mmd": mmd}


def table2(row: Row, sizes: Sizes) -> Record:
    """Computes a row of Table 2."""
    denoise = denoiser_of(row, sizes)
    begin = time.process_time()  # the wall's clock would measure what else runs on the machine
    x, calls = final_points(row, denoise, sizes)
    seconds = time.process_time() - begin
    return judge(x, DENSITIES[row.density](), row.seed) | {"calls": calls, "seconds": round(seconds, 2)}


def table1(row: Row, sizes: Sizes) -> Record:
    """Computes a row of Table 1: log efficiency (Eq. 17) of single updates over the lattice, in three ways.

    `own` is the estimator's own mean, `true` the mean shift of the same denoiser. For `scaled` the reference is that too,
    and the estimator may be multiplied by one constant, the best, since SDS fixes no scale: −log(calls) is then the
    least that a figure can be.
    """
    denoise, x = denoiser_of(row, sizes), start_points(sizes)
    method = printed_sds if row.method == PRINTED else METHODS[row.method](1)
    generator = stream(row.seed, row.method)
    assert row.progress is not None
    pulls = [method(denoise, x, row.progress, generator) for _ in range(row.samples)]
    updates = torch.stack([torch.as_tensor(t.weight).reshape(-1, 1) * (t.value - x) for t in pulls]).float()
    calls = sum(t.calls for t in pulls) / len(pulls)
    shift = (denoise(x.double(), BANDWIDTH(row.progress)) - x).double()
    own = metrics.efficiency(updates, None, calls)
    true = metrics.efficiency(updates, shift, calls)
    scaled = metrics.efficiency(metrics.best_multiple(updates, shift), shift, calls)
    found = {"own": own, "true": true, "scaled": scaled}
    logs = {name: value.log for name, value in found.items()}
    return logs | {f"{name}_floored": value.floored for name, value in found.items()} | {"calls": calls}


COMPUTE = {"table1": table1, "table2": table2}
ROWS = {"table1": table1_rows, "table2": table2_rows}


def table(name: str, sizes: Sizes, folder: Path = records.RESULTS) -> Table:
    """Table "table1" or "table2", to be filled and written."""
    return Table(
        name,
        {"sizes": sizes._asdict() | {"reference": REFERENCE, "recipe": RECIPE}},
        lambda row: COMPUTE[name](Row(**row), sizes),
        folder,
    )


def stream(seed: int, purpose: str) -> torch.Generator:
    """A stream of its own for each purpose of a seed, so that a row does not depend on the others."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
