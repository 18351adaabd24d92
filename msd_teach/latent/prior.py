"""Stable Diffusion as a denoiser D(z; σ) in variance-exploding latents, with its autoencoder and its noise levels."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..denoisers import Guided, Scale, check_scale
from ..sampling import LevelTable
from ..tensors import noise_like, per_item
from .loading import check_prompt, fitting, load
from .parts import check_network, check_pipeline, ddim, noise_levels, prediction_type
from .preconditioning import VPEpsilon, VPVelocity

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

OVERSHOOT = 0.5  # how far beyond [0, 1] a picture under optimisation may lie; less than any other convention does


class DiffusionPrior:
    """A text-to-image latent diffusion model of the Stable Diffusion 1 or 2 family as the prior p(y | prompt).

    Its latents y are (*batch, *shape), scaled to about unit variance; noisy ones are z = y + σn. Attributes: `shape`
    (4, h, w), `name` (what was loaded), `sigma_min` and `sigma_max` (the trained range), `levels` (σ of each training
    step, float64), `level` (a function of t in [0, 1] to σ, the inverse of `time`: `vp_sigma` for this model's own levels),
    `prediction` ("epsilon" or "v_prediction"), `preconditioning`, diffusers' `unet`, `vae` and `pipeline`, and
    `scheduler` (DDIM on the same levels). The levels are those that the pipeline's scheduler has now.

    Parameters are frozen; gradients flow to latents and images. The UNet computes in its own precision, and all that is
    returned is float32 or better; an autoencoder in half precision is copied into float32, since its gradient would be
    lost in rounding. `torch.func.jvp` of a denoiser needs the one attention kernel that has forward derivatives:
    `with torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    Raises:
        ValueError: a pipeline of another family, or parts that are missing or do not fit each other.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, name: str = "pipeline"):
        check_pipeline(name, pipeline)
        levels = noise_levels(name, pipeline.scheduler)
        self.prediction = prediction_type(name, pipeline.scheduler)
        self.preconditioning = {"epsilon": VPEpsilon, "v_prediction": VPVelocity}[self.prediction](levels)
        self.levels, self.sigma_min, self.sigma_max = levels, levels[0].item(), levels[-1].item()
        self.level = LevelTable(levels)
        self.pipeline, self.name, self.scheduler = pipeline, name, ddim(pipeline.scheduler)
        self.unet: Any = pipeline.unet
        self.vae: Any = pipeline.vae
        for network in (self.unet, self.vae, pipeline.text_encoder):
            network.eval().requires_grad_(False)
        if torch.finfo(self.vae.dtype).bits < 32:
            self.vae = copy.deepcopy(self.vae).float()
        size = self.unet.config["sample_size"]
        self.shape: tuple[int, int, int] = (self.unet.config["in_channels"], size, size)
        self._embeddings: dict[tuple, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        local_files_only: bool = False,
    ) -> DiffusionPrior:
        """Loads a model by name: safetensors only, and never code from the model's repository.

        `model` is "pocket" (the small model in this package), "stable-diffusion" (the first that loads of
        `msd_teach.latent.loading.STABLE_DIFFUSION_IDS`), an id on the Hugging Face Hub, or a folder in the diffusers layout.
        Left out, it is what the environment variable MSD_TEACH_MODEL names, or else "pocket".

        `device` is the GPU if there is one; `dtype`, the UNet's and the text encoder's, float16 there and float32 on the
        CPU. What was downloaded before is used as it is; `local_files_only` (or HF_HUB_OFFLINE=1) forbids more. With
        float16 the files of half size are downloaded where there are any.

        Raises:
            ValueError: nothing could be loaded (with every id tried), a model of another family (SDXL, SD 3), a device
                that is not there, too little GPU memory, or missing or damaged files of the pocket model.
        """
        return cls(*load(model, device, dtype, local_files_only))

    def with_network(self, unet: Any) -> DiffusionPrior:
        """The same prior with another UNet, for example one that carries a LoRA; texts, levels and autoencoder are shared.

        The network is neither frozen nor taken out of training mode: that is for whoever trains it.

        Raises:
            ValueError: a network of other latents, of texts of another width, or that needs more than these.
        """
        check_network("the prior", unet, self.shape[0], self.pipeline.text_encoder.config.hidden_size)
        if unet.config["sample_size"] != self.shape[-1]:
            raise ValueError(f"unet has sample_size {unet.config['sample_size']}; it must be {self.shape[-1]}")
        other = copy.copy(self)
        other.unet = unet
        return other

    @property
    def side(self) -> int:
        """Pixels a side of the pictures that the latents of `shape` stand for."""
        return self.shape[-1] * self._factor

    @property
    def _factor(self) -> int:
        """Pixels a latent's cell, along a side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return self._weight.dtype

    @property
    def _weight(self) -> Tensor:
        """A weight of the UNet, which says where and in which precision it computes.

        (diffusers' own `dtype` goes through all modules, a millisecond a call; stored weights may be narrower or no floats.)
        """
        return next(p for p in self.unet.parameters() if p.is_floating_point() and p.itemsize > 1)

    def __repr__(self) -> str:
        place = f"{self.dtype} on {self._weight.device}"
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
        Outside the trained range [sigma_min, sigma_max] the network is asked at the nearer end and its v is held.

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

    def sigmas(self, steps: int, ddim: bool = False) -> Tensor:
        """Noise levels for `steps` solver steps, descending to 0, in float64, spaced as the model's scheduler says.

        `sample(denoise, prior.start(…, sigma=sigmas[0]), sigmas)` draws from the model. With `ddim` the last level is
        that of diffusers' DDIM sampler, whose trajectory is then Euler's in latents z = √(1 + σ²) z_t: sigma_min where
        the scheduler was configured without `set_alpha_to_one` (there DDIM takes z_t for clean). Where DDIM's last step
        stands still it is left out, and where it strides past its own grid (spacing "linspace", or "trailing" with steps
        that do not divide the training steps) these levels stay on the grid.

        Raises:
            ValueError: fewer steps than 1, or more than the scheduler can place.
        """
        leading = self.scheduler.config["timestep_spacing"] == "leading"
        limit = len(self.levels) - (self.scheduler.config["steps_offset"] if leading else 0)
        if not isinstance(steps, Integral) or not 1 <= steps <= limit:
            raise ValueError(f"steps is {steps!r}; it must be an integer from 1 to {limit}")
        scheduler = copy.copy(self.scheduler)  # a pipeline may be in the middle of its own steps
        scheduler.set_timesteps(int(steps))
        grid = self.levels[scheduler.timesteps[:steps]]  # rounding appends a t = −1 to some "trailing" grids
        last = self.levels[:1] if ddim and not scheduler.config["set_alpha_to_one"] else 0 * grid[:1]
        return torch.cat([grid, last[last < grid[-1]]])

    def start(
        self, *batch: int, sigma: float | Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Noise (*batch, 4, h, w) to start a sampler from at level σ (left out: sigma_max), on the UNet's device.

        Its standard deviation is √(1 + σ²), that of latents of unit variance under noise σ: z_t is unit noise.

        Raises:
            ValueError: a sigma that is negative, NaN or infinite.
        """
        σ = self.sigma_max if sigma is None else float(sigma)
        if not 0 <= σ < math.inf:
            raise ValueError(f"sigma is {σ}; it must be >= 0 and finite")
        place = self._weight.device
        return noise_like(torch.empty(*batch, *self.shape, device=place), generator) * math.sqrt(1 + σ**2)

    def time(self, sigma: float | Tensor) -> Tensor:
        """The time in [0, 1] at noise level σ, of σ's shape, in float64 on the CPU; the inverse of `level`.

        It is the training step over their number less one: linear in log σ, and clamped to the trained range.

        Raises:
            ValueError: a sigma that is negative or NaN.
        """
        σ = torch.as_tensor(sigma).to("cpu").double()
        if not (σ >= 0).all():
            raise ValueError(f"sigma is {sigma}; it must be >= 0")
        return self.preconditioning.t(σ) / (len(self.levels) - 1)

    def denoise(self, z: Tensor, sigma: float | Tensor, context: Tensor) -> Tensor:
        """D(z; σ) for z (*batch, 4, h, w) under text embeddings `context` (*batch, tokens, width), in one UNet call.

        With further axes on the left of `context` (several texts for each z) the result has them too. It is
        c_skip z + c_out F(c_in z; t) with the factors of `preconditioning`.

        Raises:
            ValueError: z that is no batch of latents; a sigma that is negative, NaN, infinite, or no prefix of z's batch;
                a context that does not fit z; out of GPU memory.
        """
        self._check_latents(z, "z")
        items, event = context.shape[:-2], z.shape[-3:]
        if items[max(0, len(items) - z.ndim + 3) :] != z.shape[:-3]:
            raise ValueError(f"context has shape {tuple(context.shape)}; it must be (…, *batch, tokens, width) for z's")
        # In float64, whatever z is: rounding σ would move t, and with it the time embedding. On the CPU, since not every
        # device has float64, where a number (and not a tensor) meets z on any device.
        σ = per_item(sigma, torch.zeros((), dtype=torch.float64).expand(z.shape))
        if σ.ndim and σ.shape[-3:].numel() != 1:
            raise ValueError(f"sigma has shape {tuple(σ.shape)}; it may not vary within a latent")
        kind, weight = torch.promote_types(z.dtype, torch.float32), self._weight

        def beside(factor: Tensor, place: torch.device) -> Tensor:
            return factor.to(kind).to(place) if σ.ndim else factor.to(kind)

        factors = self.preconditioning
        t = beside(factors.t(σ), weight.device)
        if t.ndim:
            t = t.expand(*items, 1, 1, 1).flatten()
        z = z.to(kind)
        c_in, c_skip, c_out = (beside(c(σ), z.device) for c in (factors.c_in, factors.c_skip, factors.c_out))
        z_t = (c_in * z).to(weight).expand(*items, *event).reshape(-1, *event).contiguous()
        texts = context.reshape(-1, *context.shape[-2:]).to(weight)
        with fitting(f"a call of the UNet on {len(z_t)} latents of {tuple(event)} in {weight.dtype}"):
            output = self.unet(z_t, t, texts, return_dict=False)[0]
        return c_skip * z + c_out * output.to(z).reshape(*items, *event)

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents (*batch, 4, h, w) of images (*batch, 3, 8h, 8w) in [0, 1] (4h, 4w in the pocket model).

        The autoencoder's posterior mean, or a draw from its posterior if a generator is given. Differentiable, in
        float32 or better, also within autocast.

        Raises:
            ValueError: images of another shape or dtype, or far outside [0, 1]; out of GPU memory.
        """
        self._check_images(images)
        flat, kind = images.reshape(-1, *images.shape[-3:]), torch.promote_types(images.dtype, torch.float32)
        with fitting(f"encoding {len(flat)} images of {tuple(flat.shape[-2:])}"), self._exact():
            posterior = self.vae.encode(2 * flat.to(self.vae.device, self.vae.dtype) - 1).latent_dist
            y = posterior.mean
            if generator is not None:
                y = y + posterior.std * noise_like(y, generator)
        latents = (self.vae.config["scaling_factor"] * y).to(images.device, kind)
        return latents.reshape(*images.shape[:-3], *latents.shape[1:])

    def decode(self, latents: Tensor) -> Tensor:
        """Images (*batch, 3, 8h, 8w) in [0, 1] of clean latents (*batch, 4, h, w). Differentiable up to the clipping.

        Raises:
            ValueError: latents of another shape; out of GPU memory.
        """
        self._check_latents(latents, "latents")
        flat, kind = latents.reshape(-1, *latents.shape[-3:]), torch.promote_types(latents.dtype, torch.float32)
        with fitting(f"decoding {len(flat)} latents of {tuple(flat.shape[1:])}"), self._exact():
            inner = flat.to(self.vae.device, self.vae.dtype) / self.vae.config["scaling_factor"]
            images = (self.vae.decode(inner).sample / 2 + 0.5).clamp(0, 1)
        return images.to(latents.device, kind).reshape(*latents.shape[:-3], *images.shape[1:])

    def _exact(self) -> torch.autocast:
        """The autoencoder's own precision, also within autocast."""
        return torch.autocast(self.vae.device.type, enabled=False)

    def _check_images(self, images: Tensor) -> None:
        channels, factor = self.vae.config["in_channels"], self._factor
        wanted = f"({channels}, H, W), H and W multiples of {factor}, of floats in [0, 1]"
        if not isinstance(images, Tensor):
            how = "torch.from_numpy(numpy.asarray(picture)).permute(2, 0, 1) / 255"
            raise ValueError(f"images is a {type(images).__name__}; it must be a tensor (*batch, {wanted[1:]}: {how}")
        fits = images.ndim >= 3 and images.shape[-3] == channels and not any(n % factor for n in images.shape[-2:])
        if not (fits and images.is_floating_point() and images.numel()):
            raise ValueError(f"images have shape {tuple(images.shape)}, {images.dtype}; it must end in {wanted}")
        low, high = (end.item() for end in images.detach().aminmax())
        if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
            raise ValueError(f"images reach from {low:.3g} to {high:.3g}; they must lie in [0, 1]")

    def _check_latents(self, z: Tensor, name: str) -> None:
        wanted = f"({self.shape[0]}, h, w), of floats; {self.name} was trained on {self.shape}"
        if not isinstance(z, Tensor):
            raise ValueError(f"{name} is a {type(z).__name__}; it must be a tensor that ends in {wanted}")
        if z.ndim < 3 or z.shape[-3] != self.shape[0] or not z.is_floating_point() or not z.numel():
            raise ValueError(f"{name} has shape {tuple(z.shape)}, {z.dtype}; it must end in {wanted}")

    def _contexts(self, prompts: str | Sequence[str], name: str) -> Tensor:
        """Text embeddings (P, tokens, width), each computed once by a text encoder in a given state."""
        listed = getattr(prompts, "tolist", lambda: prompts)()  # arrays of strings
        texts = [listed] if isinstance(listed, str) else list(listed) if isinstance(listed, Sequence) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} is {prompts!r}; it must be a string or several")
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        weights = list(encoder.parameters())
        state = tuple((id(p), 0 if p.is_inference() else p._version) for p in weights)
        embedded = []
        for text in texts:
            key = tokenizer, encoder, state, text
            if key not in self._embeddings:
                check_prompt(self.name, text)
                place = weights[0].device
                # a reader that comes later may want gradients, and full precision
                with torch.inference_mode(False), torch.no_grad(), torch.autocast(place.type, enabled=False):
                    self._embeddings[key] = self.pipeline.encode_prompt(text, place, 1, False)[0][0]
            embedded.append(self._embeddings[key])
        return torch.stack(embedded)


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

    def __call__(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        self.cond.prior._check_latents(z, "z")
        return super().__call__(z, sigma)

    def both(self, z: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """Both answers from one call of the UNet."""
        u, c = self.cond.prior.denoise(z, sigma, torch.stack([self.uncond.spread(z), self.cond.spread(z)]))
        return u, c
