"""A whole Stable Diffusion with random weights, small enough to be made in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from msd_teach import DiffusionPrior
from msd_teach.pocket.clip import LENGTH, build_tokenizer

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def tiny(folder: Path, kind: str) -> Path:
    """A random Stable Diffusion 1 (ε, with the scheduler file of its release) or 2 (v), saved in the usual layout."""
    torch.manual_seed(0)
    second = kind == "2"
    tokenizer = build_tokenizer(folder / "words")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        hidden_act="gelu" if second else "quick_gelu",
        bos_token_id=tokenizer.bos_token_id,  # type: ignore[arg-type]
        eos_token_id=tokenizer.eos_token_id,  # type: ignore[arg-type]
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[arg-type]
    )
    unet = cast(Any, UNet2DConditionModel)(  # its annotations are for one block
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=(2, 4) if second else 2,
        use_linear_projection=second,
        upcast_attention=second,
        norm_num_groups=4,
    )
    vae = cast(Any, AutoencoderKL)(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    betas: dict[str, Any] = {key: SD[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    scheduler = (
        DDIMScheduler(**SD, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction")
        if second
        else PNDMScheduler(**betas, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    )
    pipeline = cast(Any, StableDiffusionPipeline)(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    path = folder / "model" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clip_sample": False}))
    return folder / "model"


def load(folder: Path, **options: Any) -> DiffusionPrior:
    loaded = DiffusionPrior.from_pretrained(folder, device="cpu", **options)
    loaded.pipeline.set_progress_bar_config(disable=True)
    return loaded


def parted(prior: DiffusionPrior, **parts: Any) -> StableDiffusionPipeline:
    """A pipeline of the same parts but for those given."""
    components = {key: prior.pipeline.components[key] for key in prior.pipeline.components} | parts
    pipeline = cast(Any, StableDiffusionPipeline)(**components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def rescheduled(prior: DiffusionPrior, **config: Any) -> DiffusionPrior:
    """The same networks under another scheduler."""
    pipeline = parted(prior)
    pipeline.scheduler = DDIMScheduler(**config)  # the pipeline's constructor would set steps_offset to 1
    return DiffusionPrior(pipeline)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to b's largest value."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())
