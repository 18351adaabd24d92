"""Tables 1 and 2 made again at smoke size, and the files that the chapters read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from msd_teach import __main__ as cli
from msd_teach.denoisers import IdealDenoiser
from msd_teach.product import sample_product
from msd_teach.runs import records, tables
from msd_teach.runs.tables import DENSITIES, METHODS, PRINTED, PROTOCOL, SMOKE, Row


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSD_TEACH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_three_orders_of_table_2():
    """NLL: MSD below SDS; precision: MSD above SDS; recall: MSD below DDIM."""
    names = {"DDIM": 1, "SDS, t uniform": 17, "SDS, σ uniform": 17, "MSD sum, full": 1, "MSD exact": 1}
    found = {name: tables.table2(Row("fractal", "ideal", name, n, 0), SMOKE) for name, n in names.items()}
    for msd in ("MSD sum, full", "MSD exact"):
        assert found[msd]["recall"] < found["DDIM"]["recall"]
        for sds in ("SDS, t uniform", "SDS, σ uniform"):
            assert found[msd]["nll"] < found[sds]["nll"]
            assert found[msd]["precision"] > found[sds]["precision"]


def test_efficiency_of_a_known_estimator():
    """One draw of the product at the widest bandwidth: log(|m|²/tr Cov/17), from the sum over the data."""
    row = Row("fractal", "ideal", "MSD exact", 64, 0, 0.0)
    x, λ = tables.start_points(SMOKE).double(), tables.BANDWIDTH(0.0)
    ideal = tables.denoiser_of(row, SMOKE)
    assert isinstance(ideal, IdealDenoiser)
    data = ideal.data.double()
    weights = (-torch.cdist(x, data, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * λ**2)).softmax(1)
    mean = weights @ data
    variance = (weights @ data.square() - mean.square()).sum()
    squares = (mean - x).square().sum()
    found = tables.table1(row, SMOKE)
    assert found["calls"] == 17
    # Euler's 16 steps leave 5 to 10 % of the spread out; the rest is chance
    assert found["own"] == pytest.approx(math.log(squares / variance / 17), abs=0.3)
    # at the best multiple Σ MSE is (1 − r²) Σ|m|², r² = |m|²/(|m|² + tr Cov)
    assert found["true"] == pytest.approx(math.log((squares + variance) / variance / 17), abs=0.3)


def test_data_reference_and_noise_are_independent():
    row = Row("spiral", "ideal", "DDIM", 1, 0)
    data = tables.denoiser_of(row, SMOKE)
    assert isinstance(data, IdealDenoiser)
    reference = DENSITIES["spiral"]().sample(200, generator=tables.stream(0, "reference"))
    assert torch.cdist(reference, data.data.double()).min() > 1e-6
    axis = torch.linspace(-1.5, 1.5, SMOKE.side)
    assert {tuple(x) for x in tables.start_points(SMOKE).tolist()} == {
        (a, b) for a in axis.tolist() for b in axis.tolist()
    }


@pytest.mark.parametrize("name", ["mean shift", "DDIM"])
def test_stored_rows_come_out_again(name):
    row = Row("fractal", "ideal", name, 1, 0)
    (stored,), fresh = records.select(records.read("table2")["rows"], **row._asdict()), tables.table2(row, PROTOCOL)
    # another processor rounds differently; where points gather in a speck, recall and MMD hang on single stragglers
    for figure in ("nll", "precision", "recall", "mmd") if name == "DDIM" else ("nll", "precision"):
        assert fresh[figure] == pytest.approx(stored[figure], abs=0.03), figure
    assert fresh["calls"] == stored["calls"]


def test_the_printed_gradient_has_the_same_mean_and_more_variance():
    density = DENSITIES["pinwheel"]()
    denoise = IdealDenoiser(density.sample(500, generator=torch.Generator().manual_seed(0)))
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(100_000, 2)

    def updates(method):
        target = method(denoise, x, 0.0, torch.Generator().manual_seed(1))
        return target.weight[:, None] * (target.value - x)

    ours, printed = updates(METHODS["SDS, t uniform"](1)), updates(tables.printed_sds)
    error = (printed - ours).std(0) / len(x) ** 0.5
    assert ((printed - ours).mean(0).abs() < 4 * error).all()
    assert printed.var(0).sum() > 1.5 * ours.var(0).sum()


def test_the_chosen_interval_passes_through_the_three_of_chapter_05():
    for λ, low, high in tables.CHOSEN:
        assert tables.chosen_interval(λ) == pytest.approx((low * λ, high * λ))
    assert tables.chosen_interval(0.003) == pytest.approx((1.5 * 0.003, 12 * 0.003))
    assert tables.chosen_interval(1.0) == pytest.approx((0.5, 1.5))
    x = torch.zeros(1, 2)
    for λ in (1e-3, 0.05, 0.2, 1.0):
        list(sample_product(lambda z, sigma: z, x, λ, tables.SIGMAS, "exponential", interval=tables.chosen_interval(λ)))


def test_a_row_does_not_depend_on_the_others():
    row = Row("spiral", "ideal", "SDS annealed", 1, 3)
    first = tables.table2(row, SMOKE)
    tables.table2(row._replace(method="mean shift"), SMOKE)
    torch.randn(3)
    again = tables.table2(row, SMOKE)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}
    assert tables.table2(row._replace(seed=4), SMOKE)["nll"] != first["nll"]


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_stored_results_keep_their_schema(table):
    stored = records.read(table)
    assert stored["sizes"] == PROTOCOL._asdict() | {"reference": tables.REFERENCE, "recipe": tables.RECIPE}
    assert len(stored["commit"].removesuffix("-dirty")) == 40
    assert set(stored["versions"]) == {"python", "torch"}
    figures = {
        "table1": {"own", "own_floored", "true", "true_floored", "calls"},
        "table2": {"nll", "precision", "recall", "mmd", "calls", "seconds"},
    }[table]
    for row in stored["rows"]:
        assert set(row) == {*Row._fields, *figures}
        assert row["method"] in {"DDIM", PRINTED, *METHODS}
        assert all(math.isfinite(row[name]) for name in figures)
    keys = [tuple(row[name] for name in Row._fields) for row in stored["rows"]]
    assert len(keys) == len(set(keys))
    assert tables.table(table, PROTOCOL).stored() == stored["rows"]  # so that none is computed again
    assert tables.table(table, SMOKE).stored() == []


def test_the_command_computes_its_share_and_writes_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setitem(tables.ROWS, "table2", lambda budget: [Row("fractal", "ideal", "DDIM", 1, s) for s in (0, 1)])
    for rank, seeds in ((1, [1]), (0, [0, 1])):
        words = ["tables", "--budget", "smoke", "--table", "table2", "--folder", str(tmp_path), "--share", f"{rank}/2"]
        monkeypatch.setattr("sys.argv", ["msd_teach", *words])
        cli.main()
        written = json.loads((tmp_path / "table2.json").read_text())
        assert [row["seed"] for row in written["rows"]] == seeds
        assert written["missing"] == 2 - len(seeds)
    mean, error = records.summary(written["rows"], "nll")
    values = [row["nll"] for row in written["rows"]]
    assert mean == pytest.approx(sum(values) / 2)
    assert error == pytest.approx(abs(values[0] - values[1]) / 2)


def test_the_stored_orders():
    """The three orders that hold in every row of the paper's Table 2, in ours: NLL but where points are lost."""
    rows = records.read("table2")["rows"]
    places = {(row["density"], row["denoiser"]) for row in rows}
    assert len(places) == 6
    lost = []
    for density, denoiser in places:

        def mean(figure, method, samples, density=density, denoiser=denoiser):
            chosen = records.select(rows, density=density, denoiser=denoiser, method=method, samples=samples)
            assert len(chosen) >= 2
            return records.summary(chosen, figure)[0]

        for msd in ("MSD sum, full", "MSD sum, chosen", "MSD exact"):
            assert mean("recall", msd, 1) < mean("recall", "DDIM", 1)
            for sds in ("SDS, t uniform", "SDS, σ uniform"):
                assert mean("precision", msd, 1) > mean("precision", sds, 17)
                if mean("nll", msd, 1) >= mean("nll", sds, 17):
                    lost.append((density, denoiser, msd))
    # one of the three networks trained on the fractal sends a few far points to infinity: chapter 07
    assert set(lost) <= {("fractal", "learned", "MSD sum, full"), ("fractal", "learned", "MSD exact")}
