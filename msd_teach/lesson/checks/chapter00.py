"""Chapter 00: a denoiser written by hand, and the paper's bandwidth as a standard deviation."""

from __future__ import annotations

import math

import torch

from ...denoisers import IdealDenoiser
from ._compare import Exercise, checker, compare


@checker
def two_point_denoiser(fn: Exercise) -> None:
    """Exercise 0.1: fn(z, sigma) for data at −1 and +1, against the ideal denoiser of these two points."""
    z = torch.linspace(-3, 3, 61, dtype=torch.float64)
    denoise = IdealDenoiser(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
    for sigma in (2.0, 0.5, 0.02):
        mistakes = {
            "The exponents are −|z − y|²/2σ²: did the square of σ get lost?": (z / sigma).tanh(),
            "This is the nearest point; the answer is an average of both.": z.sign(),
            "The exponents are −|z − y|²/2σ²: did the factor 2 get lost?": (2 * z / sigma**2).tanh(),
        }
        compare(f"σ = {sigma:g}", fn(z, sigma), denoise(z[:, None], sigma)[:, 0], 1e-9, mistakes)


@checker
def bandwidth_from_paper(fn: Exercise) -> None:
    """Exercise 0.2: fn(λ_paper) is the standard deviation of the kernel exp(−|x|²/λ_paper²)."""
    for theirs in (0.316, 1.0, 10.0):
        mistakes = {
            "exp(−|x|²/λ²) falls faster than exp(−|x|²/2λ²), so its deviation is smaller.": theirs * math.sqrt(2),
            "Two squares are compared here: a root is missing.": theirs / 2,
            "That is λ unchanged, but the two exponents differ by a factor of 2.": theirs,
        }
        compare(f"λ_paper = {theirs:g}", fn(theirs), theirs / math.sqrt(2), 1e-9, mistakes)
