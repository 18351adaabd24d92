"""The one training loop: any stage, CPU or GPU, killed at any moment and resumed at its last checkpoint.

Under `torchrun` several processes share each batch and average their gradients. On a CPU that pays, too: two
processes of one thread train these small networks faster than one of two.
"""

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

from ..files import Checkpoint
from ..tensors import at_least_one

Network = TypeVar("Network", bound=nn.Module)


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

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "warmup", "checkpoint_every", "sheet_every"):
            at_least_one(name, getattr(self, name))

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.rate * min((step + 1) / self.warmup, 0.5 + 0.5 * math.cos(math.pi * min(max(progress, 0.0), 1.0)))


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
    settings: Mapping[str, float | str] | None = None,
) -> Trained[Network]:
    """Train a network, or go on where `folder/checkpoint.pt` left off.

    `loss(network, index, generator)` gives the mean loss over the examples `index` (a batch, on the CPU); it may
    return a tensor on any device. All chance of a step comes from (seed, step) alone, torch's own stream included, so
    a resumed run takes the steps that an unbroken one would; processes that share a batch draw different noise. Only the
    first of them writes. `sheet(averaged, path)` draws what the network can do so far. `settings` are what else the
    weights depend on: a checkpoint knows them with the plan.

    Raises:
        ValueError: a checkpoint of another network, plan, number of examples or other settings, or a damaged one;
            names it and what differs.
        FloatingPointError: the loss is not finite; the last good checkpoint stays.
    """
    from accelerate import Accelerator  # imports half of the training stack: only where one trains
    from tqdm import tqdm

    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=_precision())
    rank, world = accelerator.process_index, accelerator.num_processes
    if plan.batch % world:
        raise ValueError(f"{world} processes cannot share a batch of {plan.batch}; it must be a multiple")
    network.to(accelerator.device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.rate, weight_decay=plan.weight_decay)
    identity = {"stage": name, "examples": examples} | asdict(plan) | dict(settings or {})
    del identity["checkpoint_every"], identity["sheet_every"]  # how often one looks changes nothing
    parts = {"network": network, "average": average, "optimizer": optimizer}
    checkpoint = Checkpoint(folder / "checkpoint.pt", identity, **parts)
    kept = checkpoint.load() or {"step": 0, "seconds": 0.0}
    start, seconds = kept["step"], kept["seconds"]
    stepper = accelerator.prepare(optimizer)  # not the network: it is asked for more than its forward
    bar = tqdm(range(start, plan.steps), name, initial=start, total=plan.steps, mininterval=10, disable=rank > 0)
    smooth = math.nan
    for step in bar:
        clock = time.perf_counter()
        generator = torch.Generator().manual_seed(1_000_003 * plan.seed + step)
        index = torch.randint(examples, (plan.batch,), generator=generator)[rank::world]
        if rank:
            generator.manual_seed(2**41 * rank + 1_000_003 * plan.seed + step)
        torch.manual_seed(2**40 + 2**41 * rank + 1_000_003 * plan.seed + step)  # of dropout, which takes no generator
        for group in stepper.param_groups:
            group["lr"] = plan.rate_at(step)
        with accelerator.autocast():
            value = loss(network, index, generator)
        if not value.isfinite():
            raise FloatingPointError(f"{name}: loss is {value.item()} at step {step} (rate {plan.rate_at(step):.2g})")
        accelerator.backward(value)
        if world > 1:
            _average_gradients(network)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        stepper.step()
        stepper.zero_grad()
        _update(average, network, min(plan.average, (1 + step) / (10 + step)))
        smooth = value.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * value.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        seconds += time.perf_counter() - clock
        done = step + 1
        if rank == 0 and (done % plan.checkpoint_every == 0 or done == plan.steps):
            checkpoint.save(step=done, seconds=seconds)
        if sheet and rank == 0 and (done % plan.sheet_every == 0 or done == plan.steps):
            sheet(average.eval(), folder / f"sheet-{done:06d}.png")
    return Trained(average.cpu().eval(), seconds)


def save_sheet(images: Tensor, columns: int, path: Path) -> None:
    """Write images (N, 3, H, W) in [0, 1] as one picture, in rows."""
    from PIL import Image

    n, _, h, w = images.shape
    rows = -(-n // columns)
    page = torch.ones(rows * columns, 3, h, w)
    page[:n] = images.detach().float().cpu().clamp(0, 1)
    page = page.reshape(rows, columns, 3, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * page).round().byte().numpy()).save(path, format="PNG")  # whatever the path's ending


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(network.parameters()).device


def _average_gradients(network: nn.Module) -> None:
    """The mean of all processes' gradients, in each of them."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for g, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(mean.view_as(g))


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
