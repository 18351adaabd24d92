"""One distillation step at 10⁴ points over the bare denoiser calls in it, replayed on the same inputs."""

from __future__ import annotations

import torch
from _timing import best_times, report
from torch import Tensor

from msd_teach import MSD, SDS, IdealDenoiser, MeanShift, distill, fractal, karras_sigmas
from msd_teach.schedules import linear

POINTS, DATA = 10_000, 10_000


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    mixture = fractal()
    data = mixture.sample(DATA, generator=generator).float()
    start = 3 * torch.rand(POINTS, 2, generator=generator) - 1.5
    level = linear(0.1, 0.1)
    sigmas = karras_sigmas(4, 0.002, 5)
    methods = {
        "SDS": SDS(),
        "MeanShift": MeanShift(level),
        "MSD, exact, 4 Euler steps": MSD("exact", level, sigmas, solver="euler"),
        "MSD, exponential, 4 Euler steps": MSD("exponential", level, sigmas, solver="euler"),
    }
    rows = []
    for kind, denoise in (("ideal denoiser, 10⁴ data", IdealDenoiser(data)), ("fractal mixture", mixture.denoise)):
        for name, method in methods.items():
            θ = start.clone().requires_grad_()
            optimizer = torch.optim.Adam([θ], 1e-3)
            inputs: list[tuple[Tensor, float | Tensor]] = []

            def recorded(z, sigma, denoise=denoise, inputs=inputs):
                inputs.append((z.clone(), sigma))
                return denoise(z, sigma)

            def render(generator, θ=θ):
                return θ

            next(distill(render, optimizer, recorded, method, 1, generator=generator))
            run = distill(render, optimizer, denoise, method, 10**6, generator=generator)

            def bare(denoise=denoise, inputs=inputs):
                for z, sigma in inputs:
                    denoise(z, sigma)

            seconds = best_times({"step": lambda run=run: next(run), "bare": bare}, repeats=8)
            row = {"denoiser": kind, "method": name, "calls": len(inputs), "step, s": seconds["step"]}
            rows.append(row | {"bare calls, s": seconds["bare"], "ratio": seconds["step"] / seconds["bare"]})
    report(rows)


if __name__ == "__main__":
    main()
