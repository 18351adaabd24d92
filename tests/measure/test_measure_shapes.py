"""Figures of merit of objects, with discs, balls, scipy and every triangle as referees."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from msd_teach.measure.shapes import chamfer_distance, distance_to_mesh, janus_rate, share, silhouette_iou


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disc(x: float, radius: float, size: int = 400) -> Tensor:
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) / size * 6 - 3
    return ((axis - x) ** 2 + axis[:, None] ** 2 <= radius**2).double()


@pytest.mark.parametrize("apart", [0.0, 0.5, 1.5, 2.5])
def test_iou_of_discs_is_that_of_circles(apart: float) -> None:
    lens = 2 * math.acos(min(1, apart / 2)) - apart / 2 * math.sqrt(max(0.0, 4 - apart**2))
    iou = silhouette_iou(disc(-apart / 2, 1), torch.stack([disc(apart / 2, 1), disc(-apart / 2, 0.5)]))
    assert iou.tolist() == pytest.approx([lens / (2 * math.pi - lens), 0.25], abs=0.01)
    assert silhouette_iou(torch.zeros(2, 3, 3), torch.zeros(3, 3)).tolist() == [1, 1]


def test_share_is_wilsons_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    for n, k in ((1, 0), (5, 5), (19, 1), (400, 123)):
        found = share(torch.arange(n) < k)
        low, high = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
        assert found == pytest.approx((k / n, low, high, n), abs=1e-6)
    assert share(torch.zeros(0, dtype=torch.bool))[1:] == (0, 1, 0)


def test_janus_rate_counts_fronts_elsewhere() -> None:
    true = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    assert janus_rate(true, true)[::3] == (0, 5)
    assert janus_rate(torch.zeros(7, dtype=torch.long), true)[::3] == (1, 5)
    assert janus_rate(torch.tensor([1, 0, 0, 1, 0, 2, 3]), true).value == pytest.approx(2 / 5)
    assert math.isnan(janus_rate(true[:2], true[:2]).value)


def test_chamfer_distance_of_balls_is_the_difference_of_their_radii() -> None:
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(4)
    for radius in (0.5, 0.97, 1.3):
        other = trimesh.creation.icosphere(4, radius)
        assert chamfer_distance(ball, other, 2000, generator()) == pytest.approx(abs(1 - radius), abs=2e-3)
    assert chamfer_distance(ball, ball, 2000, generator()) == pytest.approx(0, abs=1e-9)


def test_chamfer_distance_of_moved_balls_by_quadrature() -> None:
    """A ball at distance d from an equal one: the mean over the sphere of | |x + d e| - 1 |."""
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(4)
    moved = ball.copy().apply_translation([0.0, 0.4, 0.0])
    cosine = (2 * torch.arange(2000, dtype=torch.float64) + 1) / 2000 - 1  # uniform over a sphere
    expected = ((1 + 0.8 * cosine + 0.16).sqrt() - 1).abs()
    error = expected.std().item() / math.sqrt(2 * 4000)
    found = chamfer_distance(ball, moved, 4000, generator())
    assert found == pytest.approx(expected.mean().item(), abs=4 * error + 1e-3)
    assert found == chamfer_distance(ball, moved, 4000, generator())
    assert found != chamfer_distance(ball, moved, 4000, generator(1))


def test_distance_to_a_mesh_of_marching_cubes_is_that_to_all_its_triangles() -> None:
    pytest.importorskip("trimesh")
    pytest.importorskip("skimage")
    from trimesh.triangles import closest_point

    from msd_teach.render.meshes import level_set

    box = level_set(lambda p: 0.6 - (p * torch.tensor([1.0, 0.7, 1.4])).abs().amax(1), resolution=14)
    points = 2 * torch.rand(60, 3, generator=generator(), dtype=torch.float64) - 1
    n = len(box.faces)
    every = closest_point(box.triangles[list(range(n)) * 60], points.repeat_interleave(n, 0).numpy())
    exact = (points[:, None] - torch.from_numpy(every).reshape(60, n, 3)).norm(dim=2).amin(1)
    torch.testing.assert_close(distance_to_mesh(points, box), exact, rtol=1e-9, atol=1e-9)


def test_bad_input_is_named() -> None:
    half = torch.full((3, 4, 4), 0.5)
    for wrong, said in (
        (lambda: silhouette_iou(2 * half + 0.5, half), "a is no tensor of floats in"),
        (lambda: silhouette_iou(half, half * math.nan), "b is no tensor of floats in"),
        (lambda: silhouette_iou(half, half[:2]), r"b has shape \(2, 4, 4\); it must broadcast"),
        (lambda: share(half), r"it must be a tensor \(N,\) of booleans"),
        (lambda: janus_rate(torch.zeros(3), torch.zeros(3, dtype=torch.long)), "judged is"),
        (lambda: janus_rate(torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long)), "true is"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(0)
    with pytest.raises(ValueError, match="count is 0"):
        chamfer_distance(ball, ball, 0)
    with pytest.raises(ValueError, match="b has no triangles"):
        chamfer_distance(ball, trimesh.Trimesh())
