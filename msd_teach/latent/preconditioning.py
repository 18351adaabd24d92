"""What a network is asked, and how D(z; σ) is made of its answer: one small object for each parametrisation.

D(z; σ) = c_skip(σ) z + c_out(σ) F(c_in(σ) z; t(σ)) with z = y + σn (Karras et al. 2022, Eq. 7); F is the network as it
was trained. Every method takes and gives tensors of any shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..sampling import LevelTable


class Preconditioning(Protocol):
    """The four factors of Eq. 7 as functions of σ, the network's time among them, and the inverse of that time."""

    def c_in(self, sigma: Tensor) -> Tensor: ...
    def c_skip(self, sigma: Tensor) -> Tensor: ...
    def c_out(self, sigma: Tensor) -> Tensor: ...
    def t(self, sigma: Tensor) -> Tensor: ...
    def sigma(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)  # two are never compared: tensors would answer item by item
class _VariancePreserving:
    """The input z_t = √ᾱ y + √(1 − ᾱ) n = z/√(1 + σ²), with σ = √((1 − ᾱ)/ᾱ), and the time of a table.

    `levels` (steps,), ascending, float64, on the CPU, is σ of each training step; t is a fractional training step, and
    log σ is linear between two. Beyond either end t stays there, and the network's v is held: D → z
    as σ → 0, and D → −v, bounded, as σ → ∞, where z − σε would grow.
    """

    levels: Tensor

    @cached_property
    def _log_levels(self) -> Tensor:
        return self.levels.log()

    def _asked(self, sigma: Tensor) -> Tensor:
        """σ_c, the level nearest to σ that the network knows."""
        return sigma.clamp(float(self.levels[0]), float(self.levels[-1]))

    def c_in(self, sigma: Tensor) -> Tensor:
        """1/√(1 + σ²)."""
        return 1 / (1 + sigma**2).sqrt()

    def t(self, sigma: Tensor) -> Tensor:
        """The training step, fractional, from 0 to steps − 1."""
        table, wanted = self._log_levels, self._asked(sigma).log().contiguous()
        above = torch.searchsorted(table, wanted).clamp(min=1)
        return above - (table[above] - wanted) / (table[above] - table[above - 1])

    def sigma(self, t: Tensor) -> Tensor:
        """σ at a fractional training step."""
        return LevelTable(self.levels)(t / (len(self.levels) - 1))


class VPEpsilon(_VariancePreserving):
    """F = ε, the noise: D = z − σε (Ho et al. 2020). Beyond the table v = √(1 + σ_c²) ε − σ_c z_t is held."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1; in general (1 + σσ_c)/(1 + σ²)."""
        return (1 + sigma * self._asked(sigma)) / (1 + sigma**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """−σ; in general −σ√((1 + σ_c²)/(1 + σ²))."""
        return -sigma * ((1 + self._asked(sigma) ** 2) / (1 + sigma**2)).sqrt()


class VPVelocity(_VariancePreserving):
    """F = v = √ᾱ n − √(1 − ᾱ) y: D = √ᾱ z_t − √(1 − ᾱ) v (Salimans and Ho 2022)."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1/(1 + σ²)."""
        return 1 / (1 + sigma**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """−σ/√(1 + σ²)."""
        return -sigma / (1 + sigma**2).sqrt()


@dataclass(frozen=True)
class RectifiedFlow:
    """F = v = n − y at z_t = (1 − t) y + t n: D = z_t − t v, with σ = t/(1 − t) (Liu et al. 2023; Stable Diffusion 3).

    t runs from 0 to 1 and σ from 0 to ∞, so that nothing lies beyond.
    """

    def c_in(self, sigma: Tensor) -> Tensor:
        """1/(1 + σ) = 1 − t."""
        return 1 / (1 + sigma)

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1/(1 + σ), the input's own factor."""
        return 1 / (1 + sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """−t = −σ/(1 + σ)."""
        return -sigma / (1 + sigma)

    def t(self, sigma: Tensor) -> Tensor:
        """σ/(1 + σ)."""
        return sigma / (1 + sigma)

    def sigma(self, t: Tensor) -> Tensor:
        """t/(1 − t)."""
        return t / (1 - t)
