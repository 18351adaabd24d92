"""One object before a plain background: its signed distance, its pictures, its silhouettes.

Pictures come from sphere tracing, batched over all rays of scenes of one kind, under a soft sky and a lamp
above the camera's left shoulder, so that every side is lit alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from ..render.cameras import Cameras
from .kinds import KINDS, Parts
from .shapes import Points

COLOURS = {
    "red": (0.86, 0.13, 0.13),
    "orange": (0.98, 0.53, 0.08),
    "yellow": (0.98, 0.86, 0.14),
    "green": (0.17, 0.64, 0.22),
    "cyan": (0.12, 0.76, 0.80),
    "blue": (0.16, 0.30, 0.86),
    "purple": (0.54, 0.20, 0.72),
    "pink": (0.98, 0.55, 0.73),
    "white": (0.96, 0.96, 0.97),
}
BACKGROUNDS = {
    "grey": (0.70, 0.71, 0.75),
    "sky": (0.66, 0.79, 0.92),
    "sand": (0.90, 0.83, 0.70),
    "mint": (0.71, 0.86, 0.76),
    "lilac": (0.79, 0.75, 0.89),
}
MATERIALS = {
    "body": (0.0, 0.0, 0.0),  # the prompt's colour takes its place
    "shade": (0.0, 0.0, 0.0),  # a darker tone of it
    "black": (0.10, 0.10, 0.13),
    "cream": (0.97, 0.90, 0.72),
    "glass": (0.62, 0.80, 0.92),
    "glow": (1.00, 0.93, 0.55),
    "metal": (0.62, 0.63, 0.67),
    "wood": (0.47, 0.29, 0.16),
    "carrot": (0.98, 0.52, 0.10),
    "ruby": (0.60, 0.05, 0.17),
}
SHADE = 0.80  # the darker tone of a body's colour
REACH = 1.2  # every object of size 1 lies in the ball of this radius
TOLERANCE = 2e-3
STEPS = 80


class Render(NamedTuple):
    """Pictures (B, 3, H, W) in [0, 1], and the share of every pixel that the object covers, (B, H, W)."""

    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Scene:
    """One object: its kind, colour, size, proportions (four numbers in [-1, 1]) and background.

    Raises:
        ValueError: an unknown name, a size outside (0, 1.1], or proportions outside [-1, 1].
    """

    kind: str
    colour: str
    size: float = 1.0
    shape: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    background: str = "grey"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, KINDS), ("colour", self.colour, COLOURS), ("background", self.background, BACKGROUNDS),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
        if not 0 < self.size <= 1.1:
            raise ValueError(f"size is {self.size}; it must lie in (0, 1.1]")
        if len(self.shape) != 4 or not all(-1 <= s <= 1 for s in self.shape):
            raise ValueError(f"shape is {self.shape}; it must be four numbers in [-1, 1]")

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance of points (..., 3) to the surface, (...), negative inside; a bound from below."""
        p = points.movedim(-1, 0) / self.size
        return self.size * _nearest(self.kind, p, torch.tensor(self.shape, dtype=p.dtype, device=p.device))

    def image(self, cameras: Cameras, resolution: int = 64) -> Tensor:
        """What the cameras see, (B, 3, resolution, resolution) in [0, 1]."""
        return render([self] * len(cameras), cameras, resolution).image

    def mask(self, cameras: Cameras, resolution: int = 64) -> Tensor:
        """The share of every pixel that the object covers, (B, resolution, resolution) in [0, 1]."""
        return render([self] * len(cameras), cameras, resolution).mask


@torch.no_grad()
def render(scenes: Sequence[Scene], cameras: Cameras, resolution: int = 64, samples: int = 2) -> Render:
    """One picture for each pair of scene and camera, anti-aliased by samples x samples rays a pixel.

    Raises:
        ValueError: another number of cameras than of scenes.
    """
    if len(scenes) != len(cameras):
        raise ValueError(f"cameras has length {len(cameras)}; it must have one camera for each of {len(scenes)} scenes")
    fine = resolution * samples
    device = cameras.azimuth.device
    image = torch.empty(len(scenes), 3, resolution, resolution, device=device)
    mask = torch.empty(len(scenes), resolution, resolution, device=device)
    for kind in dict.fromkeys(scene.kind for scene in scenes):
        chosen = torch.tensor([i for i, scene in enumerate(scenes) if scene.kind == kind], device=device)
        for part in chosen.split(8 if device.type == "cpu" else 128):  # few rays stay in a processor's cache
            colour, hit = _picture([scenes[i] for i in part.tolist()], cameras[part], fine)
            colour = colour.reshape(3, len(part), resolution, samples, resolution, samples)
            image[part] = colour.mean((3, 5)).transpose(0, 1)
            mask[part] = hit.reshape(len(part), resolution, samples, resolution, samples).float().mean((2, 4))
    return Render(image, mask)


def _picture(scenes: Sequence[Scene], cameras: Cameras, resolution: int) -> tuple[Tensor, Tensor]:
    """Colours (3, R) and hits (R,) of all rays, for scenes of one kind."""
    kind = scenes[0].kind
    origins, directions = cameras.rays(resolution, resolution)
    rays = origins.shape[1] * origins.shape[2]

    def per_ray(values: list[tuple[float, ...]]) -> Tensor:
        return origins.new_tensor(values).T.repeat_interleave(rays, 1)

    o, d = origins.reshape(-1, 3).T, directions.reshape(-1, 3).T.contiguous()
    o = (o / per_ray([(s.size,) for s in scenes])).contiguous()  # lengths in units of the object
    shape = per_ray([s.shape for s in scenes])
    colour = per_ray([BACKGROUNDS[s.background] for s in scenes])
    t, hit = _trace(lambda p, v: _nearest(kind, p, v), o, d, shape)
    index = hit.nonzero()[:, 0]
    p, v = (o + t * d)[:, index], shape[:, index]
    body = per_ray([COLOURS[s.colour] for s in scenes])[:, index]
    lamp = cameras.to_world()[:, :3, :3] @ origins.new_tensor([-0.36, 0.54, 0.76])
    light = lamp.T.repeat_interleave(rays, 1)[:, index]
    colour[:, index] = _shade(kind, p, v, body, light, -d[:, index])
    return colour, hit


def _trace(distance: Callable[[Tensor, Tensor], Tensor], o: Tensor, d: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Depth along each ray, and whether it ends on a surface: sphere tracing (Hart 1996) inside the REACH ball."""
    along = -(o * d).sum(0)
    room = REACH**2 - (o * o).sum(0) + along**2
    far = along + room.clamp(min=0).sqrt()
    t = along - room.clamp(min=0).sqrt()
    hit = torch.zeros_like(t, dtype=torch.bool)
    active = (room > 0).nonzero()[:, 0]
    for _ in range(STEPS // 4):
        oa, da, va, ta, end = o[:, active], d[:, active], shape[:, active], t[active], far[active]
        gap = torch.zeros_like(ta)
        for _ in range(4):  # gathering the rays that go on costs as much as a step
            gap = distance(oa + ta * da, va)
            ta = ta + gap
        t[active] = ta
        hit[active] = (gap < TOLERANCE) & (ta < end)
        active = active[(gap >= TOLERANCE) & (ta < end)]
        if not len(active):
            break
    return t, hit


def _shade(kind: str, p: Tensor, shape: Tensor, body: Tensor, light: Tensor, eye: Tensor) -> Tensor:
    """Colours (3, R) of surface points: material, sky, lamp, a little gloss, and darker creases."""
    names, distances = _parts(kind, p, shape)
    materials = p.new_tensor([MATERIALS[name] for name in names]).T
    nearest = distances.argmin(0)
    albedo = materials[:, nearest]
    for name, share in (("body", 1.0), ("shade", SHADE)):
        own = torch.tensor([n == name for n in names], device=p.device)[nearest]
        albedo = torch.where(own, share * body, albedo)
    n, slope = _normal(kind, p, shape)
    crease = torch.zeros_like(slope)
    for height, weight in ((0.06, 3.0), (0.16, 1.6), (0.32, 0.6)):  # nothing but this surface near: distance = height
        crease = crease + weight * (height - _nearest(kind, p + height * n, shape) / slope).clamp(min=0)
    open_sky = (1 - crease).clamp(0.4, 1)
    lamp = (n * light).sum(0).clamp(min=0)
    half = torch.nn.functional.normalize(light + eye, dim=0)
    gloss = 0.14 * (n * half).sum(0).clamp(min=0) ** 24
    return (albedo * open_sky * (0.50 + 0.12 * n[1] + 0.52 * lamp) + gloss * open_sky).clamp(0, 1)


def _normal(kind: str, p: Tensor, shape: Tensor, step: float = 3e-3) -> tuple[Tensor, Tensor]:
    """Unit normals (3, R) and the distance's slopes (R,), from four differences over a tetrahedron.

    The slope is 1 for a true distance and less where a solid only bounds it.
    """
    gradient = torch.zeros_like(p)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        k = p.new_tensor(corner)[:, None]
        gradient = gradient + k * _nearest(kind, p + step * k, shape) / (4 * step)
    slope = gradient.norm(dim=0).clamp(min=0.05)
    return gradient / slope, slope


def _solids(kind: str, p: Tensor, shape: Tensor) -> Parts:
    points: Points = (p[0], p[1], p[2])
    return KINDS[kind](points, shape[0], shape[1], shape[2], shape[3])


def _nearest(kind: str, p: Tensor, shape: Tensor) -> Tensor:
    """Distance to the nearest solid: points (3, ...), proportions (4, ...) -> (...)."""
    return reduce(torch.minimum, (distance for distance, _ in _solids(kind, p, shape)))


def _parts(kind: str, p: Tensor, shape: Tensor) -> tuple[list[str], Tensor]:
    """The materials of all solids and their distances, (parts, R)."""
    solids = _solids(kind, p, shape)
    return [name for _, name in solids], torch.stack([distance for distance, _ in solids])
