"""VSD's LoRA: it begins as the conditional denoiser, learns x by the authors' loss, and leaves the prior as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import noise
from torch import Tensor, nn

from msd_teach import SDS, VSD, DiffusionPrior, Rendered, StepInfo, counted, distill, guided
from msd_teach.files import Checkpoint
from msd_teach.schedules import uniform_time

pytest.importorskip("peft")
from msd_teach.latent.lora import LoRA

VIEWS = [f"a red house, {view} view" for view in ("front", "side", "back", "overhead")]
X = noise(4, 4, 8, 8, seed=1)
LEVELS = torch.tensor([0.1, 0.7, 2.0, 9.0], dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cast(prior: DiffusionPrior, dtype: torch.dtype) -> DiffusionPrior:
    return prior.with_network(copy.deepcopy(prior.unet).to(dtype))


def trained(prior: DiffusionPrior, steps: int, **settings: Any) -> LoRA:
    lora, g = LoRA(prior, generator=seeded(), **settings), seeded(1)
    assert all(lora.after_step(prior.denoiser(VIEWS), X, g) == 1 for _ in range(steps))
    return lora


# ---------------------------------------------------------------- its beginning, and the prior


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_its_first_step_it_is_the_conditional_denoiser(prior: DiffusionPrior, dtype: torch.dtype):
    """Whatever the scale, and through counters and guidance by functions of σ; of the batch's own prompts."""
    own = cast(prior, dtype)
    lora, z = LoRA(own, generator=seeded()), 2 * noise(4, 4, 8, 8)
    want = own.denoiser(VIEWS, scale=1.0)(z, LEVELS)
    batch = own.denoiser(VIEWS, "ugly", scale=7.5)
    for denoise in (batch, counted(batch), guided(batch, own.denoiser("a blue car"), lambda σ: 3.0)):
        assert torch.equal(lora(X, denoise)(z, LEVELS), want)
    assert {p.dtype for p in lora.weights} == {torch.float32}


def test_the_prior_stays_as_it_is(prior: DiffusionPrior):
    """Bit for bit, also after steps; and the copy has no weights of its own but for the LoRA."""
    z, denoise = noise(4, 4, 8, 8), prior.denoiser(VIEWS)
    before, kept = denoise(z, LEVELS), copy.deepcopy(prior.unet.state_dict())
    lora = trained(prior, 3, rate=1e-2)
    assert torch.equal(denoise(z, LEVELS), before)
    assert prior.unet.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in prior.unet.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in prior.unet.parameters())
    assert not torch.equal(lora(X, denoise)(z, LEVELS), prior.denoiser(VIEWS, scale=1.0)(z, LEVELS))
    own = {p.data_ptr() for p in lora.prior.unet.parameters()} - {p.data_ptr() for p in prior.unet.parameters()}
    assert own == {p.data_ptr() for p in lora.weights}
    unfrozen = copy.deepcopy(prior.unet).requires_grad_()
    LoRA(prior.with_network(unfrozen))
    assert all(p.requires_grad for p in unfrozen.parameters())


# ---------------------------------------------------------------- learning


def test_its_loss_is_the_authors(prior: DiffusionPrior):
    """|ε̂ − n|², or |v̂ − v|²/(1 + σ²), written with the scheduler's ᾱ: the same gradient in float64."""
    double, x = cast(prior, torch.float64), X.double()
    lora, twin = trained(double, 2, rate=1e-2), LoRA(double)
    twin.load_state_dict(copy.deepcopy(lora.state_dict()))
    lora.after_step(double.denoiser(VIEWS), x, seeded(5))

    g, text = seeded(5), double.pipeline.encode_prompt(VIEWS, "cpu", 1, False)[0]
    t = torch.rand(4, generator=g, dtype=torch.float64)
    n = torch.randn(x.shape, generator=g, dtype=torch.float64)
    kept = 1 / (1 + double.level(t)[:, None, None, None] ** 2)  # ᾱ
    z_t = kept.sqrt() * x + (1 - kept).sqrt() * n
    output = twin.prior.unet(z_t, t * (len(double.levels) - 1), text.double()).sample
    v = kept.sqrt() * n - (1 - kept).sqrt() * x
    error = output - n if double.prediction == "epsilon" else kept.sqrt() * (output - v)
    error.square().flatten(1).sum(1).mean().backward()
    for ours, theirs in zip(lora.weights, twin.weights, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)


def test_it_learns(prior: DiffusionPrior):
    """On fixed x and noise that it has not seen, D_LoRA comes nearer to x, at every level."""
    σ, denoise = LEVELS.repeat_interleave(8)[:, None].expand(32, 4), prior.denoiser(VIEWS)
    each = σ.float()[..., None, None, None]
    z = X + each * noise(32, *X.shape, seed=2)

    @torch.no_grad()
    def errors(lora: LoRA) -> Tensor:
        return ((lora(X, denoise)(z, σ) - X) / each).square().mean((1, 2, 3, 4)).reshape(len(LEVELS), -1).mean(1)

    before, after = errors(LoRA(prior)), errors(trained(prior, 60, rate=1e-2))
    assert (after < before).all()


class Fitted(nn.Module):
    """What stands for a LoRA that has learned all: the noise of each item about its own x, whatever the text."""

    def __init__(self, prior: DiffusionPrior, x: Tensor):
        super().__init__()
        self.config, self.prior, self.x = prior.unet.config, prior, x
        self.precision = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, return_dict: bool) -> tuple[Tensor]:
        σ = self.prior.preconditioning.sigma(t.expand(len(z_t)))[:, None, None, None]
        kept, lost = 1 / (1 + σ**2).sqrt(), σ / (1 + σ**2).sqrt()
        ε = (z_t - kept * self.x) / lost
        return (ε if self.prior.prediction == "epsilon" else kept * ε - lost * self.x,)


def test_in_the_limit_of_a_perfect_fit_to_each_item_vsd_is_sds(prior: DiffusionPrior):
    """D_particles = x: what is left of x − [D_particles(z; σ) − D(z; σ)] is SDS's target, draw by draw."""
    x, denoise, law = X.double(), prior.denoiser(VIEWS), uniform_time(level=prior.level)
    lora = LoRA(prior)
    lora.prior = lora.prior.with_network(Fitted(prior, x))
    for seed in range(4):
        vsd, sds = (method(denoise, x, 0.5, seeded(seed)) for method in (VSD(lora, law), SDS(law)))
        torch.testing.assert_close(vsd.value, sds.value, rtol=0, atol=1e-9)
        assert not torch.allclose(sds.value, x, atol=0.1)


# ---------------------------------------------------------------- in a run


def test_calls_are_the_rows_that_reach_both_networks(prior1: DiffusionPrior):
    """2 of the guided prior, 1 of the particles, 1 of their step; the LoRA's rows carry the batch's views alone."""
    vsd, x = VSD(LoRA(prior1, generator=seeded())), X.clone().requires_grad_()
    said = prior1.pipeline.encode_prompt(VIEWS, "cpu", 1, False)[0].detach()
    seen: dict[str, list[Tensor]] = {"prior": [], "LoRA": []}
    networks = {"prior": prior1.unet, "LoRA": vsd.particles.prior.unet}  # type: ignore[attr-defined]
    hooks = [
        network.register_forward_pre_hook(lambda module, args, name=name: seen[name].append(args[2]))
        for name, network in networks.items()
    ]
    default = prior1.denoiser("a blue car")
    render = lambda g: Rendered(x, prior1.denoiser(VIEWS))  # noqa: E731
    *_, info = distill(render, torch.optim.SGD([x], 0.1), default, vsd, 3, generator=seeded())
    for hook in hooks:
        hook.remove()
    rows = {name: torch.cat(some) for name, some in seen.items()}
    assert info.calls == 3 * 4
    assert info.calls * len(x) == sum(map(len, rows.values()))
    assert torch.equal(rows["LoRA"], said.repeat(6, 1, 1))


def run(prior: DiffusionPrior, path: Path, steps: int, seed: int, until: int) -> tuple[Tensor, LoRA, StepInfo]:
    """A run of `steps` that goes on from the checkpoint, if there is one, and is killed after step `until`."""
    x, g, lora = X.clone().requires_grad_(), seeded(seed), LoRA(prior, rank=2, rate=1e-2, generator=seeded(seed))
    vsd, optimizer = VSD(lora, uniform_time(level=prior.level)), torch.optim.Adam([x], 0.1)
    checkpoint = Checkpoint(path, {"method": repr(vsd)}, x=x, optimizer=optimizer, generator=g, method=vsd)
    kept = checkpoint.load()
    done, info = None if kept is None else StepInfo(**kept), None
    for info in distill(lambda _: x, optimizer, prior.denoiser(VIEWS), vsd, steps, generator=g, done=done):
        checkpoint.save(**info._asdict())
        if info.step == until:
            break
    assert info is not None
    return x.detach(), lora, info._replace(seconds=0.0)


def test_a_killed_run_goes_on_bit_for_bit(prior1: DiffusionPrior, tmp_path: Path):
    x, lora, info = run(prior1, tmp_path / "whole.pt", 5, 0, until=4)
    run(prior1, tmp_path / "killed.pt", 5, 0, until=1)
    x_again, again, info_again = run(prior1, tmp_path / "killed.pt", 5, 7, until=4)
    assert info_again == info
    assert torch.equal(x_again, x)
    for ours, theirs in zip(again.weights, lora.weights, strict=True):
        assert torch.equal(ours, theirs)
        left, right = again.optimizer.state[ours], lora.optimizer.state[theirs]
        assert left.keys() == right.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(left[name], right[name]) for name in left)
    with pytest.raises(RuntimeError, match="size mismatch"):
        LoRA(prior1, rank=1).load_state_dict(lora.state_dict())


# ---------------------------------------------------------------- bad input


def test_bad_settings_are_refused(prior1: DiffusionPrior, prior2: DiffusionPrior):
    for rate in (0.0, -1e-4, float("nan")):
        with pytest.raises(ValueError, match=rf"rate is {rate}; it must be"):
            LoRA(prior1, rate=rate)
    for rank in (0, 2.5):
        with pytest.raises(ValueError, match=rf"rank is {rank}; it must be a whole number, at least 1"):
            LoRA(prior1, rank=rank)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"prior is 'pocket'; it must be a DiffusionPrior"):
        LoRA("pocket")  # type: ignore[arg-type]
    lora = LoRA(prior1)
    assert repr(lora) == "LoRA(rank=4, rate=0.0001)"
    with pytest.raises(ValueError, match=r"prior has a UNet with adapters \(default\)"):
        LoRA(lora.prior)
    with pytest.raises(ValueError, match=r"denoise is .* that a DiffusionPrior's denoiser\(\) gives"):
        lora(X, guided(lambda z, sigma: z, lambda z, sigma: z, 2.0))
    with pytest.raises(ValueError, match="another network than the LoRA was made on"):
        lora.after_step(prior2.denoiser(VIEWS), X, None)
    state = copy.deepcopy(lora.state_dict()["weights"])
    with pytest.raises(FloatingPointError, match=r"gradient of the LoRA in torch\.float32 is not finite"):
        lora.after_step(prior1.denoiser(VIEWS), X * float("nan"), seeded())
    assert all(torch.equal(value, state[name]) for name, value in lora.state_dict()["weights"].items())
