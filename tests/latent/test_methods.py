"""Every method on a whole (random) Stable Diffusion: the prompts and views of a batch reach every row of the UNet."""

from __future__ import annotations

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
    distill,
    karras_sigmas,
    rescaled,
)
from msd_teach.schedules import geometric, sigmas_around

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
