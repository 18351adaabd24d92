"""Cameras on an orbit around the origin, the rays they see, and the words for their views.

The world is right-handed with y up, and every object of the pocket world faces +z. A camera of azimuth 0
stands on +z and sees the front; at azimuth 90 it stands on +x; positive elevation looks down from above.
In camera space x points right, y up and z backwards (the OpenGL and NeRF convention). Image row 0 is the
top, pixel centres lie at half integers, and the field of view is the full vertical angle. Degrees throughout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

VIEWS = ("front", "side", "back", "overhead")
FRONT_BORDER, BACK_BORDER, OVERHEAD_BORDER = 45.0, 135.0, 60.0


class Cameras:
    """A batch of cameras that look at the origin.

    Every argument is a float or a tensor of shape (B,), broadcast to one shape; angles in degrees. At the
    default distance and field of view the unit sphere fits the image with a margin of a seventh.

    Attributes azimuth, elevation, distance, field_of_view: (B,) float32.

    Raises:
        ValueError: an argument that is not finite or out of its range.
    """

    def __init__(
        self,
        azimuth: Tensor | float,
        elevation: Tensor | float,
        distance: Tensor | float = 4.2,
        field_of_view: Tensor | float = 32.0,
    ) -> None:
        given = (azimuth, elevation, distance, field_of_view)
        device = next((value.device for value in given if isinstance(value, Tensor)), None)
        fields = [torch.as_tensor(value, dtype=torch.float32, device=device) for value in given]
        self.azimuth, self.elevation, self.distance, self.field_of_view = torch.broadcast_tensors(
            *(torch.atleast_1d(field) for field in fields)
        )
        _require("azimuth", self.azimuth, self.azimuth.isfinite(), "finite")
        _require("elevation", self.elevation, self.elevation.abs() <= 90, "in [-90, 90] degrees")
        _require("distance", self.distance, (self.distance > 0) & self.distance.isfinite(), "positive and finite")
        inside = (self.field_of_view > 0) & (self.field_of_view < 180)
        _require("field_of_view", self.field_of_view, inside, "in (0, 180) degrees")

    def __len__(self) -> int:
        return len(self.azimuth)

    def __getitem__(self, index: slice | Tensor) -> Cameras:
        """The chosen cameras, for a slice or a tensor of indices."""
        return Cameras(self.azimuth[index], self.elevation[index], self.distance[index], self.field_of_view[index])

    def to(self, device: torch.device | str) -> Cameras:
        """The same cameras on another device; their rays follow."""
        return Cameras(*(v.to(device) for v in (self.azimuth, self.elevation, self.distance, self.field_of_view)))

    def __iter__(self) -> Iterator[Cameras]:
        return (self[i : i + 1] for i in range(len(self)))

    def to_world(self) -> Tensor:
        """Camera-to-world matrices, (B, 4, 4): the columns are right, up, backwards and position.

        Written out in the angles, so it holds straight overhead too, where a cross product with "up" fails.
        """
        az, el = torch.deg2rad(self.azimuth), torch.deg2rad(self.elevation)
        zero = torch.zeros_like(az)
        right = torch.stack([az.cos(), zero, -az.sin()], -1)
        up = torch.stack([-el.sin() * az.sin(), el.cos(), -el.sin() * az.cos()], -1)
        backward = torch.stack([el.cos() * az.sin(), el.sin(), el.cos() * az.cos()], -1)
        matrix = torch.eye(4, device=az.device).repeat(len(self), 1, 1)
        matrix[:, :3] = torch.stack([right, up, backward, self.distance[:, None] * backward], -1)
        return matrix

    def rays(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Origins and unit directions of the rays through all pixel centres, each (B, height, width, 3)."""
        slope = torch.tan(torch.deg2rad(self.field_of_view) / 2)[:, None, None]
        row = 1 - (2 * torch.arange(height, device=slope.device) + 1) / height
        column = ((2 * torch.arange(width, device=slope.device) + 1) - width) / height
        y, x = torch.meshgrid(row, column, indexing="ij")
        d = torch.stack([slope * x, slope * y, -torch.ones_like(slope * x)], -1)  # (B, H, W, 3)
        matrix = self.to_world()
        d = torch.einsum("bij,bhwj->bhwi", matrix[:, :3, :3], d)
        return matrix[:, None, None, :3, 3].expand_as(d), d / d.norm(dim=-1, keepdim=True)

    def project(self, points: Tensor, height: int, width: int) -> Tensor:
        """Pixel coordinates (column, row) of world points: (B, N, 3) or (N, 3) -> (B, N, 2); the inverse of `rays`."""
        matrix = self.to_world()
        p = (points - matrix[:, None, :3, 3]) @ matrix[:, :3, :3]  # into camera space
        scale = height / 2 / torch.tan(torch.deg2rad(self.field_of_view) / 2)[:, None]
        return torch.stack([width / 2 - scale * p[..., 0] / p[..., 2], height / 2 + scale * p[..., 1] / p[..., 2]], -1)

    def view(self) -> Tensor:
        """Index into `VIEWS` of the word for each view, (B,), as DreamFusion words them.

        Overhead above 60 degrees of elevation; else front, side or back, with borders at azimuth ±45 and ±135.
        """
        turn = self._turn()
        around = (turn >= FRONT_BORDER).long() + (turn > BACK_BORDER).long()
        return torch.where(self.elevation > OVERHEAD_BORDER, torch.full_like(around, 3), around)

    def view_words(self) -> list[str]:
        """The word for each view: front, side, back or overhead."""
        return [VIEWS[i] for i in self.view().tolist()]

    def border_distance(self) -> Tensor:
        """Degrees to the nearest border between two view words, (B,)."""
        turn = self._turn()
        around = torch.minimum((turn - FRONT_BORDER).abs(), (turn - BACK_BORDER).abs())
        above = (self.elevation - OVERHEAD_BORDER).abs()
        return torch.where(self.elevation > OVERHEAD_BORDER, above, torch.minimum(around, above))

    def _turn(self) -> Tensor:
        """The azimuth's distance from the front, in [0, 180]."""
        return ((self.azimuth + 180) % 360 - 180).abs()


def orbit(count: int, elevation: float = 15.0) -> Cameras:
    """`count` cameras evenly around the object, the first in front of it."""
    return Cameras(torch.arange(count) * (360 / count), elevation)


def random_cameras(
    count: int, generator: torch.Generator | None = None, elevation: tuple[float, float] = (-10.0, 90.0)
) -> Cameras:
    """Cameras uniform over the part of the sphere between two elevations (by area, so few are near the pole)."""
    low, high = (math.sin(math.radians(e)) for e in elevation)
    u = torch.rand(2, count, generator=generator)
    return Cameras(360 * u[0] - 180, torch.rad2deg(torch.asin(low + (high - low) * u[1])))


def _require(name: str, value: Tensor, fine: Tensor, allowed: str) -> None:
    if not fine.all():
        raise ValueError(f"{name} contains {value[~fine][0].item()}; every value must be {allowed}")
