"""What every module asks of its arguments: levels that broadcast, and noise that repeats."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def per_item(value: float | Tensor, like: Tensor, name: str = "sigma", positive: bool = False) -> Tensor:
    """A noise level, bandwidth or weight that broadcasts against `like` of shape (*batch, *event).

    `value` is a number or a tensor whose shape is a prefix of `like.shape` (an axis of length 1 stretches);
    axes of length 1 are appended on its right.

    Raises:
        ValueError: NaN, below zero (or zero, where `positive`), or a shape that is no prefix.
    """
    wanted = "> 0" if positive else ">= 0"
    if not isinstance(value, Tensor):
        if math.isnan(value) or value < 0 or (positive and value == 0):
            raise ValueError(f"{name} is {value}; it must be {wanted}")
        return torch.tensor(float(value), dtype=like.dtype)  # a CPU scalar meets any device without a copy
    level = value.to(dtype=like.dtype, device=like.device)
    refused = ~(level > 0) if positive else ~(level >= 0)
    if refused.any():
        raise ValueError(f"{name} contains {level[refused].flatten()[0].item()}; every value must be {wanted}")
    prefix = like.shape[: level.ndim]
    if level.ndim > like.ndim or any(have not in (1, want) for have, want in zip(level.shape, prefix, strict=True)):
        raise ValueError(f"{name} has shape {tuple(level.shape)}; it must be a prefix of {tuple(like.shape)}")
    return level.reshape(*level.shape, *[1] * (like.ndim - level.ndim))


def noise_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of x's shape, dtype and device, drawn on the generator's device and then moved."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)
