"""What every module asks of its arguments: whole numbers, levels that broadcast, and noise that repeats."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor


def at_least_one(name: str, count: object) -> int:
    """`count` as an int.

    Raises:
        ValueError: no whole number (1e4 is none), or one below 1.
    """
    if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{name} is {count!r}; it must be a whole number, at least 1")
    return int(count)


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuses, with a ValueError, what is no finite number, or lies outside low <= value <= high."""
    if not isinstance(value, Real) or not math.isfinite(value) or not low <= float(value) <= high:
        wanted = "finite" if high == math.inf and low == -math.inf else f"from {low:g} to {high:g}, and finite"
        raise ValueError(f"{name} is {value!r}; it must be a number, {wanted}")


def check_function(name: str, value: object, example: str) -> None:
    """Refuses, with a ValueError, what cannot be called; `example` says what would do."""
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{name} is {value!r}; it must be a function, such as {example}")


def at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 where it is in half precision: a sampler's state could not hold its small steps."""
    check_points(x)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def widest(device: torch.device) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def right_pad(value: float | Tensor, like: Tensor, name: str) -> Tensor:
    """`value`, a number or a tensor whose shape is a prefix of `like.shape`, so that it broadcasts against `like`.

    An axis of length 1 stretches; axes of length 1 are appended on the right.

    Raises:
        ValueError: neither number nor tensor, a shape that is no prefix, or a `like` of whole numbers.
    """
    check_points(like)
    if not isinstance(value, Tensor):
        _check_number(value, name)
        return torch.tensor(float(value), dtype=like.dtype)  # a CPU scalar meets any device without a copy
    prefix = like.shape[: value.ndim]
    if value.ndim > like.ndim or any(have not in (1, want) for have, want in zip(value.shape, prefix, strict=True)):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be a prefix of {tuple(like.shape)}")
    return value.to(like).reshape((*value.shape, *[1] * (like.ndim - value.ndim)))


def per_item(value: float | Tensor, like: Tensor, name: str = "sigma", positive: bool = False) -> Tensor:
    """A noise level, bandwidth or weight for `like` of shape (*batch, *event): `right_pad`, after a look at its sign.

    Where `positive` (bandwidths) it may be infinite, but not 0; elsewhere it may be 0, but not infinite.

    Raises:
        ValueError: neither number nor tensor, NaN, out of its range, or a shape that is no prefix.
    """
    wanted = "> 0" if positive else ">= 0 and finite"
    if isinstance(value, Tensor):
        if value.is_complex():
            raise ValueError(f"{name} has dtype {value.dtype}; it must be real")
        refused = ~(value > 0) if positive else ~((value >= 0) & (value < math.inf))
        if refused.any():
            raise ValueError(f"{name} contains {value[refused].flatten()[0].item()}; every value must be {wanted}")
    else:
        _check_number(value, name)
        if not (value > 0 if positive else 0 <= value < math.inf):
            raise ValueError(f"{name} is {value}; it must be {wanted}")
    return right_pad(value, like, name)


def check_points(x: object) -> None:
    """Refuse, with a ValueError, what is no tensor of floats."""
    if not isinstance(x, Tensor):
        raise ValueError(f"points are of type {type(x).__name__}; they must be a tensor of floats")
    if not x.is_floating_point():
        raise ValueError(f"points have dtype {x.dtype}; it must be a floating-point type")


def _check_number(value: object, name: str) -> None:
    if not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}; it must be a number or a tensor")


def noise_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of x's shape, dtype and device, drawn on the generator's device and then moved."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)
