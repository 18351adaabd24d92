"""The programs of docs/drop-in.md run as printed, and pull where `distill` would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from msd_teach import MSD, SDI, SDS, DiffusionPrior, MeanShift, distill
from msd_teach.schedules import above, geometric, sigmas_around
from msd_teach.tensors import per_item

pytest.importorskip("diffusers")
PAGE = (Path(__file__).parent.parent / "docs/drop-in.md").read_text()
LOOP, GUIDANCE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PROMPTS = ["a red house, front view", "a yellow duck, side view"]


@pytest.fixture(scope="module")
def prior() -> DiffusionPrior:
    return DiffusionPrior.from_pretrained("pocket", device="cpu")


def grey() -> Tensor:
    return torch.full((2, 3, 64, 64), 0.5).requires_grad_()


def test_the_loop_is_distill(prior: DiffusionPrior) -> None:
    image = grey()
    scope = {"MODEL": "pocket", "PROMPT": PROMPTS, "STEPS": 3, "render": lambda: image}
    exec(LOOP, scope | {"optimizer": torch.optim.SGD([image], 1e-5)})
    same = grey()
    method = MeanShift(geometric(6.0, 0.1), noise=above(2.0))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD([same], 1e-5)
    list(distill(lambda _: prior.encode(same), optimizer, prior.denoiser(PROMPTS), method, 3, generator=generator))
    assert torch.equal(image, same) and not torch.equal(image, grey())


class Prompts:
    """What threestudio hands to a guidance: embeddings for each camera, the prompts' first, then the empty ones."""

    def __init__(self, prior: DiffusionPrior):
        self.c, self.u = prior._contexts(PROMPTS, "prompt"), prior._contexts("", "negative")

    def get_text_embeddings(self, elevation: Tensor, azimuth: Tensor, distance: Tensor, views: bool) -> Tensor:
        return torch.cat([self.c, self.u.expand_as(self.c)])


@pytest.mark.parametrize(
    "method",
    [
        MeanShift(geometric(6.0, 0.1), noise=1.0),
        SDS(),
        SDI(inversion=-7.5, steps=2),
        MSD("exact", geometric(6.0, 0.1), sigmas_around(2), samples=2),
    ],
    ids=["mean shift", "SDS", "SDI", "MSD"],
)
def test_the_guidance_pulls_where_distill_does(prior: DiffusionPrior, method) -> None:
    scope: dict = {}
    exec(GUIDANCE, scope)
    guidance = scope["TargetGuidance"](prior, method, steps=5)
    guidance.update_step(0, 2)
    image, cameras = grey(), torch.zeros(2)
    answer = guidance(image.permute(0, 2, 3, 1), Prompts(prior), cameras, cameras, cameras)
    answer["loss_sds"].backward()
    same = grey()
    x = prior.encode(same)
    target = method(prior.denoiser(PROMPTS, scale=7.5), x.detach(), 0.5, torch.Generator().manual_seed(0))
    (per_item(target.weight, x) * (x - target.value) ** 2).sum().div(4).backward()
    assert image.grad is not None and same.grad is not None
    torch.testing.assert_close(image.grad, same.grad, rtol=1e-3, atol=1e-3 * same.grad.abs().max().item())
    latents = x.detach().requires_grad_()
    guidance(latents.permute(0, 2, 3, 1), Prompts(prior), cameras, cameras, cameras, rgb_as_latents=True)
    assert answer["level"] == target.level
    assert len([line for line in GUIDANCE.splitlines() if line.strip()]) <= 40
