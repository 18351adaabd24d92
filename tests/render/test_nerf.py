"""The field and its renderer against closed forms, the pocket world's own pictures, differences, and themselves again."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from reference import assert_slope
from torch import Tensor

from msd_teach.pocket.scene import REACH
from msd_teach.pocket.world import Prompt, Scene
from msd_teach.render.cameras import Cameras, orbit, random_cameras
from msd_teach.render.nerf import Field, composite, entropy, orientation, render, sparsity

GREY = (0.5, 0.5, 0.5)
FRONT = Cameras(0.0, 0.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(seed: int = 0, finest: int = 8, cells: int = 8) -> Field:
    return Field(coarsest=4, finest=finest, width=16, cells=cells, generator=seeded(seed))


def bold(seed: int = 0) -> Field:
    """A field in float64 with parameters of size 1/2, far from its start."""
    field = small(seed).double()
    with torch.no_grad():
        for p in field.parameters():
            p.normal_(std=0.5, generator=seeded(seed + 1))
    return field


class Given(Field):
    """A field of a given density, in float64, that counts the points it is asked at; red in front, blue behind."""

    def __init__(self, density: Callable[[Tensor], Tensor], cells: int = 16):
        super().__init__(coarsest=2, finest=4, cells=cells)
        self.double()
        self.density, self.asked = density, 0

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += len(points)
        front = (points[:, 2:] > 0).to(points)
        return self.density(points), torch.cat([front, torch.zeros_like(front), 1 - front], 1)


def ball(density: float, radius: float, centre: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Callable[[Tensor], Tensor]:
    return lambda p: density * ((p - p.new_tensor(centre)).norm(dim=1) < radius).to(p)


def impact(cameras: Cameras, size: int) -> Tensor:
    """How far each ray passes from the origin, (n, size, size)."""
    origin, direction = (v.double() for v in cameras.rays(size, size))
    return torch.linalg.cross(origin, direction).norm(dim=-1)


def test_a_uniform_medium_and_its_mean_depth() -> None:
    σ, L, errors = 1.7, 2.0, []
    for S in (20, 40, 80):
        edges = 3 + L * torch.linspace(0, 1, S + 1, dtype=torch.float64)
        colour = torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)
        seen = composite(torch.full((S,), σ, dtype=torch.float64), colour.expand(S, 3), edges, torch.ones(3).double())
        through = math.exp(-σ * L)
        torch.testing.assert_close(seen.opacity.item(), 1 - through, rtol=1e-12, atol=0)
        torch.testing.assert_close(seen.image, colour * (1 - through) + through, rtol=1e-12, atol=0)
        errors.append(abs(seen.depth.item() - 3 - (1 / σ - L * through / (1 - through))))
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([2, 2], abs=0.02)


def test_weights_are_the_recursion_over_bins_and_sum_to_the_opacity() -> None:
    density = torch.randn(5, 7, 9, generator=seeded(0)).double().exp()
    colour = torch.rand(5, 7, 9, 3, generator=seeded(1)).double()
    edges = 2 + torch.rand(5, 1, 10, generator=seeded(2)).double().cumsum(-1)
    background = torch.rand(5, 1, 3, generator=seeded(3)).double()
    seen = composite(density, colour, edges, background)
    expected = background.expand(5, 7, 3)
    for i in reversed(range(9)):  # over, from back to front
        through = torch.exp(-density[..., i] * (edges[..., i + 1] - edges[..., i]))[..., None]
        expected = through * expected + (1 - through) * colour[..., i, :]
    torch.testing.assert_close(seen.image, expected)
    torch.testing.assert_close(seen.weights.sum(-1), seen.opacity)


def test_an_opaque_wall_gives_its_depth_and_its_colour() -> None:
    density = 1e7 * (torch.arange(12) >= 5)
    colour = torch.rand(12, 3, generator=seeded(0))
    seen = composite(density, colour, torch.arange(13) / 4, torch.zeros(3))
    assert (seen.opacity.item(), seen.depth.item()) == (1, 5.5 / 4)
    assert torch.equal(seen.image, colour[5])


def test_a_uniform_ball_is_hidden_by_its_chords() -> None:
    """The middle rule loses at most half a bin at either end of a chord."""
    cameras, σ, R = random_cameras(2, seeded(0)), 2.5, 0.8
    depth = 2 * σ * (R**2 - impact(cameras, 20) ** 2).clamp(min=0).sqrt()
    for samples in (30, 120):
        opacity = render(Given(ball(σ, R)), cameras, GREY, 20, samples, jitter=False).opacity
        assert (-torch.log(1 - opacity) - depth).abs().max() <= σ * 2 * REACH / samples + 1e-5


def test_a_ball_that_fades_to_its_edge_converges_at_order_2() -> None:
    cameras, σ, R, errors = random_cameras(2, seeded(0)), 2.5, 0.9, []
    half = (R**2 - impact(cameras, 20) ** 2).clamp(min=0).sqrt()
    for samples in (25, 100):
        field = Given(lambda p: σ * (1 - p.square().sum(1) / R**2).clamp(min=0))
        opacity = render(field, cameras, GREY, 20, samples, jitter=False).opacity
        errors.append((opacity + torch.expm1(-σ * 4 / 3 * half**3 / R**2)).abs().mean().item())
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(2, abs=0.15)


def test_random_points_in_bins_leave_the_optical_depth_without_bias() -> None:
    field, n = Given(ball(2.0, 0.5)), 2000
    opacity = render(field, Cameras(torch.zeros(n), 0.0), GREY, 1, samples=7, generator=seeded(0)).opacity
    depth = -torch.log(1 - opacity).flatten()
    assert abs(depth.mean() - 2.0) < 5 * depth.std() / math.sqrt(n)
    assert depth.std() > 0.1


@pytest.mark.parametrize("kind", ["duck", "car"])
def test_sees_the_pocket_worlds_objects_where_its_renderer_does(kind: str) -> None:
    scene: Scene = Prompt(kind).mode()
    cameras = Cameras(torch.tensor([0.0, 60.0, 90.0, -130.0]), torch.tensor([10.0, 40.0, 0.0, 20.0]))
    field = Given(lambda p: 300.0 * (scene.distance(p.float()) < 0).to(p))
    assert field.radius == REACH
    opacity, truth = render(field, cameras, GREY, 32, 96, jitter=False).opacity, scene.mask(cameras, 32)
    assert (opacity - truth).abs().mean() < 0.02
    assert (opacity.flip(-1) - truth).abs().mean() > 0.03 < (opacity.flip(-2) - truth).abs().mean()


def test_azimuth_0_sees_what_faces_z_which_captions_call_front() -> None:
    cameras = Cameras(torch.tensor([0.0, 180.0]), 0.0)
    view = render(Given(ball(1e3, 0.6)), cameras, GREY, 9, 60)
    assert cameras.view_words() == ["front", "back"]
    torch.testing.assert_close(view.image[:, :, 4, 4].float(), torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
    torch.testing.assert_close(view.depth[:, 4, 4].float(), torch.tensor([3.6, 3.6]), atol=2 * 1.2 / 60, rtol=0)


def test_backgrounds_are_one_colour_one_a_camera_or_a_picture() -> None:
    field, cameras = Given(ball(1.0, 0.6)), orbit(2)
    colours = torch.rand(2, 3, generator=seeded(0)).double()
    whole = render(field, cameras, colours[..., None, None].expand(2, 3, 8, 8), 8, jitter=False).image
    assert torch.equal(whole, render(field, cameras, colours, 8, jitter=False).image)
    assert torch.equal(whole[:1], render(field, cameras[:1], colours[0].tolist(), 8, jitter=False).image)
    assert torch.equal(whole[:, :, 0, 0], colours)


def test_starts_as_a_grey_cloud_with_normals_outwards() -> None:
    field = Field(generator=seeded(0))
    view = render(field, FRONT, (0.0, 0.0, 0.0), 33, normals=True, jitter=False)
    assert view.opacity[0, 16, 16].item() == pytest.approx(1 - math.exp(-3), abs=0.01)
    assert view.opacity[0, 0, 0] < 0.05 < 0.9 < field.occupied.float().mean()
    torch.testing.assert_close(view.image, 0.5 * view.opacity[:, None].expand_as(view.image), rtol=2e-3, atol=0)
    assert view.normal is not None
    torch.testing.assert_close(view.normal[0, :, 16, 16], torch.tensor([0.0, 0, 1]), atol=0.01, rtol=0)
    points = torch.nn.functional.normalize(torch.randn(50, 3, generator=seeded(1)), dim=1)
    torch.testing.assert_close(field.normals(0.8 * points), points, atol=0.02, rtol=0)


def test_a_level_is_open_by_its_share() -> None:
    field, other = bold(), bold()
    points = torch.rand(40, 3, generator=seeded(2)).double() * 2 - 1
    levels = field.encoding.levels
    assert field.open_levels == len(levels) == 2
    field.open_levels = 1.5
    with torch.no_grad():
        other.encoding.table[:, levels[0].entries :] *= 0.5
    for a, b in zip(field(points), other(points), strict=True):
        torch.testing.assert_close(a, b)
    field.open_levels = 1
    (gradient,) = torch.autograd.grad(field(points)[0].sum(), field.encoding.table)
    assert gradient[:, : levels[0].entries].any() and not gradient[:, levels[0].entries :].any()


def test_skipping_empty_space_leaves_every_bit() -> None:
    field, cameras = Given(ball(5.0, 0.4, (0.6, -0.4, 0.1))), random_cameras(2, seeded(0))
    whole = render(field, cameras, GREY, 12, 40, seeded(1))
    asked, field.asked = field.asked, 0
    field.update_occupancy(seeded(2))
    field.asked = 0
    skipped = render(field, cameras, GREY, 12, 40, seeded(1))
    assert field.asked < 0.4 * asked
    assert all(torch.equal(a, b) for a, b in zip(whole[:3], skipped[:3], strict=True))


def test_occupancy_follows_the_object_and_never_gives_up_an_empty_scene() -> None:
    field = Given(ball(0.0, 1.0))
    field.update_occupancy(seeded(0))
    assert field.occupied.all()
    shares = []
    for radius in (0.4, 0.55, 0.2):  # grows by a cell, then shrinks
        field.density = ball(5.0, radius)
        field.update_occupancy(seeded(1), decay=0.5)
        shares.append(field.occupied.double().mean().item())
        points = torch.randn(2000, 3, generator=seeded(2)).double() * 0.3
        assert field.is_occupied(points)[points.norm(dim=1) < radius].all()
    assert shares[0] < shares[1] == shares[2] < 0.5
    for _ in range(12):
        field.update_occupancy(seeded(1), decay=0.5)
    assert field.occupied.double().mean() < shares[0]
    field.density = ball(0.0, 1.0)
    field.occupied = torch.zeros_like(field.occupied)  # what nothing looks at could not learn
    field.asked = 0
    render(field, FRONT, GREY, 8, 8)
    assert field.asked > 0


def test_gradients_of_a_render_are_differences() -> None:
    field, cameras = bold(), random_cameras(2, seeded(3))

    def value() -> Tensor:
        view = render(field, cameras, GREY, 6, 12, seeded(4), normals=True)
        assert view.normal is not None
        direction = cameras.rays(6, 6)[1]
        weights = torch.randn(view.image.shape, generator=seeded(5)).double()
        smooth = sparsity(view.opacity) + entropy(view.opacity) + (view.depth * view.opacity).mean()
        facing = orientation(torch.ones_like(view.opacity), -view.normal, direction)
        return (weights * view.image).mean() + smooth + facing

    assert_slope(value, list(field.parameters()), atol=1e-8)


def test_two_backward_passes_are_the_same_bits() -> None:
    field, cameras = small(finest=32), orbit(2)
    field.update_occupancy(seeded(0))
    parameters = list(field.parameters())
    first, second = (
        torch.autograd.grad(render(field, cameras, GREY, 16, 24, seeded(1)).image.square().sum(), parameters)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = small(1, finest=32)
    other.load_state_dict(field.state_dict())
    pictures = [render(f, cameras, GREY, 16, 24, seeded(2)).image for f in (field, other)]
    assert torch.equal(*pictures)


def test_half_precision_inside_float32_outside() -> None:
    field = bold().float()
    expected = render(field, FRONT, GREY, 8, jitter=False).image
    with torch.autocast("cpu", torch.bfloat16):
        image = render(field, FRONT, GREY, 8, jitter=False).image
    assert image.dtype == torch.float32
    assert not torch.equal(image, expected)
    torch.testing.assert_close(image, expected, atol=0.05, rtol=0)


def test_a_duck_from_twelve_pictures_shows_in_others() -> None:
    scene = Prompt("duck", "yellow").mode()
    cameras, unseen = random_cameras(12, seeded(0), (-10, 60)), Cameras(torch.tensor([20.0, 140.0, -100.0]), 25.0)
    target, field = scene.image(cameras, 16), small(0, finest=16, cells=16)
    background = target[0, :, 0, 0]
    adam, g = torch.optim.Adam(field.parameters(), lr=0.02), seeded(1)
    for step in range(80):
        chosen = torch.randint(12, (3,), generator=g)
        adam.zero_grad()
        view = render(field, cameras[chosen], background, 16, 24, g)
        (view.image - target[chosen]).square().sum().backward()
        adam.step()
        if step % 10 == 9:
            field.update_occupancy(g)
    with torch.no_grad():
        view = render(field, unseen, background, 16, 48, jitter=False)
    psnr = -10 * (view.image - scene.image(unseen, 16)).square().mean().log10().item()
    assert psnr > 24  # the cloud it starts as has 16


def test_regularisers_at_known_values() -> None:
    o = torch.tensor([0.0, 0.5, 1.0]).double().requires_grad_()
    assert sparsity(o).item() == pytest.approx((0.1 + math.sqrt(0.26) + math.sqrt(1.01)) / 3)
    least = -(0.001 * math.log(0.001) + 0.999 * math.log(0.999))
    assert entropy(o).item() == pytest.approx((2 * least + math.log(2)) / 3)
    assert torch.autograd.grad(entropy(o), o)[0].isfinite().all()
    normal = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.6, -0.8]]).T.reshape(1, 3, 1, 2)
    direction = torch.tensor([0.0, 0.0, -1.0]).expand(1, 1, 2, 3)
    assert orientation(torch.tensor([[[1.0, 0.5]]]), normal, direction).item() == pytest.approx(0.5 * 0.64 / 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Field(radius=0.0), "radius is 0.0"),
        (lambda: Field(coarsest=0), "coarsest is 0"),
        (lambda: Field(finest=8), "finest is 8"),
        (lambda: Field(cells=0), "cells is 0"),
        (lambda: small().update_occupancy(decay=1.5), "decay is 1.5"),
        (lambda: render(small(), FRONT, GREY, samples=0), "samples is 0"),
        (lambda: render(small(), FRONT, GREY, size=0), "size is 0"),
        (lambda: render(small(), FRONT, (0.5, 0.5)), r"background has shape \(2,\); it must be \(3,\), \(1, 3\) or"),
        (lambda: render(small(), Cameras(0.0, 0.0, 1.0), GREY), "distance contains 1; cameras must stand outside"),
        (
            lambda: composite(torch.ones(4), torch.ones(4, 3), torch.ones(4), torch.ones(3)),
            r"density, colour, edges, background have shapes \(4,\), \(4, 3\), \(4,\), \(3,\); they must be",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
