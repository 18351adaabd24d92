"""Stable Diffusion as a denoiser D(z; σ) in variance-exploding latents, with its autoencoder and its noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..denoisers import Guided, Scale, check_scale
from ..tensors import noise_like, per_item
from .loading import check_parts, check_prompt, load

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SMALLEST_ALPHA_BAR = 2.0**-24  # schedules of zero terminal signal end at σ = ∞; diffusers' own samplers stop here too


class DiffusionPrior:
    """A text-to-image latent diffusion model of the Stable Diffusion 1 or 2 family as the prior p(y | prompt).

    Its latents y are (*batch, *shape), scaled to about unit variance; noisy ones are z = y + σn. Attributes: `shape`
    (4, h, w), `name` (what was loaded), `sigma_min` and `sigma_max` (the trained range), `levels` (σ of each training
    step, float64), `prediction` ("epsilon" or "v_prediction"), `dtype`, and diffusers' `unet`, `vae` and `pipeline`.

    Parameters are frozen; gradients flow to latents and images. `torch.func.jvp` of a denoiser needs the one attention
    kernel that has forward derivatives: `with torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    Raises:
        ValueError: a prediction type other than ε and v, a schedule without betas, a UNet for inpainting.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, name: str = "pipeline"):
        from diffusers import DDIMScheduler

        check_parts(name, pipeline)
        self.pipeline, self.name, self.unet, self.vae = pipeline, name, pipeline.unet, pipeline.vae
        self.dtype = pipeline.unet.dtype  # kept: diffusers goes through all modules for it, a millisecond a call
        for network in (self.unet, self.vae, pipeline.text_encoder):
            network.eval().requires_grad_(False)
        self.scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(pipeline.scheduler.config))
        self.prediction: str = self.scheduler.config["prediction_type"]
        size = self.unet.config["sample_size"]
        self.shape = (self.unet.config["in_channels"], size, size)
        kept = self.scheduler.alphas_cumprod.double().clamp(min=SMALLEST_ALPHA_BAR)
        self.levels = ((1 - kept) / kept).sqrt()
        self.sigma_min, self.sigma_max = self.levels[0].item(), self.levels[-1].item()
        self._embeddings: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        slicing: bool | None = None,
        local_files_only: bool = False,
    ) -> DiffusionPrior:
        """Loads a model by name: safetensors only, and never code from the model's repository.

        `model` is "pocket" (the small model in this package), "stable-diffusion" (the first that loads of
        `msd_teach.latent.loading.STABLE_DIFFUSION_IDS`), an id on the Hugging Face Hub, or a folder in the diffusers layout.
        Left out, it is what the environment variable MSD_TEACH_MODEL names, or else "pocket".

        `device` is the GPU if there is one; `dtype` float16 there and float32 on the CPU. `slicing` computes attention
        head by head and decodes picture by picture, to save memory; left out, it is used where the GPU's free memory
        asks for it. What was downloaded before is used as it is; `local_files_only` (or HF_HUB_OFFLINE=1) forbids more.

        Raises:
            ValueError: nothing could be loaded (with every id tried), a model of another family (SDXL, SD 3), too
                little GPU memory, or missing or damaged files of the pocket model.
        """
        if not isinstance(dtype, torch.dtype | None):
            raise ValueError(f"dtype is {dtype!r}; it must be a torch.dtype, such as torch.float16")
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
        return cls(*load(model, device, dtype, slicing, local_files_only))

    def __repr__(self) -> str:
        place = f"{self.dtype} on {self.unet.device}"
        return f"DiffusionPrior({self.name!r}: {self.prediction}, latents {self.shape}, {place})"

    def denoiser(
        self,
        prompt: str | Sequence[str],
        negative: str | Sequence[str] = "",
        scale: Scale = 7.5,
    ) -> Guided:
        """D(z; σ) of p(y | prompt), guided as u + s·(c − u) against `negative` in one call of the UNet.

        `prompt` and `negative` are one string, or one for each item of the last batch axis of z (*batch, 4, h, w);
        N samples are leading axes. `scale` is s as in `guided`: 1 and 0 cost one evaluation, anything else two.
        Outside the trained range [sigma_min, sigma_max] the network is asked at the nearer end; see `denoise`.

        Raises:
            ValueError: prompts that are no strings, do not match in number, or have words that the pocket model never
                read; a scale that is no finite number. When called: z that is no batch of latents, or does not fit the
                prompts.
        """
        check_scale(scale)
        c, u = self._contexts(prompt, "prompt"), self._contexts(negative, "negative")
        if len(u) not in (1, len(c)) and len(c) != 1:
            raise ValueError(f"negative has {len(u)} strings and prompt {len(c)}; give one, or as many as prompts")
        return _GuidedByText(_TextDenoiser(self, c), _TextDenoiser(self, u), scale)

    def sigmas(self, steps: int) -> Tensor:
        """The noise levels of diffusers' DDIM sampler for this model and number of steps, descending, in float64.

        `sample(denoise, n·√(1 + σ₀²), sigmas, "euler")` is then its trajectory, in latents z = √(1 + σ²) z_t. The last
        level is 0, or sigma_min where the scheduler was configured without `set_alpha_to_one` (there DDIM takes z_t for
        clean). Where DDIM's last step stands still it is left out, and where it strides past its own grid (spacing
        "linspace", or "trailing" with steps that do not divide the training steps) these levels stay on the grid.

        Raises:
            ValueError: fewer steps than 1, or more than the scheduler can place.
        """
        leading = self.scheduler.config["timestep_spacing"] == "leading"
        limit = len(self.levels) - (self.scheduler.config["steps_offset"] if leading else 0)
        if not isinstance(steps, Integral) or not 1 <= steps <= limit:
            raise ValueError(f"steps is {steps!r}; it must be an integer from 1 to {limit}")
        self.scheduler.set_timesteps(steps)
        grid = self.levels[self.scheduler.timesteps[:steps]]  # rounding appends a t = −1 to some "trailing" grids
        last = 0 * grid[:1] if self.scheduler.final_alpha_cumprod == 1 else self.levels[:1]
        return torch.cat([grid, last[last < grid[-1]]])

    def time(self, sigma: Tensor) -> Tensor:
        """The training step, fractional, at noise level σ: linear in log σ, and clamped to the trained range."""
        table = self.levels.to(sigma.device).log()
        log_sigma = sigma.to(table).clamp(self.sigma_min, self.sigma_max).log().contiguous()
        above = torch.searchsorted(table, log_sigma).clamp(min=1)
        return above - (table[above] - log_sigma) / (table[above] - table[above - 1])

    def denoise(self, z: Tensor, sigma: float | Tensor, context: Tensor) -> Tensor:
        """D(z; σ) for z (*batch, 4, h, w) under text embeddings `context` (*batch, tokens, width), in one UNet call.

        With further axes on the left of `context` (several texts for each z) the result has them too.

        In the trained range this is z − σε, or √ᾱ z_t − √(1 − ᾱ) v, with z_t = z/√(1 + σ²). Beyond either end the
        network is asked at that end, σ_c, about z_t scaled by the true σ, and its v (or v = √(1 + σ_c²) ε − σ_c z_t) is
        held: D = (z_t − σv)/√(1 + σ²). So D → z as σ → 0, and D → −v, bounded, as σ → ∞, where z − σε would grow.

        Raises:
            ValueError: a sigma that is negative, NaN, or no prefix of z's batch.
        """
        items, event = context.shape[:-2], z.shape[-3:]
        # in float64, whatever z is: rounding σ to float32 would move t, and with it the time embedding
        σ = per_item(sigma, z.new_zeros((), dtype=torch.float64).expand(z.shape))
        if σ.ndim and σ.shape[-3:].numel() != 1:
            raise ValueError(f"sigma has shape {tuple(σ.shape)}; it may not vary within a latent")
        t = self.time(σ)
        if t.ndim:
            t = t.expand(*items, 1, 1, 1).flatten()
        of_z, of_output = (weight.to(z.dtype) for weight in self._weights(σ))
        z_t = (z / (1 + σ**2).sqrt().to(z)).to(self.dtype).expand(*items, *event).reshape(-1, *event).contiguous()
        output = self.unet(z_t, t, context.reshape(-1, *context.shape[-2:]), return_dict=False)[0]
        return of_z * z - of_output * output.to(z.dtype).reshape(*items, *event)

    def _weights(self, σ: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of D = a·z − b·output."""
        σ_c = σ.clamp(self.sigma_min, self.sigma_max)
        if self.prediction == "v_prediction":
            return 1 / (1 + σ**2), σ / (1 + σ**2).sqrt()
        return (1 + σ * σ_c) / (1 + σ**2), σ * ((1 + σ_c**2) / (1 + σ**2)).sqrt()

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents (*batch, 4, h, w) of images (*batch, 3, 8h, 8w) in [0, 1] (4h, 4w in the pocket model).

        The autoencoder's posterior mean, or a draw from its posterior if a generator is given. Differentiable.

        Raises:
            ValueError: images of another shape.
        """
        factor, channels = self.pipeline.vae_scale_factor, self.vae.config["in_channels"]
        fits = images.ndim >= 3 and images.shape[-3] == channels and not any(n % factor for n in images.shape[-2:])
        if not (fits and images.is_floating_point()):
            wanted = f"({channels}, H, W), H and W multiples of {factor}, of floats in [0, 1]"
            raise ValueError(f"images have shape {tuple(images.shape)}, {images.dtype}; it must end in {wanted}")
        flat = (2 * images - 1).reshape(-1, *images.shape[-3:]).to(self.vae.dtype)
        posterior = self.vae.encode(flat).latent_dist
        y = posterior.mean
        if generator is not None:
            y = y + posterior.std * noise_like(y, generator)
        latents = self.vae.config["scaling_factor"] * y.to(images.dtype)
        return latents.reshape(*images.shape[:-3], *latents.shape[1:])

    def decode(self, latents: Tensor) -> Tensor:
        """Images (*batch, 3, 8h, 8w) in [0, 1] of clean latents (*batch, 4, h, w). Differentiable up to the clipping.

        Raises:
            ValueError: latents of another shape.
        """
        self._check_latents(latents, "latents")
        flat = (latents / self.vae.config["scaling_factor"]).reshape(-1, *latents.shape[-3:]).to(self.vae.dtype)
        images = (self.vae.decode(flat).sample.to(latents.dtype) / 2 + 0.5).clamp(0, 1)
        return images.reshape(*latents.shape[:-3], *images.shape[1:])

    def _check_latents(self, z: Tensor, name: str) -> None:
        if z.ndim < 3 or z.shape[-3] != self.shape[0] or not z.is_floating_point() or not z.numel():
            wanted = f"({self.shape[0]}, h, w), of floats; {self.name} was trained on {self.shape}"
            raise ValueError(f"{name} has shape {tuple(z.shape)}, {z.dtype}; it must end in {wanted}")

    @torch.no_grad()
    def _contexts(self, prompts: str | Sequence[str], name: str) -> Tensor:
        """Text embeddings (P, tokens, width), each computed once."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, Sequence) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} is {prompts!r}; it must be a string or several")
        for text in texts:
            if text not in self._embeddings:
                check_prompt(self.name, text)
                self._embeddings[text] = self.pipeline.encode_prompt(text, self.unet.device, 1, False)[0][0]
        return torch.stack([self._embeddings[text] for text in texts])


@dataclass(frozen=True, eq=False)  # two are never compared: tensors would answer item by item
class _TextDenoiser:
    prior: DiffusionPrior
    contexts: Tensor

    def spread(self, z: Tensor) -> Tensor:
        """The embeddings (*batch, tokens, width) for each item of z."""
        self.prior._check_latents(z, "z")
        batch, count = z.shape[:-3], len(self.contexts)
        if count != 1 and (not batch or batch[-1] != count):
            wanted = f"one, or one for each item of its last batch axis ({batch[-1] if batch else 'it has none'})"
            raise ValueError(f"there are {count} prompts and z has shape {tuple(z.shape)}; give {wanted}")
        each = self.contexts if batch else self.contexts[0]
        return each.expand(*batch, *self.contexts.shape[1:])

    def __call__(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        return self.prior.denoise(z, sigma, self.spread(z))


class _GuidedByText(Guided):
    cond: _TextDenoiser
    uncond: _TextDenoiser

    def both(self, z: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """Both answers from one call of the UNet."""
        u, c = self.cond.prior.denoise(z, sigma, torch.stack([self.uncond.spread(z), self.cond.spread(z)]))
        return u, c
