"""A diffusers pipeline as a denoiser: against closed forms, against diffusers' own samplers, and its refusals."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import SD, tiny
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from msd_teach import MSD, DiffusionPrior, counted, guided, invert, product_denoiser, sample, sample_product
from msd_teach.denoisers import cost
from msd_teach.latent import loading as loading
from msd_teach.schedules import linear

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

SCHEDULES = {
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


@pytest.fixture(scope="module", params=["1", "2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def folder1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model"), "1")


@pytest.fixture(scope="module")
def prior(folder: Path) -> DiffusionPrior:
    return load(folder)


@pytest.fixture(scope="module")
def prior1(folder1: Path) -> DiffusionPrior:
    return load(folder1)


def load(folder: Path, **options) -> DiffusionPrior:
    loaded = DiffusionPrior.from_pretrained(folder, device="cpu", **options)
    loaded.pipeline.set_progress_bar_config(disable=True)
    return loaded


def rescheduled(prior: DiffusionPrior, **config) -> DiffusionPrior:
    """The same networks under another scheduler."""
    pipeline = StableDiffusionPipeline(**prior.pipeline.components, requires_safety_checker=False)
    pipeline.scheduler = DDIMScheduler(**config)  # its constructor would set steps_offset to 1
    pipeline.set_progress_bar_config(disable=True)
    return DiffusionPrior(pipeline)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to b's largest value."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


class GaussianNetwork(nn.Module):
    """What a perfect network predicts for y ~ N(0, s²), written down in the variance-preserving form."""

    device = torch.device("cpu")

    def __init__(self, config: dict, prediction: str, spread: float):
        super().__init__()
        self.prediction, self.spread = prediction, spread
        self.log_sigma = np.log(noise_levels(config))

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, return_dict: bool) -> tuple[Tensor]:
        place = t.expand(len(z_t)).numpy()
        σ = torch.from_numpy(np.exp(np.interp(place, np.arange(len(self.log_sigma)), self.log_sigma)))[
            :, None, None, None
        ]
        kept, lost = 1 / (1 + σ**2).sqrt(), σ / (1 + σ**2).sqrt()  # √ᾱ and √(1 − ᾱ)
        y = kept * self.spread**2 / (kept**2 * self.spread**2 + lost**2) * z_t
        ε = (z_t - kept * y) / lost
        return (ε if self.prediction == "epsilon" else kept * ε - lost * y,)


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


def gaussian(prior: DiffusionPrior, schedule: str, prediction: str, spread: float) -> DiffusionPrior:
    """A prior whose network is perfect for N(0, s²), and whose noise levels are those of the definition."""
    other = rescheduled(prior, **SCHEDULES[schedule], prediction_type=prediction)
    np.testing.assert_allclose(other.levels, noise_levels(SCHEDULES[schedule]), rtol=1e-3)  # diffusers': in float32
    other.levels = torch.from_numpy(noise_levels(SCHEDULES[schedule]))
    other.sigma_min, other.sigma_max = float(other.levels[0]), float(other.levels[-1])
    other.unet = GaussianNetwork(SCHEDULES[schedule], prediction, spread)  # type: ignore[assignment]
    other.dtype = torch.float64
    return other


# ---------------------------------------------------------------- from variance-preserving to variance-exploding


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_perfect_network_gives_the_exact_denoiser(prior1, schedule, prediction):
    """Invariant 7 of docs/invariants.md: every scheduler, both predictions, a level for each item, on steps and between."""
    s = 0.7
    exact = gaussian(prior1, schedule, prediction, s)
    place = torch.cat([torch.arange(0.0, 999, 111), torch.rand(20, generator=torch.Generator().manual_seed(0)) * 999])
    σ = torch.from_numpy(np.exp(np.interp(place.numpy(), np.arange(1000), np.log(exact.levels.numpy()))))
    torch.testing.assert_close(exact.time(σ), place.double(), rtol=0, atol=1e-4)
    z = σ[:, None, None, None] * noise(len(σ), 4, 8, 8, dtype=torch.float64)
    want = s**2 / (s**2 + σ[:, None, None, None] ** 2) * z
    got = exact.denoiser("")(z, σ)
    # the difference z − σε loses digits as σ grows: 4096 at zero terminal signal
    torch.testing.assert_close(
        got, want, rtol=1e-9, atol=1e-12 * float(σ.max()) ** 2 if schedule.startswith("zero") else 1e-11
    )
    torch.testing.assert_close(got[3], exact.denoiser("")(z[3], float(σ[3])), rtol=1e-12, atol=1e-12)


def test_training_steps_are_found_again(prior):
    torch.testing.assert_close(prior.time(prior.levels), torch.arange(1000.0, dtype=torch.float64), rtol=0, atol=0)
    between = (prior.levels[499] * prior.levels[500]).sqrt()
    assert prior.time(between).item() == pytest.approx(499.5)
    ends = prior.time(torch.tensor([0.0, prior.sigma_min / 2, prior.sigma_max * 2, 1e9], dtype=torch.float64))
    assert ends.tolist() == [0, 0, 999, 999]
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    prior.time(zero).backward()
    assert zero.grad == 0


def test_the_familiar_levels(prior):
    """σ of Stable Diffusion's schedule, as widely known."""
    σ = prior.levels[[0, 100, 250, 500, 750, 980, 999]]
    want = torch.tensor([0.029, 0.344, 0.696, 1.618, 4.10, 13.04, 14.61], dtype=torch.float64)
    torch.testing.assert_close(σ, want, rtol=2e-2, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("s", [1.0, 0.8, 1.3])
def test_outside_the_trained_range(prior1, prediction, s):
    """At the ends it is continuous; D → z below; above, D stays bounded, and is exact for latents of unit variance."""
    exact = gaussian(prior1, "Stable Diffusion", prediction, s)
    denoise = exact.denoiser("")
    n = noise(4, 8, 8, dtype=torch.float64)
    for end, beyond in ((exact.sigma_min, 1 - 1e-9), (exact.sigma_max, 1 + 1e-9)):
        torch.testing.assert_close(denoise(end * beyond * n, end * beyond), denoise(end * n, end), rtol=1e-6, atol=1e-8)
    for σ in (0.0, 1e-6, 1e-3, 0.02):
        z = (s**2 + σ**2) ** 0.5 * n
        assert (denoise(z, σ) - s**2 / (s**2 + σ**2) * z).abs().max() <= 2 * σ * exact.sigma_min
    held = abs(s**2 - 1) * exact.sigma_max / (s**2 + exact.sigma_max**2)
    for σ in (20.0, 80.0, 1e3, 1e6):
        z = (s**2 + σ**2) ** 0.5 * n
        error = denoise(z, σ) - s**2 / (s**2 + σ**2) * z
        assert error.abs().max() <= (held + 1e-9 * σ / 1e3) * n.abs().max() * 1.01


def test_epsilon_and_v_agree_outside_the_range(prior1):
    """Two networks that say the same within the range say the same beyond it."""
    both = [gaussian(prior1, "Stable Diffusion", prediction, 0.8).denoiser("") for prediction in PREDICTIONS]
    for σ in (1e-3, 0.01, 30.0, 1e3):
        z = σ * noise(4, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(both[0](z, σ), both[1](z, σ), rtol=1e-8, atol=1e-11 * (1 + σ))


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
    sigmas = prior.sigmas(steps)
    start = n * float((1 + sigmas[0] ** 2).sqrt())
    return list(sample(prior.denoiser(WORDS[0], scale=1.0), start, sigmas, "euler")), sigmas


@pytest.mark.parametrize(("schedule", "steps"), [*((name, 10) for name in ON_GRID), ("Stable Diffusion", 30)])
def test_euler_is_diffusers_ddim(prior, schedule, steps):
    config = SCHEDULES[schedule] | {"prediction_type": prior.prediction}
    other, n = rescheduled(prior, **config), noise(2, 4, 8, 8)
    ours, sigmas = our_states(other, n, steps)
    theirs = their_states(other, n, steps, DDIMScheduler(**config))
    if len(ours) == steps:  # their last step stood still
        theirs = theirs[:-1]
    worst = max(apart(z / float((1 + σ**2).sqrt()), z_t) for z, σ, z_t in zip(ours, sigmas, theirs, strict=True))
    assert worst < 1e-5


def test_zero_terminal_signal_is_diffusers_ddim_up_to_its_infinite_start(prior):
    """σ = ∞ becomes 4096, a share of 2⁻¹² of the first state."""
    config = SCHEDULES["zero terminal signal"] | {"prediction_type": "v_prediction"}
    other, n = rescheduled(prior, **config), noise(2, 4, 8, 8)
    ours, sigmas = our_states(other, n, 10)
    assert float(sigmas[0]) == pytest.approx(4096, rel=1e-3)
    assert apart(ours[-1], their_states(other, n, 10, DDIMScheduler(**config))[-1]) < 2e-3


def test_linspace_is_diffusers_euler(prior):
    """DDIM strides past its own grid there (from 888 to 788, and then it asks at 777); their Euler sampler does not."""
    config = SCHEDULES["linspace, to one"] | {"prediction_type": prior.prediction}
    other, n = rescheduled(prior, **config), noise(2, 4, 8, 8)
    ours, _ = our_states(other, n, 10)
    kept = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type")}
    theirs = their_states(other, ours[0], 10, EulerDiscreteScheduler(**kept, timestep_spacing="linspace"))
    assert max(apart(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-5
    ddim = their_states(other, n, 10, DDIMScheduler(**config))
    assert apart(ours[-1], ddim[-1]) > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_grid_descends(prior1, schedule):
    other = rescheduled(prior1, **SCHEDULES[schedule])
    limit = 999 if SCHEDULES[schedule].get("steps_offset") else 1000
    for steps in (1, 2, 7, 30, 50, 61, 103, 500, 999, limit):
        σ = other.sigmas(steps)
        assert len(σ) in (steps, steps + 1)
        assert (σ.diff() < 0).all()
        assert σ[-1] == (0 if other.scheduler.config["set_alpha_to_one"] else other.sigma_min)
    for steps in (0, -3, limit + 1, 10.0):
        with pytest.raises(ValueError, match=f"steps is {steps}; it must be an integer from 1 to {limit}"):
            other.sigmas(steps)


@pytest.mark.parametrize("scale", [3.0, 7.5])
def test_guidance_and_picture_are_the_pipelines(prior, scale):
    """Two prompts with their own negative prompts, from latents to pixels."""
    pipeline = rescheduled(prior, **SCHEDULES["Stable Diffusion"], prediction_type=prior.prediction).pipeline
    negative, n = ["", "a green tree"], noise(2, 4, 8, 8)
    options = {"negative_prompt": negative, "guidance_scale": scale, "num_inference_steps": 20, "latents": n}
    want = pipeline(list(WORDS), output_type="latent", **options).images
    sigmas = prior.sigmas(20)
    start = n * float((1 + sigmas[0] ** 2).sqrt())
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


def test_texts_are_embedded_once(folder1, monkeypatch):
    prior = load(folder1)
    seen: list[str] = []
    embed = prior.pipeline.encode_prompt
    monkeypatch.setattr(prior.pipeline, "encode_prompt", lambda text, *a: (seen.append(text), embed(text, *a))[1])
    for _ in range(3):
        prior.denoiser(WORDS, scale=4.0)(noise(2, 4, 8, 8), 1.0)
    assert seen == [*WORDS, ""]


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
    assert denoise(x.double(), 1.0).dtype == torch.float64


# ---------------------------------------------------------------- gradients


def test_derivatives(folder1):
    """Forward mode, reverse mode and finite differences agree in float64; without gradients nothing is recorded."""
    prior = load(folder1, dtype=torch.float64)
    denoise = prior.denoiser(WORDS, scale=3.0)
    z, u, w = (noise(2, 4, 8, 8, seed=seed, dtype=torch.float64) for seed in range(3))

    def D(z: Tensor) -> Tensor:
        return denoise(z, torch.tensor([0.5, 2.0]))

    with sdpa_kernel(SDPBackend.MATH):
        _, forward = torch.func.jvp(D, (z,), (u,))
    x = z.clone().requires_grad_()
    (reverse,) = torch.autograd.grad((w * D(x)).sum(), x)
    torch.testing.assert_close((w * forward).sum(), (u * reverse).sum(), rtol=1e-8, atol=1e-10)
    h = 1e-6
    torch.testing.assert_close(forward, (D(z + h * u) - D(z - h * u)) / (2 * h), rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        assert not D(x).requires_grad
    assert not any(p.requires_grad for p in (*prior.unet.parameters(), *prior.vae.parameters()))


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
        assert prior.decode(y[0, 0].double()).dtype == torch.float64


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


# ---------------------------------------------------------------- loading


def test_loaded_from_disk(folder, prior):
    assert prior.shape == (4, 8, 8)
    assert prior.prediction in PREDICTIONS
    assert prior.name == str(folder)
    assert str(folder) in repr(prior)
    assert prior.unet.dtype == torch.float32
    assert not prior.scheduler.config["clip_sample"]


def test_bfloat16_throughout(folder, prior):
    """The networks compute in it; states stay in the input's float32."""
    half, z = load(folder, dtype=torch.bfloat16), noise(2, 4, 8, 8)
    assert {half.unet.dtype, half.vae.dtype, half.pipeline.text_encoder.dtype} == {torch.bfloat16}
    got = half.denoiser(WORDS, scale=2.0)(z, 1.0)
    assert got.dtype == torch.float32
    assert apart(got, prior.denoiser(WORDS, scale=2.0)(z, 1.0)) < 5e-2
    images = half.decode(half.encode(z[:, :3].repeat(1, 1, 2, 2).sigmoid()))
    assert images.dtype == torch.float32


def test_slicing_changes_nothing_but_memory(folder, prior):
    sliced, z = load(folder, slicing=True), noise(2, 4, 8, 8)
    assert sliced.vae.use_slicing
    assert all("Sliced" in type(processor).__name__ for processor in sliced.unet.attn_processors.values())
    assert apart(sliced.denoiser(WORDS)(z, 1.0), prior.denoiser(WORDS)(z, 1.0)) < 1e-5
    torch.testing.assert_close(sliced.decode(z), prior.decode(z), rtol=1e-4, atol=1e-5)


def test_the_environment_names_the_model(folder1, monkeypatch):
    monkeypatch.setenv("MSD_TEACH_MODEL", str(folder1))
    assert DiffusionPrior.from_pretrained(device="cpu").name == str(folder1)


def test_without_a_name_it_is_the_pocket_model(folder1, tmp_path, monkeypatch):
    monkeypatch.delenv("MSD_TEACH_MODEL", raising=False)
    pocket = loading.BUNDLED["pocket"]
    monkeypatch.setitem(loading.BUNDLED, "pocket", pocket._replace(verified=lambda: folder1))
    assert DiffusionPrior.from_pretrained(device="cpu").name == str(folder1)
    assert DiffusionPrior.from_pretrained("pocket", device="cpu").name == str(folder1)


def test_the_list_of_ids_is_tried_in_order(folder1, monkeypatch):
    monkeypatch.setattr(loading, "STABLE_DIFFUSION_IDS", ("gone/first", "gone/second", str(folder1), "gone/third"))
    prior = DiffusionPrior.from_pretrained("stable-diffusion", device="cpu", local_files_only=True)
    assert prior.name == str(folder1)


def test_a_missing_network_is_waited_for_once(monkeypatch):
    """The Hub's client retries for 23 seconds; six ids would take minutes."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[tuple[str, bool]] = []

    def read(name: str, dtype: torch.dtype, offline: bool):
        asked.append((name, offline))
        raise LocalEntryNotFoundError("no answer")

    monkeypatch.setattr(loading, "read", read)
    with pytest.raises(ValueError, match="could not be loaded") as e:
        DiffusionPrior.from_pretrained("stable-diffusion", device="cpu")
    assert str(e.value).count("not in the cache") == 6 and str(e.value).count("the Hub does not answer") == 1
    first, *others = loading.STABLE_DIFFUSION_IDS
    assert asked == [(first, True), (first, False), *((name, True) for name in others)]


IMPORT = """
import sys
from msd_teach import DiffusionPrior
print(*sorted({"diffusers", "transformers", "huggingface_hub"} & set(sys.modules)), DiffusionPrior.__name__)
"""


def test_importing_the_name_loads_no_diffusers():
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["DiffusionPrior"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_half_precision_on_a_gpu(folder, prior):
    on_gpu, z = DiffusionPrior.from_pretrained(folder, device="cuda"), noise(2, 4, 8, 8)
    assert on_gpu.unet.dtype == torch.float16
    got = on_gpu.denoiser(WORDS)(z.cuda(), torch.tensor([0.5, 2.0], device="cuda"))
    assert (got.dtype, got.device.type) == (torch.float32, "cuda")
    assert apart(got.cpu(), prior.denoiser(WORDS)(z, torch.tensor([0.5, 2.0]))) < 2e-2
    assert on_gpu.decode(on_gpu.encode(noise(2, 3, 16, 16).sigmoid().cuda())).shape == (2, 3, 16, 16)


# ---------------------------------------------------------------- refusals


def test_a_model_that_is_not_there(monkeypatch):
    with pytest.raises(
        ValueError, match=r"(?s)model is 'nobody/nothing'.*Tried:\n  nobody/nothing: .*'pocket'.*cache"
    ) as e:
        DiffusionPrior.from_pretrained("nobody/nothing", local_files_only=True)
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in str(e.value)
    assert "Without a network" in str(e.value)

    def unreadable(name, dtype, offline):
        raise OSError("not here")

    monkeypatch.setattr(loading, "read", unreadable)  # a reader may well have one of them in a cache
    with pytest.raises(ValueError, match="Tried") as e:
        DiffusionPrior.from_pretrained("stable-diffusion", local_files_only=True)
    for name in loading.STABLE_DIFFUSION_IDS:
        assert f"  {name}: " in str(e.value)


def test_missing_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'msd_teach\[diffusion\]'"):
        DiffusionPrior.from_pretrained("nobody/nothing", local_files_only=True)


def test_missing_pocket_weights(tmp_path, monkeypatch):
    from msd_teach import pocket

    monkeypatch.delenv("MSD_TEACH_MODEL", raising=False)
    monkeypatch.setattr(pocket.weights, "__defaults__", (tmp_path,))
    with pytest.raises(ValueError, match="pocket weights are missing"):
        DiffusionPrior.from_pretrained()


@pytest.mark.parametrize(
    ("pipeline", "family"),
    [
        ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("StableDiffusionInpaintPipeline", "another family"),
    ],
)
def test_another_family_is_named_before_its_weights_are_read(tmp_path, pipeline, family):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with pytest.raises(
        ValueError, match=rf"is {family} \(its pipeline is {pipeline}\); supported are Stable Diffusion 1"
    ):
        DiffusionPrior.from_pretrained(tmp_path)


def test_pickled_weights_are_refused(folder1, tmp_path):
    model = shutil.copytree(folder1, tmp_path / "model")
    (weights,) = (model / "unet").glob("*.safetensors")
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="could not be loaded"):
        DiffusionPrior.from_pretrained(model, device="cpu")


def test_a_model_without_its_words_is_refused(folder1, tmp_path):
    """Transformers would make a tokenizer of two words, to which all prompts are alike."""
    model = shutil.copytree(folder1, tmp_path / "model")
    for file in ("tokenizer.json", "vocab.json", "merges.txt"):
        (model / "tokenizer" / file).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"the tokenizer knows 2 words of the text encoder's \d+; files of it"):
        DiffusionPrior.from_pretrained(model, device="cpu")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_missing_weights_are_not_made_up(folder1, tmp_path, part):
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(folder1, tmp_path / "model")
    (path,) = (model / part).glob("*.safetensors")
    weights = load_file(path)
    lost = sorted(weights)[3]
    del weights[lost]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"1 weights are missing, (text_model\.)?{re.escape(lost)} among them"):
        DiffusionPrior.from_pretrained(model, device="cpu")


def test_noise_levels_are_not_made_up(folder1):
    pipeline = StableDiffusionPipeline.from_pretrained(folder1)
    pipeline.scheduler = EDMEulerScheduler()
    with pytest.raises(ValueError, match="pipeline has a EDMEulerScheduler, without betas; a DDPM schedule"):
        DiffusionPrior(pipeline)


def test_latents_of_unknown_size_are_refused(folder1):
    pipeline = StableDiffusionPipeline.from_pretrained(folder1)
    pipeline.unet.register_to_config(sample_size=[8, 12])
    with pytest.raises(ValueError, match=r"sample_size \[8, 12\]; it must be one number"):
        DiffusionPrior(pipeline)


def test_a_precision_by_its_name_is_refused(folder1):
    """Diffusers would go on in float32."""
    with pytest.raises(ValueError, match=r"dtype is 'float16'; it must be a torch.dtype"):
        DiffusionPrior.from_pretrained(folder1, dtype="float16")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nor/this", "~/nor_this", "a/b/c"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(ValueError, match=rf"model is '{name}'; there is no such folder"):
        DiffusionPrior.from_pretrained(name)


def test_progress_bars_are_as_they_were(folder1):
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as of_transformers

    load(folder1)
    assert of_diffusers.is_progress_bar_enabled() and of_transformers.is_progress_bar_enabled()
    of_diffusers.disable_progress_bar()
    try:
        with loading.quietly():
            assert not of_transformers.is_progress_bar_enabled()
            assert not are_progress_bars_disabled()  # a download of gigabytes shows its own
        assert not of_diffusers.is_progress_bar_enabled() and of_transformers.is_progress_bar_enabled()
    finally:
        of_diffusers.enable_progress_bar()


def test_code_in_a_model_is_not_run(folder1, tmp_path):
    model, trace = shutil.copytree(folder1, tmp_path / "model"), tmp_path / "trace"
    (model / "unet" / "own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"unet": ["own", "Own"]}))
    with pytest.raises(ValueError, match="could not be loaded"):
        DiffusionPrior.from_pretrained(model, device="cpu")
    assert not trace.exists()


@pytest.fixture(scope="module")
def full_size() -> SimpleNamespace:
    """Stable Diffusion 1.5's UNet and autoencoder, without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        )
    parts = {"unet": unet.half(), "vae": vae.half(), "text_encoder": nn.Linear(1, 1)}
    return SimpleNamespace(**parts, vae_scale_factor=8)


def test_gpu_memory_of_the_real_model(full_size):
    whole, sliced = (loading.memory(full_size, slicing) / 2**30 for slicing in (False, True))
    assert 1.7 < sliced < whole < 4.5
    free = int(2**30 * (whole + sliced) / 2)
    assert loading.fit(full_size, free, None)
    assert loading.fit(full_size, free, True)
    assert not loading.fit(full_size, 2**30 * 8, None)
    with pytest.raises(
        ValueError, match=rf"about {whole:.1f} GiB needed, .* free. What helps: slicing=True, device='cpu'"
    ):
        loading.fit(full_size, free, False)
    with pytest.raises(
        ValueError, match=rf"about {sliced:.1f} GiB needed, 1.0 GiB free. What helps: device='cpu', model='pocket'"
    ):
        loading.fit(full_size, 2**30, None)


def test_too_little_gpu_memory(folder1, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**28, 2**33))
    with pytest.raises(ValueError, match=r"not enough GPU memory: about 0.5 GiB needed, 0.2 GiB free") as e:
        DiffusionPrior.from_pretrained(folder1, device="cuda")
    assert "dtype" not in str(e.value)
    with pytest.raises(ValueError, match=r"dtype=torch.float16"):
        DiffusionPrior.from_pretrained(folder1, device="cuda", dtype=torch.float32)


def test_only_the_pocket_model_refuses_words_it_never_read(folder1, monkeypatch):
    prior = load(folder1)
    prior.denoiser("a red zeppelin")
    pocket = loading.BUNDLED["pocket"]
    monkeypatch.setitem(loading.BUNDLED, "pocket", pocket._replace(folder=folder1))
    for options in ({"prompt": "a blu house"}, {"prompt": WORDS[0], "negative": "a blu house"}):
        with pytest.raises(ValueError, match=r"'a blu house' has unknown words: 'blu' \(nearest: blue"):
            prior.denoiser(**options)
    prior.denoiser(WORDS, negative="a photo of a small pink robot, back view.")


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
    with pytest.raises(ValueError, match="predicts 'sample'"):
        rescheduled(prior1, **SD, prediction_type="sample")
