"""The ideal denoiser against the direct softmax and against KeOps: seconds, ratios, and the error of each.

4096 queries × 10⁴ data of the fractal. KeOps is measured where `pykeops` is installed.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import torch
from _timing import best_times, peak_memory, report

from msd_teach import IdealDenoiser, fractal

QUERIES, DATA = 4096, 10_000


def direct(z, y, sigma):
    return torch.softmax(-(torch.cdist(z, y) ** 2) / (2 * sigma**2), dim=-1) @ y


def exact(z, y, sigma):
    """With every difference written out, in float64, in slices of the queries."""
    parts = [(-(q[:, None] - y).square().sum(-1) / (2 * sigma**2)).softmax(-1) @ y for q in z.split(256)]
    return torch.cat(parts)


def keops(z, y, sigma):
    from pykeops.torch import LazyTensor  # pyright: ignore[reportMissingImports]

    squares = ((LazyTensor(z[:, None]) - LazyTensor(y[None])) ** 2).sum(-1)
    return (-squares / (2 * sigma**2)).sumsoftmaxweight(LazyTensor(y[None]), axis=1)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    data = fractal().sample(DATA, generator=generator)
    noise = torch.randn(QUERIES, 2, dtype=torch.float64, generator=generator)
    try:
        import pykeops  # pyright: ignore[reportMissingImports]

        pykeops.set_verbose(False)
        with_keops = True
    except ImportError:
        with_keops = False
    rows = []
    for kind in (torch.float32, torch.float64):
        for sigma in (0.002, 0.02, 0.2, 2.0):
            y, z = data.to(kind), (data[:QUERIES] + sigma * noise).to(kind)
            rivals = {"ours": partial(IdealDenoiser(y), z, sigma), "direct": partial(direct, z, y, sigma)}
            if with_keops:
                rivals["keops"] = partial(keops, z, y, sigma)
            seconds = best_times(rivals)
            truth = exact(z.double(), y.double(), sigma)
            errors = {name: float((run() - truth).abs().max()) / sigma for name, run in rivals.items()}
            row = {"dtype": str(kind).removeprefix("torch."), "σ": sigma, "ours, s": seconds["ours"]}
            for name in list(rivals)[1:]:
                row |= {f"{name}, s": seconds[name], f"{name} / ours": seconds[name] / seconds["ours"]}
            row |= {f"max error/σ, {name}": errors[name] for name in rivals}
            rows.append(row)
    report(rows)

    n = 100_000
    grown = subprocess.run([sys.executable, __file__, "memory", str(n)], capture_output=True, text=True, check=True)
    print(f"\n{n:,} × {n:,}, float32: peak memory grew by {float(grown.stdout):.0f} MiB (a logit table: 37 GiB)")


def memory(n: int) -> None:
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    denoise = IdealDenoiser(x)
    denoise(x[:4], 0.1)
    before = peak_memory()
    denoise(x, 0.1)
    print(peak_memory() - before)


if __name__ == "__main__":
    memory(int(sys.argv[2])) if sys.argv[1:2] == ["memory"] else main()
