"""The figures that the reader moves, moved: in a real browser by mouse, touch and keyboard, and against the library."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from browser import browser, violations, watch
from PIL import Image, ImageStat
from playwright.sync_api import BrowserContext, Page

from msd_teach import GaussianMixture, eight_gaussians
from msd_teach.lesson.explore import distillation_canvas, explore, mean_shift_canvas, replay_canvas
from msd_teach.lesson.web import Page as Printed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium() -> Iterator[BrowserContext]:
    with browser() as context:
        yield context


@pytest.fixture
def look(chromium: BrowserContext) -> Iterator[Callable[..., Page]]:
    """Opens HTML in a page of given width and theme, and fails if the page complains or asks for anything outside."""
    opened: list[tuple[Page, list[str]]] = []

    def open_page(*bodies: str, width: int = 820, theme: str = "light", motion: str = "no-preference") -> Page:
        page = chromium.new_page()
        opened.append((page, watch(page)))
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(reduced_motion=motion)  # pyright: ignore[reportArgumentType]
        ground = {"light": "#fff", "dark": "#14181e"}[theme]
        page.set_content(
            f'<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8">'
            f'<body style="margin: 0; background: {ground}">{"".join(bodies)}'
        )
        page.wait_for_timeout(150)
        return page

    yield open_page
    for page, complaints in opened:
        page.close()
        assert complaints == []


def mixture(seed: int = 0) -> GaussianMixture:
    """A random mixture whose numbers have few digits, so that nothing is lost on their way into a page."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([0.05, 0.1, 0.15, 0.2, 0.1, 0.25, 0.15])
    means = 2 * torch.rand(7, 2, generator=generator) - 1
    xx, yy = 0.02 + 0.1 * torch.rand(2, 7, generator=generator)
    xy = (xx * yy).sqrt() * (1.8 * torch.rand(7, generator=generator) - 0.9)
    w, mx, my, xx, xy, yy = torch.stack([weights, *means.T, xx, xy, yy]).double().round(decimals=4)
    return GaussianMixture(w, torch.stack([mx, my], -1), torch.stack([xx, xy, xy, yy], -1).reshape(-1, 2, 2))


def points(n: int, seed: int = 1) -> torch.Tensor:
    return 4 * torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 2


STEPS, NAMES, METHODS = [0, 1, 3, 7, 15], ["seven", "eight"], ["SDS", "<i>SDI", "MSD"]


def recording(n: int = 12) -> dict[tuple[str, str], torch.Tensor]:
    """Random runs of three methods on two densities, all from the same places."""
    generator = torch.Generator().manual_seed(2)
    pairs = [(name, method) for name in NAMES for method in METHODS]
    runs = {pair: 3 * torch.rand(len(STEPS), n, 2, dtype=torch.float64, generator=generator) - 1.5 for pair in pairs}
    for states in runs.values():
        states[0] = runs[pairs[0]][0]
    return runs


def replay(density: GaussianMixture | None = None, **kwargs) -> Printed:
    densities = dict(zip(NAMES, (density or mixture(), eight_gaussians()), strict=True))
    return replay_canvas(recording(), densities, STEPS, **kwargs)


@cache
def html(make: Callable[..., Printed], seed: int = 0, **options: float) -> str:
    """The page of one mixture, made once: most of the time goes into its picture."""
    return make(mixture(seed), **options).html


def status(page: Page, canvas: int = 0) -> str:
    return page.locator("[role=status]").nth(canvas).inner_text()


def pixels(page: Page, canvas: int = 0) -> bytes:
    return page.locator("[data-explore] canvas, [data-explore] img").nth(canvas).screenshot()


def spot(page: Page, at: tuple[float, float], canvas: int = 0) -> tuple[float, float]:
    """The place on the screen at shares `at` of the canvas."""
    node = page.locator("canvas").nth(canvas)
    node.scroll_into_view_if_needed()
    box = node.bounding_box()
    assert box is not None
    return box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"]


def drag_slider(page: Page, share: float, slider: int = 0) -> None:
    box = page.locator("input[type=range]").nth(slider).bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * share, y, steps=5)
    page.mouse.up()
    page.wait_for_timeout(150)


# What the page computes


@pytest.mark.parametrize("bandwidth", [0.02, 0.3, 2.0])
def test_a_step_in_the_page_is_the_denoiser(look, bandwidth):
    density, x = mixture(), points(50)
    page = look(html(mean_shift_canvas))
    rows = page.evaluate(
        """([x, s]) => {
          const field = document.querySelector('[data-explore]').explore.smoothed(s);
          return x.map((point) => field.shift(...point));
        }""",
        [x.tolist(), bandwidth],
    )
    result = torch.tensor(rows, dtype=torch.float64)
    assert (x + result[:, :2] - density.denoise(x, bandwidth)).abs().max() < 1e-9
    assert (result[:, 2] - density.log_prob(x, bandwidth)).abs().max() < 1e-9


@pytest.mark.parametrize("bandwidth", [0.01, 0.2, 1.0])
def test_the_picture_is_of_the_density(look, bandwidth):
    density = mixture(3)
    view = {"x0": -0.7, "y0": -0.9, "cell": 0.025, "n": 61, "m": 47}
    page = look(html(mean_shift_canvas, seed=3))
    p = page.evaluate(
        "([v, s]) => Array.from(document.querySelector('[data-explore]').explore.smoothed(s).lattice(v))",
        [view, bandwidth],
    )
    x, y = -0.7 + 0.025 * torch.arange(61).double(), -0.9 + 0.025 * torch.arange(47).double()
    truth = density.log_prob(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1), bandwidth).exp()
    # Each component is cut where it has fallen to exp(-5.5²/2) of its peak.
    assert (torch.tensor(p, dtype=torch.float64).reshape(47, 61) - truth).abs().max() < 1e-6 * truth.max()


def test_draws_follow_the_product_density(look):
    density, x, bandwidth, n = mixture(4), torch.tensor([0.2, -0.1], dtype=torch.float64), 0.3, 20_000
    page = look(distillation_canvas(density).html)
    rows = page.evaluate(
        """([x, s, n]) => {
          const own = document.querySelector('[data-explore]').explore, f = own.smoothed(s), r = own.randomness(7);
          return Array.from({ length: n }, () => f.draw(...x, r));
        }""",
        [x.tolist(), bandwidth, n],
    )
    y, product = torch.tensor(rows, dtype=torch.float64), density.product(x, bandwidth)
    mean = product.weights @ product.means
    spread = product.means - mean
    covariance = torch.einsum("k,kij->ij", product.weights, product.covariances + spread[:, :, None] * spread[:, None])
    assert ((y.mean(0) - mean) / (covariance.diagonal() / n).sqrt()).abs().max() < 5
    assert (y.T.cov() - covariance).norm() < 5 * covariance.norm() * (2 / n) ** 0.5


def test_climbers_end_where_the_score_is_zero_and_modes_are_maxima(look):
    density = eight_gaussians()
    page = look(mean_shift_canvas(density, 0.1).html)
    page.get_by_text("Add grid").click()
    page.locator("canvas").focus()
    page.keyboard.press("Enter")  # in the centre of the ring: a stationary point that is no maximum
    page.wait_for_function("document.querySelector('[role=status]').textContent.includes('· 61 climbers at rest')")
    ends = page.evaluate("document.querySelector('[data-explore]').explore.ends()")
    x = torch.tensor([end["at"] for end in ends], dtype=torch.float64)
    assert (density.denoise(x, 0.1) - x).norm(dim=-1).max() < 1e-4
    hessian = torch.func.vmap(torch.func.jacrev(lambda y: density.score(y, 0.1)))(x)
    assert [end["mode"] for end in ends] == (torch.linalg.eigvalsh(hessian).amax(-1) < 0).tolist()
    assert sum(end["mode"] for end in ends) == 8 < len(ends)
    assert status(page).startswith("8 modes found")


def test_a_run_of_mean_shift_is_the_librarys(look):
    density = mixture(5)
    source = html(distillation_canvas, seed=5, bandwidth=0.25, points=20)
    page = look(source)
    starts = json.loads(re.findall(r'"starts":(\[\[.*?\]\])', source)[0])
    x = torch.tensor(starts, dtype=torch.float64)
    for k in range(150):
        x = x.lerp(density.denoise(x, 0.25 * (1 - 0.99 * k / 150)), 0.2)
    ends = page.evaluate("document.querySelector('[data-explore]').explore.points()")
    assert (torch.tensor(ends, dtype=torch.float64) - x).abs().max() < 1e-9
    assert f"mean −log p = {-density.log_prob(x).mean():.2f}".replace(" -", " −") in status(page)


# What the reader does


def test_mouse(look):
    page = look(html(mean_shift_canvas))
    assert "· 12 climbers at rest" in status(page)
    before = pixels(page)
    drag_slider(page, 0.95)
    assert pixels(page) != before
    assert "1 mode found" in status(page)
    page.mouse.click(*spot(page, (0.3, 0.4)))
    assert "of 13 climbers" in status(page)
    page.get_by_text("Pause").click()
    page.get_by_text("Clear").click()
    assert "No climbers" in status(page)


def test_a_start_can_be_dragged(look):
    page = look(html(mean_shift_canvas, climbers=1))
    start = page.evaluate("document.querySelector('[data-explore]').explore.climbers()[0].path[0]")
    page.mouse.move(*spot(page, (0.2, 0.3)))
    page.mouse.down()
    page.mouse.move(*spot(page, (0.6, 0.7)), steps=4)
    page.mouse.up()
    climbers = page.evaluate("document.querySelector('[data-explore]').explore.climbers()")
    assert len(climbers) == 2
    assert climbers[0]["path"][0] == start
    here = climbers[1]["path"][0]
    page.mouse.move(*spot(page, (0.6, 0.7)))
    page.mouse.down()
    page.mouse.move(*spot(page, (0.5, 0.2)), steps=4)
    page.mouse.up()
    climbers = page.evaluate("document.querySelector('[data-explore]').explore.climbers()")
    assert len(climbers) == 2
    assert climbers[1]["path"][0] != here


def test_keyboard(look):
    page = look(html(mean_shift_canvas))
    before = pixels(page)
    page.keyboard.press("Tab")
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    page.wait_for_timeout(100)
    assert pixels(page) != before
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert "of 14 climbers" in status(page)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    slider = page.locator("input").first
    assert slider.get_attribute("aria-valuetext") == "0.21"
    assert page.locator("label b").first.inner_text() == "0.21"
    for control in page.locator("canvas, input, button").all():  # JupyterLab leaves the keys of these alone
        assert control.get_attribute("data-lm-suppress-shortcuts") is not None


def test_touch(look, chromium):
    page = look(html(mean_shift_canvas, climbers=1))
    session = chromium.new_cdp_session(page)
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": True})

    def touch(kind: str, *at: tuple[float, float]) -> None:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in at]})

    touch("touchStart", spot(page, (0.3, 0.3)))
    touch("touchEnd")
    assert "of 2 climbers" in status(page)
    touch("touchStart", spot(page, (0.3, 0.3)))
    touch("touchMove", spot(page, (0.4, 0.5)))
    touch("touchMove", spot(page, (0.7, 0.6)))
    touch("touchEnd")
    page.wait_for_timeout(100)
    assert "· 2 climbers at rest" in status(page)
    assert page.locator("canvas").evaluate("node => getComputedStyle(node).touchAction") == "manipulation"


def test_motion_is_asked_for(look):
    page = look(html(mean_shift_canvas))
    page.mouse.click(*spot(page, (0.05, 0.05)))
    page.wait_for_timeout(150)
    assert "· 12 of 13 climbers at rest" in status(page)
    page = look(html(mean_shift_canvas), motion="reduce")
    page.mouse.click(*spot(page, (0.05, 0.05)))
    page.wait_for_timeout(150)
    assert "· 13 climbers at rest" in status(page)


def test_who_is_still_climbing_is_not_at_rest(look):
    ridge = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.diag(torch.tensor([4.0, 0.01]))[None])
    counts = re.search(
        r"(\d+) of 12 climbers at rest · (\d+) not there after 500 steps",
        status(look(mean_shift_canvas(ridge, bandwidth=0.05).html)),
    )
    assert counts and int(counts[1]) + int(counts[2]) == 12


def test_play_pause_and_step(look):
    page = look(html(mean_shift_canvas))
    page.get_by_text("Step", exact=True).click()
    assert page.locator(".counter").inner_text().startswith("step 1 of")
    page.get_by_text("Step", exact=True).click()
    assert page.locator(".counter").inner_text().startswith("step 2 of")
    page.get_by_text("Play").click()
    page.get_by_text("Pause").wait_for()
    page.wait_for_function("document.querySelector('[role=status]').textContent.includes('· 12 climbers at rest')")
    page.get_by_text("Play").wait_for()


# How it looks


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("make", [mean_shift_canvas, distillation_canvas, replay])
def test_nothing_stands_in_a_readers_way(look, theme, make):
    assert violations(look(html(make), theme=theme), "[data-explore]") == []


def test_the_canvas_follows_the_theme_of_the_page(look):
    page = look(html(mean_shift_canvas))

    def is_light() -> bool:
        page.wait_for_timeout(100)
        return ImageStat.Stat(Image.open(io.BytesIO(pixels(page))).convert("L")).mean[0] > 128

    assert is_light()
    page.evaluate("document.documentElement.dataset.theme = 'dark'")  # the book's switch
    assert not is_light()
    page.evaluate("delete document.documentElement.dataset.theme; document.body.dataset.jpThemeLight = 'true'")
    assert is_light()
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")  # JupyterLab's
    assert not is_light()


@pytest.mark.parametrize("make", [mean_shift_canvas, distillation_canvas, replay])
def test_a_narrow_page_does_not_overflow(look, make):
    page = look(html(make), width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for node in page.locator("button, input, canvas, p").all():
        box = node.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


def test_the_canvas_is_sharp_on_dense_screens(look, chromium):
    page = look(html(mean_shift_canvas))
    metrics = {"width": 820, "height": 900, "deviceScaleFactor": 3, "mobile": False}
    chromium.new_cdp_session(page).send("Emulation.setDeviceMetricsOverride", metrics)
    page.mouse.move(*spot(page, (0.5, 0.5)))
    page.wait_for_timeout(150)
    assert page.locator("canvas").evaluate("node => node.width / node.clientWidth") == pytest.approx(3, abs=0.01)


def test_instances_do_not_meet(look):
    page = look(*[html(mean_shift_canvas)] * 2, *[html(distillation_canvas)] * 2)
    before = [pixels(page, i) for i in range(4)]
    page.mouse.click(*spot(page, (0.3, 0.4)))
    page.locator("[role=radiogroup]").first.get_by_role("radio", name="SDS").check()
    page.wait_for_timeout(200)
    assert "13 climbers" in status(page, 0)
    assert "12 climbers" in status(page, 1)
    assert pixels(page, 1) == before[1]
    assert pixels(page, 3) == before[3]
    assert page.locator("[role=radiogroup]").nth(1).get_by_role("radio", name="mean shift").is_checked()


def test_methods_of_the_distillation_canvas(look):
    page = look(html(distillation_canvas, points=20), motion="reduce")
    seen = {pixels(page)}
    for method in ("SDS", "MSD"):
        page.get_by_role("radio", name=method).check()
        page.wait_for_timeout(200)
        seen.add(pixels(page))
        assert "step 150" in page.locator(".counter").inner_text()
    assert page.locator("label span").first.inner_text().startswith("bandwidth λ")
    page.get_by_role("checkbox").uncheck()
    drag_slider(page, 0.9)
    seen.add(pixels(page))
    assert len(seen) == 4
    assert "λ = 0.0010" not in page.locator(".counter").inner_text()


# What is stored


def test_the_same_input_gives_the_same_output():
    first, second = mean_shift_canvas(mixture()), mean_shift_canvas(mixture())
    assert first._repr_mimebundle_() == second._repr_mimebundle_()
    assert mean_shift_canvas(mixture(), 0.21).html.split(" role")[0] != first.html.split(" role")[0]
    data, metadata = first._repr_mimebundle_()
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert metadata["image/png"]["alt"] == data["text/plain"]
    assert len(data["text/html"]) < 24_000
    assert Image.open(io.BytesIO(first.png)).size[0] > 400


def wave(frequency: int, height: float):
    fig, ax = plt.subplots(figsize=(4, 2))
    t = torch.linspace(0, 6, 100)
    ax.plot(t, height * (frequency * t).sin())
    ax.set_ylim(-2, 2)
    return fig


ALT = "A sine wave whose frequency and height follow two sliders."


def test_printed_face(look, monkeypatch):
    monkeypatch.setenv("MSD_TEACH_STATIC", "1")
    kwargs = {"alt": ALT, "frequency": range(1, 4), "height": [0.5, 1.5], "default": {"height": 1.5}}
    printed = explore(wave, **kwargs)
    assert isinstance(printed, Printed)
    assert plt.get_fignums() == []
    assert printed._repr_mimebundle_() == explore(wave, **kwargs)._repr_mimebundle_()
    page = look(printed.html)
    assert page.locator("label").all_inner_texts() == ["frequency\n1", "height\n1.5"]
    frames = {pixels(page)}
    page.locator("input").first.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(100)
        frames.add(pixels(page))
    drag_slider(page, 0.05, slider=1)
    frames.add(pixels(page))
    assert len(frames) == 4
    assert page.locator("label").all_inner_texts() == ["frequency\n3", "height\n0.5"]
    assert page.locator("img").get_attribute("alt") == ALT
    assert len(printed.html) < 6 * 12_000
    assert violations(page, "[data-explore]") == []


# Recorded runs


def test_a_replay_shows_the_recorded_positions_and_losses(look):
    runs, densities = recording(), dict(zip(NAMES, (mixture(), eight_gaussians()), strict=True))
    html = replay(levels={"MSD": [f"λ = {2.0**-k:g}" for k in range(5)]}, default=("eight", "MSD", "SDS")).html
    page = look(html)
    choose = page.locator("select")
    assert page.locator("input[type=range]").get_attribute("aria-valuetext") == "15 of 15"
    for name, box in zip(NAMES, re.findall(r'"box":\[(.*?)\]', html), strict=True):
        left, bottom, side = map(float, box.split(","))
        choose.nth(0).select_option(name)
        assert page.locator(".choices .counter").inner_text().startswith(f"samples of {name}: ")
        for frame in (4, 2, 0):
            page.locator("input[type=range]").fill(str(frame))
            for which, method in ((0, "MSD"), (1, "<i>SDI"), (1, "SDS")):
                choose.nth(1 + which).select_option(method)
                x, y = torch.tensor(page.evaluate(SHARES, which), dtype=torch.float64).T
                there = torch.stack([left + side * x, bottom + side * (1 - y)], -1)
                inside = [(left, left + side), (bottom, bottom + side)]  # who strays waits at the edge
                states = [v.clamp(*ends) for v, ends in zip(runs[name, method][frame].T, inside, strict=True)]
                assert (there - torch.stack(states, -1)).abs().max() < 0.51 * side / 65535
                loss = f"mean −log p = {-densities[name].log_prob(runs[name, method][frame]).mean():.2f} nats"
                assert status(page, which) == loss.replace("= -", "= −")
                note = page.locator(".head .counter").nth(which).text_content()
                assert note == (f"λ = {2.0**-frame:g}" if method == "MSD" else "")


SHARES = "side => document.querySelector('[data-explore]').explore.points(side)"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_replay_draws_each_point_at_its_place(look, theme):
    page = look(html(replay), theme=theme)
    for side in (0, 1):
        shot = Image.open(io.BytesIO(pixels(page, side))).convert("RGB")
        shares = [at for at in page.evaluate(SHARES, side) if min(at) > 0.03 and max(at) < 0.97]
        assert len(shares) > 8
        for x, y in shares:
            column, row = round(x * (shot.width - 2)), round(y * (shot.height - 2))  # inside of the border
            red, _, blue = np.asarray(shot, dtype=int)[1 + row, 1 + column]
            assert red - blue > 100, "a dot is orange"


def test_a_replay_moves_by_keyboard_and_by_choice(look):
    page = look(html(replay))

    def changed(act: Callable[[], object]) -> list[bool]:
        before = [pixels(page, side) for side in (0, 1)]
        act()
        page.wait_for_timeout(100)
        return [pixels(page, side) != before[side] for side in (0, 1)]

    assert changed(lambda: page.locator("input[type=range]").press("Home")) == [True, True]
    assert changed(lambda: page.locator("select").nth(2).select_option("<i>SDI")) == [False, False]  # all start alike
    assert changed(lambda: page.locator("input[type=range]").press("ArrowRight")) == [True, True]
    assert page.locator("canvas").nth(1).get_attribute("aria-label") == "12 points at step 1 of <i>SDI on seven"
    assert changed(lambda: page.locator("select").nth(2).select_option("SDS")) == [False, True]
    assert changed(lambda: page.locator("select").nth(0).select_option("eight")) == [True, True]
    for control in page.locator("input, select").all():
        assert control.get_attribute("data-lm-suppress-shortcuts") is not None
