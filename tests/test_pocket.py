"""The pocket model's parts against closed forms, and every stage of its training at toy size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from msd_teach import pocket

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from msd_teach.cache import save_atomically
from msd_teach.pocket import autoencoder, clip, data, evaluate, train, training, unet
from msd_teach.pocket.world import WORDS, Prompt

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
    x = 2 * torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1)) - 1
    with torch.no_grad():
        before, posterior = network(x, sample_posterior=False).sample, network.encode(x).latent_dist
        autoencoder.standardise(network, x)
        after, standard = network(x, sample_posterior=False).sample, network.encode(x).latent_dist
    torch.testing.assert_close(after, before, atol=2e-4, rtol=0)
    z = network.config["scaling_factor"] * standard.mean
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    scale = standard.mean.std((0, 2, 3)) / posterior.mean.std((0, 2, 3))
    torch.testing.assert_close(standard.std, posterior.std * scale[:, None, None], rtol=1e-3, atol=0)


def test_signal_to_noise_of_a_known_error() -> None:
    x, mask = torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8)
    mask[:, :4] = 1
    y = x.clone()
    y[:, :, :4] = 0.2
    assert autoencoder.signal_to_noise(x, y, mask) == pytest.approx(20.0)  # 10 log10(4 / .04)
    assert autoencoder.signal_to_noise(x, y) == pytest.approx(20.0 + 10 * torch.log10(torch.tensor(2.0)).item())


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
    with pytest.raises(RuntimeError, match=r"train longer before the UNet: autoencoder: object dB .* < 25"):
        train.train("unet", steps=2, renders=48)
    train.train("unet", steps=2, renders=48, past_gates=True)
    assert (cache / "unet" / "sheet-000002.png").exists()

    folder = tmp_path / "weights"
    train.export(folder)
    assert pocket.weights(folder) == folder
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
