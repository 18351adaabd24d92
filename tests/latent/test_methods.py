"""Every method on a whole Stable Diffusion: prompts and views reach the UNet, gradients the picture, and samples improve."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny
from torch import Tensor

from msd_teach import (
    ISM,
    MSD,
    PFD,
    SDI,
    SDS,
    VSD,
    DiffusionPrior,
    MeanShift,
    Rendered,
    Target,
    distill,
    karras_sigmas,
    pocket,
    rescaled,
)
from msd_teach.pocket.judge import Judge
from msd_teach.pocket.world import COLOURS, KINDS, random_examples, render
from msd_teach.schedules import annealed, geometric, sigmas_around, uniform_time, unit_weight

pytest.importorskip("diffusers")

VIEWS = [f"a red house, {view} view" for view in ("front", "side", "back", "overhead")]
BANDWIDTH, GRID = geometric(1.0, 0.1), karras_sigmas(2, 0.1, 5.0)


def own_without_guidance(x: Tensor, denoise):
    """What stands for a LoRA: a network that is asked with the batch's own prompts."""
    return rescaled(denoise, 1.0)


METHODS = {
    "SDS": SDS(samples=2),
    "VSD": VSD(own_without_guidance),
    "SDI": SDI(inversion=-7.5, steps=2),
    "PFD": PFD(inversion=-6.5, steps=2),
    "ISM": ISM(uncond=0.0, steps=2),
    "mean shift": MeanShift(BANDWIDTH),
    "MSD exact": MSD("exact", BANDWIDTH, sigmas_around(2), samples=2),
    "MSD inverted": MSD("exponential", BANDWIDTH, GRID, samples=2, solver="euler", inversion=1.0),
}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> DiffusionPrior:
    return DiffusionPrior.from_pretrained(tiny(tmp_path_factory.mktemp("model"), "1"), device="cpu")


@pytest.mark.parametrize("name", METHODS)
def test_every_row_that_reaches_the_unet_carries_its_view(name: str, prior: DiffusionPrior):
    """The default denoiser has other words; the batch brings four views, one for each of its items."""
    with torch.no_grad():
        said = {text: prior.pipeline.encode_prompt(text, "cpu", 1, False)[0][0] for text in ["", *VIEWS]}
    seen: list[Tensor] = []

    def watch(module, args: tuple, kwargs: dict) -> None:
        seen.append(args[2] if len(args) > 2 else kwargs["encoder_hidden_states"])

    x = torch.randn(4, *prior.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    views, default = prior.denoiser(VIEWS), prior.denoiser("a blue car")
    hook = prior.unet.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        optimizer = torch.optim.SGD([x], 0.1)
        info = next(distill(lambda g: Rendered(x, views), optimizer, default, METHODS[name], 2))
    finally:
        hook.remove()
    rows = torch.cat(seen)
    for number, row in enumerate(rows):
        assert any(torch.equal(row, said[text]) for text in ("", VIEWS[number % 4])), f"row {number} of {len(rows)}"
    assert all(any(torch.equal(row, said[view]) for row in rows) for view in VIEWS)
    assert info.calls * 4 == len(rows)


def test_the_gradient_through_render_and_encoder_is_that_of_the_loss(tmp_path: Path):
    """θ → picture → latents → ½ w |x − target|² in float64, against central differences along random directions."""
    prior = DiffusionPrior.from_pretrained(tiny(tmp_path, "1"), device="cpu")
    prior.vae.double()
    g = torch.Generator().manual_seed(0)
    side = 2 * prior.shape[-1]
    map_ = torch.randn(5, 3 * side * side, generator=g, dtype=torch.float64) / 4
    θ = torch.randn(2, 5, generator=g, dtype=torch.float64)
    goal = torch.randn(2, *prior.shape, generator=g, dtype=torch.float64)
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def encoded(θ: Tensor) -> Tensor:
        return prior.encode((θ @ map_).sigmoid().unflatten(1, (3, side, side)))

    def loss(θ: Tensor) -> Tensor:
        with torch.no_grad():
            return (weight * (encoded(θ) - goal).square().flatten(1).sum(1)).mean() / 2

    moved = θ.clone().requires_grad_()
    method = lambda denoise, x, progress, generator: Target(goal, weight, 1, 1.0)  # noqa: E731
    info = next(distill(lambda g: encoded(moved), torch.optim.SGD([moved], 1.0), prior.denoiser(""), method, 1))
    assert info.loss == pytest.approx(float(loss(θ)))
    gradient = θ - moved.detach()
    for _ in range(3):
        way = torch.randn(θ.shape, generator=g, dtype=torch.float64)
        slope = (loss(θ + 1e-5 * way) - loss(θ - 1e-5 * way)) / 2e-5
        assert float((gradient * way).sum()) == pytest.approx(
            float(slope), rel=1e-5, abs=5e-9
        )  # the rounding of the difference


def test_every_method_improves_the_verdict_from_a_near_start():
    """Latents a third of the way from grey to true renders, pulled a few steps towards their prompts on the pocket model."""
    prior = DiffusionPrior.from_pretrained("pocket", device="cpu")
    judge = Judge.from_pretrained(pocket.WEIGHTS / "judge")
    scenes, cameras, prompts = random_examples(4, torch.Generator().manual_seed(5))
    images, _ = render(scenes, cameras, 64)
    near = 0.35 * prior.encode(images) + 0.65 * prior.encode(torch.full_like(images, 0.5))
    denoise = prior.denoiser([str(prompt) for prompt in prompts], scale=3.0)
    kinds = [list(KINDS).index(scene.kind) for scene in scenes]
    colours = [list(COLOURS).index(scene.colour) for scene in scenes]

    @torch.no_grad()
    def belief(latents: Tensor) -> float:
        """Mean log-probability of the true kind and colour."""
        verdict = judge(2 * prior.decode(latents) - 1)
        truths = (verdict.kind, kinds), (verdict.colour, colours)
        return float(torch.stack([logits.log_softmax(1)[range(4), truth] for logits, truth in truths]).mean())

    fall, times = geometric(1.2, 0.3), geometric(0.4, 0.1)
    methods = {
        "SDS": SDS(uniform_time(0.02, 0.6, level=prior.level), unit_weight),
        "SDS annealed": SDS(annealed(fall), unit_weight),
        "SDI": SDI(inversion=1.0, time=times, level=prior.level),
        "PFD": PFD(inversion=1.0, time=times, level=prior.level),
        "ISM": ISM(uncond=1.0, level=prior.level),
        "mean shift": MeanShift(fall),
        "MSD exact": MSD("exact", fall, sigmas_around(4, span=10.0)),
    }
    before, after = belief(near), {}
    for name, method in methods.items():
        x = near.clone().requires_grad_()
        g, optimizer = torch.Generator().manual_seed(1), torch.optim.SGD([x], 2.0)
        list(distill(lambda _, x=x: x, optimizer, denoise, method, 8, generator=g))
        after[name] = belief(x.detach())
    assert all(value > before + 5 for value in after.values()), (before, after)
