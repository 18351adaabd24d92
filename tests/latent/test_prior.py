"""A diffusers pipeline as a denoiser: against closed forms, diffusers' own samplers, and bad input."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SD, apart, load, noise, parted, rescheduled
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msd_teach import MSD, DiffusionPrior, counted, guided, invert, product_denoiser, sample, sample_product
from msd_teach.denoisers import cost, rescaled
from msd_teach.sampling import vp_sigma
from msd_teach.schedules import linear

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from diffusers import DDIMScheduler, EulerDiscreteScheduler

SCHEDULES: dict[str, dict[str, Any]] = {
    "Stable Diffusion": SD | {"set_alpha_to_one": False, "steps_offset": 1},
    "alpha to one": SD | {"set_alpha_to_one": True, "steps_offset": 1},
    "no offset": SD | {"set_alpha_to_one": False, "steps_offset": 0},
    "no offset, to one": SD | {"set_alpha_to_one": True, "steps_offset": 0},
    "trailing": SD | {"set_alpha_to_one": False, "timestep_spacing": "trailing"},
    "trailing, to one": SD | {"set_alpha_to_one": True, "timestep_spacing": "trailing"},
    "linspace": SD | {"set_alpha_to_one": False, "timestep_spacing": "linspace"},
    "linspace, to one": SD | {"set_alpha_to_one": True, "timestep_spacing": "linspace"},
    "linear betas": SD | {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "steps_offset": 1},
    "zero terminal signal": SD | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
}
ON_GRID = [name for name in SCHEDULES if "linspace" not in name and name != "zero terminal signal"]
PREDICTIONS = ("epsilon", "v_prediction")
WORDS = ("a red house", "a blue car, side view")
STOCK = {key: SD[key] for key in ("beta_start", "beta_end", "beta_schedule")}
SCHEDULERS = [
    "DDIM",
    "DDPM",
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "HeunDiscrete",
    "KDPM2Discrete",
    "LCM",
    "LMSDiscrete",
    "PNDM",
    "TCD",
    "UniPCMultistep",
]


class GaussianNetwork(nn.Module):
    """What a perfect network predicts for y ~ N(0, s²), written down in the variance-preserving form."""

    def __init__(self, prior: DiffusionPrior, spread: float):
        super().__init__()
        self.config, self.prediction, self.spread = prior.unet.config, prior.prediction, spread
        self.log_sigma = prior.levels.log().numpy()
        self.precision = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, return_dict: bool) -> tuple[Tensor]:
        place = t.expand(len(z_t)).numpy()
        σ = torch.from_numpy(np.exp(np.interp(place, np.arange(len(self.log_sigma)), self.log_sigma)))
        σ = σ[:, None, None, None]
        kept, lost = 1 / (1 + σ**2).sqrt(), σ / (1 + σ**2).sqrt()  # √ᾱ and √(1 − ᾱ)
        y = kept * self.spread**2 / (kept**2 * self.spread**2 + lost**2) * z_t
        ε = (z_t - kept * y) / lost
        return (ε if self.prediction == "epsilon" else kept * ε - lost * y,)


def contexts(denoise: Any) -> Tensor:
    """The text embeddings of its prompts."""
    return denoise.cond.contexts


def noise_levels(config: dict) -> np.ndarray:
    """σ of the 1000 training steps from the definition of the schedule."""
    start, end = config["beta_start"], config["beta_end"]
    linear = config["beta_schedule"] == "linear"
    β = np.linspace(start, end, 1000) if linear else np.linspace(start**0.5, end**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - β))
    if config.get("rescale_betas_zero_snr"):  # Lin et al. 2024, Algorithm 1
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    kept = np.maximum(root**2, 2.0**-24)
    return np.sqrt((1 - kept) / kept)


# ---------------------------------------------------------------- noise levels


@pytest.mark.parametrize(
    ("schedule", "prediction"), [*((s, "v_prediction") for s in SCHEDULES), ("linear betas", "epsilon")]
)
def test_a_perfect_network_gives_the_exact_denoiser(prior1, schedule, prediction):
    """Invariant 7 of docs/invariants.md: every scheduler, both predictions, a level for each item, on steps and between."""
    s = 0.7
    known = rescheduled(prior1, **SCHEDULES[schedule], prediction_type=prediction)
    np.testing.assert_allclose(known.levels, noise_levels(SCHEDULES[schedule]), rtol=1e-3)
    exact = known.with_network(GaussianNetwork(known, s))
    place = torch.cat([torch.arange(0.0, 999, 111), torch.rand(20, generator=torch.Generator().manual_seed(0)) * 999])
    σ = exact.level(place.double() / 999)
    z = σ[:, None, None, None] * noise(len(σ), 4, 8, 8, dtype=torch.float64)
    want = s**2 / (s**2 + σ[:, None, None, None] ** 2) * z
    got = exact.denoiser("")(z, σ)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(got[3], exact.denoiser("")(z[3], float(σ[3])), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_levels_are_the_schedulers_own(prior1, kind):
    """Whatever its class makes of settings left out, and after a change of its table in place, as trainers do it."""
    scheduler = getattr(diffusers, f"{kind}Scheduler")()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod / (3 - 2 * scheduler.alphas_cumprod)
    pipeline = parted(prior1)
    pipeline.scheduler = scheduler
    kept = scheduler.alphas_cumprod.double()
    own = DiffusionPrior(pipeline)
    torch.testing.assert_close(own.levels, ((1 - kept) / kept).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(own.scheduler.alphas_cumprod, kept.float(), rtol=0, atol=0)
    t = torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(own.time(own.level(t)), t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_stable_diffusions_schedule_is_vp_sigma(prior1, kind):
    pipeline = parted(prior1)
    pipeline.scheduler = getattr(diffusers, f"{kind}Scheduler")(**STOCK)
    own = DiffusionPrior(pipeline)
    t = torch.cat([torch.tensor([-1.0, 0.0, 1.0, 2.0]), torch.rand(20, generator=torch.Generator().manual_seed(0))])
    torch.testing.assert_close(own.level(t), vp_sigma(t), rtol=1e-12, atol=0)
    assert own.level(0.25).shape == () and own.level(t[:, None]).shape == (24, 1)


def test_times(prior):
    assert prior.time(1.0).dtype == torch.float64
    assert prior.time(torch.tensor([0.0, 1e9])).tolist() == pytest.approx([0, 1])
    assert prior.time(np.array([[1.0, 2.0]])).shape == (1, 2)
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match=rf"sigma is {wrong}; it must be >= 0"):
            prior.time(wrong)
    with pytest.raises(ValueError, match="t is nan; it must be from 0 to 1"):
        prior.level(math.nan)


def test_a_prior_keeps_its_levels_and_disturbs_no_sampler(prior2):
    """A scheduler exchanged later, or in the middle of its steps, changes nothing, and is not changed."""
    pipeline = parted(prior2)
    own = DiffusionPrior(pipeline)
    before = own.sigmas(7)
    own.scheduler.set_timesteps(3)
    pipeline.scheduler = DDIMScheduler()
    assert torch.equal(own.sigmas(7), before)
    assert len(own.scheduler.timesteps) == 3


# ---------------------------------------------------------------- against diffusers' samplers


@torch.no_grad()
def their_states(prior: DiffusionPrior, z_t: Tensor, steps: int, scheduler) -> list[Tensor]:
    """Every state of a diffusers sampler, without guidance."""
    scheduler.set_timesteps(steps)
    states = []
    context = prior.pipeline.encode_prompt(WORDS[0], "cpu", len(z_t), False)[0]
    for t in scheduler.timesteps:
        states.append(z_t)
        output = prior.unet(scheduler.scale_model_input(z_t, t), t, context).sample
        z_t = scheduler.step(output, t, z_t).prev_sample
    return [*states, z_t]


def our_states(prior: DiffusionPrior, n: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
    """Our Euler states, as z, and the noise levels."""
    sigmas = prior.sigmas(steps, ddim=True)
    start = n * float((1 + sigmas[0] ** 2).sqrt())
    return list(sample(prior.denoiser(WORDS[0], scale=1.0), start, sigmas, "euler")), sigmas


@pytest.mark.parametrize(("schedule", "steps"), [*((name, 10) for name in ON_GRID), ("Stable Diffusion", 30)])
def test_euler_is_diffusers_ddim(prior, schedule, steps):
    config: dict[str, Any] = SCHEDULES[schedule] | {"prediction_type": prior.prediction}
    other, n = rescheduled(prior, **config), noise(2, 4, 8, 8)
    ours, sigmas = our_states(other, n, steps)
    theirs = their_states(other, n, steps, DDIMScheduler(**config))
    if len(ours) == steps:  # their last step stood still
        theirs = theirs[:-1]
    worst = max(apart(z / float((1 + σ**2).sqrt()), z_t) for z, σ, z_t in zip(ours, sigmas, theirs, strict=True))
    assert worst < 1e-5


def test_zero_terminal_signal_is_diffusers_ddim_up_to_its_infinite_start(prior):
    """σ = ∞ becomes 4096, a share of 2⁻¹² of the first state."""
    config: dict[str, Any] = SCHEDULES["zero terminal signal"] | {"prediction_type": "v_prediction"}
    other, n = rescheduled(prior, **config), noise(2, 4, 8, 8)
    ours, sigmas = our_states(other, n, 10)
    assert float(sigmas[0]) == pytest.approx(4096, rel=1e-3)
    assert apart(ours[-1], their_states(other, n, 10, DDIMScheduler(**config))[-1]) < 2e-3


def test_linspace_is_diffusers_euler(prior):
    """DDIM strides past its own grid there (from 888 to 788, and then it asks at 777); their Euler sampler does not."""
    config: dict[str, Any] = SCHEDULES["linspace, to one"] | {"prediction_type": prior.prediction}
    other, n = rescheduled(prior, **config), noise(2, 4, 8, 8)
    ours, _ = our_states(other, n, 10)
    kept = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type")}
    theirs = their_states(other, ours[0], 10, EulerDiscreteScheduler(**kept, timestep_spacing="linspace"))
    assert max(apart(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-5
    ddim = their_states(other, n, 10, DDIMScheduler(**config))
    assert apart(ours[-1], ddim[-1]) > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_grid_descends(prior1, schedule):
    other = rescheduled(prior1, **SCHEDULES[schedule], prediction_type="v_prediction")
    limit = 999 if SCHEDULES[schedule].get("steps_offset") else 1000
    for steps in (1, 2, 7, 30, 61, 103, 999, limit):
        ours, theirs = other.sigmas(steps), other.sigmas(steps, ddim=True)
        assert len(ours) == steps + 1 and ours[-1] == 0
        assert (ours.diff() < 0).all() and (theirs.diff() < 0).all()
        assert torch.equal(ours[:-1], theirs[:steps])
        assert theirs[-1] == (0 if other.scheduler.config["set_alpha_to_one"] else other.sigma_min)
    wrong: tuple[Any, ...] = (0, -3, limit + 1, 10.0)
    for steps in wrong:
        with pytest.raises(ValueError, match=f"steps is {steps}; it must be an integer from 1 to {limit}"):
            other.sigmas(steps)


def test_start_is_unit_noise_in_their_form(prior):
    g = torch.Generator()
    for σ in (0.0, 2.5, torch.tensor(11.7, dtype=torch.float64)):
        got = prior.start(2, 3, sigma=σ, generator=g.manual_seed(5))
        torch.testing.assert_close(got / math.sqrt(1 + float(σ) ** 2), noise(2, 3, 4, 8, 8, seed=5))
    want = noise(4, 8, 8, seed=5) * math.sqrt(1 + prior.sigma_max**2)
    torch.testing.assert_close(prior.start(generator=g.manual_seed(5)), want)
    with pytest.raises(ValueError, match="sigma is inf; it must be >= 0 and finite"):
        prior.start(1, sigma=math.inf)


@pytest.mark.parametrize("scale", [3.0, 7.5])
def test_guidance_and_picture_are_the_pipelines(prior, scale):
    """Two prompts with their own negative prompts, from latents to pixels."""
    pipeline: Any = rescheduled(prior, **SCHEDULES["Stable Diffusion"], prediction_type=prior.prediction).pipeline
    negative, n = ["", "a green tree"], noise(2, 4, 8, 8)
    options = {"negative_prompt": negative, "guidance_scale": scale, "num_inference_steps": 20, "latents": n}
    want = pipeline(list(WORDS), output_type="latent", **options).images
    sigmas = prior.sigmas(20, ddim=True)
    start = prior.start(2, sigma=sigmas[0], generator=torch.Generator().manual_seed(0))
    *_, z = sample(prior.denoiser(WORDS, negative, scale), start, sigmas, "euler")
    z_t = z / float((1 + sigmas[-1] ** 2).sqrt())
    assert apart(z_t, want) < 1e-5
    with torch.no_grad():
        picture = prior.decode(z_t)
    assert (picture - pipeline(list(WORDS), output_type="pt", **options).images).abs().max() < 1e-4


# ---------------------------------------------------------------- prompts, guidance, batches


def unet_batches(prior: DiffusionPrior, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the batch size of every UNet call."""
    sizes: list[int] = []
    forward = prior.unet.forward
    monkeypatch.setattr(prior.unet, "forward", lambda z, *a, **k: (sizes.append(len(z)), forward(z, *a, **k))[1])
    return sizes


def test_guidance_is_one_call_and_its_cost_two(prior, monkeypatch):
    sizes, z = unet_batches(prior, monkeypatch), noise(3, 4, 8, 8)
    for scale, batch, price in ((7.5, 6, 2), (-7.5, 6, 2), (1.0, 3, 1), (0.0, 3, 1), (lambda σ: 5.0, 6, 2)):
        sizes.clear()
        denoise = counted(prior.denoiser(WORDS[0], scale=scale))
        denoise(z, 1.0)
        assert (sizes, denoise.calls) == ([batch], price)


def test_guidance_is_guided(prior):
    c, u = prior.denoiser(WORDS[0], scale=1.0), prior.denoiser(WORDS[0], negative="a tree", scale=0.0)
    z = 2 * noise(3, 4, 8, 8)
    each = torch.tensor([0.0, 1.0, 4.0])
    for scale in (7.5, -7.5, each, lambda σ: 3.0 if σ < 1 else 1.0):
        ours = prior.denoiser(WORDS[0], negative="a tree", scale=scale)
        for σ in (0.5, 2.0):
            assert apart(ours(z, σ), guided(c, u, scale)(z, σ)) < 1e-5
            assert cost(ours, z, σ) == cost(guided(c, u, scale), z, σ)


def test_prompts_belong_to_the_last_batch_axis(prior):
    denoise = prior.denoiser(WORDS, negative="a tree", scale=4.0)
    z, σ = 3 * noise(3, 2, 4, 8, 8), torch.tensor([[0.3, 8.0], [1.0, 2.0], [0.01, 40.0]])
    got = denoise(z, σ)
    for i in range(3):
        for j in range(2):
            alone = prior.denoiser(WORDS[j], negative="a tree", scale=4.0)(z[i, j], float(σ[i, j]))
            torch.testing.assert_close(got[i, j], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(denoise(z, σ[:, :1])[:, 1], denoise(z, σ[:, :1].expand(3, 2))[:, 1])
    torch.testing.assert_close(denoise(z, σ[:, 0])[2], denoise(z[2], float(σ[2, 0])), rtol=1e-4, atol=1e-4)
    assert apart(prior.denoiser(WORDS[0])(z[0], 1.0), prior.denoiser([WORDS[0]])(z[0], 1.0)) == 0
    assert apart(prior.denoiser(WORDS[0])(z[0], 1.0), prior.denoiser(WORDS[1])(z[0], 1.0)) > 1e-6


def test_many_negatives_for_one_prompt(prior):
    z = noise(2, 4, 8, 8)
    got = prior.denoiser(WORDS[0], negative=WORDS, scale=4.0)(z, 1.0)
    torch.testing.assert_close(got[1], prior.denoiser(WORDS[0], WORDS[1], 4.0)(z[1], 1.0), rtol=1e-4, atol=1e-5)


def test_a_comparison_serves_a_level_for_each_item(prior1):
    """Guidance in an interval, written as a function of one number."""
    limited, σ, z = (lambda s: 7.5 if 0.3 < s < 5 else 1.0), torch.tensor([0.1, 1.0, 8.0]), noise(3, 4, 8, 8)
    want = prior1.denoiser(WORDS[0], scale=torch.tensor([1.0, 7.5, 1.0]))(z, σ)
    assert apart(prior1.denoiser(WORDS[0], scale=limited)(z, σ), want) == 0
    with pytest.raises(ValueError, match="scale is nan"):
        prior1.denoiser(WORDS[0], scale=lambda s: math.nan)(z, σ)


def test_every_row_carries_its_view(prior, monkeypatch):
    """Under four view prompts, with samples in front: each row of each UNet call has its own text, rescaled or not."""
    views = [f"a red house, {view} view" for view in ("front", "side", "back", "top")]
    calls: list[tuple[Tensor, Tensor]] = []
    forward = prior.unet.forward
    monkeypatch.setattr(prior.unet, "forward", lambda z, t, c, **k: (calls.append((z, c)), forward(z, t, c, **k))[1])
    z, own = noise(3, 4, 4, 8, 8), torch.stack([contexts(prior.denoiser(text))[0] for text in views])
    empty = contexts(prior.denoiser(""))[0]
    denoise = prior.denoiser(views, scale=7.5)
    for asked, bounds in ((denoise, 2), (rescaled(denoise, -7.5), 2), (rescaled(denoise, 1.0), 1)):
        calls.clear()
        asked(z, 0.7)
        ((rows, texts),) = calls
        assert len(rows) == 12 * bounds
        torch.testing.assert_close(rows[-12:], (z / math.sqrt(1 + 0.7**2)).flatten(0, 1))
        assert torch.equal(texts[-12:], own.repeat(3, 1, 1))
        assert bounds == 1 or torch.equal(texts[:12], empty.expand(12, *empty.shape))


def test_texts_are_embedded_once_by_each_text_encoder(folder1, monkeypatch):
    own = load(folder1)
    seen: list[str] = []
    embed = own.pipeline.encode_prompt
    monkeypatch.setattr(own.pipeline, "encode_prompt", lambda text, *a: (seen.append(text), embed(text, *a))[1])
    for _ in range(3):
        own.denoiser(WORDS, scale=4.0)(noise(2, 4, 8, 8), 1.0)
    assert seen == [*WORDS, ""]
    before = contexts(own.denoiser(WORDS[0]))
    with torch.no_grad():
        next(own.pipeline.text_encoder.parameters()).mul_(2)  # trained on, or with a LoRA merged into it
    assert apart(contexts(own.denoiser(WORDS[0])), before) > 1e-3
    own.pipeline.text_encoder = copy.deepcopy(own.pipeline.text_encoder)
    seen.clear()
    own.denoiser(WORDS[0])
    assert seen == [WORDS[0], ""]


def test_embeddings_serve_gradients_wherever_they_were_made(folder1):
    own = load(folder1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        denoise = own.denoiser(WORDS[0])
    z = noise(1, 4, 8, 8).requires_grad_()
    denoise(z, 1.0).sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()
    assert torch.equal(contexts(denoise), contexts(load(folder1).denoiser(WORDS[0])))


def test_the_same_prior_with_another_network(folder1, monkeypatch):
    own = load(folder1)
    trained = copy.deepcopy(own.unet).train().requires_grad_(True)
    with torch.no_grad():
        trained.conv_out.bias += 0.1
    other, z = own.with_network(trained), noise(2, 4, 8, 8)
    before, σ = own.denoiser(WORDS)(z, 2.0), 2.0
    torch.testing.assert_close(other.denoiser(WORDS)(z, 2.0), before - 0.1 * σ, rtol=1e-4, atol=1e-5)  # D = z − σε
    assert torch.equal(own.denoiser(WORDS)(z, 2.0), before)
    assert trained.training and all(p.requires_grad for p in trained.parameters())
    assert not any(p.requires_grad for p in own.unet.parameters())
    monkeypatch.setattr(own.pipeline, "encode_prompt", None)  # texts are shared
    half = own.with_network(copy.deepcopy(own.unet).bfloat16())
    assert (half.dtype, own.dtype) == (torch.bfloat16, torch.float32)
    assert half.denoiser(WORDS)(z, 2.0).dtype == torch.float32
    with pytest.raises(ValueError, match="the prior has a Linear for a UNet"):
        own.with_network(nn.Linear(1, 1))
    narrow = copy.deepcopy(own.unet)
    narrow.register_to_config(cross_attention_dim=24)
    with pytest.raises(ValueError, match="cross_attention_dim 24, and a text encoder of width 16"):
        own.with_network(narrow)


def test_it_serves_every_sampler_and_target(prior):
    """A leading axis of samples; the product density; inversion; a mean-shift step; the input's dtype."""
    denoise, sigmas, x = prior.denoiser(WORDS, scale=2.0), prior.sigmas(3), noise(2, 4, 8, 8)
    g = torch.Generator().manual_seed(0)
    *_, y = sample_product(denoise, x.expand(3, *x.shape), 0.5, sigmas, "exact", solver="euler", generator=g)
    assert y.shape == (3, 2, 4, 8, 8)
    assert y.isfinite().all()
    one = product_denoiser(denoise, x, 0.5)
    many = one(y, 0.01)  # below the trained range
    torch.testing.assert_close(many[1], one(y[1], 0.01), rtol=1e-4, atol=1e-4)
    *_, z = invert(denoise, x, sigmas, "euler")
    assert z.isfinite().all()
    with torch.no_grad():
        target = MSD("exact", linear(0.5, 0.1), sigmas, samples=2, solver="euler")(denoise, x, 0.5, g)
    assert target.value.shape == x.shape


# ---------------------------------------------------------------- gradients


def test_derivatives(folder1):
    """Forward mode, reverse mode and finite differences agree in float64; without gradients nothing is recorded."""
    prior = load(folder1, dtype=torch.float64)
    denoise = prior.denoiser(WORDS, scale=3.0)
    z, u, w = (noise(2, 4, 8, 8, seed=seed, dtype=torch.float64) for seed in range(3))

    def D(z: Tensor) -> Tensor:
        return denoise(z, torch.tensor([0.5, 2.0]))

    with sdpa_kernel(SDPBackend.MATH):
        forward = torch.func.jvp(D, (z,), (u,))[1]
    x = z.clone().requires_grad_()
    (reverse,) = torch.autograd.grad((w * D(x)).sum(), x)
    torch.testing.assert_close((w * forward).sum(), (u * reverse).sum(), rtol=1e-8, atol=1e-10)
    h = 1e-6
    torch.testing.assert_close(forward, (D(z + h * u) - D(z - h * u)) / (2 * h), rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        assert not D(x).requires_grad
    assert not any(p.requires_grad for p in (*prior.unet.parameters(), *prior.vae.parameters()))


class NoDoubles(TorchDispatchMode):
    """A device (torch's meta device) that has no float64, as Apple's."""

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) and t.is_meta and t.dtype == torch.float64 for t in tree_leaves(result)):
            raise TypeError(f"{func} makes float64")
        return result


@pytest.mark.parametrize("sigma", [1.0, torch.tensor([0.5, 2.0])])
def test_a_device_without_float64(folder1, sigma):
    own = load(folder1)
    own.unet.to("meta")
    with NoDoubles():
        context = torch.empty(2, 16, 16, device="meta")
        assert own.denoise(torch.empty(2, 4, 8, 8, device="meta"), sigma, context).shape == (2, 4, 8, 8)
        assert own.start(2, generator=torch.Generator()).is_meta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_answers_are_float32_or_better(prior1, dtype):
    better = torch.promote_types(dtype, torch.float32)
    z, images = noise(1, 4, 8, 8).to(dtype), torch.rand(1, 3, 16, 16).to(dtype)
    with torch.no_grad():
        assert prior1.denoiser(WORDS[0])(z, 1.0).dtype == better
        assert prior1.encode(images).dtype == better
        assert prior1.decode(z).dtype == better
    rounded = prior1.denoiser(WORDS[0])(z.double(), 1.0)
    assert apart(prior1.denoiser(WORDS[0])(z, 1.0).double(), rounded) < 1e-5  # nothing but z itself is rounded


# ---------------------------------------------------------------- the autoencoder


def test_encode_and_decode_are_the_pipelines(prior):
    pipeline, factor = prior.pipeline, prior.vae.config["scaling_factor"]
    images = noise(2, 3, 3, 16, 16).sigmoid()
    with torch.no_grad():
        y = prior.encode(images)
        flat = pipeline.image_processor.preprocess(images.flatten(0, 1))
        want = factor * pipeline.vae.encode(flat).latent_dist.mode()
        assert y.shape == (2, 3, 4, 8, 8)
        assert apart(y.flatten(0, 1), want) < 1e-6
        back = pipeline.image_processor.postprocess(pipeline.vae.decode(want / factor).sample, "pt")
        assert (prior.decode(y).flatten(0, 1) - back).abs().max() < 1e-6


def test_a_drawn_code_follows_the_posterior(prior1):
    images = noise(3, 16, 16).sigmoid()
    posterior = prior1.vae.encode(2 * images[None] - 1).latent_dist
    factor = prior1.vae.config["scaling_factor"]
    draws = prior1.encode(images.expand(400, 3, 16, 16), torch.Generator().manual_seed(0))
    again = prior1.encode(images.expand(400, 3, 16, 16), torch.Generator().manual_seed(0))
    assert torch.equal(draws, again)
    standard = (draws / factor - posterior.mean) / posterior.std
    assert abs(standard.mean()) < 0.02
    assert abs(standard.std() - 1) < 0.02


def test_the_autoencoder_is_differentiable(folder1):
    prior = load(folder1, dtype=torch.float64)
    for f, x in (
        (prior.decode, noise(2, 4, 8, 8, dtype=torch.float64) * 0.1),
        (prior.encode, noise(2, 3, 16, 16, dtype=torch.float64).sigmoid()),
    ):
        u = noise(*x.shape, seed=1, dtype=torch.float64)
        x.requires_grad_()
        (slope,) = torch.autograd.grad(f(x).square().sum(), x)
        with torch.no_grad():
            h = 1e-5
            change = (f(x + h * u).square().sum() - f(x - h * u).square().sum()) / (2 * h)
        assert float((slope * u).sum()) == pytest.approx(float(change), rel=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_gradient_of_a_half_precision_model_is_exact_near_its_target(folder1, autocast):
    """Where a gap of .0003 is left, half precision would be off by a tenth; here finite differences agree to 1 %."""
    half, exact = load(folder1, dtype=torch.bfloat16), load(folder1, dtype=torch.float64)
    assert (half.unet.dtype, half.vae.dtype) == (torch.bfloat16, torch.float32)
    exact.vae.load_state_dict(half.vae.state_dict())
    image, u = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), noise(1, 3, 16, 16, seed=1)
    with torch.no_grad():
        target = exact.encode(image.double()) + 3e-4 * noise(1, 4, 8, 8, seed=2).double()

    def loss(prior: DiffusionPrior, images: Tensor) -> Tensor:
        return (prior.encode(images).double() - target).square().sum() / 2

    x = image.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(half, x)
    (slope,) = torch.autograd.grad(value, x)
    h = 1e-5
    with torch.no_grad():
        change = (loss(exact, image.double() + h * u) - loss(exact, image.double() - h * u)) / (2 * h)
    assert float((slope * u).sum()) == pytest.approx(float(change), rel=1e-2)


def test_a_decoder_that_overflows_in_half_precision(folder1):
    own = load(folder1, dtype=torch.float16)
    with torch.no_grad():
        own.vae.decoder.conv_in.weight *= 3e5  # fine in float32: the norms divide it out
        own.vae.decoder.conv_in.bias *= 3e5
        assert own.decode(noise(1, 4, 8, 8)).isfinite().all()


# ---------------------------------------------------------------- refusals


def test_out_of_memory_says_what_was_asked_and_what_helps(prior1, monkeypatch):
    def full(*a: Any, **k: Any):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    for part, name, call, asked in (
        (
            prior1.unet,
            "forward",
            lambda: prior1.denoiser(WORDS)(noise(2, 4, 8, 8), 1.0),
            "a call of the UNet on 4 latents",
        ),
        (prior1.vae, "encode", lambda: prior1.encode(torch.rand(2, 3, 16, 16)), "encoding 2 images"),
        (prior1.vae, "decode", lambda: prior1.decode(noise(2, 4, 8, 8)), "decoding 2 latents"),
    ):
        monkeypatch.setattr(part, name, full)
        with pytest.raises(ValueError, match=f"out of GPU memory in {asked}.*What helps: a smaller batch"):
            call()


def test_bad_input_is_refused_by_name(prior1):
    denoise, z = prior1.denoiser(WORDS), noise(2, 4, 8, 8)
    with pytest.raises(
        ValueError, match=r"z has shape \(2, 3, 8, 8\), .* it must end in \(4, h, w\).* trained on \(4, 8, 8\)"
    ):
        denoise(z[:, :3], 1.0)
    with pytest.raises(ValueError, match=r"z has shape \(8, 8\)"):
        prior1.denoiser("")(z[0, 0], 1.0)
    with pytest.raises(
        ValueError,
        match=r"there are 2 prompts and z has shape \(3, 4, 8, 8\); give one, or one for each .* \(3\)",
    ):
        denoise(noise(3, 4, 8, 8), 1.0)
    with pytest.raises(ValueError, match=r"z has shape \(4, 8, 8\); .*it has none"):
        denoise(z[0], 1.0)
    with pytest.raises(ValueError, match="negative has 3 strings and prompt 2"):
        prior1.denoiser(WORDS, negative=["", "", ""])
    with pytest.raises(ValueError, match="prompt is 3; it must be a string or several"):
        prior1.denoiser(3)
    with pytest.raises(ValueError, match=r"prompt is \[\]"):
        prior1.denoiser([])
    assert len(contexts(prior1.denoiser(np.array(WORDS)))) == 2
    for scale in (math.nan, math.inf, "3", None, [1.0, 2.0]):
        with pytest.raises(ValueError, match=f"scale is {re.escape(repr(scale))}; it must be a finite number"):
            prior1.denoiser("", scale=scale)
    with pytest.raises(ValueError, match=r"z has shape \(0, 4, 8, 8\)"):
        prior1.denoiser("")(z[:0], 1.0)
    with pytest.raises(ValueError, match=r"sigma is -1.0; it must be >= 0"):
        denoise(z, -1.0)
    with pytest.raises(ValueError, match=r"sigma has shape \(2, 4, 1, 1\); it may not vary within a latent"):
        prior1.denoiser("")(z, torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"sigma has shape \(5,\); it must be a prefix of \(2, 4, 8, 8\)"):
        prior1.denoiser("", scale=1.0)(z, torch.ones(5))
    with pytest.raises(
        ValueError, match=r"images have shape \(2, 3, 15, 16\), .* end in \(3, H, W\), H and W multiples of 2"
    ):
        prior1.encode(noise(2, 3, 15, 16))
    with pytest.raises(ValueError, match=r"images .* torch.uint8; .* floats"):
        prior1.encode(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"latents .* torch.int64; .* floats"):
        prior1.decode(z.long())
    with pytest.raises(ValueError, match=r"latents has shape \(2, 3, 8, 8\)"):
        prior1.decode(z[:, :3])
    for wrong in (math.inf, torch.tensor([1.0, math.inf])):
        with pytest.raises(ValueError, match=r"sigma (is|contains) inf; .*must be >= 0 and finite"):
            denoise(z, wrong)
    with pytest.raises(ValueError, match="z is a ndarray; it must be a tensor"):
        denoise(z.numpy(), 1.0)
    with pytest.raises(ValueError, match=r"context has shape \(3, 16, 16\); it must be \(…, \*batch, tokens, width\)"):
        prior1.denoise(z, 1.0, torch.zeros(3, 16, 16))


def test_pictures_are_refused_by_name(prior1):
    picture = torch.rand(1, 3, 16, 16)
    for wrong, reach in ((255 * picture, "to 2"), (2 * picture - 1, "from -0.9.* to 0.9"), (picture / 0, "inf|nan")):
        with pytest.raises(ValueError, match=rf"images reach .*({reach}).*; they must lie in \[0, 1\]"):
            prior1.encode(wrong)
    prior1.encode(1.2 * picture - 0.1)  # under optimisation they overshoot
    for wrong in (picture.numpy(), "a picture", [[0.5]]):
        with pytest.raises(ValueError, match=rf"images is a {type(wrong).__name__}; it must be a tensor .*from_numpy"):
            prior1.encode(wrong)
    with pytest.raises(ValueError, match=r"images have shape \(0, 3, 16, 16\)"):
        prior1.encode(picture[:0])
