"""The autoencoder: 64x64 pictures to 16x16x4 latents and back (diffusers' AutoencoderKL, three levels)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..files import cache_folder
from .data import Renders, load_renders
from .training import Plan, Trained, device_of, fit, save_sheet

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

PLAN = Plan(steps=10_000, batch=4, rate=1.2e-3)
RENDERS = 32_000
OBJECT_WEIGHT = 5.0  # the object covers a fifth of the picture and all of its interest
KL_WEIGHT = 1e-6
SCALING_FACTOR = 0.18215  # Stable Diffusion's; `standardise` makes it true of these latents


def build() -> AutoencoderKL:
    """An untrained autoencoder of 2.7 M parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=SCALING_FACTOR,
    )


def train(renders: int = RENDERS, plan: Plan = PLAN) -> Trained[AutoencoderKL]:
    """Train the autoencoder, or go on; gives it with standardised latents."""
    data = load_renders("train", renders)
    shown = load_renders("test", 24).pixels(torch.arange(24))

    def loss(network: AutoencoderKL, index: Tensor, generator: torch.Generator) -> Tensor:
        return reconstruction_loss(network, data, index, generator)

    def sheet(network: AutoencoderKL, path: Path) -> None:
        pairs = torch.stack([shown, reconstruct(network, shown)], 1).flatten(0, 1)
        save_sheet(pairs / 2 + 0.5, 12, path)

    trained = fit("autoencoder", build(), loss, renders, plan, cache_folder("pocket") / "autoencoder", sheet)
    standardise(trained.network, data.pixels(torch.arange(min(renders, 2000))))
    return trained


def reconstruction_loss(network: AutoencoderKL, data: Renders, index: Tensor, generator: torch.Generator) -> Tensor:
    """L1 + 2 MSE with the object's pixels weighted five times, plus 1e-6 of the KL divergence to N(0, I)."""
    device = device_of(network)
    x = data.pixels(index).to(device)
    posterior = network.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
    y = network.decode(posterior.mean + posterior.std * noise).sample.float()
    weight = 1 + (OBJECT_WEIGHT - 1) * data.mask[index].to(device).float()[:, None] / 255
    error = (y - x).abs() + 2 * (y - x) ** 2
    return (weight * error).sum() / (3 * weight.sum()) + KL_WEIGHT * posterior.kl().float().mean()


@torch.no_grad()
def reconstruct(network: AutoencoderKL, x: Tensor) -> Tensor:
    """Pictures (N, 3, 64, 64) in [-1, 1] through the posterior mean and back, clipped to [-1, 1]."""
    parts = [
        network.decode(network.encode(part).latent_dist.mode()).sample for part in x.to(device_of(network)).split(50)
    ]
    return torch.cat(parts).clamp(-1, 1).to(x.device)


@torch.no_grad()
def standardise(network: AutoencoderKL, x: Tensor) -> None:
    """Shift and scale each latent channel to mean 0 and standard deviation 1/0.18215, and undo it in the decoder.

    The deviation is that of draws from the posterior, which the UNet learns: in a channel that the autoencoder leaves
    unused the means hardly vary, and would be blown up with the noise around them. Done once, in the 1x1 convolutions
    beside the latent: pictures stay the same, and the factor that code for Stable Diffusion multiplies with gives unit
    variance here too.
    """
    posteriors = [network.encode(part).latent_dist for part in x.to(device_of(network)).split(50)]
    z, noise = torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])
    mean = z.mean((0, 2, 3))
    scale = SCALING_FACTOR * (z.var((0, 2, 3)) + noise.square().mean((0, 2, 3))).sqrt()
    into, out = network.quant_conv, network.post_quant_conv
    assert into is not None and out is not None
    assert into.bias is not None and out.bias is not None
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= scale[None, :, None, None]
    channels = len(mean)  # the encoder gives means, then log variances
    into.bias[:channels] -= mean
    into.bias[:channels] /= scale
    into.weight[:channels] /= scale[:, None, None, None]
    into.bias[channels:] -= 2 * scale.log()


def signal_to_noise(x: Tensor, y: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], over all pixels or those under a mask (N, H, W)."""
    squared = ((x - y) ** 2).mean(1)
    weight = torch.ones_like(squared) if mask is None else mask
    return 10 * math.log10(4 / float((weight * squared).sum() / weight.sum()))
