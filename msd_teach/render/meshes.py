"""Surfaces as triangles: of a density, with its colours, or of any function; their silhouettes, files and turntables.

Axes are the world's, y up and the front towards +z, which are those of glTF. Colours are sRGB, as pictures are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..files import whole
from ..tensors import at_least_one
from .cameras import Cameras

if TYPE_CHECKING:
    from trimesh import Trimesh

MESHES, MOVIES = (".glb", ".ply", ".obj"), (".webp", ".mp4", ".gif")
CHUNK = 2**17  # points that a function is asked at once
PICTURES = 16  # whose rays choose the level
STEEP = 4.0  # of log density: a cell across which it changes by more holds a jump
MISSING = "meshes and turntables need more packages: pip install 'msd_teach[notebooks]'"
Function = Callable[[Tensor], Tensor]


def surface(
    density: Function,
    colour: Function | None = None,
    radius: float = 1.2,
    resolution: int = 128,
    level: float | None = None,
    all_parts: bool = False,
    device: torch.device | str = "cpu",
) -> Trimesh:
    """The surface of a density in the cube [-radius, radius]³, by marching cubes on resolution³ points of it.

    `density` maps points (n, 3), float32 on `device`, to (n,) >= 0, in units of one over length, and `colour` to (n, 3)
    in [0, 1], which become the sRGB bytes of the vertices. The level is that of `silhouette_level`, if not given.
    Between points the density is taken to be exponential, as a radiance field's is, and a jump to lie halfway. The
    surface is closed and its normals point outward; of several parts the one with the largest volume stays, which also
    leaves out hollows, or all stay where `all_parts` is set.

    Raises:
        ValueError: arguments out of range, functions with other shapes or values that are not finite, a density that
            has no surface, at this level or at all.
        ImportError: scikit-image or trimesh are not installed.
    """
    if level is not None:
        _check_positive("level", level)
    grid = _on_grid("density", density, radius, resolution, device)
    if grid.min() < 0:
        raise ValueError(f"density is {grid.min().item():g} at a point; it must be >= 0 everywhere")
    chosen = silhouette_level(grid, radius) if level is None else level
    if not grid.max() > chosen:
        raise ValueError(f"level is {chosen:g}; it must lie below the highest density, {grid.max().item():g}")
    mesh = _march("density", (grid / chosen).log().clamp(-STEEP, STEEP), radius)
    if not all_parts:
        _keep_largest(mesh)
    if colour is not None:
        points = torch.as_tensor(mesh.vertices, dtype=torch.float32, device=device)
        seen = _ask("colour", colour, points, (len(points), 3)).clamp(0, 1)
        _look(mesh).vertex_colors = (255 * seen).round().to(torch.uint8).numpy()
    return mesh


def level_set(
    function: Function, radius: float = 1.2, resolution: int = 128, device: torch.device | str = "cpu"
) -> Trimesh:
    """The surface on which a function of points (n, 3) is 0, positive inside: a signed distance with its sign turned.

    Raises:
        ValueError, ImportError: as `surface`.
    """
    return _march("function", _on_grid("function", function, radius, resolution, device), radius)


def silhouette_level(grid: Tensor, radius: float) -> float:
    """The level at which the surface of a density has the silhouettes of its pictures; (n, n, n) over [-radius, radius]³.

    A ray shows the object where at least half of its light is stopped, 1 - exp(-∫ρ) >= 1/2, so ∫ρ >= ln 2, and meets
    the surface where max ρ >= level. Over the rays of 16 pictures from all around, the level is the one that
    maximises the IoU of these two sets, halfway (in logarithms) between the peaks on its two sides. Where all rays
    crossed one thickness l it would be ln 2 / l; a Gaussian ball of deviation s has exactly that, with l = s √(2π).

    Raises:
        ValueError: a density that lets more than half of the light of each ray pass.
    """
    depths, peaks = _along_rays(grid, radius)
    opaque = depths >= math.log(2)
    if not opaque.any():
        stopped = -math.expm1(-depths.max().item())
        raise ValueError(
            f"density has no surface: it stops {100 * stopped:.0f} % of the light of a ray at most; a surface needs 50 %"
        )
    peaks, order = peaks.sort(descending=True)
    both = opaque[order].cumsum(0)
    either = torch.arange(1, len(peaks) + 1) + opaque.sum() - both
    below = torch.cat([peaks[1:], peaks.new_zeros(1)])
    best = int((both / either).where(below < peaks, 0).argmax())  # equal peaks are met together
    inside, outside = peaks[best].item(), below[best].item()
    return math.sqrt(inside * max(outside, inside * math.exp(-2 * STEEP)))


def _along_rays(grid: Tensor, radius: float, resolution: int = 64) -> tuple[Tensor, Tensor]:
    """The integral of a density along each ray of some PICTURES, and its highest value on it, (rays,)."""
    turns = torch.arange(PICTURES)
    elevation = torch.rad2deg(torch.asin((2 * turns + 1) / PICTURES - 1))  # a spiral: directions even over the sphere,
    cameras = Cameras(137.508 * turns, elevation, 3.5 * radius)  # and none along the axes, as the world's walls are
    depths, peaks = [], []
    step = 2 * radius / resolution
    for camera in cameras:
        origins, directions = (v.reshape(-1, 1, 3) / radius for v in camera.rays(resolution, resolution))
        t = 3.5 * radius + step * (torch.arange(resolution) + 0.5 - resolution / 2)
        points = (origins + t[:, None] * directions)[None, None]  # in units of the radius
        # its coordinates count the axes from the last one
        values = torch.nn.functional.grid_sample(grid[None, None], points.flip(-1), align_corners=True)[0, 0, 0]
        depths.append(step * values.sum(1))
        peaks.append(values.amax(1))
    return torch.cat(depths), torch.cat(peaks)


def silhouettes(mesh: Trimesh, cameras: Cameras, resolution: int = 64, samples: int = 8) -> Tensor:
    """The share of every pixel that a mesh covers, (B, resolution, resolution), by samples x samples points in it.

    Triangles also take points just outside of their edges, by which an outline lies up to 1 / (2 samples) of a pixel
    too far out.

    Raises:
        ValueError: a camera inside the ball around the origin that holds the mesh.
    """
    from PIL import Image, ImageDraw

    fine = at_least_one("samples", samples) * at_least_one("resolution", resolution)
    vertices = torch.as_tensor(np.array(mesh.vertices), dtype=torch.float32)
    if (reach := vertices.norm(dim=1).max()) >= cameras.distance.min():
        raise ValueError(f"cameras come within {cameras.distance.min():g} of the origin; the mesh reaches {reach:g}")
    corners = cameras.to("cpu").project(vertices, fine, fine) - 0.5  # pixel centres are whole numbers there
    covered = []
    for triangles in corners[:, torch.as_tensor(np.array(mesh.faces))].flatten(2):  # (F, 6)
        picture = Image.new("L", (fine, fine))
        draw = ImageDraw.Draw(picture)
        for triangle in triangles.tolist():
            draw.polygon(triangle, fill=1)
        covered.append(torch.as_tensor(np.array(picture), dtype=torch.float32))
    return torch.stack(covered).unflatten(2, (resolution, samples)).unflatten(1, (resolution, samples)).mean((2, 4))


def export(mesh: Trimesh, path: str | os.PathLike[str]) -> Path:
    """Writes a mesh whole, as its path ends: .glb, .ply or .obj; the path.

    In a GLB the colours are linear, as glTF wants those of vertices, and the material is unlit: viewers show the
    colours themselves. PLY and OBJ have no such rule and hold sRGB. Axes are the same in all.

    Raises:
        ValueError: another ending, a mesh without triangles, a path that cannot be written to.
    """
    path = _ending(path, MESHES)
    if not len(mesh.faces):
        raise ValueError("mesh has no triangles; it must have one at least")
    data: Any = _glb(mesh) if path.suffix.lower() == ".glb" else mesh.export(file_type=path.suffix.lower()[1:])
    with whole(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def turntable(images: Tensor, path: str | os.PathLike[str], rate: int = 12) -> Path:
    """Writes pictures (n, 3, H, W) in [0, 1] whole as a film of `rate` a second, .webp, .mp4 or .gif; the path.

    WebP and GIF begin again at their end; an MP4 has no such mark. H.264 needs even sides: an odd last row or column is
    left out of an MP4.

    Raises:
        ValueError: another ending, other shapes or values, a path that cannot be written to.
        ImportError: imageio, or for an MP4 PyAV, is not installed.
    """
    path, rate = _ending(path, MOVIES), at_least_one("rate", rate)
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or min(images.shape) < 1:
        raise ValueError(f"images has shape {tuple(getattr(images, 'shape', ()))}; it must be (n, 3, H, W)")
    if not (images.isfinite().all() and images.min() >= 0 and images.max() <= 1):
        raise ValueError("images has values outside of [0, 1], or NaN; every value must lie in [0, 1]")
    frames = (255 * images.detach().cpu()).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    ending = path.suffix.lower()
    settings: dict[str, Any] = {"plugin": "pillow", "is_batch": True, "duration": 1000 / rate, "loop": 0, "quality": 90}
    if ending == ".mp4":
        frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        settings = {"plugin": "pyav", "codec": "libx264", "fps": rate, "out_pixel_format": "yuv420p"}
    try:
        from imageio import v3

        data = v3.imwrite("<bytes>", frames, extension=ending, **settings)
    except ImportError as error:
        raise ImportError(MISSING) from error
    with whole(path) as partial:
        partial.write_bytes(data)
    return path


def _on_grid(name: str, function: Function, radius: float, resolution: int, device: torch.device | str) -> Tensor:
    """A function's values on the points of a cube, (n, n, n) in float32 on the CPU; the first axis is x."""
    _check_positive("radius", radius)
    if at_least_one("resolution", resolution) < 2:
        raise ValueError(f"resolution is {resolution}; it must be at least 2")
    axis = torch.linspace(-radius, radius, resolution, device=device)
    points = torch.cartesian_prod(axis, axis, axis)
    return _ask(name, function, points, (len(points),)).reshape(resolution, resolution, resolution)


@torch.no_grad()
def _ask(name: str, function: Function, points: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A function's values at points, part by part, in float32 on the CPU; ValueError for other shapes, or NaN."""
    values = torch.cat([function(part).float().cpu() for part in points.split(CHUNK)])
    if values.shape != shape:
        raise ValueError(f"{name} returned shape {tuple(values.shape)} for {len(points)} points; it must be {shape}")
    if not values.isfinite().all():
        raise ValueError(f"{name} returned {values[~values.isfinite()][0].item()}; all values must be finite")
    return values


def _march(name: str, values: Tensor, radius: float) -> Trimesh:
    """Marching cubes at 0 (Lewiner et al. 2003), closed by a layer of outside around the cube."""
    try:
        from skimage.measure import marching_cubes
        from trimesh import Trimesh
    except ImportError as error:
        raise ImportError(MISSING) from error
    if not (values > 0).any():
        raise ValueError(f"{name} has no surface in the cube of radius {radius:g}: it is positive nowhere")
    spacing = 2 * radius / (len(values) - 1)
    padded = torch.nn.functional.pad(values, [1] * 6, value=min(values.min().item(), -spacing))
    # its "ascent" turns triangles outward around what is positive, in a right-handed frame (its own is (z, y, x))
    vertices, faces, _, _ = marching_cubes(padded.numpy(), 0.0, gradient_direction="ascent")
    return Trimesh(spacing * (vertices - 1) - radius, faces, process=False)


def _keep_largest(mesh: Trimesh) -> None:
    """Leaves of a mesh the connected part that encloses the largest volume; a hollow encloses less than nothing."""
    from trimesh.graph import connected_component_labels

    part = connected_component_labels(mesh.face_adjacency, len(mesh.faces))
    a, b, c = mesh.triangles.transpose(1, 0, 2)
    volume = np.bincount(part, (a * np.cross(b, c)).sum(1))  # six times that of the tetrahedra over the origin
    mesh.update_faces(part == volume.argmax())
    mesh.remove_unreferenced_vertices()


def _glb(mesh: Trimesh) -> bytes:
    from trimesh.exchange.gltf import export_glb

    def unlit(tree: dict[str, Any]) -> None:  # a viewer's default is metal, which is black where nothing shines
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
        tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0}, "extensions": {"KHR_materials_unlit": {}}}]
        tree["meshes"][0]["primitives"][0]["material"] = 0

    mesh = mesh.copy()
    if _look(mesh).kind == "vertex":
        colours = np.array(_look(mesh).vertex_colors) / 255
        rgb = colours[:, :3]  # IEC 61966-2-1
        colours[:, :3] = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        _look(mesh).vertex_colors = (255 * colours).round().astype(np.uint8)
    return export_glb(mesh, tree_postprocessor=unlit)


def _look(mesh: Trimesh) -> Any:
    """A mesh's colours: trimesh declares that there may be none, or a texture."""
    return mesh.visual


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be positive and finite")


def _ending(path: str | os.PathLike[str], known: tuple[str, ...]) -> Path:
    path = Path(path)
    if path.suffix.lower() not in known:
        raise ValueError(f"path is {str(path)!r}; it must end in {', '.join(known)}")
    return path
