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
    said = latents.prompts(latents.SIZES.colours)
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


def test_a_network_is_moved_by_as_many_calls_as_free_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["a red house, front view", "a blue car, side view", "a yellow duck, back view"]
    monkeypatch.setattr(latents, "prompts", lambda colours: said)
    monkeypatch.setattr(latents, "PART", 2)
    row = Row("noisy, one level", 3.0, 0, "grid")
    (x, pictures, calls), (free, _, free_calls) = (latents.moved(r, TINY) for r in (row, row._replace(image="latents")))
    assert calls == free_calls == 2 * TINY.steps and x.shape == free.shape
    assert pictures.shape == (3, 3, 64, 64) and 0 <= pictures.min() < pictures.max() <= 1
    torch.testing.assert_close(latents.judges()[0].encode(pictures), x, atol=1e-4, rtol=1e-4)
    assert (pictures[0] - pictures[2]).abs().max() > 1e-3
    assert torch.equal(latents.moved(row, TINY)[1], pictures)
    assert not torch.equal(latents.moved(row._replace(seed=1), TINY)[1], pictures)


def test_distances_are_those_of_the_pictures_and_of_pictures_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "REPEATS", 20)
    a, near = features(200, 2), features(600, 3)
    found = latents.distances(a, near)
    assert found["frechet"] == frechet_distance(a, near)
    assert min(found["resampled"]) > found["frechet"], "drawing again adds noise, which counts as distance"


class Listening:
    """Answers z, and keeps the noise that it was asked with about 1, and its levels."""

    def __init__(self) -> None:
        self.noises: list[torch.Tensor] = []
        self.levels: list[torch.Tensor] = []

    def __call__(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        levels = torch.as_tensor(sigma).expand(len(z))
        self.levels.append(levels)
        self.noises.append((z - 1) / levels[:, None, None, None])
        return z


def test_one_noise_for_all_is_the_same_at_every_step() -> None:
    x, asked = torch.ones(3, 4, 2, 2, dtype=torch.float64), Listening()
    for seed, progress in ((1, 0.0), (1, 0.7), (2, 0.0)):
        generator = torch.Generator().manual_seed(seed)
        target = latents.METHODS["one noise for all"](asked, x, progress, generator)
        assert target.level == pytest.approx(latents.FALLING(progress)) and target.calls == 1
    torch.testing.assert_close(asked.noises[0], asked.noises[1])
    assert (asked.noises[2] - asked.noises[0]).abs().max() > 0.5, "another seed has another noise"
    assert asked.noises[0].std() > 0.5
    generator = torch.Generator().manual_seed(1)
    latents.METHODS["half of one noise"](asked, x, 0.3, generator)
    torch.testing.assert_close(asked.noises[3], asked.noises[0] / 2)
    assert [latents.below_two(λ) for λ in (1.9, 2.0, 2.1)] == [1, 1, 0]


def test_orders_ask_at_the_levels_of_the_annealing() -> None:
    x, asked = torch.ones(4000, 1, 1, 1, dtype=torch.float64), Listening()
    generator = torch.Generator().manual_seed(0)
    for name in ("clean, levels in any order", "noisy, levels in any order", "noisy, one level"):
        latents.UNORDERED[name](asked, x, 0.9, generator)
    clean, noisy, constant = asked.levels
    assert not asked.noises[0].any() and asked.noises[1].std() == pytest.approx(1, abs=0.05)
    low, high = latents.FALLING.end, latents.FALLING.start
    for levels in (clean, noisy):
        share = (levels / low).log() / torch.tensor(high / low).log()  # of the way from λ's end to its start: uniform
        assert share.sort().values.sub(torch.linspace(0, 1, 4000)).abs().max() < 0.04
    assert (clean - noisy).abs().max() > 1, "drawn anew"
    assert constant.unique().tolist() == pytest.approx([(low * high) ** 0.5])


def test_the_question_compares_at_equal_calls_and_pairs_its_seeds() -> None:
    rows, methods = latents.question(), latents.METHODS | latents.UNORDERED
    assert len(rows) == len(set(rows)) == 98 and set(rows) < set(latents.rows())
    assert all(row.method in methods or row.method == latents.DDIM for row in rows)
    panels = Counter((row.image, row.scale, row.seed) for row in rows)
    assert all(panels[image, scale, 0] == panels[image, scale, 1] for image, scale, _ in panels)
    both = {"noisy (SDS annealed)", "clean (mean shift)", "half of the noise"}
    for image, scale, seed in panels:
        assert both < {row.method for row in rows if (row.image, row.scale, row.seed) == (image, scale, seed)}
    x = torch.zeros(2, 1, 1, 1)
    for name in {row.method for row in rows} - {latents.DDIM}:
        target = methods[name](lambda z, sigma: z, x, 0.5, torch.Generator().manual_seed(0))
        assert target.calls == 1 and target.weight == 1
