"""Generators of images: independent items, true gradients, and the same image again."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from reference import assert_slope
from torch import nn

from msd_teach.render.images import FourierImage, GridImage, Latents, Pixels, pixel_centres

SQUASHED = [partial(GridImage, 16, width=16), partial(FourierImage, 16, width=16), partial(Pixels, 16)]
ALL = [*SQUASHED, partial(Latents, (4, 3, 5))]
Make = Callable[..., nn.Module]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bold(image: nn.Module, seed: int = 0) -> nn.Module:
    """The same generator in float64 with parameters of size 1/2, far from its start."""
    generator = seeded(seed)
    with torch.no_grad():
        for p in image.double().parameters():
            p.normal_(std=0.5, generator=generator)
    return image


@pytest.mark.parametrize("make", SQUASHED)
def test_images_lie_in_the_unit_interval_and_start_grey(make: Make) -> None:
    x = make(batch=3, generator=seeded(0))(seeded(1))
    assert x.shape == (3, 3, 16, 16)
    assert (x - 0.5).abs().max() < (1e-3 if make is SQUASHED[0] else 0.2)
    x = bold(make(batch=3))()
    assert 0 <= x.min() < 0.2 and 0.8 < x.max() <= 1


def test_latents_are_their_parameters() -> None:
    latents = Latents((4, 3, 5), batch=200, spread=3.0, generator=seeded(0))
    x = latents()
    assert x.shape == (200, 4, 3, 5)
    assert x.std().item() == pytest.approx(3.0, rel=5 / math.sqrt(2 * x.numel()))
    with torch.no_grad():
        latents.values.zero_()
    assert x.abs().min() > 0  # what was rendered does not follow θ


def test_row_0_is_the_top_and_a_colour_stands_where_its_point_is() -> None:
    centres = pixel_centres(4)
    torch.testing.assert_close(centres[0, 3], torch.tensor([0.875, 0.125]))
    image = bold(GridImage(4, coarsest=2))
    assert isinstance(image, GridImage)
    alone = image.network(image.encoding(centres[1, 3][None].double())).sigmoid()
    torch.testing.assert_close(image()[0, :, 1, 3], alone[0, 0])


@pytest.mark.parametrize("make", ALL)
def test_items_are_independent(make: Make) -> None:
    image = bold(make(batch=3))
    image()[1].square().sum().backward()
    for p in image.parameters():
        assert p.grad is not None
        assert p.grad[1].abs().max() > 0
        assert not p.grad[[0, 2]].any()


@pytest.mark.parametrize("make", ALL)
def test_gradients_are_differences(make: Make) -> None:
    image = bold(make(batch=2))
    weights = torch.randn(image().shape, generator=seeded(1), dtype=torch.float64)
    assert_slope(lambda: (weights * image()).sum(), list(image.parameters()), atol=1e-6)


@pytest.mark.parametrize("make", ALL)
def test_the_same_seed_gives_the_same_bits_and_a_state_can_be_moved(make: Make) -> None:
    first, second, other = (make(batch=2, generator=seeded(s)) for s in (0, 0, 1))
    images = [image(seeded(i)) for i, image in enumerate((first, second))]
    gradients = [
        torch.autograd.grad(x.square().sum(), list(m.parameters()))
        for x, m in zip(images, (first, second), strict=True)
    ]
    assert torch.equal(*images)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert not torch.equal(other(), images[0])
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(), images[0])


@pytest.mark.parametrize("make", SQUASHED)
def test_fits_a_smooth_image_to_30_dB(make: Make) -> None:
    """A random mixture of waves of at most two cycles a side, in [.2, .8], by 150 steps of Adam."""
    points = pixel_centres(16)
    wave = torch.randint(-2, 3, (3, 4, 2), generator=seeded(0)).float()
    phase = torch.rand(3, 4, 1, 1, generator=seeded(1))
    waves = torch.cos(2 * math.pi * (torch.einsum("ckd,hwd->ckhw", wave, points) + phase))
    target = 0.5 + 0.3 * waves.mean(1)
    image = make(generator=seeded(2))
    adam = torch.optim.Adam(image.parameters(), lr=0.02)
    for _ in range(150):
        adam.zero_grad()
        (image()[0] - target).square().sum().backward()
        adam.step()
    assert -10 * (image()[0] - target).square().mean().log10() > 30


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GridImage(0), "size is 0"),
        (lambda: GridImage(64, coarsest=64), "finest is 64; it must be a number, from 65"),
        (lambda: GridImage(64, batch=1.5), "batch is 1.5"),  # type: ignore[arg-type]
        (lambda: FourierImage(64, spread=math.inf), "spread is inf"),
        (lambda: FourierImage(64, width=0), "width is 0"),
        (lambda: Pixels(64, batch=0), "batch is 0"),
        (lambda: Latents((4, 8)), r"shape is \(4, 8\); it must be \(channels, height, width\)"),  # type: ignore[arg-type]
        (lambda: Latents((4, 8, 0)), "shape is 0"),
        (lambda: Latents((4, 8, 8), spread=-1.0), "spread is -1.0"),
    ],
)
def test_bad_arguments_are_refused_by_name(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
