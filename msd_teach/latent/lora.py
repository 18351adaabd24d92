"""The `particles` of VSD in latents: the prior's own UNet under a LoRA that learns the distribution of the current x."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..denoisers import Denoiser, Guided, counted
from ..tensors import at_least_float32, at_least_one, check_number, noise_like, per_item, widest
from .loading import fitting
from .parts import plain
from .prior import DiffusionPrior

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # what the authors adapt, in self- and cross-attention


class LoRA:
    """VSD(LoRA(prior)): a denoiser of the current particles, the prior's network plus a low-rank part that learns them.

    It is asked with the prompts of the batch's own denoiser, views among them, and without guidance. (The authors give
    their LoRA the camera beside a prompt without its view; here a camera is known by the words of its view.) With each
    call of `after_step` it takes one Adam step of size `rate` on ‖D(x + σn; σ) − x‖²/σ², σ at t uniform in [0, 1], one
    for each item: for a network that predicts ε that is ‖ε̂ − n‖², the authors' loss (Wang et al. 2023). A step costs one
    call an item, whose gradient takes about one more in time. Before its first step it is the conditional denoiser.

    The prior stays as it is: its UNet is copied, but for the weights, which both share and nothing writes to. Hence the
    LoRA (`rank`, on attention) is all the further memory that it takes for its parameters; they are kept in float32 or
    better, whatever the UNet computes in. It stays where the prior was when it was made. `generator` draws its start;
    weights and Adam's state are its state_dict. Attributes: `prior` (the one with the LoRA), `weights`, `optimizer`.

    Raises:
        ValueError: a prior that is none or whose UNet carries adapters already, a rank below 1, a rate that is not > 0.
            When called: a denoiser of other things than latents under a prompt, or of another network.
        ImportError: peft is not installed.
    """

    def __init__(
        self, prior: DiffusionPrior, rank: int = 4, rate: float = 1e-4, generator: torch.Generator | None = None
    ):
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise ImportError("a LoRA needs more packages: pip install 'msd_teach[diffusion]'") from error
        if not isinstance(prior, DiffusionPrior):
            raise ValueError(f"prior is {prior!r}; it must be a DiffusionPrior")
        self.rank = at_least_one("rank", rank)
        check_number("rate", rate)
        if rate <= 0:
            raise ValueError(f"rate is {rate}; it must be > 0")
        self.rate = float(rate)
        self._base: Any = plain(prior.unet)
        if getattr(self._base, "peft_config", None):
            said = ", ".join(self._base.peft_config)
            raise ValueError(
                f"prior has a UNet with adapters ({said}); fuse_lora() and unload_lora_weights() come first"
            )
        # deepcopy takes from here what it finds: new parameters, since peft freezes them, on the old memory
        shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in self._base.parameters()}
        unet = copy.deepcopy(self._base, shared).eval()
        unet.add_adapter(LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=ATTENTION))
        learned = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        for name, p in learned.items():
            p.data = at_least_float32(p.data)  # a half could not hold steps of 1e-4
            p.data = noise_like(p.data, generator) / self.rank if ".lora_A." in name else torch.zeros_like(p.data)
        self.prior = prior.with_network(unet)
        self.weights = nn.ParameterList(learned.values())
        self.optimizer = torch.optim.Adam(self.weights, self.rate)

    def __repr__(self) -> str:
        return f"LoRA(rank={self.rank}, rate={self.rate})"

    def __call__(self, x: Tensor, denoise: Denoiser) -> Denoiser:
        """D(z; σ) of the particles, under the prompts of `denoise` and without guidance; of x it has learned before."""
        own: Any = denoise
        while isinstance(own, counted | Guided):
            own = own.denoise if isinstance(own, counted) else own.cond
        prior = getattr(own, "prior", None)
        if not isinstance(prior, DiffusionPrior):
            raise ValueError(f"denoise is {denoise!r}; it must be one that a DiffusionPrior's denoiser() gives")
        if plain(prior.unet) is not self._base:
            raise ValueError(f"denoise is of {prior!r}, another network than the LoRA was made on; make one for it")
        return replace(own, prior=self.prior)

    def after_step(self, denoise: Denoiser, x: Tensor, generator: torch.Generator | None) -> int:
        """One step on x (batch, 4, h, w) under the prompts of `denoise`; the calls an item that it took, 1.

        Raises:
            FloatingPointError: a gradient that is not finite; the weights are untouched by it.
        """
        own, place = self(x, denoise), x.device if generator is None else generator.device
        u = torch.rand(len(x), dtype=widest(place), device=place, generator=generator)
        σ = self.prior.level(u.to("cpu", torch.float64))
        each = per_item(σ, x)
        z = x + each * noise_like(x, generator)
        self.optimizer.zero_grad()
        with fitting(f"a step of the LoRA on {len(x)} latents of {tuple(x.shape[1:])}"):
            loss = ((own(z, σ) - x) / each).square().sum() / len(x)
            loss.backward()
        gradients = [p.grad for p in self.weights if p.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise FloatingPointError(f"the gradient of the LoRA in {self.prior.dtype} is not finite")
        self.optimizer.step()
        return 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the weights and Adam's state."""
        return {"weights": self.weights.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; of another rank or model it is refused, as torch does, with a RuntimeError."""
        self.weights.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
