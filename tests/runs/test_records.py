"""Rows that are computed once, whoever is killed and whichever machine goes on, and files that are valid JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from msd_teach.measure.images import resamplings
from msd_teach.runs import records
from msd_teach.runs.records import Table

ROWS = [{"density": "spiral", "seed": seed} for seed in range(4)]
SETTINGS = {"sizes": {"data": 3, "side": (2, 2)}}


class Counting:
    """Squares the seed, and remembers which were asked; is killed once, at the seed `at`."""

    def __init__(self, at: int | None = None):
        self.asked: list[int] = []
        self.at = at

    def __call__(self, row: records.Record) -> records.Record:
        if row["seed"] == self.at:
            self.at = None
            raise SystemExit("killed")
        self.asked.append(row["seed"])
        return {"nll": float(row["seed"]) ** 2}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSD_TEACH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_killed_run_goes_on(tmp_path):
    compute = Counting(at=2)
    table = Table("squares", SETTINGS, compute, tmp_path)
    with pytest.raises(SystemExit):
        table.fill(ROWS)
    unfinished = json.loads(table.write(ROWS, {"command": "a command"}).read_text())
    assert [row["nll"] for row in unfinished["rows"]] == [0, 1] and unfinished["missing"] == 2
    table.fill(ROWS)
    assert compute.asked == [0, 1, 2, 3]
    finished = json.loads(table.write(ROWS, {"command": "a command"}).read_text())
    assert finished["rows"] == [row | {"nll": row["seed"] ** 2} for row in ROWS] and finished["missing"] == 0
    assert finished["sizes"] == {"data": 3, "side": [2, 2]} and finished["command"] == "a command"


def test_what_is_stored_is_neither_computed_again_nor_lost(tmp_path, monkeypatch):
    """Another machine, with an empty cache and the file that came with the package."""
    first, second = Counting(), Counting()
    for compute, asked in ((first, ROWS[:3]), (second, ROWS[1:])):
        monkeypatch.setenv("MSD_TEACH_CACHE", str(tmp_path / f"{id(compute)}"))
        table = Table("squares", SETTINGS, compute, tmp_path)
        table.fill(asked)
        table.write(asked, {})
    assert (first.asked, second.asked) == ([0, 1, 2], [3])
    assert sorted(row["seed"] for row in table.stored()) == [0, 1, 2, 3]
    other = Table("squares", {"sizes": {"data": 4, "side": (2, 2)}}, Counting(), tmp_path)
    assert other.stored() == [] and other.gather(ROWS) == []


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_shares_are_every_row_once(tmp_path, world):
    computing = [Counting() for _ in range(world)]
    for rank, compute in enumerate(computing):
        Table("squares", SETTINGS, compute, tmp_path).fill(ROWS, (rank, world))
    assert sorted(seed for compute in computing for seed in compute.asked) == [0, 1, 2, 3]
    assert len(Table("squares", SETTINGS, Counting(), tmp_path).gather(ROWS)) == 4
    with pytest.raises(ValueError, match=r"share is \(2, 2\); it must be \(rank, world\) with 0 <= rank < world"):
        Table("squares", SETTINGS, Counting(), tmp_path).fill(ROWS, (2, 2))


def test_numbers_of_any_library_are_kept_and_what_json_lacks_is_null(tmp_path):
    figures = {"a": np.float32(0.5), "b": torch.tensor(2), "c": math.nan, "d": np.float64("inf"), "e": [1.0, -math.inf]}
    table = Table("odd", {}, lambda row: figures, tmp_path)
    table.fill(ROWS[:1])
    text = table.write(ROWS[:1], {"rate": math.nan}).read_text()
    (row,) = json.loads(text, parse_constant=pytest.fail)["rows"]  # neither NaN nor Infinity
    assert row == ROWS[0] | {"a": 0.5, "b": 2, "c": None, "d": None, "e": [1.0, None]}
    assert math.isnan(records.summary([row, row], "c")[0])


@pytest.mark.parametrize("content", [b"", b'{"nll": 1', b"\xff\xfe", b"[1]", b"hello"])
def test_a_damaged_file_is_named(tmp_path, content):
    table = Table("squares", SETTINGS, Counting(), tmp_path)
    table.fill(ROWS[:1])
    table.write(ROWS[:1], {})
    (kept,) = (tmp_path / "cache").rglob("*.json")
    for path in (kept, tmp_path / "squares.json"):
        whole = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name} (is damaged|holds a list).*; delete it"):
            table.fill(ROWS[:1])
        path.write_bytes(whole)
    assert table.gather(ROWS[:1])


def test_a_cache_that_is_a_file_is_named(cache):
    cache.write_text("")
    with pytest.raises(
        ValueError, match=r"records/.* cannot be written: .* \(MSD_TEACH_CACHE puts the cache elsewhere\)"
    ):
        records.cached("kind", ["key"], lambda: {"figure": 1})


def test_a_record_outlives_a_missing_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert records.cached("kind", ["key"], lambda: {"figure": 1}) == {"figure": 1}
    assert records.commit() == ""
    with pytest.raises(ValueError, match="rows is empty"):
        records.summary([], "nll")
    with pytest.raises(KeyError):
        records.select([{"nll": 1}], metod="DDIM")


def resampled(values: torch.Tensor, seed: int) -> records.Record:
    """A row whose "frechet" is a mean."""
    return {
        "seed": seed,
        "frechet": values.mean(),
        "resampled": values[resamplings(len(values), 4000)].mean(1).tolist(),
    }


def test_a_difference_is_that_of_pairs():
    """Of means it is known: the mean of the pairs' differences, and its standard error."""
    generator = torch.Generator().manual_seed(0)
    shared = 10 * torch.randn(50, dtype=torch.float64, generator=generator)
    a, b = (shared + torch.randn(50, dtype=torch.float64, generator=generator) for _ in range(2))
    value, bar = records.difference([resampled(a, 0)], [resampled(b, 0)])
    error = ((a - b).var(correction=0) / 50).sqrt().item()
    assert value == pytest.approx((a - b).mean().item())
    assert bar == pytest.approx(1.96 * error, rel=0.05) and bar < 0.2 * 1.96 * (a.var() / 50).sqrt()  # √2/√101 of it
    assert records.difference([resampled(b, 0)], [resampled(a, 0)]) == pytest.approx((-value, bar))
    assert records.difference([resampled(a, 0)], [resampled(b, 0)], 14)[1] == pytest.approx(
        bar * 2.914 / 1.960, rel=1e-3
    )
    both = [resampled(a, 0), resampled(b, 1)], [resampled(b, 1), resampled(b, 0), resampled(a, 7)]
    assert records.difference(*both)[0] == pytest.approx(value / 2), "seeds pair, whatever their order"


def test_a_difference_of_what_does_not_pair_is_refused():
    values = torch.arange(5.0)
    short = resampled(values, 0) | {"resampled": [1.0, 2.0]}
    for others in ([], [resampled(values, 1)], [short]):
        with pytest.raises(ValueError, match="they must share a seed, and the same resamplings"):
            records.difference([resampled(values, 0)], others)
    with pytest.raises(ValueError, match="comparisons is 0"):
        records.difference([resampled(values, 0)], [resampled(values, 0)], 0)


def test_a_row_that_meets_nan_says_so_and_takes_no_other_with_it(tmp_path):
    compute = Counting()

    def stopping(row: records.Record) -> records.Record:
        if row["seed"] == 1:
            compute.asked.append(1)
            raise FloatingPointError("step 7: x is not finite")
        return compute(row)

    table = Table("squares", SETTINGS, stopping, tmp_path)
    for _ in range(2):
        table.fill(ROWS)
    assert compute.asked == [0, 1, 2, 3]
    assert table.gather(ROWS)[1] == ROWS[1] | {"stopped": "step 7: x is not finite"}
