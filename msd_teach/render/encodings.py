"""What a coordinate network sees of a point: a multiresolution grid, or Fourier features; and the network itself.

B independent objects (a prompt each) are one batch: every parameter has a leading axis B, the points are shared.
Backward passes repeat bit for bit on the CPU, at the same number of threads; the grid's has no derivative of its own.

Conventions of the grid, those of tiny-cuda-nn's HashGrid, so that one table gives the same features there:

- Level l has N = coarsest · growthˡ vertices an axis, not rounded; its scale is N − 1, its resolution R = ⌈N − 1⌉ + 1.
- A point x in [0, 1]ᵈ lies at x · scale + 1/2 in units of cells: half a cell in, so that levels never line up.
- A level that fits the table is dense: Rᵈ entries, rounded up to a multiple of 8, vertex (i, j, k) at i + Rj + R²k.
- The half cell lets points near 1 ask for vertex R. Its index is what the formula gives, modulo the entries: the next
  row's first vertex. Dense levels are thus nearly periodic, and the entries that the rounding adds are in use.
- A finer level has 2^log2_table entries, and vertex (i, j, k) at (i·1 xor j·2654435761 xor k·805459861) modulo them.
- Corners are weighted d-linearly. Tables follow each other, coarsest first, features last; so do a point's features.
"""

from __future__ import annotations

import math
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, grid_sample

from ..tensors import at_least_one, check_number, check_points, noise_like

PRIMES = (1, 2654435761, 805459861)
START = 1e-4  # standard deviation of a fresh table: a fresh network sees next to nothing, and gives next to a constant
SLACK = 1e-4  # the last N stays this share below `finest`: float32, in tiny-cuda-nn, could lift ⌈N − 1⌉ past it
FINEST = 2**13  # the slack is less than a vertex up to here


class Level(NamedTuple):
    """One grid: cells a unit length, vertices an axis, entries in the table, and whether each vertex has its own."""

    scale: float
    resolution: int
    entries: int
    dense: bool


class GridEncoding(nn.Module):
    """The multiresolution grid of Müller et al. 2022, in 2-D and 3-D: points (N, d) in [0, 1]ᵈ to features (B, N, L·F).

    `levels` L grids of resolutions geometric from `coarsest` to `finest`, of F `features` a vertex, the coarsest
    first: a mask over levels multiplies blocks of F columns. `table` (B, entries, F) holds them all, and
    `table[b].flatten()` is the parameter vector of tiny-cuda-nn's HashGrid. Dense levels are read by `grid_sample`;
    hashed are those that outgrow 2^`log2_table` entries. On a GPU a float32 table is read by tinycudann, where that is
    installed: in half precision, with sums that do not repeat. `growth` is the ratio of resolutions and `outputs` is L·F.

    Raises:
        ValueError: an argument out of its range; points that are not (N, d) or leave the unit square or cube.
    """

    def __init__(
        self,
        dimensions: int,
        coarsest: int = 16,
        finest: int = 128,
        levels: int = 4,
        features: int = 2,
        log2_table: int = 19,
        batch: int = 1,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.dimensions = _whole("dimensions", dimensions, 2, 3)
        self.coarsest = _whole("coarsest", coarsest, 2, FINEST - 1)
        finest, count = _whole("finest", finest, self.coarsest + 1, FINEST), _whole("levels", levels, 2, 128)
        if features not in (1, 2, 4, 8):
            raise ValueError(f"features is {features!r}; it must be 1, 2, 4 or 8")
        self.features, self.log2_table = features, _whole("log2_table", log2_table, 3, 24)
        self.growth = ((1 - SLACK) * finest / coarsest) ** (1 / (count - 1))
        self.levels = [self._level(coarsest * self.growth**number - 1) for number in range(count)]
        self.outputs = count * features
        entries = sum(level.entries for level in self.levels)
        empty = torch.empty(at_least_one("batch", batch), entries, features)
        self.table = nn.Parameter(START * noise_like(empty, generator))

    def _level(self, scale: float) -> Level:
        resolution, most = math.ceil(scale) + 1, 2**self.log2_table
        vertices = resolution**self.dimensions
        return Level(scale, resolution, min(vertices + -vertices % 8, most), vertices <= most)

    def forward(self, points: Tensor) -> Tensor:
        x = self._checked(points)
        if x.is_cuda and x.dtype == torch.float32 and _has_tinycudann():
            return self._fused_features(x)
        tables = self.table.split([level.entries for level in self.levels], dim=1)
        read = [
            _dense(x, table, level) if level.dense else _hashed(x, table, level)
            for level, table in zip(self.levels, tables, strict=True)
        ]
        return torch.cat(read, 1).mT

    def _checked(self, points: Tensor) -> Tensor:
        check_points(points)
        if points.ndim != 2 or points.shape[1] != self.dimensions or not len(points):
            raise ValueError(f"points have shape {tuple(points.shape)}; it must be (N >= 1, {self.dimensions})")
        low, high = points.detach().aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"points reach from {low:g} to {high:g}; they must lie in [0, 1]")
        return points.to(self.table.dtype)

    def _fused_features(self, x: Tensor) -> Tensor:
        """The same features by tiny-cuda-nn, whose module is lent our table in place of its own."""
        read = [torch.func.functional_call(self._fused, {"params": table.flatten()}, (x,)) for table in self.table]
        return torch.stack(read)[..., : self.outputs].to(x.dtype)

    @cached_property  # kept out of the modules, so that it is in no state_dict
    def _fused(self) -> Any:
        config = {
            "otype": "HashGrid",
            "n_levels": len(self.levels),
            "n_features_per_level": self.features,
            "log2_hashmap_size": self.log2_table,
            "base_resolution": self.coarsest,
            "per_level_scale": self.growth,
        }
        return import_module("tinycudann").Encoding(self.dimensions, config)


def _dense(x: Tensor, table: Tensor, level: Level) -> Tensor:
    """Features (B, F, N) of a table (B, entries, F) with an entry for every vertex."""
    batch, entries, features = table.shape
    n, d, R = *x.shape, level.resolution
    grid = table.mT.flatten(0, 1)  # (B·F, entries)
    beyond = sum(R**k for k in range(d + 1)) - entries  # indices past the end that vertices (·, …, R) have
    grid = torch.cat([grid, grid[:, : max(0, beyond)]], 1)[:, : entries + beyond]
    for _ in range(d - 1):  # rows of R vertices, each with the first of the next row
        grid = torch.cat([grid[:, :-1].unflatten(1, (-1, R)), grid[:, R::R].unsqueeze(2)], 2)
    u = (x * level.scale + 0.5) * (2 / R) - 1  # vertices 0 to R are −1 to 1
    read = grid_sample(grid[None], u.reshape(1, *[1] * (d - 1), n, d), align_corners=True)
    return read.reshape(batch, features, n)


def _hashed(x: Tensor, table: Tensor, level: Level) -> Tensor:
    """Features (B, F, N) of a table (B, 2ⁿ, F) whose vertices share entries."""
    batch, entries, features = table.shape
    position = x * level.scale + 0.5
    cell = position.detach().floor()
    index, weight = torch.zeros_like(x[:, :1], dtype=torch.long), torch.ones_like(x[:, :1])
    for k, prime in enumerate(PRIMES[: x.shape[1]]):  # twice the corners, axis by axis
        f = position[:, k, None, None] - cell[:, k, None, None]
        vertex = cell[:, k, None, None].long() + torch.arange(2, device=x.device)[:, None]
        index = (index[:, None] ^ vertex * prime).flatten(1)  # 64 bits; the last ones are those of 32
        weight = (weight[:, None] * torch.cat([1 - f, f], 1)).flatten(1)
    rows = table.transpose(0, 1).flatten(1)  # the batch shares its points: one look-up for all
    # table[index] would do, but with threads its backward pass need not repeat
    read = embedding_bag(index & (entries - 1), rows, mode="sum", per_sample_weights=weight)
    return read.mT.reshape(batch, features, len(x))


class FourierFeatures(nn.Module):
    """cos(2πf·x) and sin(2πf·x) of random frequencies f ~ N(0, spread²), in cycles (Tancik et al. 2020).

    Points (N, d) to features (1, N, 2 · `count`), which a whole batch shares.

    Raises:
        ValueError: an argument out of its range; points that are not (N, d).
    """

    frequencies: Tensor

    def __init__(
        self, dimensions: int, spread: float = 4.0, count: int = 128, generator: torch.Generator | None = None
    ):
        super().__init__()
        check_number("spread", spread, low=0.0)
        drawn = noise_like(torch.empty(at_least_one("count", count), at_least_one("dimensions", dimensions)), generator)
        self.register_buffer("frequencies", spread * drawn)
        self.outputs = 2 * count

    def forward(self, points: Tensor) -> Tensor:
        check_points(points)
        if points.ndim != 2 or points.shape[1] != self.frequencies.shape[1]:
            raise ValueError(f"points have shape {tuple(points.shape)}; it must be (N, {self.frequencies.shape[1]})")
        phase = 2 * math.pi * points.to(self.frequencies) @ self.frequencies.mT
        return torch.cat([phase.cos(), phase.sin()], -1)[None]


class MLP(nn.Module):
    """`batch` networks side by side: (B, N, inputs), or (1, N, inputs) for all, to (B, N, outputs).

    `hidden` layers of `width` rectified units. He et al.'s normal start, but a tenth of it in the last layer, so that
    what the outputs are squashed to begins in its middle.

    Raises:
        ValueError: a size that is no whole number, at least 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 64,
        hidden: int = 2,
        batch: int = 1,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        width, hidden, batch = (
            at_least_one("width", width),
            at_least_one("hidden", hidden),
            at_least_one("batch", batch),
        )
        sizes = [at_least_one("inputs", inputs), *[width] * hidden, at_least_one("outputs", outputs)]
        gains = [*[1.0] * hidden, 0.1]
        self.weights = nn.ParameterList(
            gain * math.sqrt(2 / n) * noise_like(torch.empty(batch, n, m), generator)
            for gain, (n, m) in zip(gains, pairwise(sizes), strict=True)
        )
        self.biases = nn.ParameterList(torch.zeros(batch, 1, m) for m in sizes[1:])

    def forward(self, features: Tensor) -> Tensor:
        h = features.expand(len(self.biases[0]), -1, -1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = torch.baddbmm(bias, h, weight).relu()
        return torch.baddbmm(self.biases[-1], h, self.weights[-1])


@cache
def _has_tinycudann() -> bool:
    return find_spec("tinycudann") is not None


def _whole(name: str, value: object, low: int, high: int) -> int:
    check_number(name, value, low, high)
    return at_least_one(name, value)
