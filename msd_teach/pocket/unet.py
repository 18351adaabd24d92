"""The denoiser: Stable Diffusion's cross-attention UNet on 16x16x4 latents, trained to predict the noise."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..files import cache_folder, load, save_atomically
from .autoencoder import encoder_of
from .clip import LENGTH, tokens
from .data import load_renders
from .training import Plan, Trained, device_of, fit, save_sheet

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTokenizer

PLAN = Plan(steps=30_000, batch=24, rate=1e-3, average=0.9995)
RENDERS = 32_000
CHANNELS = (64, 96, 128)
DROPOUT = 0.1  # share of captions replaced by the empty one, for guidance
SNR_BOUND = 5.0
SHEET = (
    "a red house",
    "a yellow duck, side view",
    "a blue car, front view",
    "a green chair, back view",
    "a white bear, front view",
    "a pink robot, side view",
    "a small purple mug",
    "an orange boat, overhead view",
    "a cyan rocket, side view",
    "a green tree, front view",
    "a red lamp, side view",
    "a white snowman, front view",
)


def build() -> UNet2DConditionModel:
    """An untrained UNet of 5.6 M parameters, with cross-attention on the lower two of its three levels."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,  # the number of heads, whatever its name says
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule, to be sampled by DDIM."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train(
    autoencoder: AutoencoderKL, clip: CLIPModel, tokenizer: CLIPTokenizer, renders: int = RENDERS, plan: Plan = PLAN
) -> Trained[UNet2DConditionModel]:
    """Train the UNet, or go on. Latents and text embeddings are computed first."""
    folder = cache_folder("pocket") / "unet"
    mean, std, captions = encode_all(autoencoder, renders, folder)
    vocabulary = ["", *sorted(set(captions))]
    position = {caption: i for i, caption in enumerate(vocabulary)}
    said = torch.tensor([position[caption] for caption in captions])
    context = embed(clip, tokenizer, vocabulary)
    schedule = build_scheduler()
    factor = autoencoder.config["scaling_factor"]

    def loss(network: UNet2DConditionModel, index: Tensor, generator: torch.Generator) -> Tensor:
        y = mean[index].float() + std[index].float() * torch.randn(mean[index].shape, generator=generator)
        heard = torch.rand(len(index), generator=generator) >= DROPOUT
        return noise_loss(network, schedule, factor * y, context[said[index] * heard], generator)

    def sheet(network: UNet2DConditionModel, path: Path) -> None:
        pipeline = assemble(autoencoder, clip, tokenizer, network).to(device_of(network))
        generator = torch.Generator().manual_seed(0)
        prompts = [prompt for prompt in SHEET for _ in range(4)]
        images = pipeline(
            prompts, num_inference_steps=30, guidance_scale=3.0, generator=generator, output_type="pt"
        ).images
        save_sheet(images, 8, path)

    settings = {
        "channels": str(CHANNELS),
        "dropout": DROPOUT,
        "SNR bound": SNR_BOUND,
        "encoder": fingerprint(encoder_of(autoencoder)),
        "text encoder": fingerprint(clip.text_model),
    }
    return fit("UNet", build(), loss, renders, plan, folder, sheet, settings)


def noise_loss(
    network: UNet2DConditionModel, schedule: DDIMScheduler, y: Tensor, context: Tensor, generator: torch.Generator
) -> Tensor:
    """The squared error of the predicted noise at random times, with min-SNR-5 weights (Hang et al. 2023)."""
    t = torch.randint(schedule.config["num_train_timesteps"], (len(y),), generator=generator)
    noise = torch.randn(y.shape, generator=generator)
    z = schedule.add_noise(y, noise, t)  # type: ignore[arg-type]
    device = device_of(network)
    guess = network(z.to(device), t.to(device), context.to(device)).sample.float()
    kept = schedule.alphas_cumprod[t]
    snr = kept / (1 - kept)
    weight = (snr.clamp(max=SNR_BOUND) / snr).to(device)
    return (weight * ((guess - noise.to(device)) ** 2).mean((1, 2, 3))).mean()


@torch.no_grad()
def encode_all(autoencoder: AutoencoderKL, renders: int, folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Posterior means and standard deviations (N, 4, 16, 16) of the training renders as fp16, and their captions.

    Kept in `folder`, and made anew for another encoder or another number of renders.
    """
    data = load_renders("train", renders)
    path = folder / "latents.pt"
    mark = [renders, fingerprint(encoder_of(autoencoder))]
    if path.exists():
        kept = load(path)
        if kept["mark"] == mark:
            return kept["mean"], kept["std"], data.captions
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autoencoder.to(device)
    means, deviations = [], []
    for index in torch.arange(renders).split(50):
        posterior = autoencoder.encode(data.pixels(index).to(device)).latent_dist
        means.append(posterior.mean.half().cpu())
        deviations.append(posterior.std.half().cpu())
    autoencoder.cpu()
    mean, std = torch.cat(means), torch.cat(deviations)
    save_atomically({"mark": mark, "mean": mean, "std": std}, path)
    return mean, std, data.captions


def fingerprint(network: nn.Module) -> str:
    """A checksum of a network's weights."""
    weights = hashlib.sha256()  # not a sum of them: its rounding depends on the number of threads
    for p in network.parameters():
        weights.update(p.detach().cpu().numpy().tobytes())
    return weights.hexdigest()


@torch.no_grad()
def embed(clip: CLIPModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """What the UNet hears: the text tower's last hidden states (N, 16, 128)."""
    ids = tokens(tokenizer, captions)
    parts = [clip.text_model(input_ids=part).last_hidden_state for part in ids.split(500)]
    return torch.cat(parts).reshape(len(captions), LENGTH, -1)


def assemble(
    autoencoder: AutoencoderKL, clip: CLIPModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """A stock StableDiffusionPipeline of these parts, without progress bars."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    text = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(clip.text_model.state_dict())
    pipeline = StableDiffusionPipeline(
        vae=autoencoder, text_encoder=text.eval(), tokenizer=tokenizer, unet=unet, scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
