"""Plausible mistakes in the exercises of chapter 08, for test_checks.py."""

from __future__ import annotations

import math

import torch
from torch.func import jvp

from msd_teach.lesson import checks


def kernel(bandwidth, levels, step, span=2.0):
    return bandwidth * math.sqrt(levels[step] * (levels[step + 1] - levels[step - 1]) / span)


def reverse_trace(denoise, x, sigma, probes):
    x = x.clone().requires_grad_()
    rows = [torch.autograd.grad(denoise(x, sigma), x, probe)[0] * probe for probe in probes]
    return torch.stack(rows).flatten(2).mean((0, 2))


def forward(denoise, x, sigma, probe):
    return jvp(lambda v: denoise(v, sigma), (x,), (probe,))[1]


def mean_without_probe(denoise, x, sigma, probes):
    return torch.stack([forward(denoise, x, sigma, probe).flatten(1).mean(1) for probe in probes]).mean(0)


WRONG = [
    (checks.denoise_from_v, lambda z, s, v: z / math.hypot(1, s) - s / math.hypot(1, s) * v, "Both terms"),
    (checks.denoise_from_v, lambda z, s, v: z / (1 + s * s) + s / math.hypot(1, s) * v, "minus"),
    (checks.denoise_from_v, lambda z, s, v: z - s * v, "not the noise"),
    (checks.denoise_from_v, lambda z, s, v: z - s / math.hypot(1, s) * v, "first factor"),
    (checks.denoise_from_v, lambda z, s, v: (z - s * v) / (1 + s * s), "second factor"),
    (checks.kernel_at, lambda b, σ, t: b * math.sqrt((σ[t + 1] - σ[t - 1]) / 2), "slope alone"),
    (checks.kernel_at, lambda b, σ, t: b * σ[t] * (σ[t + 1] - σ[t - 1]) / 2, "their squares"),
    (checks.kernel_at, lambda b, σ, t: kernel(b, σ, t, span=1.0), "two steps"),
    (checks.kernel_at, lambda b, σ, t: b**2 / kernel(b, σ, t), "Turn it round"),
    (checks.trace_per_dimension, lambda *a: 8 * reverse_trace(*a), "number of dimensions"),
    (checks.trace_per_dimension, lambda *a: 5 * reverse_trace(*a), "Average over the probes"),
    (checks.trace_per_dimension, mean_without_probe, "by ξ again"),
    (checks.trace_per_dimension, lambda *a: reverse_trace(*a).mean().expand(3), "one number for each item"),
    (checks.trace_per_dimension, lambda *a: reverse_trace(*a).mean(), "shape"),
]
