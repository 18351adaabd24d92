"""The five exercise functions that later cells need, for readers who have not written their own: `checks.yours_or`."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.func import jvp

from ..denoisers import Denoiser
from ..sampling import solver_step

__all__ = ["log_efficiency", "mean_shift_step", "stationary_covariance", "strang", "trace_per_dimension"]


def mean_shift_step(x: Tensor, points: Tensor, bandwidth: float) -> Tensor:
    """Exercise 1.1: the mean of `points` (M, d) around every row of x (n, d), Eq. 7, shape (n, d)."""
    distance = (x[:, None] - points).norm(dim=-1) / bandwidth
    return distance.square().div(-2).softmax(-1) @ points


def stationary_covariance(H: Tensor, C: Tensor, eta: float) -> Tensor:
    """Exercise 3.3: the S (d, d) with S = (I − ηH) S (I − ηH) + η²C, as one linear system for its d² entries."""
    kept = torch.eye(len(H)).to(H) - eta * H
    return torch.linalg.solve(torch.eye(H.numel()).to(H) - torch.kron(kept, kept), eta**2 * C.flatten()).view_as(C)


def strang(denoise: Denoiser, x: Tensor, bandwidth: float, sigmas: Tensor, z: Tensor) -> Tensor:
    """Exercise 5.3: z taken from `sigmas[0]` to the last level, half of the kernel's flow on both sides of the model's."""
    for here, there in pairwise(sigmas.tolist()):
        kept = math.exp((there**2 - here**2) / (2 * bandwidth) ** 2)
        z = torch.lerp(x, z, kept)
        z = torch.lerp(x, solver_step(denoise, z, here, there, "heun"), kept)
    return z


def log_efficiency(estimates: Tensor, reference: Tensor, calls: float) -> Tensor:
    """Exercise 6.4: the natural logarithm of Eq. 17 for estimates (N, m, d) of `reference` (m, d)."""
    return torch.log(reference.square().sum() / (estimates - reference).square().mean(0).sum() / calls)


def trace_per_dimension(denoise: Denoiser, x: Tensor, sigma: float | Tensor, probes: Tensor) -> Tensor:
    """Exercise 8.3: tr(∂D/∂x)/d of every item of x (batch, …), estimated from probes (N, batch, …) of random signs."""
    along = torch.stack([jvp(lambda z: denoise(z, sigma), (x,), (probe,))[1] for probe in probes])
    return (probes * along).flatten(2).mean((0, 2))
