"""What the paper gave up "due to its high cost": its protocol with the ideal denoiser, ours against the direct softmax.

One SDS update of the 25 × 25 lattice with 10³ Monte-Carlo samples and 10⁴ data; 150 of them make the run of Table 2.
The direct form is measured on a slice of the queries, in the same turns as ours, and scaled.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import torch
from _timing import best_times, peak_memory, report
from ideal_denoiser import direct

from msd_teach import IdealDenoiser, fractal
from msd_teach.runs.tables import PROTOCOL, start_points
from msd_teach.schedules import uniform_time
from msd_teach.tensors import noise_like

SAMPLES, SLICE = 1000, 8192


def queries(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The data, and the first queries of one update with their noise levels."""
    generator = torch.Generator().manual_seed(0)
    data = fractal().sample(PROTOCOL.data, generator=generator).float()
    x = start_points(PROTOCOL).repeat(SAMPLES, 1)[:count]
    sigma = uniform_time()(torch.rand(len(x), dtype=torch.float64, generator=generator), 0.0).float()
    return data, x + sigma[:, None] * noise_like(x, generator), sigma


def grown(rival: str, count: int) -> float:
    """MiB by which one call grows the peak memory, in a process of its own."""
    run = subprocess.run([sys.executable, __file__, rival, str(count)], capture_output=True, text=True, check=True)
    return float(run.stdout)


def memory(rival: str, count: int) -> None:
    data, z, sigma = queries(count)
    denoise = IdealDenoiser(data)
    run = denoise if rival == "ours" else lambda z, sigma: direct(z, data, sigma[:, None])
    run(z[:4], sigma[:4])
    before = peak_memory()
    run(z, sigma)
    print(peak_memory() - before)


def main() -> None:
    data, z, sigma = queries(SLICE)
    rivals = {"ours": partial(IdealDenoiser(data), z, sigma), "direct": partial(direct, z, data, sigma[:, None])}
    seconds = best_times(rivals)
    total = SAMPLES * PROTOCOL.side**2
    rows = []
    for name in rivals:
        update = seconds[name] * total / SLICE
        measured = total if name == "ours" else SLICE  # all 625 000 queries at once, where they fit
        mebibytes = grown(name, measured) * total / measured
        row = {"": name, f"{SLICE} queries, s": seconds[name], "one update, s": update}
        rows.append(row | {"150 updates, min": update * PROTOCOL.steps / 60, "peak memory, GiB": mebibytes / 1024})
    report(rows)
    print(
        f"\nratio {seconds['direct'] / seconds['ours']:.1f}; all but the first column are scaled, ours to memory apart"
    )


if __name__ == "__main__":
    memory(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main()
