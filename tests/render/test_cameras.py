"""Orbit cameras: what stands where, and rays and projection as each other's inverse."""

from __future__ import annotations

import math

import pytest
import torch

from msd_teach.render.cameras import Cameras, orbit, random_cameras


def test_azimuth_0_stands_on_z_and_90_on_x() -> None:
    position = Cameras(
        torch.tensor([0.0, 90.0, 180.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 90.0]), distance=2.0
    ).to_world()[:, :3, 3]
    expected = torch.tensor([[0.0, 0, 2], [2, 0, 0], [0, 0, -2], [0, 2, 0]])
    torch.testing.assert_close(position, expected, atol=1e-6, rtol=0)


def test_frames_are_right_handed_and_look_at_the_origin_even_from_the_pole() -> None:
    cameras = Cameras(torch.tensor([0.0, 33.0, -120.0, 70.0]), torch.tensor([0.0, 40.0, -80.0, 90.0]), distance=3.0)
    pose = cameras.to_world()
    axes = pose[:, :3, :3]
    torch.testing.assert_close(axes.mT @ axes, torch.eye(3).expand(4, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(axes), torch.ones(4))
    torch.testing.assert_close(pose[:, :3, 3], 3.0 * axes[:, :, 2], atol=1e-6, rtol=0)


def test_image_axes_run_right_and_down() -> None:
    front = Cameras(0.0, 0.0)
    right = front.project(torch.tensor([[0.5, 0.0, 0.0]]), 64, 64)[0, 0]
    high = front.project(torch.tensor([[0.0, 0.5, 0.0]]), 64, 64)[0, 0]
    assert right[0] > 32 and right[1] == pytest.approx(32)
    assert high[1] < 32 and high[0] == pytest.approx(32)


def test_rays_go_through_the_pixel_centres_that_points_project_to() -> None:
    cameras = random_cameras(6, torch.Generator().manual_seed(0))
    origins, directions = cameras.rays(24, 40)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(6, 24, 40))
    points = (origins + 3.0 * directions).reshape(6, -1, 3)
    row, column = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    expected = torch.stack([column, row], -1).reshape(1, -1, 2).expand(6, -1, 2)
    torch.testing.assert_close(cameras.project(points, 24, 40), expected, atol=2e-3, rtol=0)


def test_the_field_of_view_is_the_full_vertical_angle() -> None:
    _, directions = Cameras(0.0, 0.0, field_of_view=50.0).rays(1000, 2)
    top, bottom = directions[0, 0].mean(0), directions[0, -1].mean(0)
    angle = math.degrees(math.acos(float(torch.cosine_similarity(top, bottom, dim=0))))
    assert angle == pytest.approx(50.0, abs=0.1)


def test_view_words_and_their_borders() -> None:
    azimuth = torch.tensor([0.0, -44.0, 46.0, -134.0, 136.0, 180.0, -180.0, 360.0, 10.0])
    elevation = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 59.0, 0.0, 0.0, 61.0])
    cameras = Cameras(azimuth, elevation)
    assert cameras.view_words() == ["front", "front", "side", "side", "back", "back", "back", "front", "overhead"]
    torch.testing.assert_close(
        cameras.border_distance(), torch.tensor([45.0, 1, 1, 1, 1, 1, 45, 45, 1]), atol=1e-4, rtol=0
    )


def test_orbit_is_even_and_random_cameras_repeat_and_cover_equal_areas() -> None:
    assert orbit(4).azimuth.tolist() == [0, 90, 180, 270]
    cameras = random_cameras(20_000, torch.Generator().manual_seed(1), (-90.0, 90.0))
    again = random_cameras(20_000, torch.Generator().manual_seed(1), (-90.0, 90.0))
    assert torch.equal(cameras.azimuth, again.azimuth)
    # a uniform direction has mean 0 and covariance 1/3; five standard errors of 20 000 draws
    directions = torch.nn.functional.normalize(cameras.to_world()[:, :3, 3], dim=-1)
    assert directions.mean(0).abs().max() < 5 * math.sqrt(1 / 3 / 20_000)
    torch.testing.assert_close(directions.T @ directions / 20_000, torch.eye(3) / 3, atol=0.011, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"azimuth": math.nan, "elevation": 0.0}, "azimuth"),
        ({"azimuth": 0.0, "elevation": 91.0}, "elevation"),
        ({"azimuth": 0.0, "elevation": 0.0, "distance": 0.0}, "distance"),
        ({"azimuth": 0.0, "elevation": 0.0, "field_of_view": 180.0}, "field_of_view"),
    ],
)
def test_bad_cameras_are_refused_by_name(arguments: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} contains"):
        Cameras(**arguments)
