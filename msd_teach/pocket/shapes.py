"""Signed distances of simple solids, and ways to move and join them.

A point set is a triple (x, y, z) of tensors of one shape; every function returns the distance to the surface,
negative inside. Sizes may be numbers or tensors that broadcast. Every distance is 1-Lipschitz, so sphere
tracing never steps through a surface; `ellipsoid` and unions only bound the true distance from below.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Points = tuple[Tensor, Tensor, Tensor]
Size = Tensor | float


def move(p: Points, x: Size = 0.0, y: Size = 0.0, z: Size = 0.0) -> Points:
    """Place a solid at (x, y, z)."""
    return p[0] - x, p[1] - y, p[2] - z


def turn_x(p: Points, degrees: float) -> Points:
    """Turn a solid about the x axis, its +y side towards +z."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return p[0], c * p[1] + s * p[2], c * p[2] - s * p[1]


def turn_z(p: Points, degrees: float) -> Points:
    """Turn a solid about the z axis, its +x side towards +y."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return c * p[0] + s * p[1], c * p[1] - s * p[0], p[2]


def mirror(p: Points) -> Points:
    """Repeat what stands at x > 0 on the other side."""
    return p[0].abs(), p[1], p[2]


def sphere(p: Points, radius: Size) -> Tensor:
    """A ball around the origin."""
    return _length(*p) - radius


def ellipsoid(p: Points, rx: float, ry: float, rz: float) -> Tensor:
    """An ellipsoid of these radii: a lower bound of the distance, exact for a sphere."""
    return (_length(p[0] / rx, p[1] / ry, p[2] / rz) - 1) * min(rx, ry, rz)


def box(p: Points, hx: Size, hy: Size, hz: Size, rounding: float = 0.0) -> Tensor:
    """A box of these half widths, its edges rounded."""
    q = [c.abs() - (h - rounding) for c, h in zip(p, (hx, hy, hz), strict=True)]
    outside = _length(*(c.clamp(min=0) for c in q))
    return outside + torch.maximum(torch.maximum(q[0], q[1]), q[2]).clamp(max=0) - rounding


def cylinder(p: Points, radius: Size, half: Size, rounding: float = 0.0) -> Tensor:
    """A cylinder along y of half height `half`."""
    return _extrude(_length(p[0], p[2]) - radius + rounding, p[1].abs() - half + rounding) - rounding


def disc(p: Points, radius: Size, half: Size) -> Tensor:
    """A cylinder along z: a badge, a headlight, a porthole."""
    return _extrude(_length(p[0], p[1]) - radius, p[2].abs() - half)


def wheel(p: Points, radius: Size, half: Size, rounding: float = 0.0) -> Tensor:
    """A cylinder along x."""
    return _extrude(_length(p[1], p[2]) - radius + rounding, p[0].abs() - half + rounding) - rounding


def cone(p: Points, low: Size, high: Size, half: Size) -> Tensor:
    """A cone frustum along y, radius `low` at y = -half and `high` at y = half (a lower bound near its rims)."""
    r = _length(p[0], p[2])
    slope = (high - low) / (2 * half)
    side = (r - (low + high) / 2 - slope * p[1]) / (1 + slope**2) ** 0.5
    return torch.maximum(side, p[1].abs() - half)


def gable(p: Points, hx: Size, height: Size, hz: Size) -> Tensor:
    """A roof: a triangle of half width `hx` and this height over y = 0, drawn out to z = ±hz (a lower bound)."""
    slope = (p[0].abs() * height + (p[1] - height) * hx) / (height**2 + hx**2) ** 0.5
    return torch.maximum(torch.maximum(slope, -p[1]), p[2].abs() - hz)


def capsule(p: Points, a: tuple[float, float, float], b: tuple[float, float, float], radius: Size) -> Tensor:
    """A rod with round ends from a to b."""
    axis = [e - s for s, e in zip(a, b, strict=True)]
    q = [c - s for c, s in zip(p, a, strict=True)]
    along = sum(c * e for c, e in zip(q, axis, strict=True)) / sum(e * e for e in axis)
    along = torch.as_tensor(along).clamp(0, 1)
    return _length(*(c - along * e for c, e in zip(q, axis, strict=True))) - radius


def torus(p: Points, radius: Size, thickness: Size) -> Tensor:
    """A ring in the plane z = 0."""
    return _length(_length(p[0], p[1]) - radius, p[2]) - thickness


def cut(a: Tensor, b: Tensor) -> Tensor:
    """The first solid without the second."""
    return torch.maximum(a, -b)


def blend(a: Tensor, b: Tensor, width: float) -> Tensor:
    """The union of two solids with a rounded joint of this width (quadratic smooth minimum)."""
    h = (width - (a - b).abs()).clamp(min=0) / width
    return torch.minimum(a, b) - h * h * width / 4


def _length(*components: Tensor) -> Tensor:
    total = components[0] * components[0]
    for c in components[1:]:
        total = total + c * c
    return total.sqrt()


def _extrude(across: Tensor, along: Tensor) -> Tensor:
    """The solid inside two bounds at right angles to each other."""
    return _length(across.clamp(min=0), along.clamp(min=0)) + torch.maximum(across, along).clamp(max=0)
