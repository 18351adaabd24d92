"""Chapter 06: the gradient of MSD, modes on a line, a schedule with a knob, log efficiency."""

from __future__ import annotations

import math

import torch

from ._compare import Exercise, checker, compare


@checker
def msd_gradient(fn: Exercise) -> None:
    """Exercise 6.1: fn(samples (N, batch, d), x (batch, d)), the gradient for a minimiser."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 4, 2), (5, 3, 2), (7, 2, 3)):
        y = torch.randn(shape, dtype=torch.float64, generator=generator)
        x = torch.randn(shape[1:], dtype=torch.float64, generator=generator)
        want = x - y.mean(0)
        mistakes = {
            "That is the ascent direction; a minimiser goes the other way.": -want,
            "Algorithm 2 divides the sum by N.": (x - y).sum(0),
            "One gradient for each point: do not average over the batch.": want / len(x),
        }
        compare(f"{shape[0]} draws at {shape[1]} points", fn(y, x), want, 1e-12, mistakes)


@checker
def count_modes(fn: Exercise) -> None:
    """Exercise 6.2: fn(centres (n,), bandwidth), the number of modes of the mean of N(x; c_i, λ²)."""
    cases = (
        ("two far points", [-1.0, 1.0], 0.1),
        ("two points, λ just below their half distance", [-1.0, 1.0], 0.97),
        ("two points, λ just above it", [-1.0, 1.0], 1.03),
        ("a pair and a single point", [0.0, 0.3, 2.0], 0.4),
        ("five unequal gaps", [0.0, 1.0, 1.4, 3.0, 10.0], 0.25),
    )
    for name, centres, bandwidth in cases:
        c = torch.tensor(centres, dtype=torch.float64)
        want = _modes(c, bandwidth)
        mistakes = {
            "Every second zero of m is a minimum: count only changes from + to −.": 2 * want - 1,
            "λ is the standard deviation: the exponent is −(x − c)²/2λ².": _modes(c, bandwidth / math.sqrt(2)),
            "That is the number of centres; centres closer than 2λ may share a mode.": len(centres),
        }
        compare(name, fn(c, bandwidth), want, 0.0, {hint: wrong for hint, wrong in mistakes.items() if wrong != want})


def _modes(centres: torch.Tensor, bandwidth: float) -> int:
    """Maxima of the density on a fine grid, by its values."""
    x = torch.linspace(float(centres.min()) - bandwidth, float(centres.max()) + bandwidth, 40_001, dtype=torch.float64)
    log_p = (-((x[:, None] - centres) ** 2) / (2 * bandwidth**2)).logsumexp(-1)
    rising = log_p.diff() > 0
    return int((rising[:-1] & ~rising[1:]).sum())


@checker
def power_schedule(fn: Exercise) -> None:
    """Exercise 6.3: fn(start, end, rho) returns progress → (start^(1/ρ)(1 − t) + end^(1/ρ) t)^ρ."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for start, end, rho in ((0.2, 0.003, 1.0), (0.2, 0.003, 7.0), (3.0, 0.5, 2.0)):
        schedule = fn(start, end, rho)
        got = torch.tensor([schedule(progress) for progress in t.tolist()], dtype=torch.float64)
        mistakes = {
            "That is λ^ρ interpolated; the exponent is 1/ρ.": (start**rho * (1 - t) + end**rho * t) ** (1 / rho),
            "The schedule rises; it must begin at `start`.": (end ** (1 / rho) * (1 - t) + start ** (1 / rho) * t)
            ** rho,
            "The last power is missing: λ is the interpolated value to the power ρ.": start ** (1 / rho) * (1 - t)
            + end ** (1 / rho) * t,
        }
        want = (start ** (1 / rho) * (1 - t) + end ** (1 / rho) * t) ** rho
        if rho == 1:
            mistakes = {"The schedule rises; it must begin at `start`.": want.flip(0)}
        compare(f"{start:g} to {end:g}, ρ = {rho:g}", got, want, 1e-9, mistakes)


@checker
def log_efficiency(fn: Exercise) -> None:
    """Exercise 6.4: fn(estimates (N, m, d), reference (m, d), calls), the natural logarithm of Eq. 17."""
    generator = torch.Generator().manual_seed(0)
    for draws, calls in ((50, 1), (20, 17)):
        g = torch.randn(6, 2, dtype=torch.float64, generator=generator) * torch.arange(1, 7)[:, None]
        estimates = g + 0.3 + torch.randn(draws, 6, 2, dtype=torch.float64, generator=generator)
        errors, squares = (estimates - g).square().sum(-1).mean(0), g.square().sum(-1)
        want = (squares.sum() / errors.sum() / calls).log()
        mistakes = {
            "Take the natural logarithm.": want / math.log(10),
            "The cost is missing." if calls > 1 else "": want + math.log(calls),
            "Sum over the points first, then divide.": (squares / errors).mean().div(calls).log(),
            "The error is measured from the reference, not from the estimates' mean.": (
                squares.sum() / estimates.var(0, correction=0).sum() / calls
            ).log(),
        }
        compare(f"{draws} estimates, {calls} calls", fn(estimates, g, calls), want, 1e-9, mistakes)
