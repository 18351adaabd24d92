"""Objects that are true scenes, turned: found again, with their scene and azimuth; others are not."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("trimesh")

from msd_teach import DiffusionPrior, pocket
from msd_teach.measure.features import Clip
from msd_teach.measure.images import signal_to_noise
from msd_teach.pocket.judge import Judge
from msd_teach.pocket.objects import (
    Likeness,
    likeness,
    picture_figures,
    said_figures,
    shape_figures,
    surface_distance,
    true_scenes,
    turned,
)
from msd_teach.pocket.world import FULL_SIZES, Prompt, render
from msd_teach.render.cameras import Cameras, orbit
from msd_teach.render.meshes import level_set

HOUSE = Prompt("house", "red")
SIZE = 24


def test_true_scenes_are_the_prompts_in_four_sizes() -> None:
    scenes = true_scenes(HOUSE, generator=torch.Generator().manual_seed(0))
    assert len(set(scenes)) == len(scenes) == 64
    assert {(scene.kind, scene.colour, scene.background) for scene in scenes} == {("house", "red", "grey")}
    assert {scene.shape for scene in scenes[:4]} == {HOUSE.mode().shape}
    assert all(FULL_SIZES[0] <= scene.size <= FULL_SIZES[1] for scene in scenes)
    assert scenes == true_scenes(HOUSE, generator=torch.Generator().manual_seed(0))


def test_a_turned_scene_is_found_again_and_other_kinds_are_the_floor() -> None:
    scenes = true_scenes(HOUSE, 2, generator=torch.Generator().manual_seed(0))[2:6]
    cameras = orbit(4)
    turned = render([scenes[2]] * 4, Cameras(cameras.azimuth - 90, cameras.elevation), SIZE)  # its front is at 90
    (found,) = likeness(turned.image[None], turned.mask[None], cameras, scenes, turns=8)
    assert found[2:] == (scenes[2], 90)
    assert found.iou == 1
    assert found.psnr > 100  # but for rounding
    (only,) = likeness(turned.image[None], turned.mask[None], cameras, scenes[:1], turns=1)  # nothing to choose from
    other = render([scenes[0]] * 4, cameras, SIZE)
    both, either = (f(turned.mask, other.mask).sum((1, 2)) for f in (torch.minimum, torch.maximum))
    assert only.iou == pytest.approx((both / either).mean().item())
    assert only.psnr == pytest.approx(signal_to_noise(2 * other.image - 1, 2 * turned.image - 1), abs=1e-4)
    figures = shape_figures(turned.image, turned.mask, cameras, scenes[2:3], turns=4)
    assert (figures["IoU"], figures["azimuth"]) == (1, 90)
    assert figures["PSNR"] > 100
    assert 0.3 < figures["floor IoU"] < 0.95
    assert 10 < figures["floor PSNR"] < 25
    with pytest.raises(ValueError, match="a view for each camera"):
        likeness(turned.image[None, :3], turned.mask[None], cameras, scenes)
    with pytest.raises(ValueError, match="scenes is empty"):
        likeness(turned.image[None], turned.mask[None], cameras, [])


def test_distance_of_a_mesh_from_the_turned_truth() -> None:
    scene = Prompt("duck", "yellow").mode()
    east = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # its front, +z, is turned to +x
    mesh = level_set(lambda p: -scene.distance(p @ east), resolution=40)

    def distance(azimuth: float) -> float:
        nearest = Likeness(1.0, math.inf, scene, azimuth)
        return surface_distance(mesh, nearest, 40, torch.Generator().manual_seed(0))

    assert distance(90.0) < 0.005 < 0.02 < min(distance(0.0), distance(270.0))


def test_what_judge_and_clip_see_of_a_true_object_and_of_one_with_four_fronts() -> None:
    judge, clip = Judge.from_pretrained(pocket.WEIGHTS / "judge"), Clip.from_pretrained(device="cpu")
    cameras = orbit(4)
    image = HOUSE.mode().image(cameras)
    figures = said_figures(image, cameras, HOUSE, judge, clip)
    assert (figures["kind"], figures["colour"], figures["view"], figures["R-precision"]) == (1, 1, 1, 1)
    assert (figures["Janus rate"], figures["Janus low"], figures["captions"]) == (0, 0, 108)
    assert figures["front"] == 1
    janus = said_figures(image[:1].expand(4, -1, -1, -1), cameras, Prompt("house"), judge, clip)
    assert (janus["kind"], janus["view"], janus["Janus rate"], janus["captions"]) == (1, 0.25, 1, 12)
    assert "colour" not in janus
    faceless = said_figures(image[2:3].expand(4, -1, -1, -1), cameras, HOUSE, judge, clip)
    assert (faceless["Janus rate"], faceless["front"]) == (0, 0), "no Janus, but no front either"
    wrong = said_figures(image, cameras, Prompt("car", "blue"), judge, clip)
    assert (wrong["kind"], wrong["colour"], wrong["R-precision"]) == (0, 0, 0)


def test_speckle_and_blur_show_in_the_round_trip_and_in_the_detail() -> None:
    cameras, scene, prior = orbit(3, 10.0), HOUSE.mode(), DiffusionPrior.from_pretrained("pocket", device="cpu")
    image, mask = render([scene] * 3, turned(cameras, -40.0))
    near = Likeness(1.0, 50.0, scene, 40.0)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    exact, speckled, blurred = (
        picture_figures(x, mask, cameras, near, prior)
        for x in (image, (image + 0.1 * noise).clamp(0, 1), avg_pool2d(image, 5, 1, 2, count_include_pad=False))
    )
    assert exact["detail"] == pytest.approx(1, abs=1e-5)
    assert exact["round trip"] == pytest.approx(exact["true round trip"], abs=1e-4)
    assert blurred["detail"] < 0.5 < 1.5 < speckled["detail"]
    assert speckled["round trip"] < exact["round trip"] < blurred["round trip"]
    assert math.isnan(picture_figures(image, 0.5 * mask, cameras, near, prior)["detail"]), "a cloud has no inside"
