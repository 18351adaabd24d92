"""Figures of merit of objects: how alike their silhouettes and surfaces are, and how often a face is where a back belongs.

Pictures of one object are not independent: an interval over them is of that object's views, not of other runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..tensors import at_least_one

if TYPE_CHECKING:
    from trimesh import Trimesh

NEAR = 16  # triangles that are tried for each point
CONFIDENT = 1.959964  # the normal distribution's 97.5 % point


def silhouette_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of silhouettes (..., H, W) in [0, 1], (...): Σ min(a, b) / Σ max(a, b).

    For shares of pixels it is a bound from above, to within the pixels on the outlines. 1 where both are empty. What
    broadcasts is compared with each.

    Raises:
        ValueError: values outside of [0, 1], or shapes that do not broadcast.
    """
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Tensor) or not x.is_floating_point() or not ((x >= 0) & (x <= 1)).all():
            raise ValueError(f"{name} is no tensor of floats in [0, 1]; it must hold the shares that are covered")
    try:
        torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError as error:
        raise ValueError(f"b has shape {tuple(b.shape)}; it must broadcast against {tuple(a.shape)}") from error
    both, either = torch.minimum(a, b).sum((-2, -1)), torch.maximum(a, b).sum((-2, -1))
    return (both / either).where(either > 0, 1)


class Share(NamedTuple):
    """A share of cases, its 95 % interval, and the number of cases."""

    value: float
    low: float
    high: float
    cases: int


def share(right: Tensor) -> Share:
    """The share of True, (N,), and Wilson's interval (1927), which holds at 0 and 1 and for few cases too.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). Without cases it is NaN, from 0 to 1.

    Raises:
        ValueError: what is no tensor (N,) of booleans.
    """
    if not isinstance(right, Tensor) or right.dtype != torch.bool or right.ndim != 1:
        raise ValueError(f"right is {right!r}; it must be a tensor (N,) of booleans")
    n, z = len(right), CONFIDENT
    if not n:
        return Share(math.nan, 0.0, 1.0, 0)
    p = right.double().mean().item()
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return Share(p, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale), n)


def janus_rate(judged: Tensor, true: Tensor, front: int = 0) -> Share:
    """The share of pictures from elsewhere, `true` (N,) != front, that are `judged` (N,) to be from the front.

    0 for an object with one face and a perfect judge: give the rate of a true object beside it, and for the same
    cameras, since a view near the border between two words is misjudged more often. Views are indices of `VIEWS`.

    Raises:
        ValueError: other shapes than (N,), or numbers that are not whole.
    """
    for name, views in (("judged", judged), ("true", true)):
        if not isinstance(views, Tensor) or views.is_floating_point() or views.shape != (len(judged),):
            raise ValueError(f"{name} is {views!r}; it must be a tensor (N,) of indices, as many as of the other")
    return share(judged[true != front] == front)


def chamfer_distance(a: Trimesh, b: Trimesh, count: int = 5000, generator: torch.Generator | None = None) -> float:
    """The mean distance of `count` points of each surface from the other surface, averaged over both directions.

    In units of the world, not squared. Points are uniform over the area, the other surface is its triangles and not
    points of it, so that the distance of a surface from itself is 0. Its standard error is about that of 2 `count` points.

    Raises:
        ValueError: a count below 1, or a mesh without triangles.
        ImportError: scipy or trimesh are not installed.
    """
    count = at_least_one("count", count)
    for name, mesh in (("a", a), ("b", b)):
        if not len(mesh.faces):
            raise ValueError(f"{name} has no triangles; it must have one at least")
    there = distance_to_mesh(_points_on(a, count, generator), b).mean()
    back = distance_to_mesh(_points_on(b, count, generator), a).mean()
    return (there + back).item() / 2


def distance_to_mesh(points: Tensor, mesh: Trimesh) -> Tensor:
    """How far points (n, 3) are from a mesh, (n,) >= 0 in float64.

    Of the triangles, those with the 16 nearest centroids are tried: exact where they are of similar size, as from
    marching cubes, and never too small.
    """
    from scipy.spatial import KDTree
    from trimesh.triangles import closest_point

    near = min(NEAR, len(mesh.faces))
    p = points.detach().cpu().double().numpy()
    _, faces = KDTree(mesh.triangles_center).query(p, near)
    repeated = np.repeat(p, near, 0)
    gap = repeated - closest_point(mesh.triangles[faces.reshape(-1)], repeated)
    return torch.from_numpy(np.linalg.norm(gap, axis=1).reshape(-1, near).min(1))


def _points_on(mesh: Trimesh, count: int, generator: torch.Generator | None) -> Tensor:
    """Points uniform over a mesh's area, (count, 3) in float64."""
    corners = torch.from_numpy(np.array(mesh.triangles))
    areas = torch.from_numpy(np.array(mesh.area_faces))
    u = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    upto = areas.cumsum(0)
    face = corners[torch.searchsorted(upto, u[:, 0] * upto[-1]).clamp(max=len(areas) - 1)]
    root = u[:, 1:2].sqrt()
    return (1 - root) * face[:, 0] + root * (1 - u[:, 2:]) * face[:, 1] + root * u[:, 2:] * face[:, 2]
