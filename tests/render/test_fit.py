"""A known object from its own pictures: seen from new sides, again bit for bit, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from msd_teach.pocket.world import BACKGROUNDS, Prompt
from msd_teach.pocket.world import render as pictures
from msd_teach.render.cameras import Cameras, orbit
from msd_teach.render.fit import reconstruct, schedule
from msd_teach.render.nerf import Field, render

SCENE, SIZE = Prompt("house", "red").mode(), 24


def shown(seed: int = 0, count: int = 24) -> tuple[Tensor, Cameras, Tensor]:
    cameras = Prompt("house").cameras(count, torch.Generator().manual_seed(seed))
    return pictures([SCENE] * count, cameras, SIZE).image, cameras, torch.tensor([BACKGROUNDS["grey"]] * count)


def test_a_reconstruction_is_right_from_new_sides_and_repeats() -> None:
    fields = [
        reconstruct(*shown(), 60, 512, samples=24, finest=16, generator=torch.Generator().manual_seed(1)) for _ in "ab"
    ]
    assert all(torch.equal(a, b) for a, b in zip(fields[0].parameters(), fields[1].parameters(), strict=True))
    there, truth = orbit(5, 20.0), pictures([SCENE] * 5, orbit(5, 20.0), SIZE).image
    error = (render(fields[0], there, BACKGROUNDS["grey"], SIZE, 32, jitter=False).image - truth).square().mean()
    fresh = render(Field(finest=16), there, BACKGROUNDS["grey"], SIZE, 32, jitter=False).image - truth
    assert -10 * error.log10() > 18 > -10 * fresh.square().mean().log10()


def test_levels_open_and_the_rate_falls_with_progress() -> None:
    field = Field(finest=64)
    optimizer = torch.optim.SGD(field.parameters(), 1.0)
    seen = []
    for progress in (0.0, 0.15, 0.5, 0.75, 1.0):
        schedule(field, optimizer, 0.5, progress)
        seen.append((field.open_levels, optimizer.param_groups[0]["lr"]))
    assert seen == [(2, 0.5), (3, 0.5), (4, 0.5), (4, pytest.approx(0.5 / 10**0.5)), (4, pytest.approx(0.05))]


def test_pictures_without_a_camera_each_are_refused() -> None:
    images, cameras, behind = shown(count=3)
    for bad in ((images[:2], cameras, behind), (images, cameras, behind[0]), (images[..., 1:], cameras, behind)):
        with pytest.raises(ValueError, match=r"they must be \(3, 3, H, H\) and \(3, 3\), one for each camera"):
            reconstruct(*bad)
    with pytest.raises(ValueError, match="steps is 0"):
        reconstruct(images, cameras, behind, steps=0)
