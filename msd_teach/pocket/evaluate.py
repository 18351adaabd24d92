"""How good the pocket model is: the figures of the model card, on scenes that no training has seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .autoencoder import reconstruct, signal_to_noise
from .clip import picture_features, zero_shot
from .data import Renders, labels, load_renders, meaning
from .judge import Judge
from .world import Prompt, random_examples

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

Figures = dict[str, float]
SAMPLE_SEED = 9_000_000  # prompts of the judged samples: no split of the renders starts from it
CLEAR = 10.0  # degrees from the borders between view words at which a view counts as clear
BARS = {
    "judge": {"kind": 0.98, "colour": 0.98, "clear view": 0.93},
    "autoencoder": {"object dB": 25.0, "image dB": 29.0, "kind": 0.97, "colour": 0.97, "clear view": 0.90},
    "clip": {"kind": 0.95, "colour": 0.97},
    "unet": {"kind": 0.93, "colour": 0.93, "view": 0.80},
}


def missed(stage: str, figures: Figures) -> list[str]:
    """The bars that a stage's figures do not reach, in words."""
    return [f"{name} {figures[name]:.3f} < {bar}" for name, bar in BARS[stage].items() if figures[name] < bar]


def agreement(found: Tensor, truth: Tensor, border: Tensor) -> Figures:
    """Shares of right kinds, colours and views for indices (N, 3); a view is clear at `border` > 10 degrees."""
    right = (found == truth).float()
    kind, colour, view = right.mean(0).tolist()
    return {"kind": kind, "colour": colour, "view": view, "clear view": right[border > CLEAR, 2].mean().item()}


def judge_figures(judge: Judge, data: Renders) -> Figures:
    """The judge's accuracy on held-out renders."""
    return agreement(judge.decide(data.pixels(torch.arange(len(data.kind)))), labels(data), data.border)


def autoencoder_figures(autoencoder: AutoencoderKL, judge: Judge | None, data: Renders) -> Figures:
    """Signal-to-noise ratios of held-out renders through the autoencoder, and what a judge makes of them."""
    x = data.pixels(torch.arange(len(data.kind)))
    y = reconstruct(autoencoder, x)
    return {
        "image dB": signal_to_noise(x, y),
        "object dB": signal_to_noise(x, y, data.mask.float() / 255),
        **(agreement(judge.decide(y), labels(data), data.border) if judge is not None else {}),
    }


def clip_figures(clip: CLIPModel, tokenizer: CLIPTokenizer, data: Renders) -> Figures:
    """Zero-shot accuracy on held-out renders, over all captions "a COLOUR KIND, VIEW view"."""
    found = zero_shot(clip, tokenizer, data.pixels(torch.arange(len(data.kind))))
    return agreement(found, labels(data), data.border)


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    guidance: float,
    steps: int = 50,
    seed: int = 0,
    batch: int = 50,
) -> Tensor:
    """One DDIM sample for each prompt, (N, 3, 64, 64) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        pipeline(
            prompts[i : i + batch],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="pt",
        ).images
        for i in range(0, len(prompts), batch)
    ]
    return (2 * torch.cat(parts) - 1).cpu()


def sample_figures(
    pipeline: StableDiffusionPipeline, judge: Judge, count: int, guidance: float, seed: int = 0
) -> Figures:
    """What the judge makes of samples, for prompts that name kind, colour and view."""
    generator = torch.Generator().manual_seed(SAMPLE_SEED + seed)
    examples = random_examples(count, generator)
    views = examples.cameras.view_words()
    prompts = [
        str(Prompt(scene.kind, scene.colour, view, prompt.small, prompt.photo))
        for scene, view, prompt in zip(examples.scenes, views, examples.prompts, strict=True)
    ]
    truth = meaning(prompts)[:, :3]
    found = judge.decide(draw(pipeline, prompts, guidance, seed=seed))
    kind, colour, view = (found == truth).float().mean(0).tolist()
    return {"kind": kind, "colour": colour, "view": view}


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features (N, d) and (M, d), in float64 (Heusel et al. 2017).

    Raises:
        ValueError: fewer than d + 1 features, which leaves a covariance without full rank.
    """
    for name, features in (("a", a), ("b", b)):
        if len(features) <= features.shape[1]:
            raise ValueError(
                f"{name} has {len(features)} features of {features.shape[1]} dimensions; it needs more than that"
            )
    a, b = a.double(), b.double()
    # the trace of (S_a S_b)^(1/2), by the eigenvalues of S_a^(1/2) S_b S_a^(1/2)
    values, vectors = torch.linalg.eigh(torch.cov(a.T))
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ torch.cov(b.T) @ root).clamp(min=0).sqrt().sum()
    spread = torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * cross
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


def bootstrap(
    statistic: Callable[[Tensor, Tensor], float], a: Tensor, b: Tensor, repeats: int = 200, seed: int = 0
) -> tuple[float, float]:
    """The middle 95 % of a statistic of two samples, both drawn again with replacement."""
    generator = torch.Generator().manual_seed(seed)

    def again(x: Tensor) -> Tensor:
        return x[torch.randint(len(x), (len(x),), generator=generator)]

    values = torch.tensor([statistic(again(a), again(b)) for _ in range(repeats)], dtype=torch.float64)
    return float(values.quantile(0.025)), float(values.quantile(0.975))


def card_figures(folder: Path, samples: int = 1000, pictures: int = 2000) -> dict[str, Figures]:
    """All figures of the model card, from a folder in the diffusers layout, through stock libraries.

    `samples` are judged at guidance 3 and at 7.5. The Fréchet distance compares `pictures` samples of held-out
    captions, at guidance 1, 2 and 3, with as many renders of other scenes; "floor" is the distance between those
    renders and the ones that the captions belong to.
    """
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = StableDiffusionPipeline.from_pretrained(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    clip = CLIPModel.from_pretrained(folder / "clip").eval()
    judge = Judge.from_pretrained(folder / "judge")
    data = load_renders("test", 2 * pictures)
    figures = {
        "judge": judge_figures(judge, data),
        "autoencoder": autoencoder_figures(pipeline.vae, judge, data),
        "clip": clip_figures(clip, CLIPTokenizer.from_pretrained(folder / "clip"), data),
    }
    for guidance in (3.0, 7.5):
        figures[f"samples, guidance {guidance:g}"] = sample_figures(pipeline, judge, samples, guidance)
    real = picture_features(clip, data.pixels(torch.arange(2 * pictures)))
    own, other = real[:pictures], real[pictures:]
    distances = {"floor": frechet_distance(own, other)}
    for guidance in (1.0, 2.0, 3.0):
        drawn = picture_features(clip, draw(pipeline, data.captions[:pictures], guidance))
        low, high = bootstrap(frechet_distance, drawn, other)
        name = f"guidance {guidance:g}"
        distances |= {name: frechet_distance(drawn, other), f"{name} low": low, f"{name} high": high}
    figures["Fréchet distance"] = distances
    return figures
