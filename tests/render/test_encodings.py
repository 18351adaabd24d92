"""Encodings against a look-up written from the definition, a closed form, and themselves a second time."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from msd_teach.render.encodings import MLP, FourierFeatures, GridEncoding

GRIDS: list[dict[str, Any]] = [
    {"dimensions": 2, "coarsest": 3, "finest": 20, "levels": 4},  # all dense; 9, 25 and 121 vertices need rounding
    {"dimensions": 2, "coarsest": 2, "finest": 60, "levels": 3, "log2_table": 8, "features": 1},
    {"dimensions": 3, "coarsest": 2, "finest": 11, "levels": 4},
    {"dimensions": 3, "coarsest": 3, "finest": 70, "levels": 3, "log2_table": 9, "features": 4},
]


def made(grid: dict[str, Any], batch: int = 2) -> tuple[GridEncoding, Tensor]:
    """An encoding with a table of size 1, and points, the ends of the unit cube among them, in float64."""
    g = torch.Generator().manual_seed(0)
    encoding = GridEncoding(**grid, batch=batch, generator=g).double()
    with torch.no_grad():
        encoding.table.normal_(generator=g)
    d = encoding.dimensions
    inside = torch.rand(20, d, generator=g, dtype=torch.float64)
    return encoding, torch.cat([inside, torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * d)])


def looked_up(encoding: GridEncoding, points: Tensor, log2_table: int = 19) -> Tensor:
    """Features from the definition: one point, one level, one corner at a time; hashes in 32 bits."""
    d, start, columns = points.shape[1], 0, []
    for number in range(len(encoding.levels)):
        scale = encoding.coarsest * encoding.growth**number - 1
        resolution = math.ceil(scale) + 1
        entries = min(math.ceil(resolution**d / 8) * 8, 2**log2_table)
        rows = []
        for x in points:
            cell, value = [math.floor(v * scale + 0.5) for v in x.tolist()], torch.zeros(())
            for corner in product((0, 1), repeat=d):
                vertex = [c + b for c, b in zip(cell, corner, strict=True)]
                index = sum(v * resolution**k for k, v in enumerate(vertex))
                if resolution**d > entries:
                    index = 0
                    for v, prime in zip(vertex, (1, 2654435761, 805459861), strict=False):
                        index ^= v * prime % 2**32
                parts = [
                    x[k] * scale + 0.5 - c if b else 1 - (x[k] * scale + 0.5 - c)
                    for k, (b, c) in enumerate(zip(corner, cell, strict=True))
                ]
                value = value + math.prod(parts) * encoding.table[:, start + index % entries]
            rows.append(value)
        columns.append(torch.stack(rows, 1))
        start += entries
    assert start == encoding.table.shape[1]
    return torch.cat(columns, -1)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_is_its_look_up(grid: dict[str, Any]) -> None:
    encoding, points = made(grid)
    dense = {level.dense for level in encoding.levels}
    assert dense == ({True, False} if "log2_table" in grid else {True})
    answers = []
    for read in (encoding, lambda x: looked_up(encoding, x, grid.get("log2_table", 19))):
        x = points.clone().requires_grad_()
        features = read(x)
        cotangent = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        inside = torch.ones(len(x), 1).double() * (torch.arange(len(x)) < 20)[:, None]
        table, moved = torch.autograd.grad(features, (encoding.table, x), cotangent)
        answers.append(
            (features.detach(), table, inside * moved)
        )  # at the very ends a slope may be that of either side
    for own, expected in zip(*answers, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize(
    ("coarsest", "finest", "levels"), [(4, 64, 5), (4, 512, 8), (16, 64, 7), (16, 128, 4), (16, 2048, 16), (8, 96, 9)]
)
def test_float32_agrees_about_resolutions(coarsest: int, finest: int, levels: int) -> None:
    """tiny-cuda-nn takes powers in float32, on host and device; a unit in the last place must not move ⌈scale⌉."""
    encoding = GridEncoding(2, coarsest, finest, levels)
    growth = np.log2(np.float32(encoding.growth))
    for number, level in enumerate(encoding.levels):
        power = np.exp2(np.float32(number) * growth)
        for off in (-2, 0, 2) if number else (0,):  # 2⁰ is exact
            scale = np.float32(power + off * np.spacing(power)) * np.float32(coarsest) - np.float32(1)
            assert math.ceil(scale) + 1 == level.resolution
    assert encoding.levels[-1].resolution == finest


@pytest.mark.parametrize("grid", GRIDS)
def test_backward_repeats_bit_for_bit_with_threads(grid: dict[str, Any]) -> None:
    encoding = GridEncoding(**grid, batch=2).float()
    network = MLP(encoding.outputs, 3, width=16, batch=2)
    points = torch.rand(3000, encoding.dimensions)
    parameters = [*encoding.parameters(), *network.parameters()]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = [torch.autograd.grad(network(encoding(points)).square().sum(), parameters) for _ in range(4)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_a_batch_is_its_items() -> None:
    g = torch.Generator().manual_seed(2)
    batched = torch.nn.Sequential(
        GridEncoding(3, 3, 40, 3, log2_table=9, batch=3, generator=g), MLP(6, 2, 8, batch=3, generator=g)
    )
    single = torch.nn.Sequential(GridEncoding(3, 3, 40, 3, log2_table=9), MLP(6, 2, 8)).double()
    points = torch.rand(50, 3, generator=g, dtype=torch.float64)
    answer = batched.double()(points)
    for b in range(3):
        single.load_state_dict({name: value[b : b + 1] for name, value in batched.state_dict().items()})
        torch.testing.assert_close(single(points)[0], answer[b])


def test_the_network_is_its_formula() -> None:
    network = MLP(5, 3, width=7, hidden=1, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        for bias in network.biases:
            bias.normal_()
    (w, v), (b, c) = network.weights, network.biases
    x = torch.randn(11, 5, dtype=torch.float64)
    torch.testing.assert_close(network(x[None])[0], (x @ w[0] + b[0]).clamp(min=0) @ v[0] + c[0])


def test_fourier_features_have_the_kernel_of_their_frequencies() -> None:
    count, spread = 100_000, 2.0
    features = FourierFeatures(2, spread, count, torch.Generator().manual_seed(4))
    x = torch.tensor([[0.1, 0.2], [0.15, 0.2], [0.2, 0.05]])
    read = features(x)[0]
    kernel = torch.exp(-2 * (math.pi * spread * torch.cdist(x, x)) ** 2)  # E cos(2πf·δ) = exp(−2π²s²|δ|²)
    torch.testing.assert_close(read @ read.mT / count, kernel, atol=5 / math.sqrt(2 * count), rtol=0)


@pytest.mark.skipif(find_spec("tinycudann") is None or not torch.cuda.is_available(), reason="needs tinycudann")
@pytest.mark.parametrize("grid", GRIDS)
def test_tiny_cuda_nn_reads_the_same_table(grid: dict[str, Any]) -> None:
    encoding, points = made(grid)
    expected = encoding(points)
    cotangent = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, encoding.table, cotangent)
    encoding = encoding.float().cuda()
    read = encoding(points.float().cuda())
    (own,) = torch.autograd.grad(read, encoding.table, cotangent.float().cuda())
    for a, b in ((read, expected), (own, gradient)):
        torch.testing.assert_close(a.cpu().double(), b, atol=1e-2 * float(b.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GridEncoding(4), "dimensions is 4; it must be a number, from 2 to 3"),
        (lambda: GridEncoding(2, 1), "coarsest is 1"),
        (lambda: GridEncoding(2, 16, 16), "finest is 16"),
        (lambda: GridEncoding(2, 16, 64.5), "finest is 64.5"),  # type: ignore[arg-type]
        (lambda: GridEncoding(2, levels=1), "levels is 1"),
        (lambda: GridEncoding(2, features=3), "features is 3; it must be 1, 2, 4 or 8"),
        (lambda: GridEncoding(2, log2_table=2), "log2_table is 2"),
        (lambda: GridEncoding(2, batch=0), "batch is 0"),
        (lambda: GridEncoding(2)(torch.rand(5, 3)), r"points have shape \(5, 3\)"),
        (lambda: GridEncoding(2)(torch.full((5, 2), 1.5)), "points reach from 1.5 to 1.5"),
        (lambda: GridEncoding(2)(torch.full((5, 2), math.nan)), "points reach from nan"),
        (lambda: FourierFeatures(2, -1.0), "spread is -1.0"),
        (lambda: FourierFeatures(2)(torch.rand(5, 3)), r"points have shape \(5, 3\)"),
        (lambda: MLP(3, 3, hidden=0), "hidden is 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
