"""Every score distillation as a target: x is pulled towards `value` with force `weight`.

A method is called as method(denoise, x, progress, generator), with x of shape (batch, *event) and progress in [0, 1].
It owns no denoiser: a second one is the batch's own, of the same prompts and views, at another guidance scale. A number
says which; a `Denoiser` in its place is taken as it is (in the plane, where there is no guidance to speak of).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Real
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .denoisers import Denoiser, IdealDenoiser, counted, rescaled
from .product import KERNELS, sample_product
from .sampling import SOLVERS, descending, invert, sample, solver_step, vp_sigma
from .schedules import (
    Level,
    Schedule,
    Settings,
    SigmaLaw,
    Weight,
    check_falling,
    dreamfusion_weight,
    linear,
    uniform_time,
)
from .tensors import at_least_one, check_function, check_number, noise_like, per_item, widest


class Target(NamedTuple):
    """Where x is pulled: `value` like x, `weight` a number or (batch,), denoiser `calls` an item, `level` σ or λ."""

    value: Tensor
    weight: float | Tensor
    calls: int
    level: float


class Method(Protocol):
    """What `distill` needs. A method that learns also has after_step(denoise, x, generator), which gives the calls that
    it spent on each item, and state_dict() and load_state_dict(state) for a checkpoint.
    """

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target: ...


def _draw(
    law: SigmaLaw, x: Tensor, samples: int, progress: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """σ of shape (samples, batch), in float64 where x's device has it, and z = x + σn of shape (samples, *x.shape)."""
    device = x.device if generator is None else generator.device
    u = torch.rand(samples, len(x), dtype=widest(device), device=device, generator=generator)
    sigma = law(u.to("cpu", torch.float64), progress).to(x.device, widest(x.device))
    stack = x.expand(samples, *x.shape)
    return sigma, stack + per_item(sigma, stack) * noise_like(stack, generator)


@dataclass(frozen=True, repr=False, eq=False)
class SDS(Settings):
    """Score distillation sampling (Poole et al. 2022; Eq. 1, Algorithm 1): the target is D(x + σn; σ), σ and n anew.

    `sigma` draws the noise levels and `weight` weighs them, `samples` is the Monte-Carlo size N. With
    sigma=annealed(schedule) and weight=unit_weight it is the control that shares MSD's annealing.
    """

    sigma: SigmaLaw = field(default_factory=uniform_time)
    weight: Weight = dreamfusion_weight
    samples: int = 1

    def __post_init__(self):
        at_least_one("samples", self.samples)
        _check_law(self.sigma, self.weight)

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        denoise = counted(denoise)
        sigma, z = _draw(self.sigma, x, self.samples, progress, generator)
        w = self.weight(sigma)
        value = (per_item(w, z, "weight") * denoise(z, sigma)).sum(0) / per_item(w.sum(0), x, "weight")
        return Target(value, w.mean(0), self.samples * denoise.calls, float(sigma.mean()))


@dataclass(frozen=True, repr=False, eq=False)
class VSD(Settings):
    """Variational score distillation (Wang et al. 2023): the target is x − [D_particles(z; σ) − D(z; σ)].

    `particles(x, denoise)` gives the denoiser of the distribution of the current x; `denoise` is the batch's own, with
    its prompts and views. In the plane `ideal_particles` is exact; in latents a `latent.lora.LoRA` stands for it, which
    learns in its own after_step. With a single particle the mean of the update is that of SDS.
    """

    particles: Callable[[Tensor, Denoiser], Denoiser]
    sigma: SigmaLaw = field(default_factory=uniform_time)
    weight: Weight = dreamfusion_weight

    def __post_init__(self):
        check_function("particles", self.particles, "ideal_particles")
        _check_law(self.sigma, self.weight)

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        prior, own = counted(denoise), counted(self.particles(x, denoise))
        sigma, z = (t[0] for t in _draw(self.sigma, x, 1, progress, generator))
        value = x - own(z, sigma) + prior(z, sigma)
        return Target(value, self.weight(sigma), prior.calls + own.calls, float(sigma.mean()))

    def after_step(self, denoise: Denoiser, x: Tensor, generator: torch.Generator | None) -> int:
        """Lets `particles` learn from the current x; gives the calls an item that this took."""
        learn = getattr(self.particles, "after_step", None)
        return 0 if learn is None else learn(denoise, x, generator)

    def state_dict(self) -> dict[str, Any]:
        """What `particles` has learned; empty where it does not learn."""
        own = getattr(self.particles, "state_dict", None)
        return {} if own is None else own()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gives back to `particles` what `state_dict` took down."""
        own = getattr(self.particles, "load_state_dict", None)
        if own is not None:
            own(state)


def ideal_particles(x: Tensor, denoise: Denoiser) -> Denoiser:
    """The exact denoiser of the particles x themselves."""
    return IdealDenoiser(x)


@dataclass(frozen=True, repr=False, eq=False)
class _Inverting(Settings):
    inversion: float | Denoiser | None = None
    time: Schedule = field(default_factory=lambda: linear(0.98, 0.25))
    steps: int = 10
    noise: float = 0.3
    level: Level = vp_sigma

    def __post_init__(self):
        at_least_one("steps", self.steps)
        check_falling(self.time, "time")
        if self.time(0.0) > 1:
            raise ValueError(f"time begins at {self.time(0.0)}; it is t in (0, 1], not a noise level")
        check_number("noise", self.noise, low=0.0)
        check_function("level", self.level, "vp_sigma or prior.level")
        _check_second("inversion", self.inversion)

    def _inverted(
        self, back: Denoiser, x: Tensor, progress: float, solver: str, generator: torch.Generator | None
    ) -> tuple[list[float], Tensor]:
        """Noise levels from t = 0 to t = time(progress) + U(0, 1/steps), and x carried up to the last of them."""
        t = min(self.time(progress) + _uniform(generator) / self.steps, 1.0)
        grid = [i / self.steps for i in range(self.steps) if i / self.steps < t] + [t]
        sigmas = self.level(torch.tensor(grid, dtype=torch.float64)).tolist()
        z = x
        for low, high in pairwise(sigmas):
            z = solver_step(back, z, low, high, solver)
            variance = low**2 * (high**2 - low**2) / high**2 * (1 + high**2) / (1 + low**2)
            z = z + self.noise * variance**0.5 * noise_like(x, generator)
        return sigmas, z


class SDI(_Inverting):
    """Score distillation via inversion (Lukoianov et al. 2024): SDS whose noise is found by inverting x.

    x is inverted in Euler steps of 1/steps up to the time t = time(progress) + U(0, 1/steps) of the model's schedule
    `level`, with fresh noise of share `noise` at each step; the target is D(z; σ(t)) with weight 1. One t serves the
    whole batch. `inversion` is the guidance scale on the way up, usually negative; None: the denoiser as it is.
    """

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        prior, back = counted(denoise), _second(denoise, self.inversion)
        sigmas, z = self._inverted(back, x, progress, "euler", generator)
        return Target(prior(z, sigmas[-1]), 1.0, prior.calls + back.calls, sigmas[-1])


@dataclass(frozen=True, repr=False, eq=False)
class PFD(_Inverting):
    """Probability-flow distillation (arXiv 2605.09071): SDI with the whole way down in place of its one Euler step.

    x is inverted as in `SDI`, and the flow is solved back down over the same noise levels; the target is where it ends,
    with weight 1. It ends at σ(0), where DDIM takes x for clean, as it did on the way up: down to 0 it would smooth x by
    that level once more. Where `inversion` is the denoiser itself and `noise` is 0, up and down are one flow, and the
    target is x up to the solver's error, whatever x is.
    """

    solver: str = "euler"

    def __post_init__(self):
        super().__post_init__()
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}; it may be one of {', '.join(SOLVERS)}")

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        prior, back = counted(denoise), _second(denoise, self.inversion)
        sigmas, z = self._inverted(back, x, progress, self.solver, generator)
        *_, y = sample(prior, z, torch.tensor(sigmas[::-1], dtype=torch.float64), self.solver)
        return Target(y, 1.0, prior.calls + back.calls, sigmas[-1])


@dataclass(frozen=True, repr=False, eq=False)
class ISM(Settings):
    """Interval score matching (Liang et al. 2023): the target is x − σ_t [ε(z_t; t) − ε_uncond(z_s; s)].

    x is given the noise of t = 0 and inverted in Euler steps of 1/steps to time s, one `interval` below t on the model's
    schedule `level`; t is uniform between `low` and `high`, one for the whole batch. The defaults are those of the
    released code, where `interval` and `high` fall during the first 30 % of a run. `uncond` is the guidance scale of
    the inversion, 0 in the paper of ISM; None: the denoiser as it is.
    """

    uncond: float | Denoiser | None = None
    steps: int = 5
    interval: Schedule = field(default_factory=lambda: linear(0.1, 0.05, until=0.3))
    low: float = 0.02
    high: Schedule = field(default_factory=lambda: linear(0.98, 0.5, until=0.3))
    level: Level = vp_sigma

    def __post_init__(self):
        at_least_one("steps", self.steps)
        _check_second("uncond", self.uncond)
        check_number("low", self.low)
        check_falling(self.interval, "interval")
        check_falling(self.high, "high")
        if not 0 <= self.low < self.high(1.0) <= self.high(0.0) <= 1:
            raise ValueError(f"low is {self.low}, high {self.high!r}; they must be times, 0 <= low < high <= 1")
        check_function("level", self.level, "vp_sigma or prior.level")
        if not float(self.level(torch.zeros((), dtype=torch.float64))) > 0:
            raise ValueError("level is 0 at t = 0; ISM starts from the noise of that level, so it must be above 0")

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        prior, back = counted(denoise), _second(denoise, self.uncond)
        t = self.low + (self.high(progress) - self.low) * _uniform(generator)
        s = max(t - self.interval(progress), 0.0)
        grid = [i / self.steps for i in range(self.steps) if i / self.steps < s] + [s, t]
        *sigmas, σ = self.level(torch.tensor(grid, dtype=torch.float64)).tolist()
        z = x + sigmas[0] * noise_like(x, generator)
        for here, there in pairwise(sigmas):
            z = solver_step(back, z, here, there, "euler")
        ε_s = (z - back(z, sigmas[-1])) / sigmas[-1]
        z = z + (σ - sigmas[-1]) * ε_s
        ε_t = (z - prior(z, σ)) / σ
        return Target(x - σ * (ε_t - ε_s), 1.0, prior.calls + back.calls, σ)


@dataclass(frozen=True, repr=False, eq=False)
class MeanShift(Settings):
    """Mean shift: the target is D(x; λ), one call and no noise; `bandwidth` is the schedule of λ.

    A network was trained on points with noise λ. `noise` is the share of it that x is given, D(x + share·λn; λ) with n
    anew: a number, or a function of λ such as `above(2.0)`. With 0 it is mean shift, with 1 SDS annealed, of weight 1.
    """

    bandwidth: Schedule
    noise: float | Callable[[float], float] = 0.0

    def __post_init__(self):
        check_falling(self.bandwidth, "bandwidth")
        if callable(self.noise):
            check_function("noise", self.noise, "above(2.0)")
        else:
            check_number("noise", self.noise, low=0.0)

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        denoise, λ = counted(denoise), self.bandwidth(progress)
        share = self.noise(λ) if callable(self.noise) else self.noise
        z = x + share * λ * noise_like(x, generator) if share else x
        return Target(denoise(z, λ), 1.0, denoise.calls, λ)


@dataclass(frozen=True, repr=False, eq=False)
class MSD(Settings):
    """Mean-shift distillation (Algorithm 2): the target is the mean of N samples of p(y) N(y; x, λ²I).

    `kernel`, `clock`, `interval` and `solver` are those of `sample_product`, on the noise levels `sigmas`. Both `sigmas`
    and `interval` may be functions of λ, since they have to move with it: `sigmas_around()` is good to the spread of
    the draws. `bandwidth` is the schedule of λ, `samples` is N. With `inversion`, a guidance scale (1: the prompt
    without guidance), the exponential kernel is centred on the path of x inverted at that scale, the paper's choice
    for Stable Diffusion.
    """

    kernel: str
    bandwidth: Schedule
    sigmas: Tensor | Callable[[float], Tensor]
    samples: int = 1
    solver: str = "heun"
    clock: str | Callable[[float], float] = "heat"
    interval: tuple[float, float] | Callable[[float], tuple[float, float]] | None = None
    inversion: float | Denoiser | None = None

    def __post_init__(self):
        check_falling(self.bandwidth, "bandwidth")
        at_least_one("samples", self.samples)
        descending(self._grid(self.bandwidth(0.0)), self.solver)
        descending(self._grid(self.bandwidth(1.0)), self.solver)
        _check_second("inversion", self.inversion)
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel is {self.kernel!r}; it may be one of {', '.join(KERNELS)}")
        if self.inversion is not None and self.kernel != "exponential":
            raise ValueError(f"inversion belongs to kernel='exponential'; kernel is {self.kernel!r}")

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        prior, λ = counted(denoise), self.bandwidth(progress)
        sigmas, stack, centre, spent = self._grid(λ), x.expand(self.samples, *x.shape), None, 0
        if self.inversion is not None:
            back = _second(denoise, self.inversion)
            path = list(invert(back, x, sigmas, "euler"))
            centre, spent = [c.expand_as(stack) for c in reversed(path)], back.calls
        *_, y = sample_product(
            prior, stack, λ, sigmas, self.kernel,
            clock=self.clock,
            interval=self.interval(λ) if callable(self.interval) else self.interval,
            centre=centre,
            solver=self.solver,
            generator=generator,
        )  # fmt: skip
        return Target(y.mean(0), 1.0, self.samples * prior.calls + spent, λ)

    def _grid(self, bandwidth: float) -> Tensor:
        return self.sigmas(bandwidth) if callable(self.sigmas) else self.sigmas


def _second(denoise: Denoiser, second: float | Denoiser | None) -> counted:
    """The batch's own denoiser at another scale, or the given one, with a count of its own."""
    if second is None:
        return counted(denoise)
    return counted(second if callable(second) else rescaled(denoise, float(second)))


def _check_law(sigma: SigmaLaw, weight: Weight) -> None:
    check_function("sigma", sigma, "uniform_time()")
    check_function("weight", weight, "dreamfusion_weight")


def _check_second(name: str, second: float | Denoiser | None) -> None:
    finite = isinstance(second, Real) and math.isfinite(second)
    if not (second is None or finite or callable(second)):
        raise ValueError(f"{name} is {second!r}; it must be a finite guidance scale, a denoiser or None")


def _uniform(generator: torch.Generator | None) -> float:
    device = "cpu" if generator is None else generator.device
    return torch.rand((), generator=generator, device=device).item()
