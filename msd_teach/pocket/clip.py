"""CLIP for the pocket world: its tokenizer, its two towers, and their contrastive training."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..files import cache_folder
from ..measure.features import picture_features, text_features
from .data import load_renders, meaning
from .training import Plan, Trained, device_of, fit
from .world import COLOURS, KINDS, VIEWS, WORDS, Prompt

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

PLAN = Plan(steps=4000, batch=96, rate=1e-3)
RENDERS = 32_000
LENGTH = 16  # tokens of a caption, with start, end and padding
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Train a byte-pair encoding on the word list, one token a word, and keep it in `folder` in every known layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=[START, END],
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    # every letter also as the last of a word: unknown words fall into letters, never into nothing
    bpe.train_from_iterator([*WORDS, *WORDS, *letters, ",", "."], trainer)
    state = json.loads(bpe.to_str())["model"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = dict(sorted(state["vocab"].items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = (pair if isinstance(pair, str) else " ".join(pair) for pair in state["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=LENGTH,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP of 1 M parameters: text and pictures into 64 dimensions."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    width = {"hidden_size": 128, "num_attention_heads": 4, "projection_dim": 64}
    text = CLIPTextConfig(
        **width,
        vocab_size=len(tokenizer),
        intermediate_size=256,
        num_hidden_layers=2,
        max_position_embeddings=LENGTH,
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
    vision = CLIPVisionConfig(**width, intermediate_size=512, num_hidden_layers=3, image_size=64, patch_size=8)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (N, 16) of captions, padded."""
    return tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def train(renders: int = RENDERS, plan: Plan = PLAN) -> Trained[CLIPModel]:
    """Train CLIP, or go on. The tokenizer is beside its checkpoint."""
    folder = cache_folder("pocket") / "clip"
    tokenizer = build_tokenizer(folder / "tokenizer")
    data = load_renders("train", renders)
    ids, said = tokens(tokenizer, data.captions), meaning(data.captions)
    true = torch.stack([data.kind, data.colour, data.view, data.small.long()], 1)

    def loss(network: CLIPModel, index: Tensor, generator: torch.Generator) -> Tensor:
        device = device_of(network)
        x = data.pixels(index)
        x = x + 0.05 * torch.randn(x.shape, generator=generator)
        scores = network(input_ids=ids[index].to(device), pixel_values=x.to(device)).logits_per_text.float()
        return contrastive_loss(scores, holds(said[index], true[index]).to(device))

    return fit("CLIP", build(tokenizer), loss, renders, plan, folder)


def holds(said: Tensor, true: Tensor) -> Tensor:
    """Which captions are true of which pictures, (captions, pictures): what one leaves open (-1) matches all."""
    return ((said[:, None] == true[None]) | (said[:, None] < 0)).all(-1)


def contrastive_loss(scores: Tensor, fits: Tensor) -> Tensor:
    """CLIP's symmetric cross entropy for scores (captions, pictures), with all true pairs as equal targets."""
    by_text = functional.cross_entropy(scores, fits / fits.sum(1, keepdim=True))
    by_image = functional.cross_entropy(scores.T, (fits / fits.sum(0, keepdim=True)).T)
    return (by_text + by_image) / 2


def zero_shot(network: CLIPModel, tokenizer: CLIPTokenizer, x: Tensor) -> Tensor:
    """Kind, colour and view (N, 3) of pictures, by the nearest of all captions "a [small] COLOUR KIND, VIEW view".

    Both sizes are among them, since a caption without "small" is false of a small object.
    """
    choices = list(itertools.product(KINDS, COLOURS, VIEWS, (False, True)))
    captions = [str(Prompt(kind, colour, view, small)) for kind, colour, view, small in choices]
    best = (picture_features(network, x) @ text_features(network, tokens(tokenizer, captions)).T).argmax(1)
    shape = (len(KINDS), len(COLOURS), len(VIEWS), 2)
    return torch.stack(torch.unravel_index(best, shape)[:3], 1)
