"""The probability-flow ODE dz/dσ = (z − D(z; σ))/σ, solved from noise to data and back.

Samplers are generators of states, one for each noise level, so that `*path, x = sample(…)` keeps the animation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from .denoisers import Denoiser
from .tensors import at_least_float32, at_least_one

SOLVERS = ("heun", "euler")


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Noise levels for `steps` solver steps, (steps + 1,) in float64: descending from sigma_max, ending in 0.

    Equal spacing in σ^(1/ρ) between sigma_max and sigma_min, then 0 (Karras et al. 2022, Eq. 5).

    Raises:
        ValueError: steps that is no whole number >= 1, or not 0 < sigma_min < sigma_max.
    """
    at_least_one("steps", steps)
    if not 0 < rho < float("inf"):
        raise ValueError(f"rho is {rho}; it must be > 0")
    if not 0 < sigma_min < sigma_max < float("inf"):
        raise ValueError(f"sigma_min, sigma_max are {sigma_min}, {sigma_max}; they must be 0 < sigma_min < sigma_max")
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64) ** (1 / rho)
    levels = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps, dtype=torch.float64)) ** rho
    levels[-1], levels[0] = sigma_min, sigma_max  # rounding would move the ends by an ulp; one step starts at the top
    return torch.cat([levels, levels.new_zeros(1)])


@dataclass(frozen=True, eq=False, repr=False)
class LevelTable:
    """σ at time t in [0, 1] from ascending noise levels (n,), log σ linear between them: t of any shape, float64.

    Two of equal levels are equal, and say the same: settings may hold one (see `schedules.Settings`).

    Raises:
        ValueError: when called, a time that is NaN.
    """

    levels: Tensor

    def __call__(self, t: float | Tensor) -> Tensor:
        place = torch.as_tensor(t).to("cpu", torch.float64).clamp(0, 1) * (len(self.levels) - 1)
        if place.isnan().any():
            raise ValueError(f"t is {t}; it must be from 0 to 1")
        below = place.floor().long().clamp(max=len(self.levels) - 2)
        return torch.lerp(self._logs[below], self._logs[below + 1], place - below).exp()

    @cached_property
    @torch.inference_mode(False)  # a later reader may want gradients beside them
    def _logs(self) -> Tensor:
        return self.levels.to("cpu", torch.float64).log()

    def __repr__(self) -> str:
        digest = hashlib.sha256(self.levels.to("cpu", torch.float64).numpy().tobytes()).hexdigest()[:12]
        return f"LevelTable({len(self.levels)} levels, {self.levels[0]:.4g} to {self.levels[-1]:.4g}, {digest})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LevelTable) and torch.equal(self.levels, other.levels)

    def __hash__(self) -> int:
        return hash(repr(self))


def vp_sigma(t: float | Tensor) -> Tensor:
    """σ at time t ∈ [0, 1] of Stable Diffusion's schedule: .029 at 0, 14.6 at 1; any shape, float64.

    The scaled-linear schedule has √β from √.00085 to √.012 in 1000 steps; σ = √((1 − ᾱ)/ᾱ), log σ linear between steps.
    Times beyond either end are taken as that end.

    Raises:
        ValueError: a time that is NaN.
    """
    return _vp_levels()(t)


@cache
@torch.inference_mode(False)
def _vp_levels() -> LevelTable:
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = (1 - beta).cumprod(0)
    return LevelTable(((1 - alpha_bar) / alpha_bar).sqrt())


def sample(denoise: Denoiser, z: Tensor, sigmas: Tensor, solver: str = "heun") -> Iterator[Tensor]:
    """Integrates from noise to data: yields a state for each of `sigmas`, `z` first and the sample last.

    `z` of shape (*batch, *event) is noise of standard deviation `sigmas[0]` (plus data, if that is small). With
    "euler" this is DDIM without added noise (Song et al. 2021, in variance-exploding form), one denoiser call a step;
    "heun" is second order with two calls, one on the last step (Karras et al. 2022, Alg. 1). No gradients are kept, and
    states are in float32 or better, whatever z is.

    Raises:
        ValueError: an unknown solver, or sigmas that do not descend to a last value ≥ 0.
    """
    levels = descending(sigmas, solver)
    return _integrate(denoise, at_least_float32(z), levels, solver)


def invert(denoise: Denoiser, x: Tensor, sigmas: Tensor, solver: str = "heun") -> Iterator[Tensor]:
    """Integrates from data to noise over the same descending `sigmas` as `sample`, last level first.

    Yields a state for each level from `x` on, so that `list(reversed(list(invert(…))))` lies on the grid of `sample`.
    The drift at σ = 0, where the ODE divides by zero, is taken as 0. No gradients are kept.

    Raises:
        ValueError: an unknown solver, or sigmas that do not descend to a last value ≥ 0.
    """
    levels = descending(sigmas, solver)
    return _integrate(denoise, at_least_float32(x), levels[::-1], solver)


def descending(sigmas: Tensor, solver: str) -> list[float]:
    """The noise levels as numbers, after refusing what no sampler can use."""
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}; it may be one of {', '.join(SOLVERS)}")
    try:
        grid = torch.as_tensor(sigmas)
    except (TypeError, RuntimeError, ValueError):  # no numbers
        grid = torch.empty(0, 0)
    levels = grid.tolist() if grid.ndim == 1 and not grid.is_complex() else []
    falling = all(inf > high > low for high, low in pairwise(levels))
    if len(levels) < 2 or levels[-1] < 0 or not falling:
        raise ValueError(
            f"sigmas are {levels or sigmas}; they must be two or more, finite, strictly descending, the last one >= 0"
        )
    return levels


@torch.no_grad()
def _integrate(denoise: Denoiser, z: Tensor, levels: list[float], solver: str) -> Iterator[Tensor]:
    z = z.detach()
    yield z
    for here, there in pairwise(levels):
        z = solver_step(denoise, z, here, there, solver)
        yield z


def solver_step(denoise: Denoiser, z: Tensor, here: float, there: float, solver: str) -> Tensor:
    """One step of the ODE from noise level `here` to `there`, up or down; it stands still where `here` is 0."""
    if here == 0:
        return z
    slope = (z - denoise(z, here)) / here
    ahead = z + (there - here) * slope
    if solver == "euler" or there == 0:
        return ahead
    return z + (there - here) / 2 * (slope + (ahead - denoise(ahead, there)) / there)
