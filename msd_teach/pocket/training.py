"""The one training loop: any stage, CPU or GPU, killed at any moment and resumed at its last checkpoint."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..cache import save_atomically

Network = TypeVar("Network", bound=nn.Module)
Identity = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage trains: AdamW, a linear warm-up, then a cosine down to zero."""

    steps: int
    batch: int
    rate: float
    warmup: int = 200
    weight_decay: float = 0.01
    average: float = 0.999  # decay of the exponential moving average of the weights
    seed: int = 0
    checkpoint_every: int = 250
    sheet_every: int = 2000

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.rate * min((step + 1) / self.warmup, 0.5 + 0.5 * math.cos(math.pi * min(max(progress, 0.0), 1.0)))

    def identity(self) -> Identity:
        """What the weights depend on."""
        return {name: value for name, value in asdict(self).items() if not name.endswith("_every")}


@dataclass(frozen=True)
class Trained(Generic[Network]):
    """The averaged network of a stage, on the CPU, and the seconds that its steps took."""

    network: Network
    seconds: float


def fit(
    name: str,
    network: Network,
    loss: Callable[[Network, Tensor, torch.Generator], Tensor],
    examples: int,
    plan: Plan,
    folder: Path,
    sheet: Callable[[Network, Path], None] | None = None,
    settings: Identity | None = None,
) -> Trained[Network]:
    """Train a network, or go on where `folder/checkpoint.pt` left off.

    `loss(network, index, generator)` gives the mean loss over the examples `index` (a batch, on the CPU); it may
    return a tensor on any device. All chance of a step comes from its own seeded generator, so a resumed run takes
    the steps that an unbroken one would. `sheet(averaged, path)` draws what the network can do so far. `settings`
    are what else the weights depend on; a checkpoint keeps them with the plan, and goes on under the same ones only.

    Raises:
        ValueError: a checkpoint of another plan, other settings (it names them), or another network.
        FloatingPointError: the loss is not finite; the last good checkpoint stays.
    """
    from accelerate import Accelerator  # imports half of the training stack: only where one trains

    accelerator = Accelerator(mixed_precision=_precision())
    network.to(accelerator.device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.rate, weight_decay=plan.weight_decay)
    start, seconds = 0, 0.0
    identity = {"stage": name, "examples": examples, **plan.identity(), **(settings or {})}
    path = folder / "checkpoint.pt"
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=accelerator.device)
        check_identity(state.get("identity", {}), identity, f"checkpoint {path} is of another {name}; delete it")
        try:
            network.load_state_dict(state["network"])
            average.load_state_dict(state["average"])
        except RuntimeError as error:
            raise ValueError(f"checkpoint {path} is of another {name}; delete it to start anew") from error
        optimizer.load_state_dict(state["optimizer"])
        start, seconds = state["step"], state["seconds"]
    prepared, stepper = accelerator.prepare(network, optimizer)
    bar = tqdm(range(start, plan.steps), name, initial=start, total=plan.steps, mininterval=10)
    smooth = math.nan
    for step in bar:
        clock = time.perf_counter()
        generator = torch.Generator().manual_seed(1_000_003 * plan.seed + step)
        index = torch.randint(examples, (plan.batch,), generator=generator)
        for group in stepper.param_groups:
            group["lr"] = plan.rate_at(step)
        with accelerator.autocast():
            value = loss(prepared, index, generator)
        if not value.isfinite():
            raise FloatingPointError(f"{name}: loss is {value.item()} at step {step} (rate {plan.rate_at(step):.2g})")
        accelerator.backward(value)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        stepper.step()
        stepper.zero_grad()
        _update(average, network, min(plan.average, (1 + step) / (10 + step)))
        smooth = value.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * value.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        seconds += time.perf_counter() - clock
        done = step + 1
        if done % plan.checkpoint_every == 0 or done == plan.steps:
            save_atomically(
                {
                    "step": done,
                    "seconds": seconds,
                    "identity": identity,
                    "network": network.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
                path,
            )
        if sheet and (done % plan.sheet_every == 0 or done == plan.steps):
            sheet(average.eval(), folder / f"sheet-{done:06d}.png")
    return Trained(average.cpu().eval(), seconds)


def check_identity(kept: Identity, wanted: Identity, complaint: str) -> None:
    """Refuse what was made with other settings.

    Raises:
        ValueError: the complaint, and every setting that differs.
    """
    names = [name for name in {**wanted, **kept} if kept.get(name) != wanted.get(name)]
    if names:
        differ = ", ".join(f"{name} was {kept.get(name)!r}, is {wanted.get(name)!r}" for name in names)
        raise ValueError(f"{complaint}, or train as it was: {differ}")


def save_sheet(images: Tensor, columns: int, path: Path) -> None:
    """Write images (N, 3, H, W) in [0, 1] as one picture, in rows."""
    from PIL import Image

    n, _, h, w = images.shape
    rows = -(-n // columns)
    page = torch.ones(rows * columns, 3, h, w)
    page[:n] = images.detach().float().cpu().clamp(0, 1)
    page = page.reshape(rows, columns, 3, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * page).round().byte().numpy()).save(path)


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(network.parameters()).device


@torch.no_grad()
def _update(average: nn.Module, network: nn.Module, decay: float) -> None:
    for a, p in zip(average.parameters(), network.parameters(), strict=True):
        a.lerp_(p.detach(), 1 - decay)
    for a, b in zip(average.buffers(), network.buffers(), strict=True):
        a.copy_(b)


def _precision() -> str | None:
    """bf16 where the hardware surely multiplies it faster; elsewhere accelerate's ACCELERATE_MIXED_PRECISION decides.

    A CPU with AVX-512 bf16 but no AMX is such a case: the autoencoder gains 1.7 times by it, the UNet loses.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if torch.cpu.get_capabilities().get("amx_bf16") else None
