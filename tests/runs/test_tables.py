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
from msd_teach.runs import intervals, records, tables
from msd_teach.runs.tables import DENSITIES, METHODS, PRINTED, PROTOCOL, SMOKE, Row
from msd_teach.schedules import linear, sigmas_around
from msd_teach.targets import MSD

EFFICIENCIES = ("own", "true", "scaled")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSD_TEACH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_three_orders_of_table_2():
    """NLL: MSD below SDS; precision: MSD above SDS; recall: MSD below DDIM."""
    exact = ("MSD exact", "MSD exact, Heun")
    names = {"DDIM": 1, "SDS, t uniform": 17, "SDS, σ uniform": 17, "MSD sum, full": 1} | dict.fromkeys(exact, 1)
    found = {name: tables.table2(Row("fractal", "ideal", name, n, 0), SMOKE) for name, n in names.items()}
    for msd in ("MSD sum, full", *exact):
        assert found[msd]["recall"] < found["DDIM"]["recall"]
        for sds in ("SDS, t uniform", "SDS, σ uniform"):
            assert found[msd]["nll"] < found[sds]["nll"]
            assert found[msd]["precision"] > found[sds]["precision"]


@pytest.mark.parametrize(("method", "calls"), [("MSD exact", 1), ("MSD exact, Heun", 48)])
def test_efficiency_of_a_known_estimator(method, calls):
    """One draw of the product at the widest bandwidth: log(|m|²/tr Cov/calls), from the sum over the data."""
    row = Row("fractal", "ideal", method, 64, 0, 0.0)
    x, λ = tables.start_points(SMOKE).double(), tables.BANDWIDTH(0.0)
    mean, variance = moments(tables.denoiser_of(row, SMOKE), x, λ)
    variance, squares = variance.sum(), (mean - x).square().sum()
    found = tables.table1(row, SMOKE)
    assert found["calls"] == calls
    assert found["own"] == pytest.approx(math.log(squares / variance / calls), abs=0.1)
    assert found["true"] == pytest.approx(math.log(squares / variance / calls), abs=0.1)
    # at the best multiple Σ MSE is (1 − r²) Σ|m|², r² = |m|²/(|m|² + tr Cov)
    assert found["scaled"] == pytest.approx(math.log((squares + variance) / variance / calls), abs=0.1)


def moments(denoise, x, λ):
    """Mean (n, 2) and total variance (n,) of the product at points x, from the sums over the data."""
    assert isinstance(denoise, IdealDenoiser)
    data = denoise.data.double()
    weights = (-torch.cdist(x, data, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * λ**2)).softmax(1)
    mean = weights @ data
    return mean, torch.stack([w @ (data - m).square().sum(1) for w, m in zip(weights, mean, strict=True)])


@pytest.mark.parametrize("λ", [0.3, 0.03, 0.003])
@pytest.mark.parametrize("method", ["MSD exact", "MSD exact, Heun"])
def test_draws_of_the_exact_rows_have_the_true_variance(method, λ, monkeypatch):
    """A solver's loss is in the row's score: the grid that both rows had until recipe 1 keeps .06 to .77."""
    monkeypatch.setattr(tables, "BANDWIDTH", linear(λ, λ))
    monkeypatch.setitem(METHODS, "MSD exact, Heun", lambda n: MSD("exact", linear(λ, λ), sigmas_around(), n))
    generator = torch.Generator().manual_seed(0)
    data = DENSITIES["fractal"]().sample(500, generator=generator)
    x = data[:40] + λ * torch.randn(40, 2, dtype=torch.float64, generator=generator)
    denoise, draws = IdealDenoiser(data), 400
    mean, variance = moments(denoise, x, λ)
    target = METHODS[method](1)(denoise, x.repeat(draws, 1), 0.0, generator)
    y = target.value.reshape(draws, *x.shape)
    error = (variance.sum() / draws / len(x)) ** 0.5
    assert ((y.mean(0) - mean).square().sum(1).mean() / 2) ** 0.5 < 3 * error
    assert float((y - mean).square().sum(-1).mean(0).sum() / variance.sum()) == pytest.approx(1, abs=0.05)


def test_many_perfect_draws_cost_one_read_and_their_mean_nears_the_shift():
    density = DENSITIES["spiral"]()
    denoise = IdealDenoiser(density.sample(500, generator=torch.Generator().manual_seed(0)))
    x, generator = density.sample(50, sigma=0.2, generator=torch.Generator().manual_seed(1)), torch.Generator()
    shift, variance = moments(denoise, x, tables.BANDWIDTH(0.0))
    for n in (1, 100):
        target = METHODS["MSD exact"](n)(denoise, x, 0.0, generator.manual_seed(2))
        assert (target.calls, target.level) == (1, tables.START)
        ratio = float((target.value - shift).square().sum() / variance.sum() * n)
        assert ratio == pytest.approx(1, abs=0.5)
    with pytest.raises(ValueError, match="perfect draws need an IdealDenoiser"):
        METHODS["MSD exact"](1)(density.denoise, x, 0.0, generator)


def test_a_multiple_floors_table_1_and_its_absence_does_not():
    row = Row("fractal", "ideal", PRINTED, 8, 0, 0.5)
    found = tables.table1(row, SMOKE)
    assert found["calls"] == 1
    assert found["true"] < 0 < found["scaled"]  # −log(calls) is 0
    for method in ("SDS annealed", "MSD sum, full", "mean shift"):
        found = tables.table1(row._replace(method=method), SMOKE)
        assert found["scaled"] >= found["true"]
        assert found["scaled"] >= -math.log(found["calls"]) - 1e-6


def test_one_stray_moves_the_mean_and_not_the_median():
    density = DENSITIES["pinwheel"]()
    x = density.sample(99, generator=torch.Generator().manual_seed(0))
    there = tables.judge(x, density, 0)
    lost = tables.judge(torch.cat([x, torch.full((2, 2), 50.0, dtype=x.dtype)]), density, 0)
    ordered = (-density.log_prob(x)).sort().values
    assert there["nll_median"] == pytest.approx(float(ordered[49]))
    assert lost["nll"] > there["nll"] + 1000
    assert lost["nll_median"] == pytest.approx(float(ordered[50]))


@pytest.mark.parametrize("budget", ["smoke", "laptop", "gpu"])
def test_rows_are_asked_for_once_and_only_where_they_can_be_computed(budget):
    for rows in (tables.table1_rows(budget), tables.table2_rows(budget)):
        assert len(rows) == len(set(rows))
        assert {row.method for row in rows} <= {"DDIM", PRINTED, *METHODS}
        assert not [row for row in rows if (row.denoiser, row.method) == ("learned", "MSD exact")]
        assert {"MSD exact", "MSD exact, Heun"} <= {row.method for row in rows if row.denoiser == "ideal"}


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
    for λ, low, high in intervals.CHOSEN:
        assert intervals.chosen_interval(λ) == pytest.approx((low * λ, high * λ))
    for λ, (_, low, high) in ((0.003, intervals.CHOSEN[0]), (1.0, intervals.CHOSEN[-1])):  # and is the last one beyond
        assert intervals.chosen_interval(λ) == pytest.approx((low * λ, high * λ))
    (λ, *a), (μ, *b) = intervals.CHOSEN[:2]
    middle = math.sqrt(λ * μ)
    assert intervals.chosen_interval(middle) == pytest.approx([middle * (x + y) / 2 for x, y in zip(a, b, strict=True)])
    x = torch.zeros(1, 2)
    for λ in (1e-3, 0.05, 0.2, 1.0):
        list(
            sample_product(
                lambda z, sigma: z, x, λ, tables.SIGMAS, "exponential", interval=intervals.chosen_interval(λ)
            )
        )


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
        "table1": {*EFFICIENCIES, *(f"{name}_floored" for name in EFFICIENCIES), "calls"},
        "table2": {"nll", "nll_median", "precision", "recall", "mmd", "calls", "seconds"},
    }[table]
    for row in stored["rows"]:
        assert set(row) == {*Row._fields, *figures}
        assert row["method"] in {"DDIM", PRINTED, *METHODS}
        assert all(math.isfinite(row[name]) for name in figures)
    keys = [tuple(row[name] for name in Row._fields) for row in stored["rows"]]
    assert len(keys) == len(set(keys))
    asked = {budget: {tuple(row) for row in tables.ROWS[table](budget)} for budget in ("laptop", "gpu")}
    assert set(keys) <= asked["laptop"] | asked["gpu"]
    assert stored["missing"] in {len(rows - set(keys)) for rows in asked.values()}  # what a chapter says it lacks
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

    def of(figure, density, denoiser, method, samples):
        """Mean and standard error: NaN, which is in no order, unless two seeds of the row are stored."""
        chosen = records.select(rows, density=density, denoiser=denoiser, method=method, samples=samples)
        return records.summary(chosen, figure) if len(chosen) > 1 else (math.nan, math.nan)

    def mean(*of_what):
        return of(*of_what)[0]

    lost = []
    for density, denoiser in sorted({(row["density"], row["denoiser"]) for row in rows}):
        place = (density, denoiser)
        for msd in ("MSD sum, full", "MSD sum, chosen", "MSD exact", "MSD exact, Heun"):
            (covered, error), (ddim, other) = (of("recall", *place, name, 1) for name in (msd, "DDIM"))
            # one perfect draw leaves a cloud that covers the spiral as DDIM does: there the order is a tie
            assert not covered - ddim > (3 * math.hypot(error, other) if msd.startswith("MSD exact") else 0)
            for sds in ("SDS, t uniform", "SDS, σ uniform"):
                assert not mean("precision", *place, msd, 1) <= mean("precision", *place, sds, 17)
                assert not mean("nll_median", *place, msd, 1) >= mean("nll_median", *place, sds, 17)
                if mean("nll", *place, msd, 1) >= mean("nll", *place, sds, 17):
                    lost.append((*place, msd))
    # one of the three networks trained on the fractal sends a few far points to infinity: chapter 07
    assert set(lost) <= {("fractal", "learned", "MSD sum, full"), ("fractal", "learned", "MSD exact, Heun")}
