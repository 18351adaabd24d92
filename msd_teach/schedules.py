"""How bandwidths fall over a run, how score distillation draws its noise levels, and how it weighs them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .sampling import vp_sigma

Schedule = Callable[[float], float]
"""Progress through the run, 0 to 1, to a bandwidth or noise level; never increasing."""

SigmaLaw = Callable[[Tensor, float], Tensor]
"""Uniform variates u in (0, 1) and the progress through the run, to noise levels: an inverse distribution function."""

Weight = Callable[[Tensor], Tensor]
"""Noise level σ to the weight of x − D(x + σn; σ)."""


def linear(start: float, end: float) -> Schedule:
    """Falls from `start` to `end` at a constant rate (the paper's choice in 2-D)."""
    _check_ends(start, end)
    return lambda progress: start * (1 - progress) + end * progress


def geometric(start: float, end: float) -> Schedule:
    """Falls from `start` to `end` by a constant factor."""
    _check_ends(start, end)
    return lambda progress: start ** (1 - progress) * end**progress


def cosine(start: float, end: float) -> Schedule:
    """Falls from `start` to `end` along half a cosine: slowly, fast, slowly."""
    _check_ends(start, end)
    return lambda progress: end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _check_ends(start: float, end: float) -> None:
    if not 0 < end <= start < math.inf:
        raise ValueError(f"start, end are {start}, {end}; they must be 0 < end <= start")


def check_falling(schedule: Schedule, name: str) -> None:
    """Refuses a schedule that rises, reaches 0 or is not finite anywhere on a fine grid of progress."""
    if not callable(schedule):
        raise ValueError(f"{name} is {schedule}; it must be a function of progress, such as linear({schedule}, .003)")
    values = [float(schedule(i / 256)) for i in range(257)]
    for i, (now, then) in enumerate(zip(values, [values[0], *values], strict=False)):
        if not 0 < now <= then * (1 + 1e-12) < math.inf:
            raise ValueError(f"{name} is {now:g} at progress {i / 256:.3f}; it must be positive and may never increase")


def uniform_sigma(low: float = 0.002, high: float = 5.0) -> SigmaLaw:
    """σ uniform between `low` and `high`."""
    if not 0 < low <= high < math.inf:
        raise ValueError(f"low, high are {low}, {high}; they must be 0 < low <= high")
    return lambda u, progress: low + (high - low) * u


def uniform_time(low: float = 0.02, high: float = 0.98) -> SigmaLaw:
    """t uniform on Stable Diffusion's schedule, σ = `vp_sigma(t)` (DreamFusion's range by default)."""
    if not 0 <= low < high <= 1:
        raise ValueError(f"low, high are {low}, {high}; they must be 0 <= low < high <= 1")
    return lambda u, progress: vp_sigma(low + (high - low) * u)


def annealed(schedule: Schedule) -> SigmaLaw:
    """σ follows a schedule: the control that gives SDS the same annealing as mean-shift distillation."""
    check_falling(schedule, "schedule")
    return lambda u, progress: torch.full_like(u, schedule(progress))


def dreamfusion_weight(sigma: Tensor) -> Tensor:
    """(1 − ᾱ)/σ, as DreamFusion and threestudio compute it; ᾱ = 1/(1 + σ²)."""
    return sigma / (1 + sigma**2)


def chain_rule_weight(sigma: Tensor) -> Tensor:
    """(1 − ᾱ)α/σ: DreamFusion's weight with the factor ∂z_t/∂x that it leaves out."""
    return sigma / (1 + sigma**2) ** 1.5


def literal_weight(sigma: Tensor) -> Tensor:
    """α²/σ: the weight α(t) of the paper's Eq. 1, times the chain rule's ∂z_t/∂x = α."""
    return 1 / (sigma * (1 + sigma**2))


def unit_weight(sigma: Tensor) -> Tensor:
    """1 at every noise level."""
    return torch.ones_like(sigma)
