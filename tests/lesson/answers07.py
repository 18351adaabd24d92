"""Plausible mistakes in the exercises of chapter 07, for test_checks.py."""

from __future__ import annotations

import math

import torch

from msd_teach.lesson import checks


def share(bandwidth, sigma, own):
    # (λ²σ)² + (σ²τ)² over (λ² + σ²)², divided by λ²σ²/(λ² + σ²)
    return math.sqrt((bandwidth**2 + (sigma * own / bandwidth) ** 2) / (bandwidth**2 + sigma**2))


def share_with_added_deviations(bandwidth, sigma, own):
    total = bandwidth**2 + sigma**2
    return (bandwidth**2 * sigma + sigma**2 * own) / total / (bandwidth * sigma / total**0.5)


def search(call_error, bias, variance):
    if call_error <= bias:
        return math.inf
    n = 1
    while bias**2 + variance / n >= call_error**2 - 1e-12:
        n += 1
    return n


def interval(strong, weak, scale, low, high, outside=1.0):
    def denoise(z, sigma):
        level = torch.as_tensor(sigma, dtype=z.dtype)
        level = level.reshape(level.shape + (1,) * (z.ndim - level.ndim))
        s = torch.where((level < low) | (level > high), outside, scale)
        return s * strong(z, sigma) + (1 - s) * weak(z, sigma)

    return denoise


WRONG = [
    (checks.noise_share, lambda b, s, own: b / math.hypot(b, s), "noise of its own"),
    (checks.noise_share, lambda b, s, own: share(b, s, own) ** 2, "standard deviations"),
    (checks.noise_share, share_with_added_deviations, "add their variances"),
    (checks.noise_share, lambda b, s, own: share(b, s, own) * b / math.hypot(b, s), "claims"),
    (checks.break_even, lambda e, b, v: v / (e**2 - b**2), "smallest whole"),
    (checks.break_even, lambda e, b, v: math.ceil(v / (e**2 - b**2)), "equality"),
    (checks.break_even, lambda e, b, v: math.floor(v / (e - b) ** 2) + 1, "Squared errors"),
    (checks.break_even, lambda e, b, v: math.floor(v**2 / (e**2 - b**2)) + 1, "square it"),
    (checks.break_even, lambda e, b, v: search(max(e, b + 1e-3), b, v), "no N is enough"),
    (checks.autoguided, lambda *a: interval(*a, outside=0.0), "s = 1"),
    (checks.autoguided, lambda g, b, s, low, high: interval(b, g, s, low, high, 0.0), "Guide away"),
    (checks.autoguided, lambda g, b, s, low, high: interval(g, b, 1.0, low, high, s), "not outside"),
    (checks.autoguided, lambda g, b, s, low, high: interval(g, b, 1 + s, low, high), "1 . s"),
    (checks.autoguided, lambda g, b, s, low, high: g(torch.ones(1, 2), 1.0), "must be a denoiser"),
]
