"""The probability-flow ODE dz/dσ = (z − D(z; σ))/σ, solved from noise to data and back.

Samplers are generators of states, one for each noise level, so that `*path, x = sample(…)` keeps the animation.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .denoisers import Denoiser

SOLVERS = ("heun", "euler")


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Noise levels for `steps` solver steps, (steps + 1,) in float64: descending from sigma_max, ending in 0.

    Equal spacing in σ^(1/ρ) between sigma_max and sigma_min, then 0 (Karras et al. 2022, Eq. 5).

    Raises:
        ValueError: fewer than one step, or not 0 < sigma_min < sigma_max.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    if not 0 < sigma_min < sigma_max < float("inf"):
        raise ValueError(f"sigma_min, sigma_max are {sigma_min}, {sigma_max}; they must be 0 < sigma_min < sigma_max")
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64) ** (1 / rho)
    levels = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps, dtype=torch.float64)) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def sample(denoise: Denoiser, z: Tensor, sigmas: Tensor, solver: str = "heun") -> Iterator[Tensor]:
    """Integrates from noise to data: yields a state for each of `sigmas`, `z` first and the sample last.

    `z` of shape (*batch, *event) is noise of standard deviation `sigmas[0]` (plus data, if that is small). With
    "euler" this is DDIM without added noise (Song et al. 2021, in variance-exploding form), one denoiser call a step;
    "heun" is second order with two calls, one on the last step (Karras et al. 2022, Alg. 1). No gradients are kept.

    Raises:
        ValueError: an unknown solver, or sigmas that do not descend to a last value ≥ 0.
    """
    levels = _descending(sigmas, solver)
    return _integrate(denoise, z, levels, solver)


def invert(denoise: Denoiser, x: Tensor, sigmas: Tensor, solver: str = "heun") -> Iterator[Tensor]:
    """Integrates from data to noise over the same descending `sigmas` as `sample`, last level first.

    Yields a state for each level from `x` on, so that `list(reversed(list(invert(…))))` lies on the grid of `sample`.
    The drift at σ = 0, where the ODE divides by zero, is taken as 0. No gradients are kept.

    Raises:
        ValueError: an unknown solver, or sigmas that do not descend to a last value ≥ 0.
    """
    levels = _descending(sigmas, solver)
    return _integrate(denoise, x, levels[::-1], solver)


def _descending(sigmas: Tensor, solver: str) -> list[float]:
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}; it may be one of {', '.join(SOLVERS)}")
    levels = torch.as_tensor(sigmas).tolist()
    if len(levels) < 2 or levels[-1] < 0 or not all(high > low for high, low in pairwise(levels)):
        raise ValueError(f"sigmas are {levels}; they must be two or more, strictly descending, the last one >= 0")
    return levels


@torch.no_grad()
def _integrate(denoise: Denoiser, z: Tensor, levels: list[float], solver: str) -> Iterator[Tensor]:
    def drift(z: Tensor, sigma: float) -> Tensor:
        return (z - denoise(z, sigma)) / sigma

    yield z
    for here, there in pairwise(levels):
        slope = drift(z, here) if here > 0 else torch.zeros_like(z)
        ahead = z + (there - here) * slope
        if solver == "heun" and there > 0 and here > 0:
            ahead = z + (there - here) / 2 * (slope + drift(ahead, there))
        z = ahead
        yield z
