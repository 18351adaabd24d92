"""Plausible mistakes in the exercises of chapter 06, for test_checks.py."""

from __future__ import annotations

import math

import torch

from msd_teach.lesson import checks


def modes(centres, bandwidth, widening=1.0, minima=False):
    x = torch.linspace(float(centres.min()) - 1, float(centres.max()) + 1, 30_001, dtype=torch.float64)
    weights = (-((x[:, None] - centres) ** 2) / (2 * (widening * bandwidth) ** 2)).softmax(-1)
    uphill = weights @ centres - x > 0
    ends = uphill[:-1] != uphill[1:] if minima else uphill[:-1] & ~uphill[1:]
    return int(ends.sum())


def schedule(start, end, rho):
    return lambda t: ((1 - t) * start ** (1 / rho) + t * end ** (1 / rho)) ** rho


def efficiency(estimates, reference, calls):
    error = ((estimates - reference) ** 2).sum((1, 2)).mean()
    return math.log((reference**2).sum() / error / calls)


WRONG = [
    (checks.msd_gradient, lambda y, x: y.mean(0) - x, "ascent"),
    (checks.msd_gradient, lambda y, x: (x - y).sum(0), "divides the sum"),
    (checks.msd_gradient, lambda y, x: (x - y).mean(0) / len(x), "over the batch"),
    (checks.count_modes, lambda c, h: modes(c, h, minima=True), "minimum"),
    (checks.count_modes, lambda c, h: modes(c, h, 1 / math.sqrt(2)), "standard deviation"),
    (checks.count_modes, lambda c, h: len(c), "number of centres"),
    (checks.power_schedule, lambda a, b, rho: schedule(a, b, 1 / rho), "exponent is 1/ρ"),
    (checks.power_schedule, lambda a, b, rho: schedule(b, a, rho), "rises"),
    (checks.power_schedule, lambda a, b, rho: lambda t: schedule(a, b, rho)(t) ** (1 / rho), "last power"),
    (checks.log_efficiency, lambda e, g, c: efficiency(e, g, c) / math.log(10), "natural"),
    (checks.log_efficiency, lambda e, g, c: efficiency(e, g, 1), "cost"),
    (checks.log_efficiency, lambda e, g, c: efficiency(e, e.mean(0), c), "from the reference|largest error"),
]
