"""A guided call of `DiffusionPrior.denoiser` over diffusers' UNet called directly on the same doubled batch.

Random weights: the pocket model's architecture in float32 on the CPU, and where there is a GPU Stable Diffusion 1.5's in
float16 there. The direct call is the peer at its best: text embeddings, doubled batch and time ready on the device.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from _timing import best_times, peak_memory, report
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from msd_teach import DiffusionPrior
from msd_teach.pocket import autoencoder, clip, unet

STEP = 500


def random_prior(network: UNet2DConditionModel, tokens: int, device: str, dtype: torch.dtype) -> DiffusionPrior:
    """A prior of this UNet and a one-layer text encoder of its width."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = clip.build_tokenizer(Path(folder))
    tokenizer.model_max_length = tokens
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=network.config["cross_attention_dim"],
        num_hidden_layers=1,
        max_position_embeddings=tokens,
    )
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.build(), text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=network,
        scheduler=unet.build_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return DiffusionPrior(pipeline.to(device, dtype))


@torch.no_grad()
def compare(name: str, prior: DiffusionPrior, batch: int, calls: int, repeats: int) -> dict:
    """Seconds of a guided call and of the direct one, and the peak memory of either."""
    device = prior.unet.device
    denoise = prior.denoiser("a red house", scale=7.5)
    z = 2 * torch.randn(batch, *prior.shape, generator=torch.Generator().manual_seed(0)).to(device)
    σ = prior.levels[STEP].item()
    z_t = (torch.cat([z, z]) / (1 + σ**2) ** 0.5).to(prior.dtype)
    t = torch.tensor(STEP, device=device)
    texts = ["", "a red house"]
    contexts = torch.cat([prior.pipeline.encode_prompt([text] * batch, device, 1, False)[0] for text in texts])

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                call()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return run

    def direct() -> torch.Tensor:
        return prior.unet(z_t, t, contexts, return_dict=False)[0]

    rivals = {"guided": repeated(lambda: denoise(z, σ)), "direct": repeated(direct)}
    seconds = {rival: total / calls for rival, total in best_times(rivals, repeats).items()}
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else peak_memory()
    row = {"model": name, "device": device.type, "latents": batch, "guided, s": seconds["guided"]}
    return row | {
        "direct, s": seconds["direct"],
        "ratio": seconds["guided"] / seconds["direct"],
        "peak memory, MiB": round(memory),
    }


def main() -> None:
    torch.manual_seed(0)
    pocket = random_prior(unet.build(), clip.LENGTH, "cpu", torch.float32)
    rows = [compare("pocket", pocket, batch, calls=1, repeats=100) for batch in (1, 4)]
    if torch.cuda.is_available():
        network = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the other defaults are version 1.5's
        full = random_prior(network, 77, "cuda", torch.float16)
        rows += [compare("Stable Diffusion 1.5", full, batch, calls=10, repeats=8) for batch in (1, 4)]
    report(rows)


if __name__ == "__main__":
    main()
