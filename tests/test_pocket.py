"""The pocket model: its parts against closed forms, its training at toy size, the shipped weights, and their card."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from msd_teach import DiffusionPrior, pocket, sample

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from msd_teach.cache import save_atomically
from msd_teach.pocket import autoencoder, clip, data, evaluate, judge, train, training, unet
from msd_teach.pocket.world import COLOURS, KINDS, VIEWS, WORDS, Prompt

ROOT = Path(__file__).parent.parent
CARD = ROOT / "msd_teach" / "pocket" / "MODEL_CARD.md"
QUICK = training.Plan(steps=12, batch=8, rate=0.05, warmup=2, checkpoint_every=5)


class Answer(NamedTuple):
    """What a UNet returns."""

    sample: Tensor


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and renders in shards of 24."""
    monkeypatch.setenv("MSD_TEACH_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "SHARD", 24)
    return tmp_path / "pocket"


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def line_loss(network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
    x = torch.stack([index, index**2, torch.ones_like(index)], 1) / 10.0
    return (network(x) - index[:, None] + 0.1 * torch.randn(len(index), 1, generator=generator)).square().mean()


def test_a_run_killed_between_checkpoints_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    steps = 0

    def killed(network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 9:
            raise KeyboardInterrupt
        return line_loss(network, index, generator)

    whole = training.fit("line", line(), line_loss, 10, QUICK, tmp_path / "whole").network
    with pytest.raises(KeyboardInterrupt):
        training.fit("line", line(), killed, 10, QUICK, tmp_path / "broken")
    resumed = training.fit("line", line(), line_loss, 10, QUICK, tmp_path / "broken").network
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    again = training.fit("line", line(), killed, 10, QUICK, tmp_path / "broken").network  # finished: takes no step
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    def breaks(network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        value = line_loss(network, index, generator)
        return value * float("nan") if (tmp_path / "checkpoint.pt").exists() else value

    with pytest.raises(FloatingPointError, match="line: loss is nan at step 5"):
        training.fit("line", line(), breaks, 10, QUICK, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    training.fit("line", line(), line_loss, 10, QUICK, tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint .* is of another plane; delete it"):
        training.fit("plane", nn.Linear(5, 1), line_loss, 10, QUICK, tmp_path)


def test_a_checkpoint_of_another_plan_is_refused_by_the_names_of_what_differs(tmp_path: Path) -> None:
    settings = {"latents": "abc"}
    training.fit("line", line(), line_loss, 10, QUICK, tmp_path, settings=settings)
    training.fit("line", line(), line_loss, 10, replace(QUICK, checkpoint_every=7), tmp_path, settings=settings)
    other = replace(QUICK, steps=20, seed=1)
    with pytest.raises(ValueError, match=r"another line; .*: examples was 10, is 11, steps was 12, is 20, seed was 0"):
        training.fit("line", line(), line_loss, 11, other, tmp_path, settings=settings)
    with pytest.raises(ValueError, match=r"train as it was: latents was 'abc', is 'def'$"):
        training.fit("line", line(), line_loss, 10, QUICK, tmp_path, settings={"latents": "def"})


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.pt"
    save_atomically([1.0], path)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save_atomically([torch.zeros(1000), lambda: None], path)
    assert torch.load(path, weights_only=True) == [1.0]


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    plan = training.Plan(steps=1000, batch=1, rate=2.0, warmup=100)
    assert plan.rate_at(0) == pytest.approx(0.02)
    assert plan.rate_at(100) == pytest.approx(2.0)
    assert plan.rate_at(550) == pytest.approx(1.0)
    assert plan.rate_at(999) < 1e-4


def test_renders_are_made_once_and_come_back_the_same(cache: Path) -> None:
    first = data.load_renders("train", 30)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.pt")}
    second = data.load_renders("train", 30)
    assert len(first.captions) == len(first.image) == 30
    assert len(written) == 2
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.pt")} == written
    assert torch.equal(first.image, second.image) and first.captions == second.captions
    assert first.captions != data.load_renders("judge", 30).captions
    with pytest.raises(ValueError, match="split is 'exam'; it must be one of train, judge, test"):
        data.load_renders("exam", 1)


def test_captions_hold_for_exactly_the_pictures_they_are_true_of() -> None:
    said = data.meaning(["a red house", "a house, side view", "a small red house, front view", "a blue car"])
    true = data.meaning(["a red house, front view", "a small red house, front view", "a blue car, side view"])
    expected = torch.tensor([[True, False, False], [False, False, False], [False, True, False], [False, False, True]])
    assert torch.equal(clip.holds(said, true), expected)


def test_contrastive_loss_is_clips_own_when_every_caption_has_one_picture() -> None:
    scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = (-scores.log_softmax(1).diag().mean() - scores.log_softmax(0).diag().mean()) / 2
    torch.testing.assert_close(clip.contrastive_loss(scores, torch.eye(7, dtype=torch.bool)), own)


def test_every_known_word_is_one_token_and_unknown_ones_fall_into_pieces(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = clip.build_tokenizer(tmp_path)
    assert all(len(tokenizer(word).input_ids) == 3 for word in (*WORDS, ","))
    assert len({tokenizer(word).input_ids[1] for word in WORDS}) == len(WORDS)
    assert len(tokenizer("zeppelin").input_ids) > 3
    assert tokenizer.eos_token_id not in (None, 2)  # 2 selects an old pooling in CLIPTextModel
    longest = str(Prompt("snowman", "orange", "overhead", small=True, photo=True))
    ids = clip.tokens(tokenizer, [longest, ""])
    assert ids.shape == (2, 16) and ids[0, -1] == tokenizer.eos_token_id
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again(longest).input_ids == tokenizer(longest).input_ids and again.model_max_length == 16


def test_standardised_latents_have_the_known_scale_and_decode_to_the_same_pictures() -> None:
    torch.manual_seed(0)
    network = autoencoder.build().eval()
    assert network.quant_conv is not None and network.quant_conv.bias is not None
    x = 2 * torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1)) - 1
    with torch.no_grad():
        network.quant_conv.weight[0] *= 1e-3  # a channel that the encoder leaves unused: all noise
        before, posterior = network(x, sample_posterior=False).sample, network.encode(x).latent_dist
        autoencoder.standardise(network, x)
        after, standard = network(x, sample_posterior=False).sample, network.encode(x).latent_dist
    torch.testing.assert_close(after, before, atol=2e-4, rtol=0)
    z, noise = (network.config["scaling_factor"] * part for part in (standard.mean, standard.std))
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    of_draws = z.var((0, 2, 3)) + noise.square().mean((0, 2, 3))
    torch.testing.assert_close(of_draws.sqrt(), torch.ones(4), atol=1e-4, rtol=0)
    scale = standard.mean.std((0, 2, 3)) / posterior.mean.std((0, 2, 3))
    torch.testing.assert_close(standard.std, posterior.std * scale[:, None, None], rtol=1e-3, atol=0)


def test_signal_to_noise_of_a_known_error() -> None:
    x, mask = torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8)
    mask[:, :4] = 1
    y = x.clone()
    y[:, :, :4] = 0.2
    assert autoencoder.signal_to_noise(x, y, mask) == pytest.approx(20.0)  # 10 log10(4 / .04)
    assert autoencoder.signal_to_noise(x, y) == pytest.approx(20.0 + 10 * torch.log10(torch.tensor(2.0)).item())


def waves(generator: torch.Generator) -> Tensor:
    """Pictures of noise, the rougher the later."""
    return torch.arange(1, 41.0)[:, None, None, None] / 40 * torch.randn(40, 3, 16, 16, generator=generator)


def test_sharpness_and_explained_share_of_known_pictures() -> None:
    x = waves(torch.Generator().manual_seed(0))
    assert evaluate.sharpness(x, x) == (1.0, 0.0)
    assert evaluate.explained_share(x, x) == (1.0, 0.0)
    half = (0.5 * x + torch.linspace(0, 1, 16)).clone()  # a ramp has no Laplacian
    assert evaluate.sharpness(x, half) == pytest.approx((0.25, 0.0), abs=1e-6)
    assert evaluate.explained_share(x, half) == pytest.approx((0.75, 0.0), abs=1e-6)
    y = x + waves(torch.Generator().manual_seed(1))  # sharp, but wrong: as much added as there was
    assert evaluate.sharpness(x, y)[0] == pytest.approx(2.0, abs=0.1)
    assert evaluate.explained_share(x, y)[0] == pytest.approx(0.0, abs=0.1)
    mask = torch.zeros(40, 16, 16)
    mask[:, :8, :] = 1
    y = torch.where(mask[:, None] > 0, x, 0.0)
    assert evaluate.sharpness(x, y)[0] < 0.7
    mask[:, 6:, :] = 0
    assert evaluate.sharpness(x, y, mask) == (1.0, 0.0)
    one = torch.zeros(1, 1, 5, 5)
    one[..., 2, 2] = 1
    assert evaluate.laplacian(one)[0, 0].tolist() == [[0, 1, 0], [1, -4, 1], [0, 1, 0]]


def test_the_error_of_sharpness_is_its_spread_over_sets_of_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [evaluate.sharpness(waves(generator), waves(generator)) for _ in range(200)]
    values, errors = torch.tensor(found).T
    assert values.mean() == pytest.approx(1.0, abs=0.02)
    assert errors.mean() / values.std() == pytest.approx(1.0, abs=0.2)


def test_a_channel_costs_what_it_carries_and_a_dead_one_nothing() -> None:
    """An autoencoder that copies: three channels are the colours, and the decoder does not listen to the fourth."""

    class Copy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def encode(self, x: Tensor) -> SimpleNamespace:
            z = torch.cat([0.9 * x, torch.randn(len(x), 1, *x.shape[2:], generator=generator)], 1)
            return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: z))

        def decode(self, z: Tensor) -> Answer:
            return Answer(z[:, :3])

    generator = torch.Generator().manual_seed(0)
    x = (torch.tensor([0.5, 0.2, 0.1])[:, None, None] * torch.randn(50, 3, 8, 8, generator=generator)).clamp(-1, 1)
    costs = autoencoder.channel_costs(Copy(), x)  # type: ignore[arg-type]
    power = x.square().mean((0, 2, 3))
    expected = 10 * torch.log10((0.01 * power.sum() + 0.99 * power) / (0.01 * power.sum()))
    assert costs[:3] == pytest.approx(expected.tolist(), abs=0.02) and costs[3] == 0.0


@torch.no_grad()
def test_an_untrained_encoder_hands_on_every_pixel() -> None:
    network = autoencoder.build()
    for name, layer in network.encoder.named_modules():
        if name.endswith(("conv2", "to_out.0")):  # what the residual blocks add to the Haar transform
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    z = network.encoder.conv_in(x)
    for block in network.encoder.down_blocks:
        z = block(z)
    assert z[:, :48].square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-4)
    means = x.reshape(2, 3, 16, 4, 16, 4).mean((3, 5))
    torch.testing.assert_close(z[:, :3], 4 * means, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_weakest_latent_channel_begins_anew_and_the_others_go_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = autoencoder.build().eval()
    network.post_quant_conv.weight[:, 2] = 0
    network.save_pretrained(tmp_path)
    x = 2 * torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)) - 1
    begun = autoencoder.begin_from(tmp_path, x)
    before, after = autoencoder.latents(network, x), autoencoder.latents(begun, x)
    others = [0, 1, 3]
    torch.testing.assert_close(after[:, others], before[:, others])
    assert after[:, 2].std().item() == pytest.approx(1 / autoencoder.SCALING_FACTOR, rel=0.01)
    assert after[:, 2].mean().item() == pytest.approx(0.0, abs=0.01)
    assert begun.post_quant_conv.weight[:, 2].abs().min() > 0
    assert torch.equal(begun.post_quant_conv.weight[:, others], network.post_quant_conv.weight[:, others])


def test_the_noise_loss_vanishes_for_the_true_noise_and_weighs_as_min_snr_does() -> None:
    schedule, y = unet.build_scheduler(), torch.randn(64, 4, 16, 16)

    class Guess(nn.Module):
        """Knows the clean latents, and answers with a multiple of the true noise."""

        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = nn.Parameter(torch.tensor(share))

        def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Answer:
            kept = schedule.alphas_cumprod[t][:, None, None, None]
            return Answer(self.share * (z - kept.sqrt() * y) / (1 - kept).sqrt())

    def loss(share: float) -> float:
        generator = torch.Generator().manual_seed(0)
        return unet.noise_loss(Guess(share), schedule, y, torch.zeros(64, 16, 128), generator).item()

    assert loss(1.0) < 1e-8
    generator = torch.Generator().manual_seed(0)
    kept = schedule.alphas_cumprod[torch.randint(1000, (64,), generator=generator)]
    noise = torch.randn(y.shape, generator=generator)
    weight = torch.minimum(torch.ones(64), 5 * (1 - kept) / kept)
    assert loss(0.0) == pytest.approx((weight * noise.square().mean((1, 2, 3))).mean().item(), rel=1e-4)


def test_frechet_distance_of_gaussians_and_a_second_implementation() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(400, 5, generator=generator, dtype=torch.float64) @ torch.randn(5, 5, generator=generator).double()
    b = torch.randn(300, 5, generator=generator, dtype=torch.float64) + 0.5
    product = torch.cov(a.T) @ torch.cov(b.T)
    root = torch.as_tensor(linalg.sqrtm(product.numpy()).real)
    expected = (a.mean(0) - b.mean(0)).square().sum() + (torch.cov(a.T) + torch.cov(b.T) - 2 * root).trace()
    assert evaluate.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-8)
    assert evaluate.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert evaluate.frechet_distance(a, a + 2.0) == pytest.approx(20.0)
    with pytest.raises(ValueError, match="b has 5 features of 5 dimensions"):
        evaluate.frechet_distance(a, b[:5])


def test_shares_come_with_their_binomial_errors() -> None:
    truth = torch.zeros(100, 3, dtype=torch.long)
    found = truth.clone()
    found[:20, 0], found[:50, 2] = 1, 1
    figures = evaluate.agreement(found, truth, torch.arange(100.0))
    assert (figures["kind"], figures["colour"], figures["view"]) == pytest.approx((0.8, 1.0, 0.5))
    assert figures["clear view"] == pytest.approx(50 / 89)
    assert (figures["kind error"], figures["colour error"]) == pytest.approx((0.04, 0.0))
    assert figures["clear view error"] == pytest.approx((50 * 39 / 89**3) ** 0.5)


def test_the_bootstrap_interval_holds_the_distance_and_is_as_wide_as_its_spread() -> None:
    """Plain quantiles would lie above it: drawing again adds noise, and noise adds distance."""
    generator = torch.Generator().manual_seed(0)

    def pair() -> tuple[Tensor, Tensor]:
        return torch.randn(300, 20, generator=generator), torch.randn(300, 20, generator=generator) + 0.5

    distances = torch.tensor([evaluate.frechet_distance(*pair()) for _ in range(100)])
    a, b = pair()
    low, high = evaluate.bootstrap(evaluate.frechet_distance, a, b)
    assert low < evaluate.frechet_distance(a, b) < high
    assert (high - low) / (4 * distances.std().item()) == pytest.approx(1.0, abs=0.3)


def test_the_guidance_of_the_frechet_distance_is_chosen_on_other_captions_and_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Features are numbers and samples shifted by their guidance's distance from 1.5: the rest is bookkeeping."""
    generator = torch.Generator().manual_seed(0)
    renders = torch.randn(400, 3, generator=generator)
    held_out = SimpleNamespace(captions=[f"caption {i}" for i in range(400)], pixels=lambda index: renders[index])
    drawn: list[tuple[list[str], float, int]] = []

    def draw(pipeline: object, prompts: list[str], guidance: float, seed: int) -> Tensor:
        drawn.append((prompts, guidance, seed))
        return torch.randn(len(prompts), 3, generator=generator) + abs(guidance - 1.5)

    monkeypatch.setattr(evaluate, "draw", draw)
    monkeypatch.setattr(evaluate, "picture_features", lambda network, x: x)
    monkeypatch.setattr(evaluate, "PILOT", 100)
    figures = evaluate.frechet_figures(None, None, held_out)  # type: ignore[arg-type]
    *pilots, (captions, guidance, seed) = drawn
    assert (captions, guidance) == (held_out.captions[:200], 1.5) and figures["guidance"] == 1.5
    assert [len(prompts) for prompts, _, _ in pilots] == [100] * 4
    assert all(other != seed and not set(prompts) & set(captions) for prompts, _, other in pilots)
    assert figures["floor"] == evaluate.frechet_distance(renders[:200], renders[200:])
    assert figures["ratio"] == figures["distance"] / figures["floor"]
    assert figures["low"] < figures["distance"] < figures["high"] < figures["pilot, guidance 3"]


def test_an_unfinished_or_unknown_stage_is_named(cache: Path) -> None:
    with pytest.raises(ValueError, match="stage is 'gan'; it must be one of autoencoder, judge, clip, unet"):
        train.train("gan")
    with pytest.raises(ValueError, match=r"autoencoder is not trained yet: .* train --stage autoencoder"):
        train.train("unet")


def test_toy_training_of_every_stage_makes_a_folder_that_stock_libraries_load(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

    monkeypatch.setattr(train, "HELD_OUT", 6)
    monkeypatch.setattr(unet, "SHEET", unet.SHEET[:1])
    for stage in ("autoencoder", "judge", "clip"):
        train.train(stage, steps=3, renders=48)
        record = json.loads((cache / stage / "figures.json").read_text())
        assert record["steps"] == 3
    with pytest.raises(RuntimeError, match=r"train longer before the UNet: autoencoder: object dB .* < 28"):
        train.train("unet", steps=2, renders=48)
    train.train("unet", steps=2, renders=48, past_gates=True)
    assert (cache / "unet" / "sheet-000002.png").exists()

    folder = tmp_path / "weights"
    train.export(folder)
    assert pocket.weights(folder) == folder
    figures = json.loads((cache / "unet" / "figures.json").read_text())
    shown = json.loads((folder / "training.json").read_text())
    assert list(shown) == list(train.STAGES)
    assert shown["unet"] == {key: figures[key] for key in ("steps", "batch", "renders", "seconds")}
    assert not [path for path in folder.rglob("*.json") if str(tmp_path) in path.read_text()]
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    image = pipeline("a red house", num_inference_steps=2, output_type="pt").images
    assert image.shape == (1, 3, 64, 64)
    network = CLIPModel.from_pretrained(folder / "clip")
    assert next(network.parameters()).dtype == torch.float32
    kept, _ = train.load_clip()
    x = 2 * torch.rand(4, 3, 64, 64) - 1
    torch.testing.assert_close(clip.picture_features(network, x), clip.picture_features(kept, x), atol=2e-2, rtol=0)

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.rmtree(folder / "judge")
    with pytest.raises(ValueError, match=r"judge/model.safetensors \(missing\).*unet/.*\(damaged\).*restore them by"):
        pocket.weights(folder)


# ---------------------------------------------------------------- the shipped weights


@pytest.fixture(scope="module")
def shipped() -> Path:
    """The folder of the shipped weights, all checksums compared."""
    return pocket.weights()


def test_shipped_files_are_listed_small_and_in_half_precision(shipped: Path) -> None:
    files = [path for path in shipped.rglob("*") if path.is_file()]
    listed = {line.split()[1] for line in (shipped / "SHA256SUMS").read_text().splitlines()}
    assert {path.relative_to(shipped).as_posix() for path in files} == listed | {"SHA256SUMS"}
    assert sum(path.stat().st_size for path in files) <= 25e6
    networks = [path for path in files if path.suffix == ".safetensors"]
    assert {path.parent.name for path in networks} == {"unet", "vae", "text_encoder", "clip", "judge"}
    for path in networks:
        (length,) = struct.unpack("<Q", path.read_bytes()[:8])
        header = json.loads(path.read_bytes()[8 : 8 + length])
        assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F16"}, path


def test_stock_libraries_load_the_shipped_model_and_draw_in_float32(shipped: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

    pipeline = StableDiffusionPipeline.from_pretrained(shipped)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    (image,) = pipeline("a red house, front view", num_inference_steps=5).images
    assert image.size == (64, 64)
    network = CLIPModel.from_pretrained(shipped / "clip")
    assert network.dtype == torch.float32
    for name, value in pipeline.text_encoder.state_dict().items():
        assert torch.equal(value, network.text_model.state_dict()[name])


@torch.no_grad()
def test_ddim_of_the_shipped_pipeline_is_our_euler(shipped: Path) -> None:
    pipeline = evaluate.load_pipeline(shipped).to("cpu")
    prior = DiffusionPrior.from_pretrained("pocket", device="cpu")
    prompts = ["a red house, front view", "a small blue car"]
    n = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"guidance_scale": 3.0, "num_inference_steps": 20, "latents": n}
    want = pipeline(prompts, output_type="latent", **options).images
    sigmas = prior.sigmas(20)
    *_, z = sample(prior.denoiser(prompts, scale=3.0), n * float((1 + sigmas[0] ** 2).sqrt()), sigmas, "euler")
    y = z / float((1 + sigmas[-1] ** 2).sqrt())  # DDIM takes its last state for clean
    assert (y - want).abs().max() <= 1e-4 * want.abs().max()
    assert (prior.decode(y) - pipeline(prompts, output_type="pt", **options).images).abs().max() < 1e-3


def test_the_shipped_prior_refuses_unknown_words(shipped: Path) -> None:
    prior = DiffusionPrior.from_pretrained("pocket", device="cpu")
    with pytest.raises(ValueError, match=r"unknown words: 'hause' \(nearest: house"):
        prior.denoiser("a red hause")
    with pytest.raises(ValueError, match="unknown words: 'blurry'"):
        prior.denoiser("a red house", negative="blurry")
    prior.denoiser("A photo of a red house, front view.")


def test_shipped_clip_and_judge_agree_on_held_out_renders(shipped: Path, cache: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    renders = data.load_renders("test", 24)
    x = renders.pixels(torch.arange(24))
    judged = judge.Judge.from_pretrained(shipped / "judge").decide(x)
    network, tokenizer = (part.from_pretrained(shipped / "clip") for part in (CLIPModel, CLIPTokenizer))
    read = clip.zero_shot(network, tokenizer, x)
    for a, b in ((judged, read), (judged, data.labels(renders)), (read, data.labels(renders))):
        assert (a == b)[:, :2].all(1).sum() >= 20  # kind and colour


def test_the_shipped_model_draws_what_it_is_asked_for(shipped: Path) -> None:
    colours = list(COLOURS)
    prompts = [str(Prompt(kind, colours[i % len(colours)], VIEWS[i % 4])) for i, kind in enumerate(KINDS)]
    drawn = evaluate.draw(evaluate.load_pipeline(shipped), prompts, 3.0, steps=20)
    found = judge.Judge.from_pretrained(shipped / "judge").decide(drawn)
    assert (found == data.meaning(prompts)[:, :3])[:, :2].all(1).sum() >= 9


# ---------------------------------------------------------------- their card


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/pocket_model.py"""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("pocket_model")


FIGURES = {
    "judge": {"kind": 0.99, "kind error": 0.002, "view": 0.9, "view error": 0.005},
    "autoencoder": {"object dB": 27.96, "image dB": 33.1},
    "samples, guidance 3": {"kind": 0.98, "kind error": 0.004, "colour": 0.99, "colour error": 0.003, "sharpness": 1.2},
    "Fréchet distance": {"ratio": 1.25, "guidance": 1.5, "distance": 0.09, "low": 0.08, "high": 0.1, "floor": 0.02},
    "sample sheet": {"pictures": 120},
}
ABOUT = {
    "command": "python benchmarks/pocket_model.py",
    "machine": {"processor": "Abacus"},
    "versions": {"torch": "2"},
    "digest": "d0d0",
    "sizes": {"samples": 10, "pictures": 20},
    "seeds": {"noise": 0},
}


def test_a_killed_measurement_goes_on_after_its_last_section(script: ModuleType, tmp_path: Path) -> None:
    def killed() -> evaluate.Figures:
        raise KeyboardInterrupt

    path, calls = tmp_path / "pocket.json", []

    def section(name: str) -> evaluate.Figures:
        calls.append(name)
        return {"kind": 1.0}

    with pytest.raises(KeyboardInterrupt):
        script.measure({"judge": lambda: section("judge"), "CLIP": killed}, ABOUT, path)
    assert json.loads(path.read_text()) == ABOUT | {"figures": {"judge": {"kind": 1.0}}}
    both = {"judge": lambda: section("judge"), "CLIP": lambda: section("CLIP")}
    record = script.measure(both, ABOUT, path)
    assert calls == ["judge", "CLIP"]
    assert record == json.loads(path.read_text()) and list(record["figures"]) == ["judge", "CLIP"]
    for other in ({"digest": "e1e1"}, {"sizes": {"samples": 11, "pictures": 20}}, {"versions": {"torch": "3"}}):
        calls.clear()
        script.measure(both, ABOUT | other, path)
        assert calls == ["judge", "CLIP"]


def test_the_card_shows_figures_bars_and_verdicts(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model").write_bytes(b"123")
    (tmp_path / "SHA256SUMS").write_text("abc  unet/model\n")
    record = {"steps": 5, "batch": 6, "renders": 7, "seconds": 8}
    (tmp_path / "training.json").write_text(json.dumps({"unet": record}))
    card = script.written(CARD.read_text(), ABOUT | {"figures": FIGURES}, tmp_path)
    for row in (
        "| judge | kind | 0.990 ± 0.002 | ≥ 0.98 | yes |",
        "| judge | view | 0.900 ± 0.005 |  |  |",
        "| autoencoder | object dB | 27.96 | ≥ 28 | no |",
        "| autoencoder | image dB | 33.1 | ≥ 33 | yes |",
        "| samples, guidance 3 | kind | 0.980 ± 0.004 | ≥ 0.99 | no |",
        "| samples, guidance 3 | colour | 0.990 ± 0.003 | ≥ 0.99 | yes |",
        "| samples, guidance 3 | sharpness | 1.2 | ≥ 0.65, ≤ 1.1 | no |",
        "| Fréchet distance | ratio | 1.25 | ≤ 1.3 | yes |",
        "| Fréchet distance | distance | 0.09 (0.08 to 0.1) |  |  |",
        "| unet | 5 | 6 | 7 | 8 |",
        "| unet/model | 3 | `abc` |",
    ):
        assert row in card.splitlines()
    assert "`d0d0`" in card and "not yet measured" not in card and "sample sheet" not in card
    assert script.written(card, ABOUT | {"figures": FIGURES}, tmp_path) == card
    old = ABOUT | {"digest": "e1e1", "figures": {"autoencoder": {"object dB": 26.0}}}
    both = script.written(card, ABOUT | {"figures": FIGURES}, tmp_path, old).splitlines()
    assert "| autoencoder | object dB | 26 | 27.96 | ≥ 28 | no |" in both
    assert "| autoencoder | image dB |  | 33.1 | ≥ 33 | yes |" in both
    with pytest.raises(ValueError, match="edition before was measured with sizes"):
        script.written(card, ABOUT | {"figures": FIGURES}, tmp_path, old | {"sizes": {}})
    with pytest.raises(ValueError, match="card has no <!-- figures -->"):
        script.written("# A card", ABOUT | {"figures": FIGURES}, tmp_path)


def test_the_sheet_shows_every_kind_colour_and_view_and_is_small(script: ModuleType, tmp_path: Path) -> None:
    from PIL import Image

    prompts = [Prompt.parse(text) for text in script.sheet_prompts()]
    assert [prompt.kind for prompt in prompts[::10]] == list(KINDS)
    assert {prompt.colour for prompt in prompts[:10]} == set(COLOURS)
    assert {prompt.view for prompt in prompts[:10]} == set(VIEWS)
    pictures = torch.linspace(0, 0.9, 120)[:, None, None, None].expand(120, 3, 64, 64)
    script.save_grid(pictures, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (660, 792)
        page = sheet.convert("RGB")
    assert page.getpixel((65, 32)) == page.getpixel((66, 32)) == (255, 255, 255)
    assert page.getpixel((64, 32))[0] == pytest.approx(0, abs=8)
    assert page.getpixel((650, 780))[0] == pytest.approx(230, abs=8)


def test_the_card_counts_parameters_as_the_networks_do(tmp_path: Path) -> None:
    tokenizer = clip.build_tokenizer(tmp_path)
    with torch.device("meta"):
        networks = {"vae": autoencoder.build(), "unet": unet.build(), "clip": clip.build(tokenizer)}
        networks |= {"text_encoder": networks["clip"].text_model, "judge": judge.Judge()}
    said = dict(re.findall(r"^\| [^|]+ \| `(\w+)` \| [^|]+ \| ([\d ]+) \|", CARD.read_text(), re.M))
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert {name: int(count.replace(" ", "")) for name, count in said.items()} == counts


def test_the_card_is_what_was_measured_from_the_shipped_files(shipped: Path, script: ModuleType) -> None:
    record, card = json.loads((ROOT / "results" / "pocket.json").read_text("utf-8")), CARD.read_text("utf-8")
    assert record["digest"] == hashlib.sha256((shipped / "SHA256SUMS").read_bytes()).hexdigest()
    assert record["sizes"] == {"samples": 1000, "pictures": 2000}
    assert script.written(card, record, shipped) == card, "run python benchmarks/pocket_model.py"
    assert CARD.with_name("samples.png").stat().st_size <= 300e3
