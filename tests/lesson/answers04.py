"""Plausible mistakes in the exercises of chapter 04, for test_checks.py."""

import math

import torch

from msd_teach.lesson import checks


def share(d, bandwidth):
    return (bandwidth * math.sqrt(2 + bandwidth**2) / (1 + bandwidth**2)) ** d


def level(sigma, bandwidth):
    return sigma * bandwidth / math.hypot(sigma, bandwidth)


def efficiency(denoise, x, bandwidth, calls):
    J = torch.autograd.functional.jacobian(lambda x: denoise(x, bandwidth), x)
    return (denoise(x, bandwidth) - x).square().sum() / (bandwidth**2 * J.trace() * calls)


def log_stationary(mixture, y, bandwidth):
    return mixture.log_prob(y) + mixture.log_prob(y, bandwidth) + 3.0  # up to a constant


WRONG = [
    (checks.sample_share, lambda d, λ: share(1, λ), "Every dimension"),
    (checks.sample_share, lambda d, λ: 1 / share(d, λ), "other way up"),
    (checks.sample_share, lambda d, λ: (λ * math.sqrt(2 / (1 + λ**2))) ** d, "its variance is λ²/2"),
    (
        checks.two_looks,
        lambda D, z, σ, x, λ: D((σ**2 * z + λ**2 * x) / (λ**2 + σ**2), level(σ, λ)),
        "more precise look",
    ),
    (checks.two_looks, lambda D, z, σ, x, λ: D((λ**2 * z + σ**2 * x) / (λ**2 + σ**2), level(σ, λ) ** 2), "a deviation"),
    (checks.two_looks, lambda D, z, σ, x, λ: D(z, σ) + σ**2 / λ**2 * (x - z), "sum of the two scores"),
    (checks.two_looks, lambda D, z, σ, x, λ: D((λ**2 * z + σ**2 * x) / (λ**2 + σ**2), σ), "less noisy"),
    (checks.one_sample_efficiency, lambda D, x, λ, n: efficiency(D, x, λ, n) * n, "number of calls"),
    (checks.one_sample_efficiency, lambda D, x, λ, n: efficiency(D, x, λ, n) * λ**2, "λ² is missing"),
    (checks.one_sample_efficiency, lambda D, x, λ, n: efficiency(D, x, λ, n) / (D(x, λ) - x).norm(), "squared"),
    (checks.log_stationary, lambda p, y, λ: 2 * p.log_prob(y), "limit"),
    (checks.log_stationary, lambda p, y, λ: p.log_prob(y), "no Gibbs sampler"),
    (checks.log_stationary, lambda p, y, λ: p.log_prob(y, λ), "That is p_λ"),
]
