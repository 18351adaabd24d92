"""Error of the mean shift m(x) against denoiser calls, for every sampler of the product density on the fractal.

Query points lie on the data and off it. The truth is the closed-form product, the denoiser exact; `floor` is the error
that as many exact draws would leave. Prints a Markdown table and writes results/product_samplers.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import torch
from _timing import machine, report
from torch import Tensor

from msd_teach import GaussianMixture, counted, fractal, karras_sigmas, sample_product
from msd_teach.runs.records import RESULTS, Record, Table

BANDWIDTHS = (0.316, 0.1, 0.03)
STEPS = (4, 8, 16, 32)
SIGMA_MIN, SIGMA_MAX = 0.002, 5.0
SAMPLERS = {
    "exact": {"kernel": "exact"},
    "exponential": {"kernel": "exponential"},
    "exponential, t = σ": {
        "kernel": "exponential",
        "clock": lambda sigma: sigma / 2,
    },  # the paper's e^{−Δσ/λ_paper²}, λ_paper² = 2λ²
    "exponential, σ < 1": {"kernel": "exponential", "interval": (0.0, 1.0)},
    "explicit": {"kernel": "explicit"},
}


def queries(mixture: GaussianMixture, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """As many draws from p as points uniform on [−1.5, 1.5]²."""
    uniform = torch.rand(count, 2, dtype=torch.float64, generator=generator)
    return {"on": mixture.sample(count, generator=generator), "off": 3 * uniform - 1.5}


def truth(mixture: GaussianMixture, x: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Means (n, 2) and variances tr Cov (n,) of the closed-form products."""
    means, variances = [], []
    for point in x:
        q = mixture.product(point, bandwidth)
        mean = q.weights @ q.means
        traces = q.covariances.diagonal(dim1=1, dim2=2).sum(-1) + (q.means - mean).square().sum(-1)
        means.append(mean)
        variances.append(q.weights @ traces)
    return torch.stack(means), torch.stack(variances)


def computing(a: argparse.Namespace) -> Callable[[Record], Record]:
    """What computes a row, for the sizes and the seed of the command line."""
    mixture = fractal()
    places = queries(mixture, a.queries, torch.Generator().manual_seed(a.seed))

    @cache
    def known(place: str, bandwidth: float) -> tuple[Tensor, Tensor]:
        return truth(mixture, places[place], bandwidth)

    def compute(row: Record) -> Record:
        x, bandwidth, count = places[row["queries"]], row["λ"], a.samples
        mean, variance = known(row["queries"], bandwidth)
        m = (mean - x).norm(dim=-1)
        denoise = counted(mixture.denoise)
        sigmas = karras_sigmas(row["steps"], SIGMA_MIN, SIGMA_MAX)
        options = {"solver": row["solver"], "generator": torch.Generator().manual_seed(a.seed)}
        stack = x.expand(count, *x.shape)
        *_, y = sample_product(denoise, stack, bandwidth, sigmas, **options, **SAMPLERS[row["sampler"]])
        error = (y.mean(0) - mean).norm(dim=-1) / m
        return {
            "calls": denoise.calls,
            "error": error.median().item(),  # null where a sampler exploded past the largest float
            "error, 90 %": error.quantile(0.9).item(),
            "floor": ((variance / count).sqrt() / m).median().item(),
            "spread": (y.var(0).sum(-1) / variance).sqrt().median().item(),
        }

    return compute


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--queries", type=int, default=16, help="on the data, and as many off it")
    arguments.add_argument("--samples", type=int, default=1024, help="samples of every sampler for each query")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--results", type=Path, default=RESULTS, help="folder of product_samplers.json")
    a = arguments.parse_args()
    fields = {
        "λ": BANDWIDTHS,
        "queries": ("on", "off"),
        "sampler": SAMPLERS,
        "solver": ("euler", "heun"),
        "steps": STEPS,
    }
    rows = [dict(zip(fields, values, strict=True)) for values in product(*fields.values())]
    sizes = {"queries": a.queries, "samples": a.samples, "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
    table = Table("product_samplers", {"sizes": sizes, "seed": a.seed}, computing(a), a.results)
    table.fill(rows)
    command = shlex.join(["python", "benchmarks/product_samplers.py", *sys.argv[1:]])
    table.write(rows, {"command": command, "machine": machine()})
    report(table.gather(rows))


if __name__ == "__main__":
    main()
