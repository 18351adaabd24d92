from collections import Counter

import pytest
import torch

from msd_teach.measure.images import frechet_distance
from msd_teach.pocket.data import meaning
from msd_teach.runs import latents
from msd_teach.runs.latents import Row, Sizes

pytest.importorskip("diffusers")
TINY = Sizes(colours=1, steps=2)


def features(count: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 64, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_every_kind_is_asked_for_in_every_view_and_in_many_colours() -> None:
    said = latents.prompts(latents.SIZES)
    found = meaning(said)
    assert len(set(said)) == len(said) == 144 and found.min() >= 0 and (found[:, 3] == 0).all()
    assert set(Counter(map(tuple, found[:, [0, 2]].tolist())).values()) == {3}
    assert set(Counter(found[:, 1].tolist()).values()) == {16}


def test_rows_are_of_the_same_prompts_and_the_same_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    near, others = features(600, 0), features(70, 1)
    monkeypatch.setattr(latents, "reference", lambda colours: (near, others))
    monkeypatch.setattr(latents, "REPEATS", 3)
    monkeypatch.setattr(latents, "frechet_distance", lambda a, b: float(a.mean() - b.mean()))  # 48 pictures are too few
    clean, noisy = (latents.compute(Row(name, 1.0, 0), TINY) for name in ("clean (mean shift)", "noisy (SDS annealed)"))
    assert clean["calls"] == noisy["calls"] == 2 and len(clean["right"]) == 48
    assert clean["frechet"] != noisy["frechet"] and len(set(clean["resampled"])) == 3
    again = latents.compute(Row("clean (mean shift)", 1.0, 0), TINY)
    assert {**again, "seconds": 0} == {**clean, "seconds": 0}
    drawn = latents.compute(Row(latents.DDIM, 1.0, 0), TINY)
    assert drawn["calls"] == 30 and 0.5 < drawn["size"] < 1.5
    assert latents.compute(Row(latents.TRUTH, 1.0, 0), TINY).keys() == {"frechet", "resampled"}


def test_distances_are_those_of_the_pictures_and_of_pictures_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "REPEATS", 20)
    a, near = features(200, 2), features(600, 3)
    found = latents.distances(a, near)
    assert found["frechet"] == frechet_distance(a, near)
    assert min(found["resampled"]) > found["frechet"], "drawing again adds noise, which counts as distance"


@torch.no_grad()
def test_one_noise_for_all_is_the_same_at_every_step() -> None:
    asked: list[torch.Tensor] = []

    def listen(z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        asked.append((z - 1) / float(sigma))
        return z

    x = torch.ones(3, 4, 2, 2)
    for progress in (0.0, 0.7):
        assert latents.fixed_noise(listen, x, progress, None).level == latents.FALLING(progress)
    torch.testing.assert_close(asked[0], asked[1], atol=1e-5, rtol=1e-5)
    latents.fixed_noise(listen, x, 0.0, torch.Generator().manual_seed(1_001))
    assert (asked[2] - asked[0]).abs().max() > 0.5, "another seed has another noise"
    assert asked[0].std() > 0.5
    assert [latents.below_two(λ) for λ in (1.9, 2.0, 2.1)] == [1, 1, 0]
