"""The ideal denoiser against the direct softmax and against KeOps: seconds, ratios, and the error of each.

4096 queries × 10⁴ data of the fractal. KeOps is measured where `pykeops` is installed.
"""

from __future__ import annotations

import subprocess
import sys

import torch
from _timing import best_times, keep, peak_memory

from msd_teach import IdealDenoiser, fractal

QUERIES, DATA = 4096, 10_000


def direct(z, y, sigma):
    return torch.softmax(-(torch.cdist(z, y) ** 2) / (2 * sigma**2), dim=-1) @ y


def keops(z, y, sigma):
    from pykeops.torch import LazyTensor

    squares = ((LazyTensor(z[:, None]) - LazyTensor(y[None])) ** 2).sum(-1)
    return (-squares / (2 * sigma**2)).sumsoftmaxweight(LazyTensor(y[None]), axis=1)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    data = fractal().sample(DATA, generator=generator)
    noise = torch.randn(QUERIES, 2, dtype=torch.float64, generator=generator)
    try:
        import pykeops

        pykeops.set_verbose(False)
        with_keops = True
    except ImportError:
        with_keops = False
    rows = []
    for kind in (torch.float32, torch.float64):
        for sigma in (0.002, 0.02, 0.2, 2.0):
            y, z = data.to(kind), (data[:QUERIES] + sigma * noise).to(kind)
            denoise = IdealDenoiser(y)
            rivals = {"ours": lambda: denoise(z, sigma), "direct": lambda: direct(z, y, sigma)}
            if with_keops:
                rivals["keops"] = lambda: keops(z, y, sigma)
            seconds = best_times(rivals)
            truth = IdealDenoiser(y.double())(z.double(), sigma)
            errors = {name: float((run() - truth).abs().max()) / sigma for name, run in rivals.items()}
            row = {"dtype": str(kind).removeprefix("torch."), "σ": sigma, "ours, s": seconds["ours"]}
            for name in list(rivals)[1:]:
                row |= {f"{name}, s": seconds[name], f"{name} / ours": seconds[name] / seconds["ours"]}
            row |= {f"max error/σ, {name}": errors[name] for name in rivals}
            rows.append(row)
    keep("ideal_denoiser", rows)

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
