"""The judge: a small classifier of kind, colour and view that shares nothing with CLIP, neither weights nor data."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..files import cache_folder
from .data import labels, load_renders
from .training import Plan, Trained, device_of, fit
from .world import COLOURS, KINDS, VIEWS

PLAN = Plan(steps=3000, batch=64, rate=2e-3)
RENDERS = 8000


class Verdict(NamedTuple):
    """Logits over KINDS (N, 12), COLOURS (N, 9) and VIEWS (N, 4)."""

    kind: Tensor
    colour: Tensor
    view: Tensor


class Judge(nn.Module):
    """Five convolutions and three linear heads: pictures (N, 3, 64, 64) in [-1, 1] -> Verdict."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128, 128)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Conv2d(i, o, 3, stride=1 if i == 3 else 2, padding=1), nn.GroupNorm(8, o), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1))
        self.heads = nn.ModuleList(nn.Linear(128 * 16, len(names)) for names in (KINDS, COLOURS, VIEWS))

    def forward(self, x: Tensor) -> Verdict:
        features = self.features(x)
        return Verdict(*(head(features).float() for head in self.heads))

    @torch.no_grad()
    def decide(self, x: Tensor) -> Tensor:
        """Indices of kind, colour and view, (N, 3), of pictures in [-1, 1] of any number."""
        parts = [self(part) for part in x.to(device_of(self)).split(200)]
        return torch.cat([torch.stack([logits.argmax(1) for logits in part], 1) for part in parts]).to(x.device)

    def save_pretrained(self, folder: Path) -> None:
        """Write the weights as fp16 safetensors."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Judge:
        """Read what `save_pretrained` wrote, as float32, ready to judge."""
        from safetensors.torch import load_file

        judge = cls()
        judge.load_state_dict(load_file(folder / "model.safetensors"))
        return judge.eval()


def train(renders: int = RENDERS, plan: Plan = PLAN) -> Trained[Judge]:
    """Train the judge, or go on. Its renders are in no other training set."""
    data = load_renders("judge", renders)
    truth = labels(data)

    def loss(network: Judge, index: Tensor, generator: torch.Generator) -> Tensor:
        device = device_of(network)
        x = disturb(data.pixels(index), generator).to(device)
        answers = truth[index].to(device)
        return torch.stack([functional.cross_entropy(v, a) for v, a in zip(network(x), answers.T, strict=True)]).sum()

    return fit("judge", Judge(), loss, renders, plan, cache_folder("pocket") / "judge")


def disturb(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift pictures by up to three pixels and add a little noise, so that the judge looks at the object as a whole."""
    across, down = torch.randint(-3, 4, (2,), generator=generator).tolist()
    level = 0.1 * torch.rand(len(x), 1, 1, 1, generator=generator)
    return x.roll((across, down), (3, 2)) + level * torch.randn(x.shape, generator=generator)
