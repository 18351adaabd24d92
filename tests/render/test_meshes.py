"""Meshes with balls of known volume, projection and rays as referees; files that come back as they were."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from msd_teach.render.cameras import Cameras, orbit
from msd_teach.render.meshes import Function, export, level_set, silhouette_level, silhouettes, surface, turntable

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")
SPREAD = 0.3
CAMERAS = Cameras(torch.tensor([0.0, 50.0, 140.0]), torch.tensor([10.0, 35.0, 70.0]))


def gaussian(height: float, spread: float = SPREAD) -> Function:
    return lambda p: height * torch.exp(-p.square().sum(1) / (2 * spread**2))


def wall(points: Tensor) -> Tensor:
    """A hollow ball of radius 0.8, its wall 0.1 thick, with a jump at each side, in a haze."""
    r = points.norm(dim=1)
    return 400.0 * ((r < 0.8) & (r > 0.7)) + 0.01


def tall(points: Tensor) -> Tensor:
    """Positive inside an ellipsoid, tall in y, with a nose towards +z."""
    body = 1 - (points / torch.tensor([0.2, 0.9, 0.3])).norm(dim=1)
    return torch.maximum(body, 1 - ((points - torch.tensor([0.0, 0.3, 0.4])) / 0.15).norm(dim=1))


def look(mesh: Any) -> Any:
    return mesh.visual


def shown(points: Tensor) -> Tensor:
    return (points + 1) / 2


@pytest.mark.parametrize("height", [5.0, 40.0, 1000.0])
def test_level_of_a_gaussian_ball_is_the_closed_form(height: float) -> None:
    """A ray at distance b has depth h s √(2π) exp(-b²/2s²) and peak h exp(-b²/2s²): half opaque at one level for all h."""
    axis = torch.linspace(-1.2, 1.2, 64)
    grid = gaussian(height)(torch.cartesian_prod(axis, axis, axis)).reshape(64, 64, 64)
    level = math.log(2) / (SPREAD * math.sqrt(2 * math.pi))
    assert silhouette_level(grid, 1.2) == pytest.approx(level, rel=0.02)
    mesh = surface(gaussian(height), resolution=64)
    radius = SPREAD * math.sqrt(2 * math.log(height / level))
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.02)  # positive: normals point outward


def test_a_jump_lies_halfway_and_a_hollow_is_left_out() -> None:
    mesh = surface(wall, resolution=64)
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=0.02)
    both = surface(wall, resolution=64, all_parts=True)
    assert both.volume == pytest.approx(4 / 3 * math.pi * (0.8**3 - 0.7**3), rel=0.05)
    outward = (mesh.face_normals * mesh.triangles_center).sum(1)
    assert (outward > 0).all()


def test_level_set_of_a_signed_distance() -> None:
    mesh = level_set(lambda p: 0.9 - p.norm(dim=1), resolution=48)
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.9**3, rel=0.01)
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 0.9, atol=2e-3)
    cube = level_set(lambda p: 1 + 0 * p[:, 0], radius=1.0, resolution=16)  # nothing outside: closed all the same
    assert cube.is_watertight
    beyond = (2 / 15) * 1 / (1 + 2 / 15)  # from 1 to -spacing across a spacing
    assert cube.volume == pytest.approx((2 + 2 * beyond) ** 3, rel=0.03)


def opaque_and_peak(density: Function, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Where the density stops half of the light, by quadrature along the rays, and its highest value on each ray."""
    origins, directions = cameras.rays(64, 64)
    step = 2.4 / 120
    depth, peak = torch.zeros(len(cameras), 64, 64), torch.zeros(len(cameras), 64, 64)
    for t in torch.arange(3.0, 5.4, step):
        values = density((origins + t * directions).reshape(-1, 3)).reshape(depth.shape)
        depth, peak = depth + step * values, peak.maximum(values)
    return 1 - torch.exp(-depth) >= 0.5, peak


def iou(a: Tensor, b: Tensor) -> float:
    return ((a & b).sum() / (a | b).sum()).item()


def test_the_mesh_looks_like_the_density() -> None:
    """A tower and a thin arm, hollow, with soft rims, in a thin haze and among specks: what a run may leave."""

    def distance(p: Tensor) -> Tensor:
        outside = (p.abs() - torch.tensor([0.25, 0.8, 0.35])).clamp(min=0).norm(dim=1)
        inside = (p.abs() - torch.tensor([0.25, 0.8, 0.35])).amax(1).clamp(max=0)
        along = p[:, 0].clamp(0.0, 0.8)
        arm = (p - torch.stack([along, 0 * along + 0.4, 0 * along], 1)).norm(dim=1) - 0.1
        return torch.minimum(outside + inside, arm)

    def density(p: Tensor) -> Tensor:
        specks = gaussian(200.0, 0.03)(p - torch.tensor([0.8, -0.6, 0.1]))
        return 60 * (-distance(p) / 0.02).sigmoid() * (distance(p) > -0.15) + 0.05 + specks

    opaque, _ = opaque_and_peak(density, CAMERAS)
    mesh = surface(density, resolution=64, all_parts=True)
    assert iou(opaque, silhouettes(mesh, CAMERAS) >= 0.5) >= 0.97
    whole, alone = mesh.body_count, surface(density, resolution=64)
    assert (alone.body_count, alone.is_watertight) == (1, True)
    assert whole > 2  # the speck and the hollow
    assert alone.bounds[1] == pytest.approx([0.93, 0.83, 0.38], abs=0.03)


def test_no_level_looks_more_like_a_haze() -> None:
    """Lumps of several sizes in a haze that is half opaque itself have no surface; the chosen level is the best all the
    same, for other rays than those that chose it."""

    def density(p: Tensor) -> Tensor:
        lumps = ((0.3, 0.2, 0.0, 30.0, 0.2), (-0.3, -0.2, 0.1, 300.0, 0.12), (0.0, 0.0, 0.0, 1.0, 0.5))
        return sum((gaussian(h, s)(p - torch.tensor([x, y, z])) for x, y, z, h, s in lumps), torch.zeros(len(p)))

    opaque, peak = opaque_and_peak(density, CAMERAS)
    best = max(iou(opaque, peak >= level) for level in torch.logspace(-2, 2, 100))
    assert iou(opaque, silhouettes(surface(density, resolution=64), CAMERAS) >= 0.5) > best - 0.015
    assert best < 0.97


def test_silhouette_of_a_ball_is_the_cone_of_tangents() -> None:
    """A ball of radius r at distance d is seen within the angle arcsin(r / d) of its centre."""
    ball = trimesh.creation.icosphere(4, 0.8)
    cameras = Cameras(torch.tensor([20.0, -100.0]), torch.tensor([30.0, 80.0]), torch.tensor([4.2, 3.0]))
    origins, directions = cameras.rays(256, 256)
    inward = torch.nn.functional.normalize(-origins, dim=-1)
    angle = torch.acos((inward * directions).sum(-1).clamp(max=1))
    seen = (angle < torch.asin(0.8 / cameras.distance)[:, None, None]).float()
    exact = seen.reshape(2, 64, 4, 64, 4).mean((2, 4))
    drawn = silhouettes(ball, cameras, 64)
    assert (drawn - exact).abs().max() <= 0.5
    torch.testing.assert_close(drawn.sum((1, 2)), exact.sum((1, 2)), rtol=0.01, atol=0)
    with pytest.raises(ValueError, match="the mesh reaches"):
        silhouettes(ball, Cameras(0.0, 0.0, 0.5))


@pytest.mark.parametrize("ending", ["glb", "ply", "obj"])
def test_files_come_back_upright_and_in_colour(ending: str, tmp_path: Path) -> None:
    mesh = surface(lambda p: 50 * tall(p).clamp(min=0), shown, resolution=48)
    colours = np.array(look(mesh).vertex_colors)[:, :3]
    np.testing.assert_allclose(colours, 255 * (mesh.vertices + 1) / 2, atol=0.51)
    back = trimesh.load(export(mesh, tmp_path / f"folder/it.{ending}"), process=False)
    back = next(iter(back.geometry.values())) if isinstance(back, trimesh.Scene) else back
    np.testing.assert_allclose(back.bounds, mesh.bounds, atol=1e-5)
    assert back.volume == pytest.approx(mesh.volume, rel=1e-4)
    assert back.extents.argmax() == 1  # tall in y, and its nose still in front
    assert back.bounds[1, 2] > 0.45 > 0.35 > -back.bounds[0, 2]
    glb = ending == "glb"  # with a material, so colours are attributes, and linear: viewers show them as sRGB
    found = np.array(look(back).vertex_attributes["color"] if glb else look(back).vertex_colors)[:, :3] / 255
    if glb:
        found = np.where(found <= 0.0031308, 12.92 * found, 1.055 * found ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(found, colours / 255, atol=0.03 if glb else 0.003)


@pytest.mark.parametrize("ending", ["webp", "mp4", "gif"])
def test_turntable(ending: str, tmp_path: Path) -> None:
    from imageio import v3
    from PIL import Image

    images = torch.rand(5, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(5, 3, 33, 48)
    path = turntable(images, tmp_path / f"turn.{ending}", rate=10)
    back = np.stack(list(v3.imiter(path, plugin="pyav" if ending == "mp4" else "pillow")))
    assert back.shape == (5, 32 if ending == "mp4" else 33, 48, 3)
    np.testing.assert_allclose(back.mean((1, 2)) / 255, images[:, :, 0, 0], atol=0.03)
    if ending == "mp4":
        meta = v3.immeta(path, plugin="pyav")
        assert (meta["fps"], meta["codec"]) == (10, "h264")
    else:
        with Image.open(path) as film:
            film.seek(1)
            film.load()
            assert (film.info["loop"], film.info["duration"]) == (0, 100)


def test_bad_input_is_named_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ball = trimesh.creation.icosphere(1)
    for wrong, said in (
        (lambda: surface(lambda p: 0 * p[:, 0], resolution=8), "stops 0 % of the light"),
        (lambda: surface(gaussian(0.5), resolution=8), "it stops .. % of the light of a ray at most"),
        (lambda: surface(gaussian(9.0), resolution=8, level=10.0), "level is 10; it must lie below"),
        (lambda: surface(gaussian(9.0), level=-1.0), "level is -1.0; it must be positive"),
        (lambda: surface(gaussian(9.0), radius=0.0), "radius is 0.0"),
        (lambda: surface(gaussian(9.0), resolution=1), "resolution is 1; it must be at least 2"),
        (lambda: surface(gaussian(-9.0), resolution=8), "it must be >= 0 everywhere"),
        (lambda: surface(gaussian(math.nan), resolution=8), "density returned nan"),
        (lambda: surface(shown, resolution=8), r"density returned shape \(512, 3\)"),
        (lambda: surface(gaussian(9.0), gaussian(1.0), resolution=8), "colour returned shape"),
        (lambda: level_set(lambda p: p[:, 0] - 9, resolution=8), "function has no surface in the cube"),
        (lambda: export(ball, tmp_path / "it.stl"), "it must end in .glb, .ply, .obj"),
        (lambda: export(trimesh.Trimesh(), tmp_path / "it.glb"), "mesh has no triangles"),
        (lambda: turntable(torch.zeros(2, 3, 8, 8), tmp_path / "it.avi"), "it must end in .webp, .mp4, .gif"),
        (lambda: turntable(torch.zeros(3, 8, 8), tmp_path / "it.gif"), r"images has shape \(3, 8, 8\)"),
        (lambda: turntable(torch.full((2, 3, 8, 8), 1.5), tmp_path / "it.gif"), r"outside of \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()
    assert not list(tmp_path.iterdir())

    path = export(ball, tmp_path / "it.ply")
    kept = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        self.open("wb").write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="cannot be written: No space left on device"):
        export(trimesh.creation.box(), path)
    assert path.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [path]


def test_an_orbit_of_silhouettes_has_one_for_each_camera() -> None:
    assert silhouettes(trimesh.creation.icosphere(1), orbit(3), 16).shape == (3, 16, 16)
