"""Every score distillation as a target: x is pulled towards `value` with force `weight`.

A method is called as method(denoise, x, progress, generator), with x of shape (batch, *event) and progress in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .denoisers import Denoiser, counted
from .product import KERNELS, sample_product
from .sampling import descending, invert, solver_step, vp_sigma
from .schedules import Schedule, SigmaLaw, Weight, check_falling, dreamfusion_weight, linear, uniform_time
from .tensors import noise_like, per_item


class Target(NamedTuple):
    """Where x is pulled: `value` like x, `weight` a number or (batch,), denoiser `calls` an item, `level` σ or λ."""

    value: Tensor
    weight: float | Tensor
    calls: int
    level: float


class Method(Protocol):
    """What `distill` needs; a method may also define after_step(x, generator) and state_dict()."""

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target: ...


def _draw(
    law: SigmaLaw, x: Tensor, samples: int, progress: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """σ of shape (samples, batch), in float64, and z = x + σn of shape (samples, *x.shape)."""
    device = x.device if generator is None else generator.device
    u = torch.rand(samples, len(x), dtype=torch.float64, device=device, generator=generator)
    sigma = law(u, progress).to(x.device)
    stack = x.expand(samples, *x.shape)
    return sigma, stack + per_item(sigma, stack) * noise_like(stack, generator)


@dataclass
class SDS:
    """Score distillation sampling (Poole et al. 2022; Eq. 1, Algorithm 1): the target is D(x + σn; σ), σ and n anew.

    `sigma` draws the noise levels and `weight` weighs them, `samples` is the Monte-Carlo size N. With
    sigma=annealed(schedule) and weight=unit_weight it is the control that shares MSD's annealing.
    """

    sigma: SigmaLaw = field(default_factory=uniform_time)
    weight: Weight = dreamfusion_weight
    samples: int = 1

    def __post_init__(self):
        _at_least_one("samples", self.samples)

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        denoise = counted(denoise)
        sigma, z = _draw(self.sigma, x, self.samples, progress, generator)
        w = self.weight(sigma)
        value = (per_item(w, z, "weight") * denoise(z, sigma)).sum(0) / per_item(w.sum(0), x, "weight")
        return Target(value, w.mean(0), self.samples * denoise.calls, float(sigma.mean()))


@dataclass
class VSD:
    """Variational score distillation (Wang et al. 2023): the target is x − [D_particles(z; σ) − D(z; σ)].

    `particles` turns the current x into the denoiser of their distribution. In the plane `IdealDenoiser` is exact; on
    images a LoRA stands for it. With a single particle the mean of the update is that of SDS.
    """

    particles: Callable[[Tensor], Denoiser]
    sigma: SigmaLaw = field(default_factory=uniform_time)
    weight: Weight = dreamfusion_weight

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        prior, own = counted(denoise), counted(self.particles(x))
        sigma, z = (t[0] for t in _draw(self.sigma, x, 1, progress, generator))
        value = x - own(z, sigma) + prior(z, sigma)
        return Target(value, self.weight(sigma), prior.calls + own.calls, float(sigma.mean()))


@dataclass
class SDI:
    """Score distillation via inversion (Lukoianov et al. 2024): SDS whose noise is found by inverting x.

    x is inverted with `inversion` (its guidance is usually negative; default: the denoiser itself) in Euler steps of
    1/steps up to the time t = time(progress) + U(0, 1/steps) of Stable Diffusion's schedule, with fresh noise of share
    `noise` at each step; the target is D(z; σ(t)) with weight 1. One t serves the whole batch.
    """

    inversion: Denoiser | None = None
    time: Schedule = field(default_factory=lambda: linear(0.98, 0.25))
    steps: int = 10
    noise: float = 0.3

    def __post_init__(self):
        _at_least_one("steps", self.steps)
        check_falling(self.time, "time")

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        prior, back = counted(denoise), counted(denoise if self.inversion is None else self.inversion)
        t = min(self.time(progress) + _uniform(generator) / self.steps, 1.0)
        grid = [i / self.steps for i in range(self.steps) if i / self.steps < t] + [t]
        levels = vp_sigma(torch.tensor(grid, dtype=torch.float64)).tolist()
        z = x
        for low, high in pairwise(levels):
            z = solver_step(back, z, low, high, "euler")
            variance = low**2 * (high**2 - low**2) / high**2 * (1 + high**2) / (1 + low**2)
            z = z + self.noise * variance**0.5 * noise_like(x, generator)
        return Target(prior(z, levels[-1]), 1.0, prior.calls + back.calls, levels[-1])


@dataclass
class ISM:
    """Interval score matching (Liang et al. 2023): the target is x − σ_t [ε(z_t; t) − ε_uncond(z_s; s)].

    x is inverted with `uncond` (default: the denoiser itself) in `steps` Euler steps to time s, and one `interval`
    further to t on Stable Diffusion's schedule; t is uniform in `times`, one for the whole batch.
    """

    uncond: Denoiser | None = None
    steps: int = 5
    interval: float = 0.05
    times: tuple[float, float] = (0.07, 0.98)

    def __post_init__(self):
        _at_least_one("steps", self.steps)
        if not 0 < self.interval <= self.times[0] <= self.times[1] <= 1:
            said = f"interval, times are {self.interval}, {self.times}"
            raise ValueError(f"{said}; they must be 0 < interval <= low <= high <= 1")

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        prior, back = counted(denoise), counted(denoise if self.uncond is None else self.uncond)
        low, high = self.times
        t = low + (high - low) * _uniform(generator)
        grid = torch.linspace(0, t - self.interval, self.steps + 1, dtype=torch.float64)
        *levels, s = vp_sigma(grid).tolist()
        σ = float(vp_sigma(torch.tensor(t, dtype=torch.float64)))
        z = x
        for here, there in pairwise([*levels, s]):
            z = solver_step(back, z, here, there, "euler")
        ε_s = (z - back(z, s)) / s
        z = z + (σ - s) * ε_s
        ε_t = (z - prior(z, σ)) / σ
        return Target(x - σ * (ε_t - ε_s), 1.0, prior.calls + back.calls, σ)


@dataclass
class MeanShift:
    """Mean shift: the target is D(x; λ), one call and no noise; `bandwidth` is the schedule of λ."""

    bandwidth: Schedule

    def __post_init__(self):
        check_falling(self.bandwidth, "bandwidth")

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        denoise, λ = counted(denoise), self.bandwidth(progress)
        return Target(denoise(x, λ), 1.0, denoise.calls, λ)


@dataclass
class MSD:
    """Mean-shift distillation (Algorithm 2): the target is the mean of N samples of p(y) N(y; x, λ²I).

    `kernel`, `clock`, `interval` and `solver` are those of `sample_product`, on the noise levels `sigmas`; `interval`
    may also be a function of λ, since it has to move with it. `bandwidth` is the schedule of λ, `samples` is N. With
    `inversion`, a denoiser, the exponential kernel is centred on the path of x inverted by it (the paper's choice for
    Stable Diffusion).
    """

    kernel: str
    bandwidth: Schedule
    sigmas: Tensor
    samples: int = 1
    solver: str = "heun"
    clock: str | Callable[[float], float] = "heat"
    interval: tuple[float, float] | Callable[[float], tuple[float, float]] | None = None
    inversion: Denoiser | None = None

    def __post_init__(self):
        check_falling(self.bandwidth, "bandwidth")
        _at_least_one("samples", self.samples)
        descending(self.sigmas, self.solver)
        if self.inversion is not None and self.kernel != "exponential":
            raise ValueError(f"inversion belongs to kernel='exponential'; kernel is {self.kernel!r}")
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel is {self.kernel!r}; it may be one of {', '.join(KERNELS)}")

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        denoise, λ = counted(denoise), self.bandwidth(progress)
        stack, centre, spent = x.expand(self.samples, *x.shape), None, 0
        if self.inversion is not None:
            back = counted(self.inversion)
            path = list(invert(back, x, self.sigmas, "euler"))
            centre, spent = [c.expand_as(stack) for c in reversed(path)], back.calls
        interval = self.interval(λ) if callable(self.interval) else self.interval
        *_, y = sample_product(
            denoise, stack, λ, self.sigmas, self.kernel, self.clock, interval, centre, self.solver, generator
        )
        return Target(y.mean(0), 1.0, self.samples * denoise.calls + spent, λ)


def _at_least_one(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} is {count}; it must be at least 1")


def _uniform(generator: torch.Generator | None) -> float:
    device = "cpu" if generator is None else generator.device
    return torch.rand((), generator=generator, device=device).item()
