"""Plausible mistakes in the exercises of chapter 04, for test_checks.py."""

import math

import torch

from msd_teach.lesson import checks


def share(d, bandwidth):
    return (bandwidth * math.sqrt(2 + bandwidth**2) / (1 + bandwidth**2)) ** d


def efficiency(denoise, x, bandwidth, calls):
    J = torch.autograd.functional.jacobian(lambda x: denoise(x, bandwidth), x)
    return (denoise(x, bandwidth) - x).square().sum() / (bandwidth**2 * J.trace() * calls)


def log_stationary(mixture, y, bandwidth):
    return mixture.log_prob(y) + mixture.log_prob(y, bandwidth) + 3.0  # up to a constant


WRONG = [
    (checks.sample_share, lambda d, λ: share(1, λ), "Every dimension"),
    (checks.sample_share, lambda d, λ: 1 / share(d, λ), "other way up"),
    (checks.two_looks, lambda D, z, σ, x, λ: D(z, σ) + σ**2 / λ**2 * (x - z), "sum of the two scores"),
    (checks.two_looks, lambda D, z, σ, x, λ: D((λ**2 * z + σ**2 * x) / (λ**2 + σ**2), σ), "less noisy"),
    (checks.one_sample_efficiency, lambda D, x, λ, n: efficiency(D, x, λ, n) * n, "number of calls"),
    (checks.log_stationary, lambda p, y, λ: p.log_prob(y), "no Gibbs sampler"),
    (checks.log_stationary, lambda p, y, λ: p.log_prob(y, λ), "That is p_λ"),
]
