"""How bandwidths fall over a run, how score distillation draws its noise levels, and how it weighs them.

The classes are values: their repr says all of them, equal ones compare equal, and they pickle. So do methods that are
made of them, as long as a function given in their place has a name; what is behind a lambda no repr can say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor

from .sampling import karras_sigmas, vp_sigma
from .tensors import at_least_one, check_function, check_number

Schedule = Callable[[float], float]
"""Progress through the run, 0 to 1, to a bandwidth or noise level; never increasing."""

SigmaLaw = Callable[[Tensor, float], Tensor]
"""Uniform variates u in (0, 1), in float64 on the CPU, and the progress through the run, to noise levels: an inverse
distribution function."""

Weight = Callable[[Tensor], Tensor]
"""Noise level σ to the weight of x − D(x + σn; σ)."""

Level = Callable[[Tensor], Tensor]
"""Time t in [0, 1] to a model's noise level σ: `vp_sigma` for Stable Diffusion's schedule, `prior.level` for its own."""


class Settings:
    """A dataclass that is known by what it says: functions go by their names, tensors by their values."""

    def __repr__(self) -> str:
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={_in_words(getattr(self, name))}' for name in names)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def _values(self) -> tuple[Any, ...]:
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return tuple(_in_words(value) if isinstance(value, Tensor) else value for value in values)


def _in_words(value: Any) -> str:
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return value.__qualname__
    return str(value.tolist()) if isinstance(value, Tensor) else repr(value)


@dataclass(frozen=True, repr=False, eq=False)
class _Falling(Settings):
    start: float
    end: float

    def __post_init__(self):
        check_number("start", self.start)
        check_number("end", self.end)
        if not 0 < self.end <= self.start:
            raise ValueError(f"start, end are {self.start}, {self.end}; they must be 0 < end <= start")


@dataclass(frozen=True, repr=False, eq=False)
class linear(_Falling):
    """Falls from `start` to `end` at a constant rate (the paper's choice in 2-D), and stays there from `until` on."""

    until: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_number("until", self.until)
        if not 0 < self.until <= 1:
            raise ValueError(f"until is {self.until}; it must be progress in (0, 1]")

    def __call__(self, progress: float) -> float:
        share = min(progress / self.until, 1.0)
        return self.start * (1 - share) + self.end * share


class geometric(_Falling):
    """Falls from `start` to `end` by a constant factor."""

    def __call__(self, progress: float) -> float:
        return self.start ** (1 - progress) * self.end**progress


class cosine(_Falling):
    """Falls from `start` to `end` along half a cosine: slowly, fast, slowly."""

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2


def check_falling(schedule: Schedule, name: str) -> None:
    """Refuses a schedule that rises, reaches 0 or is not finite anywhere on a fine grid of progress."""
    if not callable(schedule):
        raise ValueError(f"{name} is {schedule}; it must be a function of progress, such as linear({schedule}, .003)")
    values = [float(schedule(i / 256)) for i in range(257)]
    for i, (now, then) in enumerate(zip(values, [values[0], *values], strict=False)):
        if not 0 < now <= then * (1 + 1e-12) < math.inf:
            raise ValueError(f"{name} is {now:g} at progress {i / 256:.3f}; it must be positive and may never increase")


@dataclass(frozen=True, repr=False, eq=False)
class uniform_sigma(Settings):
    """σ uniform between `low` and `high`."""

    low: float = 0.002
    high: float = 5.0

    def __post_init__(self):
        check_number("low", self.low)
        check_number("high", self.high)
        if not 0 < self.low <= self.high:
            raise ValueError(f"low, high are {self.low}, {self.high}; they must be 0 < low <= high")

    def __call__(self, u: Tensor, progress: float) -> Tensor:
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True, repr=False, eq=False)
class uniform_time(Settings):
    """t uniform between `low` and `high`, σ = level(t): on Stable Diffusion's schedule in DreamFusion's range by default."""

    low: float = 0.02
    high: float = 0.98
    level: Level = vp_sigma

    def __post_init__(self):
        check_function("level", self.level, "vp_sigma or prior.level")
        check_number("low", self.low)
        check_number("high", self.high)
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low, high are {self.low}, {self.high}; they must be 0 <= low < high <= 1")

    def __call__(self, u: Tensor, progress: float) -> Tensor:
        return self.level(self.low + (self.high - self.low) * u)


@dataclass(frozen=True, repr=False, eq=False)
class annealed(Settings):
    """σ follows a schedule: the control that gives SDS the same annealing as mean-shift distillation."""

    schedule: Schedule

    def __post_init__(self):
        check_falling(self.schedule, "schedule")

    def __call__(self, u: Tensor, progress: float) -> Tensor:
        return torch.full_like(u, self.schedule(progress))


@dataclass(frozen=True, repr=False, eq=False)
class sigmas_around(Settings):
    """The noise levels of a product sampler at bandwidth λ: from span·λ (or `top`) down to λ/span, then 0.

    Between them the levels lie as in `karras_sigmas`. With Heun and the exact kernel the default draws 1.00 to 1.02 of
    the variance of a Gaussian product, at every λ alike; 12 steps draw up to 1.11, Euler's 24 steps .80 to .85. The
    paper's kernels need a `top` well above the data, since they start at pure noise.
    """

    steps: int = 24
    span: float = 30.0
    top: float | None = None

    def __post_init__(self):
        at_least_one("steps", self.steps)
        check_number("span", self.span)
        if self.top is not None and not (isinstance(self.top, Real) and 0 < self.top < math.inf):
            raise ValueError(f"top is {self.top!r}; it must be above 0 and finite, or None")
        if not 1 < self.span < math.inf:
            raise ValueError(f"span is {self.span}; it must be above 1")

    def __call__(self, bandwidth: float) -> Tensor:
        """Levels (steps + 1,) in float64; ValueError where bandwidth/span is not below `top`."""
        top = self.span * bandwidth if self.top is None else self.top
        return karras_sigmas(self.steps, bandwidth / self.span, top)


@dataclass(frozen=True, repr=False, eq=False)
class above(Settings):
    """1 at noise levels above `level`, 0 from there down: questions with noise first, clean ones then."""

    level: float

    def __post_init__(self):
        check_number("level", self.level, low=0.0)

    def __call__(self, level: float) -> float:
        return float(level > self.level)


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
