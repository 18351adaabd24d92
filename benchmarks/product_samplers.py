"""Error of the mean shift m(x) against denoiser calls, for every sampler of the product density on the fractal.

Query points lie on the data and off it. The truth is the closed-form product, the denoiser exact; `floor` is the error
that as many exact draws would leave. Prints a Markdown table and writes results/product_samplers.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from _timing import machine, report
from torch import Tensor

from msd_teach import GaussianMixture, counted, fractal, karras_sigmas, sample_product

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


def measure(mixture: GaussianMixture, x: Tensor, bandwidth: float, count: int, seed: int) -> Iterator[dict]:
    """A row for each sampler, solver and number of steps."""
    mean, variance = truth(mixture, x, bandwidth)
    m = (mean - x).norm(dim=-1)
    floor = ((variance / count).sqrt() / m).median().item()
    for name, options in SAMPLERS.items():
        for solver in ("euler", "heun"):
            for steps in STEPS:
                denoise = counted(mixture.denoise)
                sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
                g = torch.Generator().manual_seed(seed)
                stack = x.expand(count, *x.shape)
                *_, y = sample_product(denoise, stack, bandwidth, sigmas, solver=solver, generator=g, **options)
                error = (y.mean(0) - mean).norm(dim=-1) / m
                spread = (y.var(0).sum(-1) / variance).sqrt()
                yield {
                    "sampler": name,
                    "solver": solver,
                    "steps": steps,
                    "calls": denoise.calls,
                    "error": error.median().item(),
                    "error, 90 %": error.quantile(0.9).item(),
                    "floor": floor,
                    "spread": spread.median().item(),
                }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--queries", type=int, default=16, help="on the data, and as many off it")
    arguments.add_argument("--samples", type=int, default=1024, help="samples of every sampler for each query")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results/product_samplers.json")
    a = arguments.parse_args()
    mixture = fractal()
    places = queries(mixture, a.queries, torch.Generator().manual_seed(a.seed))
    rows = []
    for bandwidth in BANDWIDTHS:
        for place, x in places.items():
            for row in measure(mixture, x, bandwidth, a.samples, a.seed):
                # A sampler that exploded past the largest float has no number, in JSON neither.
                row = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()}
                rows.append({"λ": bandwidth, "queries": place} | row)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    record = {
        "command": shlex.join(["python", "benchmarks/product_samplers.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "machine": machine(),
        "sizes": {"queries": a.queries, "samples": a.samples, "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX},
        "seed": a.seed,
        "rows": rows,
    }
    a.out.parent.mkdir(exist_ok=True)
    a.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    report(rows)


if __name__ == "__main__":
    main()
