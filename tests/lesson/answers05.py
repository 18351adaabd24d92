"""Plausible mistakes in the exercises of chapter 05, for test_checks.py."""

from __future__ import annotations

import math

from msd_teach import karras_sigmas
from msd_teach.lesson import checks
from msd_teach.sampling import solver_step


def least_steps(bandwidth, sigma_min, sigma_max, limit=2.0):
    steps = 1
    while True:
        sigmas = karras_sigmas(steps, sigma_min, sigma_max)
        if (sigmas[:-1] * (sigmas[:-1] - sigmas[1:])).max() <= limit * bandwidth**2:
            return steps
        steps += 1


def factor(here, there, bandwidth):
    ahead = 1 - (here - there) * here / bandwidth**2
    return 1 - (here - there) * (here + there * ahead) / 2 / bandwidth**2


def factor_with_one_rate(here, there, bandwidth):
    g = (here - there) * here / bandwidth**2
    return 1 - g + g**2 / 2


def splitting(denoise, x, bandwidth, sigmas, z, before=0.5, after=0.5):
    for here, there in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        h = (here**2 - there**2) / 2 / bandwidth**2
        z = x + (z - x) * math.exp(-before * h)
        z = solver_step(denoise, z, here, there, "heun")
        z = x + (z - x) * math.exp(-after * h)
    return z


def clock(sigma, bandwidth):
    return bandwidth**2 / 2 * math.log(bandwidth**2 + sigma**2) + 3.0  # a clock may start anywhere


WRONG = [
    (checks.steps_needed, lambda *a: least_steps(*a, limit=1.0), "oscillates"),
    (checks.steps_needed, lambda b, low, high: math.ceil(high**2 / (4 * b**2)), "best grid"),
    (checks.steps_needed, lambda *a: least_steps(*a) - 1, "one more"),
    (checks.steps_needed, lambda *a: least_steps(*a) + 1, "largest error is 1"),
    (checks.heun_factor, lambda here, there, b: 1 - (here - there) * here / b**2, "Euler"),
    (checks.heun_factor, factor_with_one_rate, "rate of its own"),
    (checks.heun_factor, lambda here, there, b: 1 - (here - there) * (here + there) / 2 / b**2, "predicted point"),
    (checks.strang, lambda *a: splitting(*a, before=0.0, after=1.0), "Lie"),
    (checks.strang, lambda *a: splitting(*a, after=0.0), "second half step"),
    (checks.strang, lambda *a: splitting(*a, before=1.0, after=1.0), "one whole one"),
    (checks.noised_kernel_clock, lambda s, b: s**2 / 2, "clean kernel"),
    (checks.noised_kernel_clock, lambda s, b: clock(s, b) / b**2, "factor λ²"),
    (checks.noised_kernel_clock, lambda s, b: 2 * clock(s, b), "factor ½"),
]
