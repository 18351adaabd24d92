"""Whatever the loader refuses as a folder, the constructor refuses as an object: by name, with what it must be."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tiny import SD, parted, rescheduled
from torch import nn

from msd_teach import DiffusionPrior

pytest.importorskip("diffusers")

import diffusers
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionImg2ImgPipeline
from transformers import CLIPTextModelWithProjection

SD_BETAS: dict[str, Any] = {key: SD[key] for key in ("beta_start", "beta_end", "beta_schedule")}


def refused(pipeline: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionPrior(pipeline)


def test_other_pipelines(prior1):
    components = prior1.pipeline.components
    refused(cast(Any, StableDiffusionImg2ImgPipeline)(**components, requires_safety_checker=False),
        r"another family \(its pipeline is StableDiffusionImg2ImgPipeline\); supported are Stable Diffusion 1 and 2")  # fmt: skip
    refused(SimpleNamespace(transformer=None), "its pipeline is SimpleNamespace")
    refused("pocket", r"pipeline is 'pocket'; DiffusionPrior.from_pretrained\('pocket'\) loads by name")
    refused(None, "its pipeline is NoneType")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_missing_parts(prior1, part):
    pipeline = parted(prior1)
    setattr(pipeline, part, None)
    refused(pipeline, f"pipeline has no {part}")


UNETS = {
    "inpainting": ({"in_channels": 9}, "9 input channels; inpainting"),
    "other latents": ({"in_channels": 16, "out_channels": 16}, "UNet of 16 channels and an autoencoder of 4"),
    "no square": ({"sample_size": [8, 12]}, r"sample_size \[8, 12\]; it must be one number"),
    "no size": ({"sample_size": None}, "sample_size None; it must be one number"),
    "classes": ({"num_class_embeds": 10}, "num_class_embeds 10, so it needs class embeddings"),
    "projected classes": ({"class_embed_type": "projection"}, "class_embed_type 'projection', so it needs class"),
    "SDXL": ({"addition_embed_type": "text_time"}, "addition_embed_type 'text_time'"),
    "images": ({"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type 'ip_image_proj'"),
    "distilled guidance": ({"time_cond_proj_dim": 256}, "time_cond_proj_dim 256, so it needs .* guidance scale"),
    "width": ({"cross_attention_dim": 768}, "cross_attention_dim 768, and a text encoder of width 16"),
    "widths": ({"cross_attention_dim": [16, 32]}, r"cross_attention_dim \[16, 32\], and a text encoder of width 16"),
    "no texts": ({"cross_attention_dim": None}, "it must be a UNet2DConditionModel"),
}


@pytest.mark.parametrize("kind", UNETS)
def test_unets_that_need_something_else(prior1, kind):
    config, message = UNETS[kind]
    pipeline = parted(prior1)
    pipeline.unet = copy.deepcopy(pipeline.unet)
    pipeline.unet.register_to_config(**config)
    refused(pipeline, message)
    with pytest.raises(ValueError, match=message):
        prior1.with_network(pipeline.unet)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"latent_channels": 16}, "UNet of 4 channels and an autoencoder of 16"),
        ({"in_channels": 1, "out_channels": 1}, r"autoencoder of \(1, 1\) colour channels"),
        ({"shift_factor": 0.1}, "autoencoder with shift_factor 0.1"),
        ({"latents_mean": [0.1] * 4}, "autoencoder with latents_mean"),
    ],
)
def test_autoencoders_of_other_latents(prior1, config, message):
    pipeline = parted(prior1)
    pipeline.vae = copy.deepcopy(pipeline.vae)
    pipeline.vae.register_to_config(**config)
    refused(pipeline, message)


def test_parts_of_other_kinds(prior1):
    pipeline = parted(prior1)
    pipeline.vae = AutoencoderTiny()
    refused(pipeline, "an autoencoder of kind AutoencoderTiny; it must be an AutoencoderKL")
    pipeline = parted(prior1)
    pipeline.text_encoder = CLIPTextModelWithProjection(pipeline.text_encoder.config)
    refused(pipeline, "a text encoder of kind CLIPTextModelWithProjection; it must be a CLIPTextModel")
    pipeline = parted(prior1)
    pipeline.unet = nn.Linear(1, 1)
    refused(pipeline, "has a Linear for a UNet")


def test_tokenizers_that_do_not_fit(prior1):
    pipeline = parted(prior1)
    pipeline.tokenizer = copy.deepcopy(pipeline.tokenizer)
    pipeline.tokenizer.add_tokens("zeppelin")
    words = len(prior1.pipeline.tokenizer)
    refused(pipeline, rf"the tokenizer knows {words + 1} words and the text encoder only {words}")
    pipeline.text_encoder = copy.deepcopy(pipeline.text_encoder)
    pipeline.text_encoder.resize_token_embeddings(words + 1)  # as textual inversion does
    DiffusionPrior(pipeline).denoiser("a zeppelin")
    pipeline.tokenizer.model_max_length = 77
    refused(pipeline, "model_max_length 77, and the text encoder reads 16 tokens; set")


def test_a_compiled_network_is_what_it_was(prior1):
    pipeline = parted(prior1)
    pipeline.unet, pipeline.vae = torch.compile(pipeline.unet), torch.compile(pipeline.vae)
    assert DiffusionPrior(pipeline).shape == prior1.shape


@pytest.mark.parametrize("kind", ["EDMEuler", "FlowMatchEulerDiscrete"])
def test_schedulers_without_levels(prior1, kind):
    pipeline = parted(prior1)
    pipeline.scheduler = getattr(diffusers, f"{kind}Scheduler")()
    refused(pipeline, f"pipeline has a {kind}Scheduler, without alphas_cumprod")


@pytest.mark.parametrize(
    "table", [[0.9, 0.5, 0.5], [0.2, 0.5, 0.9], [1.0, 0.5], [0.9, torch.nan, 0.1], [0.9, -0.1], [0.9]]
)
def test_tables_that_do_not_fall(prior1, table):
    pipeline = parted(prior1)
    pipeline.scheduler = DDIMScheduler(prediction_type="v_prediction")
    pipeline.scheduler.alphas_cumprod = torch.tensor(table)
    refused(pipeline, "DDIMScheduler whose alphas_cumprod, .*; they must fall, strictly")


def test_predictions(prior1):
    with pytest.raises(ValueError, match="predicts 'sample'; it must be 'epsilon' or 'v_prediction'"):
        rescheduled(prior1, **SD, prediction_type="sample")


@pytest.mark.parametrize("kind", ["DDIM", "DDPM", "EulerDiscrete"])
def test_noise_prediction_without_signal_is_refused(prior1, kind):
    """ε = n at σ = ∞ says nothing about y; v says it all."""
    pipeline = parted(prior1)
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipeline.scheduler = getattr(diffusers, f"{kind}Scheduler")(**options)
    refused(pipeline, "predicts 'epsilon'.*says nothing about a picture. Use prediction_type='v_prediction'")
    pipeline.scheduler = getattr(diffusers, f"{kind}Scheduler")(**options, prediction_type="v_prediction")
    levels = DiffusionPrior(pipeline).levels  # these betas lose all signal several steps before the last
    assert levels.isfinite().all() and (levels.diff() > 0).all()
    pipeline.scheduler = getattr(diffusers, f"{kind}Scheduler")(**SD_BETAS, **options, prediction_type="v_prediction")
    assert DiffusionPrior(pipeline).sigma_max == pytest.approx(4096, rel=1e-3)
