"""Chapter 08: v-prediction without t, the kernel behind a clock, a Jacobian's trace by forward derivatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...sampling import vp_sigma
from ._compare import Exercise, checker, compare


@checker
def denoise_from_v(fn: Exercise) -> None:
    """Exercise 8.1: fn(z, sigma, v), against y itself where v is made from y and n by its definition."""
    generator = torch.Generator().manual_seed(0)
    y, n = (torch.randn(3, 4, 5, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    for sigma in (0.03, 0.7, 1.0, 14.6, 1e4):
        kept, lost = 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)  # √ᾱ and √(1 − ᾱ)
        z, v = y + sigma * n, kept * n - lost * y
        mistakes = {
            "Both terms are scaled: z_t is z/√(1 + σ²).": kept * z - lost * v,
            "v enters with a minus.": kept**2 * z + lost * v,
            "That is z − σv; v is not the noise.": z - sigma * v,
            "The first factor is ᾱ = 1/(1 + σ²): once for z_t, once from the formula.": z - lost * v,
            "The second factor is σ/√(1 + σ²), not σ/(1 + σ²).": kept**2 * z - kept * lost * v,
        }
        wrong = {hint: value for hint, value in mistakes.items() if (value - y).abs().max() > 1e-5}
        compare(f"σ = {sigma:g}", fn(z, sigma, v), y, 1e-6, wrong)


@checker
def kernel_at(fn: Exercise) -> None:
    """Exercise 8.2: fn(bandwidth, levels, step), against the contraction that a step of the clock makes."""
    levels = vp_sigma(torch.arange(1000) / 999)
    for bandwidth, step in ((10.0, 100), (10.0, 500), (10.0, 980), (0.01, 500)):
        before, after = levels[step - 1].item(), levels[step + 1].item()
        # two steps of the clock contract by exp(−2/λ_t²); the kernel of this deviation does so by exp(−Δσ²/2λ²)
        want = math.sqrt((after**2 - before**2) / 2 / (2 / bandwidth**2))
        slope, sigma = (after - before) / 2, levels[step].item()
        mistakes = {
            "That is the noise level's slope alone; the kernel's rate is σ dσ/λ².": bandwidth * math.sqrt(slope),
            "λ_t and λ are deviations: their squares are in the exponents.": bandwidth * sigma * slope,
            "The central difference spans two steps.": bandwidth * math.sqrt(2 * sigma * slope),
            "Turn it round: a longer way in σ in one step of t means a wider kernel.": bandwidth
            / math.sqrt(sigma * slope),
        }
        compare(f"λ_t = {bandwidth:g}, t = {step}", fn(bandwidth, levels, step), want, 2e-4 * want, mistakes)


@checker
def trace_per_dimension(fn: Exercise) -> None:
    """Exercise 8.3: fn(denoise, x, sigma, probes), on a denoiser whose Jacobian is written down."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, dtype=torch.float64, generator=generator)
    matrix = torch.randn(8, 8, dtype=torch.float64, generator=generator)
    probes = 2.0 * torch.randint(2, (5, 3, 2, 4), generator=generator).double() - 1

    def denoise(z: Tensor, sigma: float | Tensor) -> Tensor:
        return (z.flatten(1) @ matrix.T / (1 + sigma) + z.flatten(1) ** 2).reshape(z.shape)

    for sigma in (0.1, 2.0):
        flat = probes.flatten(2)
        along = flat @ matrix.T / (1 + sigma) + 2 * x.flatten(1) * flat
        want = (flat * along).mean((0, 2))
        mistakes = {
            "That is the trace; divide by the number of dimensions.": 8 * want,
            "Average over the probes, one number for each item of x.": 5 * want,
            "Multiply Jξ by ξ again before you sum.": along.mean((0, 2)),
            "That is the mean over the batch too; give one number for each item.": want.mean().expand(3),
        }
        compare(f"σ = {sigma:g}", fn(denoise, x, sigma, probes), want, 1e-9, mistakes)
