"""Chapter 01: the mean-shift step on data, the bandwidth that merges two modes, and the best step length at a mode."""

from __future__ import annotations

import math

import torch

from ._compare import Exercise, checker, compare


@checker
def mean_shift_step(fn: Exercise) -> None:
    """Exercise 1.1: fn(x, points, bandwidth) against the sum written out, near the data and where every exp gives 0."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(50, 2, dtype=torch.float64, generator=generator)
    near = torch.randn(7, 2, dtype=torch.float64, generator=generator)
    for name, x, bandwidth in (("near", near, 0.7), ("small bandwidth", near, 0.05), ("far away", near + 30, 0.5)):
        squares = (x[:, None] - points).square().sum(-1)
        exponent = -squares / (2 * bandwidth**2)
        want = exponent.softmax(-1) @ points
        mistakes = {
            "This is the paper's kernel exp(−|x|²/λ²); here λ is the standard deviation.": (2 * exponent).softmax(-1)
            @ points,
            "The kernel falls with the square of the distance.": (exponent / squares.sqrt()).softmax(-1) @ points,
            "This is the vector m = x' − x; the new point x' is asked for.": want - x,
        }
        compare(name, fn(x, points, bandwidth), want, 1e-9, mistakes)


@checker
def merging_bandwidth(fn: Exercise) -> None:
    """Exercise 1.2: fn(a, s) is the bandwidth at which the modes of two equal Gaussians N(±a, s²) become one."""
    for a, s in ((1.0, 0.3), (0.8, 0.1), (2.0, 1.5)):
        mistakes = {
            "Smoothing adds variances: s² + λ², not s + λ.": a - s,
            "That is right for two points, s = 0; these Gaussians already have a width.": a,
            "The sign: Gaussians that are already wide need less smoothing.": math.hypot(a, s),
            "This is the square of the bandwidth.": a * a - s * s,
        }
        compare(f"a = {a:g}, s = {s:g}", fn(a, s), math.sqrt(a * a - s * s), 1e-9, mistakes)


@checker
def best_step(fn: Exercise) -> None:
    """Exercise 1.3: fn(J) is the η for which x + η(D(x) − x) converges fastest where ∂D/∂x = J, symmetric, (d, d)."""
    for seed, d in enumerate((2, 3, 6)):
        generator = torch.Generator().manual_seed(seed)
        axes = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator)).Q
        rates = torch.rand(d, dtype=torch.float64, generator=generator)
        slow, fast = rates.max(), rates.min()
        mistakes = {
            "That is best in the slowest direction alone; the fastest one then overshoots.": 1 / (1 - slow),
            "That is the largest step which still converges.": 2 / (1 - fast),
            "Plain mean shift; it leaves something to gain.": torch.ones(()),
        }
        compare(f"{d} dimensions", fn((axes * rates) @ axes.mT), 2 / (2 - slow - fast), 1e-9, mistakes)
