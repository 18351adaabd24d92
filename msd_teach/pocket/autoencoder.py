"""The autoencoder: 64x64 pictures to 16x16x4 latents and back (diffusers' AutoencoderKL, three levels)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..files import cache_folder
from ..measure.images import signal_to_noise
from .data import Renders, load_renders
from .training import Plan, Trained, device_of, fit, save_sheet

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

PLAN = Plan(steps=9_500, batch=8, rate=1e-3)
DECODER_PLAN = Plan(steps=6_000, batch=4, rate=4e-4, sheet_every=1500)
RENDERS = 28_000
OBJECT_WEIGHT = 5.0  # the object covers a fifth of the picture and all of its interest
GRADIENT_WEIGHT = 2.0  # of the error of differences between neighbouring pixels, which is what makes pictures sharp
SQUARED_WEIGHT = 8.0  # of its square, in the decoder's own stage: absolute errors alone leave details too pale
DEAD = 1.0  # dB: a latent channel worth less counts as dead
BEGINNING = 0.2  # of what residual blocks of the encoder add, at first
LATENT_NOISE = 0.03  # added to latents, in units of their deviation: what the last step of a sampler leaves
KL_WEIGHT = 1e-8  # at 1e-6 the least useful channel sinks into the prior, and never comes back
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCALING_FACTOR = 0.18215  # Stable Diffusion's; `standardise` makes it true of these latents


def build() -> AutoencoderKL:
    """An untrained autoencoder of 2.7 M parameters, whose encoder begins as a Haar transform."""
    from diffusers import AutoencoderKL

    network = AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=SCALING_FACTOR,
    )
    begin_as_haar(network)
    return network


@torch.no_grad()
def begin_as_haar(network: AutoencoderKL) -> None:
    """Let the pixels reach the last level of the encoder whole: 3 x 64 x 64 numbers as 48 channels of 16 x 16.

    The first convolution copies the three colours, each downsampling convolution is an orthonormal 2x2 Haar transform
    of the channels so far, shortcuts between levels are identities, and what the residual blocks add starts small.
    The decoder's shortcuts are identities, too. Nothing here is held fixed: it is where training starts.
    """
    encoder, carried = network.encoder, 3
    encoder.conv_in.weight[:carried] = 0
    encoder.conv_in.weight[:carried, :, 1, 1] = torch.eye(carried)
    encoder.conv_in.bias[:carried] = 0
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    haar = torch.einsum("ai,bj->abij", pair, pair).flatten(0, 1)  # (4, 2, 2): a mean and three details
    for block in encoder.down_blocks:
        for downsampler in block.downsamplers or ():  # it pads below and on the right: the 2x2 pixels come first
            convolution = downsampler.conv
            convolution.weight[: 4 * carried] = 0
            convolution.bias[: 4 * carried] = 0
            for i in range(carried):
                convolution.weight[i : 4 * carried : carried, i, :2, :2] = haar
            carried *= 4
    for part in (encoder, network.decoder):
        for name, layer in part.named_modules():
            if name.endswith("conv_shortcut"):
                nn.init.eye_(layer.weight[:, :, 0, 0])
                nn.init.zeros_(layer.bias)
    for name, layer in encoder.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            layer.weight *= BEGINNING
            layer.bias *= BEGINNING


@torch.no_grad()
def begin_from(folder: Path, x: Tensor) -> AutoencoderKL:
    """A trained autoencoder to go on with; if the latent channel that matters least to pictures x is dead, it starts anew.

    Its mean becomes a random mixture of the encoder's last features with the deviation that its fellows have, its
    posterior narrow, and the decoder hears a little of it.
    """
    from diffusers import AutoencoderKL

    network = AutoencoderKL.from_pretrained(folder)
    into, out = network.quant_conv, network.post_quant_conv
    costs = channel_costs(network, x)
    worst = costs.index(min(costs))
    if costs[worst] >= DEAD:
        return network
    generator, channels = torch.Generator().manual_seed(0), len(costs)
    into.weight[[worst, channels + worst]] = 0
    into.weight[worst] = torch.randn(into.weight[worst].shape, generator=generator)
    into.bias[[worst, channels + worst]] = torch.tensor([0.0, -2.0])
    drawn = latents(network, x)[:, worst]
    into.weight[worst] /= SCALING_FACTOR * drawn.std()
    into.bias[worst] = -drawn.mean() / (SCALING_FACTOR * drawn.std())
    out.weight[:, worst] = 0.05 * torch.randn(out.weight[:, worst].shape, generator=generator)
    return network


def train(renders: int = RENDERS, plan: Plan = PLAN, start: Path | None = None) -> Trained[AutoencoderKL]:
    """Train the autoencoder, or go on; gives it with standardised latents. `start` is a folder of one to begin from.

    Raises:
        ValueError: no weights in `start`; a checkpoint of another recipe.
    """
    check_folder(start)
    data = load_renders("train", renders)
    network = build() if start is None else begin_from(start, data.pixels(torch.arange(min(renders, 200))))
    trained = _fit("autoencoder", network, data, plan, start)
    standardise(trained.network, data.pixels(torch.arange(min(renders, 2000))))
    return trained


def train_decoder(start: Path, renders: int = RENDERS, plan: Plan = DECODER_PLAN) -> Trained[AutoencoderKL]:
    """Train the decoder of the autoencoder in `start` alone, or go on: latents, and all that has learned them, stay.

    Raises:
        ValueError: as `train`.
    """
    from diffusers import AutoencoderKL

    check_folder(start)
    network = AutoencoderKL.from_pretrained(start)
    encoder_of(network).requires_grad_(False)
    return _fit("decoder", network, load_renders("train", renders), plan, start, SQUARED_WEIGHT)


def check_folder(start: Path | None) -> None:
    """Refuses a folder without the weights of an autoencoder."""
    if start is not None and not (start / WEIGHTS).is_file():
        raise ValueError(f"start is {start}; it must be a folder with {WEIGHTS}")


def encoder_of(network: AutoencoderKL) -> nn.Module:
    """What makes latents of pictures."""
    return nn.ModuleList([network.encoder, network.quant_conv])


def _fit(
    stage: str, network: AutoencoderKL, data: Renders, plan: Plan, start: Path | None, squared: float = 0.0
) -> Trained[AutoencoderKL]:
    shown = load_renders("test", 24).pixels(torch.arange(24))

    def loss(network: AutoencoderKL, index: Tensor, generator: torch.Generator) -> Tensor:
        return reconstruction_loss(network, data, index, generator, squared)

    def sheet(network: AutoencoderKL, path: Path) -> None:
        pairs = torch.stack([shown, reconstruct(network, shown)], 1).flatten(0, 1)
        save_sheet(pairs / 2 + 0.5, 12, path)

    settings = {
        "start": "" if start is None else hashlib.sha256((start / WEIGHTS).read_bytes()).hexdigest(),
        "object weight": OBJECT_WEIGHT,
        "gradient weight": GRADIENT_WEIGHT,
        "squared gradient weight": squared,
        "latent noise": LATENT_NOISE,
        "KL weight": KL_WEIGHT,
    }
    return fit(stage, network, loss, len(data.captions), plan, cache_folder("pocket") / stage, sheet, settings)


def reconstruction_loss(
    network: AutoencoderKL, data: Renders, index: Tensor, generator: torch.Generator, squared: float = 0.0
) -> Tensor:
    """L1 + 2 MSE + 2 L1 of image gradients, the object weighted five times, plus 1e-8 of the KL divergence to N(0, I).

    The gradients are differences of neighbouring pixels, across and down; `squared` is the weight of their MSE. Latents
    get a little noise beside their posterior's, which at this weight would all but vanish.
    """
    device = device_of(network)
    x = data.pixels(index).to(device)
    posterior = network.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
    deviation = posterior.mean.detach().std((0, 2, 3), keepdim=True)
    spread = (posterior.std**2 + (LATENT_NOISE * deviation) ** 2).sqrt()
    y = network.decode(posterior.mean + spread * noise).sample.float()
    weight = 1 + (OBJECT_WEIGHT - 1) * data.mask[index].to(device).float()[:, None] / 255
    error = y - x
    value = (weight * (error.abs() + 2 * error**2)).sum() / (3 * weight.sum())
    for axis in (2, 3):
        size = x.shape[axis] - 1
        near = (weight.narrow(axis, 0, size) + weight.narrow(axis, 1, size)) / 2
        change = error.diff(dim=axis)
        value = value + (near * (GRADIENT_WEIGHT * change.abs() + squared * change**2)).sum() / (6 * near.sum())
    return value + KL_WEIGHT * posterior.kl().float().mean()


@torch.no_grad()
def reconstruct(network: AutoencoderKL, x: Tensor) -> Tensor:
    """Pictures (N, 3, 64, 64) in [-1, 1] through the posterior mean and back, clipped to [-1, 1]."""
    return decoded(network, latents(network, x))


@torch.no_grad()
def latents(network: AutoencoderKL, x: Tensor) -> Tensor:
    """Posterior means (N, 4, 16, 16) of pictures (N, 3, 64, 64) in [-1, 1]."""
    parts = [network.encode(part).latent_dist.mode() for part in x.to(device_of(network)).split(50)]
    return torch.cat(parts).to(x.device)


@torch.no_grad()
def decoded(network: AutoencoderKL, z: Tensor) -> Tensor:
    """Pictures (N, 3, 64, 64), clipped to [-1, 1], of latents (N, 4, 16, 16)."""
    parts = [network.decode(part).sample for part in z.to(device_of(network)).split(50)]
    return torch.cat(parts).clamp(-1, 1).to(z.device)


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


@torch.no_grad()
def channel_costs(autoencoder: AutoencoderKL, x: Tensor) -> list[float]:
    """The signal-to-noise ratio in dB that pictures lose when one latent channel is held at its mean, for each channel.

    A channel that costs nothing is dead.
    """
    z = latents(autoencoder, x)
    full = signal_to_noise(x, decoded(autoencoder, z))
    costs: list[float] = []
    for channel in range(z.shape[1]):
        without = z.clone()
        without[:, channel] = z[:, channel].mean()
        costs.append(full - signal_to_noise(x, decoded(autoencoder, without)))
    return costs
