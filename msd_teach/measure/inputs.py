"""What every figure of merit asks of its arguments."""

from __future__ import annotations

import math

from torch import Tensor


def points(name: str, x: Tensor, least: int, dimensions: int | None = None) -> Tensor:
    """Rows (n, dimensions) in float64, at least so many; ValueError otherwise."""
    fits = isinstance(x, Tensor) and x.ndim == 2 and len(x) >= least and dimensions in (None, x.shape[1])
    return floats(name, x, fits, f"(n, {dimensions or 'd'}) with n >= {least}")


def rgb(name: str, x: Tensor) -> Tensor:
    """One or more pictures (N, 3, H, W) in float64; ValueError otherwise."""
    fits = isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] == 3 and x.numel() > 0
    return floats(name, x, fits, "(N, 3, H, W)")


def floats(name: str, values: Tensor, fits: bool, wanted: str) -> Tensor:
    """Finite values in float64, of a shape that `fits`; ValueError otherwise."""
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} is a {type(values).__name__}; it must be a torch tensor {wanted}")
    if not fits or not values.is_floating_point():
        raise ValueError(f"{name} has shape {tuple(values.shape)}, {values.dtype}; it must be {wanted}, of floats")
    if not values.isfinite().all():
        raise ValueError(f"{name} contains {values[~values.isfinite()][0].item()}; all values must be finite")
    return values.detach().cpu().double()


def positive(name: str, value: float) -> None:
    """A number > 0 and finite; ValueError otherwise."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be positive and finite")
