"""A neural radiance field of one object, and what cameras see of it by volume rendering.

The field lives in the ball of radius `radius` around the origin, and every ray is cut into the same S bins, between
the distances d − radius and d + radius from a camera that stands at d. A bin is of one density σ and colour c, those at
a random point of it, so that the optical depth Σ σδ of a ray has no bias (δ is the bin's length). The network is asked
at points of occupied cells alone. Their indices are unique, so no sum of the backward pass hangs on an order: it repeats
bit for bit on the CPU, at the same number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool3d, normalize, pad, softplus

from ..tensors import at_least_one, check_number
from .cameras import Cameras
from .encodings import MLP, GridEncoding

EMPTY = 0.01  # a cell that covers less than this share of what lies behind it may be skipped
START_DEPTH = 3.0  # optical depth of a fresh field through its centre: 95 % opaque
AT_ONCE = 2**14  # points; the layers of more leave a processor's cache, and cost up to twice the time a point
TETRAHEDRON = ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1))


class Field(nn.Module):
    """Density and colour of points: (N, 3) to a density (N,) >= 0, in 1/length, and a colour (N, 3) in [0, 1].

    A `GridEncoding` whose resolutions double from `coarsest` to about `finest` (hashed where the grid outgrows its
    table) and one `MLP` of two hidden layers for both, as in the paper's foreground network; the colour is the same
    from every side. Points beyond the cube [−radius, radius]³ are taken to its face.

    The density is softplus(f(x) + b(x)) / cell, with a fresh f near 0 and `cell` the edge of a finest cell: at
    f + b = 1 light goes about one cell deep. Its lower tail is an exponential's, so space can be as empty as it likes; its
    slope is bounded, so no step of a learning rate makes it overflow. The blob b(x) = log(cell·3/(√(2π)s)) − |x|²/2s²,
    s = radius/3, makes the start a Gaussian cloud, nearly opaque in the middle.

    `open_levels` may be set between steps, for a start on coarse levels: level l is weighted by open_levels − l, between
    0 and 1. `occupied` (cells, cells, cells) says where the network is asked; all of it, until `update_occupancy`.

    Raises:
        ValueError: an argument out of its range.
    """

    occupied: Tensor
    densest: Tensor

    def __init__(
        self,
        radius: float = 1.2,
        coarsest: int = 8,
        finest: int = 64,
        features: int = 2,
        width: int = 64,
        cells: int = 32,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_number("radius", radius, low=1e-3)
        doublings = max(1, round(math.log2(at_least_one("finest", finest) / at_least_one("coarsest", coarsest))))
        self.radius, self.cell, self.open_levels = float(radius), 2 * radius / finest, 1.0 + doublings
        self.encoding = GridEncoding(3, coarsest, finest, 1 + doublings, features, generator=generator)
        self.network = MLP(self.encoding.outputs, 4, width, generator=generator)
        shape = (at_least_one("cells", cells),) * 3
        self.register_buffer("occupied", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("densest", torch.zeros(shape))

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        raw = self._raw(points)
        return softplus(raw[:, 0]) / self.cell, raw[:, 1:].sigmoid()

    def _raw(self, points: Tensor) -> Tensor:
        """What is squashed to density and colour, (N, 4); in the points' precision, also under autocast."""
        features = self.encoding((points / self.radius + 1).clamp(0, 2) / 2)
        levels = len(self.encoding.levels)
        if self.open_levels < levels:
            weights = (self.open_levels - torch.arange(levels)).clamp(0, 1).to(features)
            features = features * weights.repeat_interleave(self.encoding.features)
        s = self.radius / 3
        peak = math.log(self.cell * START_DEPTH / (math.sqrt(2 * math.pi) * s))
        blob = peak - points.square().sum(1, keepdim=True) / (2 * s**2)
        at_once = AT_ONCE if points.device.type == "cpu" else max(1, len(points))
        raw = torch.cat([self.network(part)[0] for part in features.split(at_once, 1)])
        return raw.to(points) + pad(blob, (0, 3))

    def normals(self, points: Tensor) -> Tensor:
        """Unit vectors (N, 3) against the density's gradient, outwards, by four differences over a tetrahedron.

        Differences, not automatic differentiation, so that a penalty on normals has a gradient too: the encoding has no
        second derivative. They are those of f + b, which rises with the density and does not fade in empty space.
        """
        corners = points.new_tensor(TETRAHEDRON)
        at = (points[:, None] + 0.5 * self.cell * corners).flatten(0, 1)
        return normalize(-(self._raw(at)[:, :1].unflatten(0, (-1, 4)) * corners).sum(1), dim=1)

    @torch.no_grad()
    def update_occupancy(self, generator: torch.Generator | None = None, decay: float = 0.8) -> None:
        """Looks at a random point of each cell, and marks what may be skipped; for every tenth step or so.

        A cell remembers the greatest density found in it, which decays (Müller et al. 2022). It is occupied where this
        makes it 1 % opaque, or one of its 26 neighbours: an object can grow. Were all empty, all count as occupied.
        A ray that only crosses skipped cells loses an opacity of at most 1 − .99^√3·cells.

        Raises:
            ValueError: decay is outside [0, 1].
        """
        check_number("decay", decay, 0.0, 1.0)
        cells = len(self.occupied)
        edge = 2 * self.radius / cells
        corner = torch.cartesian_prod(*[torch.arange(cells, device=self.densest.device)] * 3)
        density, _ = self((corner + _uniform((cells**3, 3), self.densest, generator)) * edge - self.radius)
        self.densest = torch.maximum(decay * self.densest, density.reshape(self.densest.shape))
        full = (-torch.expm1(-self.densest * edge) > EMPTY).to(self.densest)
        near = max_pool3d(full[None], 3, stride=1, padding=1)[0] > 0
        self.occupied = near if near.any() else torch.ones_like(near)

    def is_occupied(self, points: Tensor) -> Tensor:
        """Whether points (..., 3) of the cube lie in occupied cells, (...)."""
        cells = len(self.occupied)
        i, j, k = ((points / self.radius + 1) * (cells / 2)).long().clamp(0, cells - 1).unbind(-1)
        return self.occupied.flatten()[(i * cells + j) * cells + k]


class Composite(NamedTuple):
    """Of rays (...): image (..., 3), opacity (...), the mean depth (...) of what is seen, and weights (..., S)."""

    image: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor


def composite(density: Tensor, colour: Tensor, edges: Tensor, background: Tensor) -> Composite:
    """What is seen along rays through S bins of one density and colour each, nearest first (Max 1995; NeRF, Eq. 3).

    Bin i hides the share α = 1 − exp(−σδ) of what is behind it and is seen through T = exp(−Σ_{j<i} σδ). Its weight is
    w = Tα, the opacity o = Σ w, the image Σ wc + (1 − o)·background, and the depth Σ wt/o over bins' middles t, or 0
    where o is 0. `density` is (..., S), `colour` (..., S, 3), `edges` (..., S + 1), `background` (..., 3), or broadcast.

    Raises:
        ValueError: shapes that do not fit.
    """
    bins = density.shape[-1] if density.ndim else 0
    if not bins or colour.shape[-2:] != (bins, 3) or edges.shape[-1:] != (bins + 1,) or background.shape[-1:] != (3,):
        given = ", ".join(str(tuple(x.shape)) for x in (density, colour, edges, background))
        raise ValueError(
            f"density, colour, edges, background have shapes {given}; they must be (…, S), (…, S, 3), (…, S + 1), (…, 3)"
        )
    thickness = density * edges.diff(dim=-1)
    before = pad(thickness[..., :-1].cumsum(-1), (1, 0))
    weights = torch.exp(-before) * -torch.expm1(-thickness)
    opacity = -torch.expm1(-thickness.sum(-1))
    image = (weights[..., None] * colour).sum(-2) + (1 - opacity)[..., None] * background
    middle = (edges[..., 1:] + edges[..., :-1]) / 2
    depth = (weights * middle).sum(-1) / opacity.clamp(min=1e-6)
    return Composite(image, opacity, depth, weights)


class View(NamedTuple):
    """Of n cameras: image (n, 3, size, size), opacity and depth along the ray, both (n, size, size); normal, if asked.

    normal (n, 3, size, size), in world space, is that of the point at the ray's depth; 0 where the opacity is below 1/2.
    """

    image: Tensor
    opacity: Tensor
    depth: Tensor
    normal: Tensor | None = None


def render(
    field: Field,
    cameras: Cameras,
    background: Tensor | Sequence[float],
    size: int = 64,
    samples: int = 64,
    generator: torch.Generator | None = None,
    jitter: bool = True,
    normals: bool = False,
) -> View:
    """What each camera sees of the field before a plain background, by S = `samples` bins a ray.

    `background` is one colour (3,), one a camera (n, 3), or a picture (n, 3, size, size). Without `jitter` the field is
    asked in the middle of the bins: the same picture again, whatever the generator, but bins leave rings in it.
    `normals` cost four densities a covered pixel. Memory grows with n · size² · samples.

    Raises:
        ValueError: a size or number of samples below 1, a background of another shape, or a camera in the field's ball.
    """
    size, samples, r = at_least_one("size", size), at_least_one("samples", samples), field.radius
    near = cameras.distance <= r
    if near.any():
        raise ValueError(f"distance contains {cameras.distance[near][0]:g}; cameras must stand outside radius {r:g}")
    like = field.encoding.table
    behind = torch.as_tensor(background, dtype=like.dtype, device=like.device)
    if behind.shape not in {(3,), (len(cameras), 3), (len(cameras), 3, size, size)}:
        allowed = f"(3,), ({len(cameras)}, 3) or ({len(cameras)}, 3, {size}, {size})"
        raise ValueError(f"background has shape {tuple(behind.shape)}; it must be {allowed}")
    if behind.ndim > 1:
        behind = (behind if behind.ndim == 4 else behind[..., None, None]).movedim(1, -1)

    cameras = cameras.to(like.device)
    origin, direction = (v.to(like) for v in cameras.rays(size, size))  # (n, H, W, 3)
    distance = cameras.distance.to(like)[:, None, None]
    image, opacity, depth, _ = march(field, origin, direction, distance, behind, samples, generator, jitter)
    normal = None
    if normals:
        surface = (origin + depth[..., None] * direction).flatten(0, -2)
        seen = (opacity > 0.5).flatten().nonzero()[:, 0]
        normal = torch.zeros_like(surface)
        if len(seen):
            normal = normal.index_copy(0, seen, field.normals(surface[seen]))
        normal = normal.view_as(origin).movedim(-1, 1)
    return View(image.movedim(-1, 1), opacity, depth, normal)


def march(
    field: Field,
    origin: Tensor,
    direction: Tensor,
    distance: Tensor,
    background: Tensor,
    samples: int = 64,
    generator: torch.Generator | None = None,
    jitter: bool = True,
) -> Composite:
    """What single rays see of the field: origins and unit directions (..., 3), backgrounds alike, S = `samples` bins.

    `distance` (...), or what broadcasts, is that of the origins from the ball's centre, which lies ahead of them, outside.
    """
    r, shape = field.radius, (*origin.shape[:-1], samples)
    edges = distance[..., None] + torch.linspace(-r, r, samples + 1, dtype=origin.dtype, device=origin.device)
    share = _uniform(shape, origin, generator) if jitter else 0.5
    t = edges[..., :-1] + share * edges.diff(dim=-1)  # (..., S), or as few axes as the edges have
    points = origin[..., None, :] + t[..., None] * direction[..., None, :]  # (..., S, 3)
    inside = points.square().sum(-1) <= r**2
    asked = inside & field.is_occupied(points)
    index = (asked if asked.any() else inside).flatten().nonzero()[:, 0]  # a picture of nothing could not learn
    density, colour = origin.new_zeros(inside.numel()), origin.new_zeros(inside.numel(), 3)
    if len(index):
        σ, c = field(points.flatten(0, -2)[index])
        density, colour = density.index_copy(0, index, σ), colour.index_copy(0, index, c)
    return composite(density.view(shape), colour.view(*shape, 3), edges, background)


def sparsity(opacity: Tensor) -> Tensor:
    """Mean of √(o² + .01) over rays: against haze, by less opacity everywhere (DreamFusion; threestudio's name for it).

    What it does to text-to-3D is yet to be measured.
    """
    return (opacity.square() + 0.01).sqrt().mean()


def entropy(opacity: Tensor) -> Tensor:
    """Mean of −o log o − (1 − o) log(1 − o) over rays, in nats: against haze, by opacities of 0 or 1.

    Opacities are kept .001 away from both, where the slope is infinite. In text-to-3D, weighing .01 a pixel beside half
    the squared error, it took the silhouette IoU of a bear from .88 to .93 (one seed, 500 steps).
    """
    o = opacity.clamp(1e-3, 1 - 1e-3)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def orientation(opacity: Tensor, normal: Tensor, direction: Tensor) -> Tensor:
    """Mean of o·max(0, n·v)² over rays v: against surfaces that face away from the camera (Ref-NeRF, Eq. 11).

    As in DreamFusion the opacity (n, H, W) is held fixed; here one normal (n, 3, H, W) stands for all of a ray's bins.
    `direction` (n, H, W, 3) is that of `Cameras.rays`. What it does to text-to-3D is yet to be measured.
    """
    away = torch.einsum("nchw,nhwc->nhw", normal, direction.to(normal)).clamp(min=0)
    return (opacity.detach() * away.square()).mean()


def _uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in [0, 1), drawn on the generator's device and then moved."""
    device = like.device if generator is None else generator.device
    return torch.rand(*shape, dtype=like.dtype, device=device, generator=generator).to(like.device)
