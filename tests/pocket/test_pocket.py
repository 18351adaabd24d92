"""The pocket model: its parts against closed forms, its training at toy size, the shipped weights, and their card."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest
import together
import torch
from torch import Tensor, nn

from msd_teach import DiffusionPrior, pocket, sample

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from msd_teach.files import load
from msd_teach.pocket import autoencoder, clip, data, evaluate, judge, train, training, unet
from msd_teach.pocket.world import COLOURS, KINDS, VIEWS, WORDS, Prompt
from msd_teach.runs import records

ROOT = Path(__file__).parents[2]
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


def dropping(network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
    """A loss with chance that takes no generator."""
    x = torch.stack([index, index**2, torch.ones_like(index)], 1) / 10.0
    return (network(nn.functional.dropout(x)) - index[:, None]).square().mean()


def line_loss(network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
    x = torch.stack([index, index**2, torch.ones_like(index)], 1) / 10.0
    return (network(x) - index[:, None] + 0.1 * torch.randn(len(index), 1, generator=generator)).square().mean()


@pytest.mark.parametrize("loss", [line_loss, dropping])
def test_a_run_killed_between_checkpoints_ends_where_an_unbroken_one_does(tmp_path: Path, loss: Callable) -> None:
    steps = 0

    def killed(network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 9:
            raise KeyboardInterrupt
        return loss(network, index, generator)

    whole = training.fit("line", line(), loss, 10, QUICK, tmp_path / "whole").network
    with pytest.raises(KeyboardInterrupt):
        training.fit("line", line(), killed, 10, QUICK, tmp_path / "broken")
    resumed = training.fit("line", line(), loss, 10, QUICK, tmp_path / "broken").network
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
    assert load(tmp_path / "checkpoint.pt")["numbers"]["step"] == 5


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    training.fit("line", line(), line_loss, 10, QUICK, tmp_path)
    other = replace(QUICK, batch=2, rate=5.0, seed=9)
    message = r"of other settings: batch was 8 and is 2, rate was 0.05 and is 5.0, seed was 0 and is 9; delete it"
    with pytest.raises(ValueError, match=message):
        training.fit("line", line(), line_loss, 10, other, tmp_path)
    with pytest.raises(ValueError, match="examples was 10 and is 11"):
        training.fit("line", line(), line_loss, 11, QUICK, tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint .* is of another network; delete it"):
        training.fit("line", nn.Linear(5, 1), line_loss, 10, QUICK, tmp_path)
    often = replace(QUICK, checkpoint_every=1)  # changes nothing of what is learned
    training.fit("line", line(), line_loss, 10, often, tmp_path)
    with pytest.raises(ValueError, match=r"steps is 12.0; it must be a whole number"):
        replace(QUICK, steps=12.0)


def test_a_checkpoint_of_other_settings_of_a_stage_is_refused(tmp_path: Path) -> None:
    kept: dict[str, float | str] = {"latents": "abc", "dropout": 0.1}
    whole = training.fit("line", line(), line_loss, 10, QUICK, tmp_path, settings=kept).network
    again = training.fit("line", line(), line_loss, 10, QUICK, tmp_path, settings=kept).network
    assert torch.equal(whole.weight, again.weight)
    with pytest.raises(ValueError, match=r'settings: latents was "abc" and is "def"; delete it'):
        training.fit("line", line(), line_loss, 10, QUICK, tmp_path, settings=kept | {"latents": "def"})
    with pytest.raises(ValueError, match=r'latents was "abc" and is None, dropout was 0.1 and is None'):
        training.fit("line", line(), line_loss, 10, QUICK, tmp_path)


def test_a_stage_goes_on_under_its_own_recipe_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = training.Plan(steps=1, batch=2, rate=1e-3)
    trained = autoencoder.train(8, plan).network
    monkeypatch.setattr(autoencoder, "KL_WEIGHT", 1e-6)
    with pytest.raises(ValueError, match=r"of other settings: KL weight was 1e-08 and is 1e-06; delete it"):
        autoencoder.train(8, plan)
    with pytest.raises(ValueError, match=r"start is .*nowhere; it must be a folder with diffusion_pytorch_model"):
        autoencoder.train(8, plan, cache / "nowhere")
    trained.save_pretrained(cache / "begin")
    with pytest.raises(ValueError, match=r'of other settings: start was "" and is "\w{64}"'):
        autoencoder.train(8, plan, cache / "begin")


def test_two_processes_that_share_a_batch_train_what_one_does(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    (tmp_path / "two").mkdir()
    program = [sys.executable, *launch, together.__file__, str(tmp_path / "two")]
    subprocess.run(program, check=True, capture_output=True, timeout=300)
    alone = together.weights(tmp_path / "one")
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / "two" / f"weights-{rank}.pt"), alone)
    assert torch.equal(together.weights(tmp_path / "two"), torch.load(tmp_path / "two" / "weights-0.pt"))


@pytest.mark.parametrize("squared", [0.0, 8.0])
def test_the_reconstruction_loss_of_a_known_error(squared: float) -> None:
    """A chessboard of ±e has differences of 2e between all neighbours, and counts alike wherever the object is."""
    e, generator = 0.1, torch.Generator().manual_seed(0)
    board = e * (-1.0) ** (torch.arange(8)[:, None] + torch.arange(8))
    pictures = 2 * torch.rand(4, 3, 8, 8, generator=generator) - 1
    mask = torch.randint(256, (4, 8, 8), generator=generator).byte()
    mean = torch.zeros(2, 4, 2, 2)

    class Chessboard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def encode(self, x: Tensor) -> SimpleNamespace:
            self.x = x
            posterior = SimpleNamespace(mean=mean, std=torch.ones_like(mean), kl=lambda: torch.zeros(2))
            return SimpleNamespace(latent_dist=posterior)

        def decode(self, z: Tensor) -> Answer:
            return Answer(self.x + board)

    data = SimpleNamespace(pixels=lambda index: pictures[index], mask=mask)
    index = torch.tensor([2, 0])
    value = autoencoder.reconstruction_loss(Chessboard(), data, index, generator, squared)  # type: ignore[arg-type]
    expected = e + 2 * e**2 + 2 * (2 * e) + squared * (2 * e) ** 2
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_the_decoder_is_trained_alone(cache: Path) -> None:
    begin, x = cache / "begin", 2 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 1
    old = autoencoder.build().eval()
    old.save_pretrained(begin)
    new = autoencoder.train_decoder(begin, 8, training.Plan(steps=2, batch=2, rate=1e-3, warmup=1)).network
    assert torch.equal(autoencoder.latents(new, x), autoencoder.latents(old, x))
    assert unet.fingerprint(autoencoder.encoder_of(new)) == unet.fingerprint(autoencoder.encoder_of(old))
    assert not torch.equal(autoencoder.reconstruct(new, x), autoencoder.reconstruct(old, x))
    with pytest.raises(ValueError, match=r"start is .*nowhere; it must be a folder with diffusion_pytorch_model"):
        autoencoder.train_decoder(cache / "nowhere", 8)


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
def test_a_dead_latent_channel_begins_anew_and_the_others_go_on(tmp_path: Path) -> None:
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


def test_shares_come_with_their_binomial_errors() -> None:
    truth = torch.zeros(100, 3, dtype=torch.long)
    found = truth.clone()
    found[:20, 0], found[:50, 2] = 1, 1
    figures = evaluate.agreement(found, truth, torch.arange(100.0))
    assert (figures["kind"], figures["colour"], figures["view"]) == pytest.approx((0.8, 1.0, 0.5))
    assert figures["clear view"] == pytest.approx(50 / 89)
    assert (figures["kind error"], figures["colour error"]) == pytest.approx((0.04, 0.0))
    assert figures["clear view error"] == pytest.approx((50 * 39 / 89**3) ** 0.5)


def test_an_unfinished_or_unknown_stage_is_named(cache: Path) -> None:
    with pytest.raises(ValueError, match="stage is 'gan'; it must be one of autoencoder, decoder, judge, clip, unet"):
        train.train("gan")
    with pytest.raises(ValueError, match=r"autoencoder is not trained yet: .* train --stage autoencoder"):
        train.train("decoder")
    with pytest.raises(ValueError, match=r"decoder is not trained yet: .* train --stage decoder"):
        train.train("unet")


def test_toy_training_of_every_stage_makes_a_folder_that_stock_libraries_load(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

    monkeypatch.setattr(train, "HELD_OUT", 6)
    monkeypatch.setattr(unet, "SHEET", unet.SHEET[:1])
    for stage in ("autoencoder", "decoder", "judge", "clip"):
        train.train(stage, steps=3, renders=48)
        record = json.loads((cache / stage / "figures.json").read_text())
        assert record["steps"] == 3
    with pytest.raises(RuntimeError, match=r"train longer before the UNet: decoder: object dB .* < 28"):
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

    train.train("autoencoder", steps=3, renders=48)
    with pytest.raises(ValueError, match=r"decoder is not trained yet"):  # the old one was of another encoder
        train.train("unet", steps=2, renders=48)

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


def header(path: Path) -> list[dict]:
    """What a safetensors file says of each of its tensors."""
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    said = json.loads(path.read_bytes()[8 : 8 + length])
    return [entry for name, entry in said.items() if name != "__metadata__"]


def test_shipped_files_are_listed_small_and_in_half_precision(shipped: Path) -> None:
    files = [path for path in shipped.rglob("*") if path.is_file()]
    listed = {line.split()[1] for line in (shipped / "SHA256SUMS").read_text().splitlines()}
    assert {path.relative_to(shipped).as_posix() for path in files} == listed | {"SHA256SUMS"}
    assert sum(path.stat().st_size for path in files) <= 25e6
    networks = [path for path in files if path.suffix == ".safetensors"]
    assert {path.parent.name for path in networks} == {"unet", "vae", "text_encoder", "clip", "judge"}
    for path in networks:
        assert {entry["dtype"] for entry in header(path)} == {"F16"}, path


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
    sigmas = prior.sigmas(20, ddim=True)
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


ROWS = [
    {"of": "judge", "kind": 0.99, "kind error": 0.002, "view": 0.9, "view error": 0.005},
    {"of": "autoencoder", "object dB": 27.96, "image dB": 33.1, "dead channels": 1},
    {"of": "samples, guidance 3", "kind": 0.98, "kind error": 0.004, "colour": 0.99, "sharpness": 1.2},
    {"of": "Fréchet distance", "ratio": 1.25, "distance": 0.09, "low": 0.08, "high": 0.1, "floor": 0.02},
    {"of": "sample sheet", "pictures": 120},
]
RECORD = {
    "machine": {"processor": "Abacus"},
    "versions": {"torch": "2"},
    "digest": "d0d0",
    "sizes": {"samples": 10, "pictures": 20},
    "seeds": {"noise": 0},
    "rows": ROWS,
}


def test_the_card_shows_figures_bars_and_verdicts(script: ModuleType) -> None:
    table = script.figures_table(RECORD)
    for row in (
        "| of | figure | measured | bar | reached |",
        "| judge | kind | 0.990 ± 0.002 | ≥ 0.98 | yes |",
        "| judge | view | 0.900 ± 0.005 |  |  |",
        "| autoencoder | object dB | 27.96 | ≥ 28 | no |",
        "| autoencoder | image dB | 33.1 | ≥ 33 | yes |",
        "| autoencoder | dead channels | 1 | ≤ 0 | no |",
        "| samples, guidance 3 | kind | 0.980 ± 0.004 | ≥ 0.99 | no |",
        "| samples, guidance 3 | colour | 0.99 | ≥ 0.99 | yes |",
        "| samples, guidance 3 | sharpness | 1.2 | ≥ 0.65, ≤ 1.1 | no |",
        "| Fréchet distance | ratio | 1.25 | ≤ 1.3 | yes |",
        "| Fréchet distance | distance | 0.09 (0.08 to 0.1) |  |  |",
    ):
        assert row in table.splitlines()
    assert "`d0d0`" in table and "sample sheet" not in table


def test_two_editions_stand_side_by_side_if_they_were_measured_alike(
    script: ModuleType, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = RECORD | {"digest": "e1e1", "rows": [{"of": "autoencoder", "object dB": 26.0}]}
    card = script.written(CARD.read_text("utf-8"), RECORD, shipped, old)
    for row in (
        "| of | figure | edition before | measured | bar | reached |",
        "| autoencoder | object dB | 26 | 27.96 | ≥ 28 | no |",
        "| autoencoder | image dB |  | 33.1 | ≥ 33 | yes |",
        "| judge | kind |  | 0.990 ± 0.002 | ≥ 0.98 | yes |",
    ):
        assert row in card.splitlines()
    assert "files: `d0d0`; of the edition before: `e1e1`." in card
    for other in ({"sizes": {"samples": 11, "pictures": 20}}, {"seeds": {}}):
        (name,) = other
        with pytest.raises(ValueError, match=f"edition before was measured with {name}"):
            script.written(card, RECORD, shipped, old | other)
    with pytest.raises(ValueError, match="card has no <!-- figures -->"):
        script.written("# A card", RECORD, shipped)
    monkeypatch.setattr(script, "BEFORE", tmp_path / "pocket_before.json")
    assert script.edition_before() is None
    script.BEFORE.write_text(json.dumps(old), "utf-8")
    assert script.edition_before() == old


def test_the_card_counts_parameters_as_the_shipped_networks_do(shipped: Path) -> None:
    said = dict(re.findall(r"^\| [^|]+ \| `(\w+)` \| [^|]+ \| ([\d ]+) \|", CARD.read_text("utf-8"), re.M))
    counts = {
        path.parent.name: sum(math.prod(entry["shape"]) for entry in header(path))
        for path in shipped.rglob("*.safetensors")
    }
    assert {name: int(count.replace(" ", "")) for name, count in said.items()} == counts


def test_the_card_is_what_was_measured_from_the_shipped_files(shipped: Path, script: ModuleType) -> None:
    record, card = records.read("pocket"), CARD.read_text("utf-8")
    assert record["digest"] == hashlib.sha256((shipped / "SHA256SUMS").read_bytes()).hexdigest()
    assert record["sizes"] == {"samples": 1000, "pictures": 2000}
    assert script.written(card, record, shipped, script.edition_before()) == card, (
        "run python benchmarks/pocket_model.py"
    )
    assert CARD.with_name("samples.png").stat().st_size <= 300e3
