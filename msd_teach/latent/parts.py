"""What a pipeline must be made of to be a denoiser of square latents at known noise levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..sampling import vp_sigma

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

SMALLEST_ALPHA_BAR = 2.0**-24  # schedules of zero terminal signal end at σ = ∞; diffusers' own samplers stop here too
FAMILIES = {"StableDiffusionXL": "Stable Diffusion XL", "StableDiffusion3": "Stable Diffusion 3", "Flux": "FLUX"}
SUPPORTED = "Stable Diffusion 1 and 2 (StableDiffusionPipeline)"
# Further inputs of a UNet, that a prompt cannot give: configuration keys, and what they stand for.
CONDITIONS = {
    "class_embed_type": "class embeddings",
    "num_class_embeds": "class embeddings",
    "addition_embed_type": "additional embeddings",
    "encoder_hid_dim_type": "image or projected text embeddings",
    "time_cond_proj_dim": "an embedding of the guidance scale",
}


class UnsupportedModelError(ValueError):
    """A model of another family than Stable Diffusion 1 and 2."""


def check_family(name: str, kind: str) -> None:
    """Refuse what is called otherwise than a StableDiffusionPipeline."""
    if kind != "StableDiffusionPipeline":
        family = next((family for prefix, family in FAMILIES.items() if kind.startswith(prefix)), "another family")
        raise UnsupportedModelError(f"model {name} is {family} (its pipeline is {kind}); supported are {SUPPORTED}")


def check_pipeline(name: str, pipeline: StableDiffusionPipeline) -> None:
    """Refuse a pipeline whose parts are of another family, are missing, or do not fit each other.

    Raises:
        ValueError: names the part, what it is and what it must be.
    """
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTextModel

    if isinstance(pipeline, str):
        raise ValueError(f"pipeline is {pipeline!r}; DiffusionPrior.from_pretrained({pipeline!r}) loads by name")
    if not isinstance(pipeline, StableDiffusionPipeline):
        check_family(name, type(pipeline).__name__)
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if getattr(pipeline, part, None) is None:
            raise ValueError(f"{name} has no {part}; a denoiser of latents under a prompt needs one")
    text, vae, tokenizer = plain(pipeline.text_encoder), plain(pipeline.vae), pipeline.tokenizer
    if not isinstance(text, CLIPTextModel):
        raise ValueError(f"{name} has a text encoder of kind {type(text).__name__}; it must be a CLIPTextModel")
    if not isinstance(vae, AutoencoderKL):
        raise ValueError(f"{name} has an autoencoder of kind {type(vae).__name__}; it must be an AutoencoderKL")
    missing = [key for part in (pipeline.unet, vae, text) for key, p in part.named_parameters() if p.is_meta]
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")
    embeddings: Any = text.get_input_embeddings()
    words, known = len(embeddings.weight), len(tokenizer)
    if known < words:
        raise ValueError(f"the tokenizer knows {known} words of the text encoder's {words}; files of it are missing")
    if known > words:
        raise ValueError(f"the tokenizer knows {known} words and the text encoder only {words}; they must agree")
    places = text.config.max_position_embeddings
    if tokenizer.model_max_length > places:
        raise ValueError(
            f"the tokenizer pads to model_max_length {tokenizer.model_max_length}, and the text encoder reads {places} "
            f"tokens; set pipeline.tokenizer.model_max_length = {places}"
        )
    check_network(name, pipeline.unet, vae.config["latent_channels"], text.config.hidden_size)
    colours = vae.config["in_channels"], vae.config["out_channels"]
    if colours != (3, 3):
        raise ValueError(f"{name} has an autoencoder of {colours} colour channels; it must be 3")
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if vae.config.get(key):
            raise ValueError(
                f"{name} has an autoencoder with {key} {vae.config[key]}, which {SUPPORTED} leaves out; "
                "it must have a scaling_factor only"
            )


def check_network(name: str, unet: Any, channels: int, width: int) -> None:
    """Refuse a UNet that is no function of latents of `channels` channels, a time and texts of `width` alone.

    Raises:
        ValueError: names what it takes instead.
    """
    config = getattr(unet, "config", {})
    if not hasattr(config, "get") or config.get("cross_attention_dim") is None:
        raise ValueError(f"{name} has a {type(unet).__name__} for a UNet; it must be a UNet2DConditionModel")
    inputs, outputs = config["in_channels"], config["out_channels"]
    if inputs != outputs:
        raise ValueError(f"{name} has a UNet with {inputs} input channels; inpainting and editing are not supported")
    if inputs != channels:
        raise ValueError(f"{name} has a UNet of {inputs} channels and an autoencoder of {channels}; they must agree")
    if not isinstance(config["sample_size"], int):
        raise ValueError(
            f"{name} has a UNet with sample_size {config['sample_size']}; it must be one number, of a square"
        )
    for key, meaning in CONDITIONS.items():
        if config.get(key) is not None:
            raise ValueError(f"{name} has a UNet with {key} {config[key]!r}, so it needs {meaning}; it must be None")
    widths = config["cross_attention_dim"]
    if {width} != set(widths if isinstance(widths, list | tuple) else [widths]):
        raise ValueError(
            f"{name} has a UNet with cross_attention_dim {widths}, and a text encoder of width {width}; they must agree"
        )


def noise_levels(name: str, scheduler: Any) -> Tensor:
    """σ of each training step, (steps,), ascending, float64: from the scheduler's own table, whatever its settings say.

    Where that table is Stable Diffusion's up to rounding it is taken unrounded: diffusers multiplies in float32.

    Raises:
        ValueError: no such table, or one that does not fall from 1 to 0; ε-prediction where no signal is left.
    """
    kept, kind = getattr(scheduler, "alphas_cumprod", None), type(scheduler).__name__
    if not isinstance(kept, Tensor):
        raise ValueError(f"{name} has a {kind}, without alphas_cumprod; a schedule of Stable Diffusion is needed")
    kept = kept.detach().to("cpu").double().clone()
    silent = kept.ndim == 1 and len(kept) > 1 and bool(0 <= kept[-1] <= SMALLEST_ALPHA_BAR)
    if silent and prediction_type(name, scheduler) == "epsilon":
        raise ValueError(
            f"{name} predicts 'epsilon', and its {kind} falls to alphas_cumprod {kept[-1]:.1e}: noise predicted where no "
            "signal is left says nothing about a picture. Use prediction_type='v_prediction' if it was trained so, or "
            "rescale_betas_zero_snr=False"
        )
    if silent:  # 0, or what some schedulers put there, above the step before
        kept[-1] = min(SMALLEST_ALPHA_BAR, kept[-2].item() / 2)
    if kept.ndim != 1 or len(kept) < 2 or not (kept[0] < 1 and kept[-1] > 0 and (kept.diff() < 0).all()):
        ends = ", ".join(f"{end:.3g}" for end in kept.flatten()[[0, -1]].tolist()) if kept.numel() else "empty"
        raise ValueError(
            f"{name} has a {kind} whose alphas_cumprod, {tuple(kept.shape)} from and to {ends}, are no schedule; "
            "they must fall, strictly, from below 1 to 0 or more"
        )
    levels = ((1 - kept) / kept).sqrt()
    stock = vp_sigma(torch.linspace(0, 1, len(levels), dtype=torch.float64))
    return stock if torch.allclose(levels, stock, rtol=1e-4, atol=0) else levels


def prediction_type(name: str, scheduler: Any) -> str:
    """What the network predicts, "epsilon" or "v_prediction".

    Raises:
        ValueError: anything else.
    """
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"{name} predicts {prediction!r}; it must be 'epsilon' or 'v_prediction'")
    return prediction


def ddim(scheduler: Any) -> DDIMScheduler:
    """DDIM on the scheduler's own noise levels, spaced as its settings say."""
    from diffusers import DDIMScheduler

    kept = scheduler.alphas_cumprod.detach().to("cpu", torch.float32)
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    names = ("prediction_type", "steps_offset", "timestep_spacing", "set_alpha_to_one")
    settings = {name: scheduler.config[name] for name in names if name in scheduler.config}
    betas = (1 - kept / before).tolist()  # so that its settings tell no other story than its table
    own = DDIMScheduler(num_train_timesteps=len(kept), trained_betas=betas, clip_sample=False, **settings)
    own.alphas_cumprod = kept.clone()
    if not own.config["set_alpha_to_one"]:
        own.final_alpha_cumprod = own.alphas_cumprod[0]
    return own


def plain(network: Any) -> Any:
    """The network inside of what `torch.compile` gives."""
    return getattr(network, "_orig_mod", network)
