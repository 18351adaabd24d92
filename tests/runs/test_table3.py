"""The tuning and Table 3 on a stand-in for the pocket model and its judges: what costs what, who wins, what is paired."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from msd_teach import __main__ as cli
from msd_teach.denoisers import Denoiser, guided
from msd_teach.measure.images import frechet_distance
from msd_teach.runs import latents, records, table3
from msd_teach.runs.records import Record
from msd_teach.runs.table3 import DESIGN, LAWS, PROMPTS, Row, Sizes
from msd_teach.sampling import vp_sigma

TINY = Sizes(steps=16, calls=32, colours=1)
DIMENSIONS = 4


class Prior:
    """Latents are pictures of 8 pixels a side; what a prompt wants is its length, everywhere."""

    side, shape = 8, (3, 8, 8)
    level = staticmethod(vp_sigma)

    def denoiser(self, said: list[str], scale: float) -> Denoiser:
        wanted = torch.tensor([(len(words) - 12) / 40 for words in said])[:, None, None, None]
        return guided(lambda z, sigma: 0.2 * z + wanted, lambda z, sigma: 0.2 * z, scale)

    def sigmas(self, steps: int, ddim: bool = False) -> Tensor:
        levels = vp_sigma(torch.linspace(0.98, 0.05, steps, dtype=torch.float64))
        return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])

    def start(self, *batch: int, sigma: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        return sigma * torch.randn(*batch, *self.shape, generator=generator)

    def encode(self, pictures: Tensor) -> Tensor:
        return 2 * pictures - 1

    def decode(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2).clamp(0, 1)


@dataclass
class Judge:
    def decide(self, x: Tensor) -> Tensor:
        return (1000 * x.mean((2, 3))).long().abs() % torch.tensor([12, 9, 4])


class Clip:
    directions = torch.randn(12, DIMENSIONS, generator=torch.Generator().manual_seed(0))

    def pictures(self, x: Tensor) -> Tensor:
        return normalize(adaptive_avg_pool2d(x, 2).flatten(1) @ self.directions)

    def captions(self, said: list[str]) -> Tensor:
        return torch.stack([torch.tensor([1.0, len(words), words.count("e"), 1.0]) for words in said])


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSD_TEACH_CACHE", str(tmp_path / "cache"))
    near = normalize(torch.randn(40, DIMENSIONS, generator=torch.Generator().manual_seed(1)))
    for module in (latents, table3):
        monkeypatch.setattr(module, "judges", lambda: (Prior(), Judge(), Clip()))
        monkeypatch.setattr(module, "REPEATS", 5)
    monkeypatch.setattr(latents, "reference", lambda colours: (near, near[:10]))


def without_seconds(record: Record) -> Record:
    if "along" in record:
        return {"along": [without_seconds(part) for part in record["along"]]}
    return {name: value for name, value in record.items() if name != "seconds"}


@pytest.mark.parametrize("method", LAWS)
def test_every_candidate_costs_what_is_allowed_and_not_much_less(method: str) -> None:
    found = table3.candidates(method, table3.SIZES)
    assert len(found) == len(set(found)) == len(DESIGN)
    x, denoise = torch.zeros(1, 3, 2, 2), Prior().denoiser(["a house"], 7.5)
    for row in found:
        law = LAWS[method][row.law - 1]
        assert table3.SIZES.steps - row.again < row.targets * row.again <= table3.SIZES.steps
        assert 0.75 < row.targets * law.calls / table3.SIZES.calls <= 1
        if method != "vsd":  # whose LoRA needs a network: 2 of the prompt, 1 of the particles, 1 to learn
            one = law.method(Prior(), torch.Generator())  # type: ignore[arg-type]
            generator, count = torch.Generator().manual_seed(0), 100 if method[:3] in ("sdi", "pfd", "ism") else 1
            calls = [one(denoise, x, (i + 0.5) / count, generator).calls for i in range(count)]
            assert sum(calls) / count == pytest.approx(law.calls, rel=0.08)


def test_each_level_of_a_factor_meets_each_of_another_once() -> None:
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert len({(setting[a], setting[b]) for setting in DESIGN}) == 4


def test_no_prompt_is_in_two_tables() -> None:
    sets = [latents.prompts(3), table3.tuning_prompts(table3.SIZES), list(PROMPTS)]
    assert len(set().union(*sets)) == sum(map(len, sets)) == 144 + 96 + 10


def test_a_tuning_that_is_shared_and_killed_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row._asdict() for name in ("sds", "sdi", "msd-paper") for row in table3.candidates(name, TINY)]
    alone = table3.table("tuning", TINY, tmp_path / "alone")
    alone.fill(rows)
    monkeypatch.setenv("MSD_TEACH_CACHE", str(tmp_path / "other"))
    tune, asked = table3.tune, []

    def killed(row: Row, sizes: Sizes) -> Record:
        asked.append(row)
        if len(asked) == 4:
            raise SystemExit
        return tune(row, sizes)

    monkeypatch.setattr(table3, "tune", killed)
    shared = table3.table("tuning", TINY, tmp_path / "shared")
    with pytest.raises(SystemExit):
        shared.fill(rows, (1, 2))
    for rank in (0, 1):
        shared.fill(rows, (rank, 2))
    assert len(asked) == len(rows) + 1
    found, others = (list(map(without_seconds, each.gather(rows))) for each in (alone, shared))
    assert found == others and len(found) == 12
    assert len(found[0]["right"]) == 48 and found[0]["calls"] == 2 * 16


def test_the_best_is_the_nearest_or_a_tie_that_is_right_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table3.candidates("sds", TINY)
    noise = torch.linspace(-0.01, 0.01, 200)
    figures = [(0.5, 0.0, "1111"), (0.2, 0.0, "0011"), (0.21, 1.0, "0111"), (0.1, 0.0, "1111")]

    def tune(row: Row, sizes: Sizes) -> Record:
        frechet, spread, right = figures[rows.index(row)]
        if frechet == 0.1:
            raise FloatingPointError("step 3: the loss is not finite")
        return {"frechet": frechet, "resampled": (frechet + spread * noise).tolist(), "right": right}

    monkeypatch.setattr(table3, "tune", tune)
    table = table3.table("tuning", TINY, tmp_path)
    asked = [row._asdict() for row in rows]
    table.fill(asked[:2])
    table.write(asked, {})
    with pytest.raises(ValueError, match="tuning of 'sds' has 2 of 4 settings, 2 of them finite; python -m"):
        table3.best("sds", TINY, tmp_path)
    table.fill(asked)
    table.write(asked, {})
    assert table.stored()[3]["stopped"] == "step 3: the loss is not finite"
    assert table3.best("sds", TINY, tmp_path) == rows[2], "not to be told from the nearest, and right more often"


def test_a_row_of_table_3_is_judged_along_its_run() -> None:
    row = Row("sdi", 0, 1e-2, 7.5, 8, 3, seed=1)
    record = table3.table3(row, TINY)
    assert [part["steps"] for part in record["along"]] == [3, 6, 12, 18, 24]
    calls = [part["calls"] for part in record["along"]]
    assert calls == sorted(set(calls)) and all(part["pictures"] == 10 for part in record["along"])
    assert without_seconds(record) == without_seconds(table3.table3(row, TINY))
    other = table3.table3(row._replace(seed=2), TINY)
    assert other["along"][-1]["features"] != record["along"][-1]["features"]
    short = table3.table3(row._replace(targets=2), TINY)
    assert [part["steps"] for part in short["along"]] == [3, 6], "not more places than targets"
    drawn = table3.table3(Row(table3.DDIM, scale=3.0, targets=5), TINY)
    assert [part["calls"] for part in drawn["along"]] == [10]


def test_distances_of_all_seeds_together() -> None:
    generator = torch.Generator().manual_seed(3)

    def stored(seeds: int, shift: float) -> tuple[Tensor, list[Record]]:
        x = (torch.randn(seeds, len(PROMPTS), DIMENSIONS, generator=generator) + shift).half()
        texts = [base64.b64encode(np.asarray(part).astype("<f2").tobytes()).decode() for part in x]
        return x.double().transpose(0, 1), [{"along": [{"features": "none"}, {"features": text}]} for text in texts]

    (x, rows), (_, far), (y, true) = stored(3, 0.0), stored(3, 1.0), stored(6, 0.0)
    near, distant = (table3.together(each, true=true) for each in (rows, far))
    assert near["frechet"] == pytest.approx(frechet_distance(x.reshape(30, -1), y.reshape(60, -1)))
    assert records.difference([near], [near]) == (0.0, 0.0)
    apart, bar = records.difference([distant], [near])
    assert apart > bar > 0
    assert table3.together(rows, true=true) == near, "the same resamplings in each call"
    with pytest.raises(ValueError, match="rows is empty; it must hold a row for each seed"):
        table3.together([], true=true)


def test_rows_of_table_3_wait_for_the_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="tuning of 'sds' has 0 of 4 settings"):
        table3.table3_rows(folder=tmp_path)
    monkeypatch.setattr(table3, "best", lambda method, sizes, folder: table3.candidates(method, sizes)[0])
    rows = table3.table3_rows(folder=tmp_path)
    assert len(rows) == len(set(rows)) == 56 + 8 * (2 + 11 + 10)
    assert [row.method for row in rows[-8:]] == ["msd-paper"] * 8, "what is dearest comes last"
    assert Row("sdi", 0, 1e-2, 7.5, 40, 25, 7) in rows and Row("ism", 0, 1e-2, 7.5, 400, 1, 0) in rows


def test_the_command_fills_its_share_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table3.candidates("mean-shift", TINY)
    monkeypatch.setitem(
        cli.STUDIES, "tuning", (lambda folder: table3.table("tuning", TINY, tmp_path / folder), lambda: rows)
    )
    for rank, missing in ((1, 2), (0, 0)):
        monkeypatch.setattr("sys.argv", ["msd_teach", "study", "tuning", "--share", f"{rank}/2"])
        cli.main()
        assert f'"missing": {missing},' in (tmp_path / "results" / "tuning.json").read_text()
    assert table3.best("mean-shift", TINY, tmp_path / "results") in rows
    monkeypatch.setattr("sys.argv", ["msd_teach", "study", "table4"])
    with pytest.raises(SystemExit):
        cli.main()
