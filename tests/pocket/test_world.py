"""The pocket world: solids that tracing may trust, views that differ, colours that show, words that read back."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from msd_teach.pocket.scene import REACH
from msd_teach.pocket.world import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    VIEWS,
    WORDS,
    Prompt,
    Scene,
    check_words,
    random_examples,
    render,
)
from msd_teach.render.cameras import Cameras

FRONT, SIDE, BACK, OVERHEAD = 0, 1, 2, 3
PICTURES: dict[str, Tensor] = {}


def four_views(kind: str, colour: str = "blue") -> Tensor:
    """The modal object from the front, side, back and overhead, (4, 3, 64, 64); rendered once a test run."""
    key = f"{colour} {kind}"
    if key not in PICTURES:
        cameras = Cameras(torch.tensor([0.0, 90.0, 180.0, 0.0]), torch.tensor([10.0, 10.0, 10.0, 75.0]))
        PICTURES[key] = Prompt(kind, colour).mode().image(cameras)
    return PICTURES[key]


def random_scene(kind: str, seed: int) -> Scene:
    return Prompt(kind).scene(torch.Generator().manual_seed(seed))


def longest_run(mask: Tensor) -> int:
    """The longest horizontal run of true pixels, (H, W)."""
    best, run = 0, torch.zeros(len(mask), dtype=torch.long)
    for column in mask.T:
        run = torch.where(column, run + 1, 0)
        best = max(best, int(run.max()))
    return best


@pytest.mark.parametrize("kind", KINDS)
def test_distances_never_promise_more_than_is_free(kind: str) -> None:
    """1-Lipschitz, for random proportions: what sphere tracing needs so as never to step through a surface."""
    scene = random_scene(kind, 1)
    generator = torch.Generator().manual_seed(2)
    p = 2.4 * torch.rand(4000, 3, generator=generator, dtype=torch.float64) - 1.2
    q = p + 0.05 * torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    change = (scene.distance(p) - scene.distance(q)).abs()
    assert (change <= (p - q).norm(dim=-1) * (1 + 1e-6)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("corner", [-1.0, 1.0])
def test_every_object_fits_the_ball_that_rays_are_traced_in(kind: str, corner: float) -> None:
    directions = torch.nn.functional.normalize(torch.randn(3000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    scene = Scene(kind, "red", shape=(corner, corner, corner, corner))
    assert (scene.distance(REACH * directions) > 0).all()
    assert scene.distance(torch.zeros(1, 3)).item() < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_surface_found_by_tracing_is_where_the_distance_vanishes(kind: str) -> None:
    """A second way to the silhouette: march each ray in 800 small steps and look for a change of sign."""
    scene = Prompt(kind, "red").mode()
    camera = Cameras(30.0, 20.0)
    traced = render([scene], camera, 24, samples=1).mask[0] > 0
    origins, directions = camera.rays(24, 24)
    depths = torch.linspace(3.0, 5.4, 800)
    inside = scene.distance(origins[0, :, :, None] + depths[:, None] * directions[0, :, :, None]) < 0
    assert (traced != inside.any(-1)).float().mean() <= 6 / 24**2  # rays that graze an edge


@pytest.mark.parametrize("kind", KINDS)
def test_views_differ_clearly(kind: str) -> None:
    views = four_views(kind)
    for i in range(4):
        for j in range(i):
            differs = (views[i] - views[j]).abs().amax(0) > 0.15
            assert differs.float().mean() > 0.02, f"{VIEWS[i]} and {VIEWS[j]} views of a {kind} look the same"


def test_the_front_has_what_no_other_side_has_at_least_six_pixels_wide() -> None:
    """The back's mirror image has the front's outline; what differs inside is the front's own feature."""
    for kind, colour in product(KINDS, COLOURS):
        views = four_views(kind, colour)
        feature = (views[FRONT] - views[BACK].flip(-1)).abs().amax(0) > 0.15
        assert longest_run(feature) >= 6 and feature.sum() >= 36, f"{colour} {kind}"


def test_the_colour_shows_from_every_view() -> None:
    """The same scene in two colours: pixels that change carry the prompt's colour."""
    for kind, view in product(KINDS, VIEWS):
        scene, camera = Prompt(kind, "red").mode(), Prompt(kind, view=view).modal_camera()
        red, blue = (render([Scene(kind, colour)], camera).image[0] for colour in ("red", "blue"))
        coloured = ((red - blue).abs().amax(0) > 0.2).sum()
        assert coloured >= max(100, 0.25 * scene.mask(camera).sum()), f"{kind}, {view} view"


def test_pictures_are_pictures_on_a_plain_background() -> None:
    examples = random_examples(24, torch.Generator().manual_seed(3))
    image, mask = render(examples.scenes, examples.cameras)
    assert image.shape == (24, 3, 64, 64) and mask.shape == (24, 64, 64)
    assert image.min() >= 0 and image.max() <= 1
    for scene, picture, covered in zip(examples.scenes, image, mask, strict=True):
        plain = picture[:, covered == 0]
        expected = torch.tensor(BACKGROUNDS[scene.background])[:, None].expand_as(plain)
        torch.testing.assert_close(plain, expected)
        assert 0.03 < covered.mean() < 0.6
        assert covered[0].sum() + covered[-1].sum() + covered[:, 0].sum() + covered[:, -1].sum() == 0  # never cut off


def test_edges_are_anti_aliased() -> None:
    mask = Prompt("bear", "red").mode().mask(Cameras(20.0, 10.0))[0]
    assert set(mask.unique().tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_a_batch_renders_as_its_scenes_do_alone() -> None:
    examples = random_examples(5, torch.Generator().manual_seed(4))
    together = render(examples.scenes, examples.cameras).image
    for scene, camera, picture in zip(examples.scenes, examples.cameras, together, strict=True):
        torch.testing.assert_close(scene.image(camera)[0], picture, atol=1e-5, rtol=0)


def test_examples_repeat_with_their_generator() -> None:
    one, two, other = (random_examples(8, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert one.scenes == two.scenes and one.prompts == two.prompts
    assert torch.equal(render(one.scenes, one.cameras).image, render(two.scenes, two.cameras).image)
    assert one.scenes != other.scenes


def test_captions_are_true_and_come_in_all_phrasings() -> None:
    examples = random_examples(600, torch.Generator().manual_seed(7))
    for scene, prompt, view in zip(examples.scenes, examples.prompts, examples.cameras.view_words(), strict=True):
        assert prompt.kind == scene.kind
        assert prompt.colour in (None, scene.colour)
        assert prompt.view in (None, view)
        assert prompt.small == (scene.size < 0.85)
    said = [str(prompt) for prompt in examples.prompts]
    assert {prompt.view for prompt in examples.prompts} == {None, *VIEWS}
    assert any(text.startswith("a photo of an orange ") for text in said)
    assert any(" small " in text for text in said)


def test_every_caption_reads_back() -> None:
    for kind in KINDS:
        for colour in (None, *COLOURS):
            for view in (None, *VIEWS):
                for small in (False, True):
                    prompt = Prompt(kind, colour, view, small, photo=small)
                    assert Prompt.parse(str(prompt)) == prompt
    assert str(Prompt("boat", "orange", "side")) == "an orange boat, side view"
    assert str(Prompt("car", "blue", small=True, photo=True)) == "a photo of a small blue car"
    assert Prompt.parse("A red House, front view.") == Prompt("house", "red", "front")


def test_cameras_of_a_prompt_see_what_its_view_word_says() -> None:
    generator = torch.Generator().manual_seed(8)
    for view in VIEWS:
        prompt = Prompt("car", view=view)
        assert set(prompt.cameras(200, generator).view_words()) == {view}
        assert prompt.modal_camera().view_words() == [view]
    assert set(Prompt("car").cameras(200, generator).view_words()) == set(VIEWS)


def test_unknown_words_are_named_with_their_neighbours() -> None:
    with pytest.raises(ValueError, match=r"'blu' \(nearest: blue.*'hause' \(nearest: house"):
        check_words("a blu hause")
    with pytest.raises(ValueError, match="'dragon'"):
        Prompt.parse("a red dragon")
    with pytest.raises(ValueError, match=r"the pocket world reads '\[a photo of\]"):
        Prompt.parse("red house a")
    check_words("")
    check_words(" ".join(WORDS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "tank"}, "kind is 'tank'; it must be one of house"),
        ({"colour": "ultraviolet"}, "colour is 'ultraviolet'"),
        ({"background": "stars"}, "background is 'stars'"),
        ({"size": 2.0}, "size is 2.0"),
        ({"shape": (0.0, 0.0, 0.0, 1.5)}, r"shape is \(0.0, 0.0, 0.0, 1.5\)"),
    ],
)
def test_bad_scenes_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scene(**{"kind": "house", "colour": "red", **arguments})  # type: ignore[arg-type]


def test_render_wants_a_camera_for_each_scene() -> None:
    with pytest.raises(ValueError, match="cameras has length 2"):
        render([Scene("car", "red")], Cameras(torch.zeros(2), 0.0))
