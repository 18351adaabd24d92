"""The live sliders, and what goes into a page; tests/lesson/test_pages.py opens the pages in a browser."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from msd_teach import GaussianMixture, eight_gaussians, fractal
from msd_teach.lesson.explore import Live, distillation_canvas, explore, mean_shift_canvas, replay_canvas

ALT = "A line whose slope follows a slider, and whose height follows another."


@pytest.fixture(autouse=True)
def with_a_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MSD_TEACH_STATIC", raising=False)


def line(slope: float = 1, height: float = 0):
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1], [height, height + slope])
    return fig


def test_live_face():
    live = explore(line, alt=ALT, slope=range(1, 4), height=[0.5, 1.5], default={"slope": 2})
    assert isinstance(live, Live)
    *sliders, picture = live.widget.children
    assert [slider.value for slider in sliders] == [2, 0.5]
    before = picture.value
    sliders[0].value = 3
    assert picture.value != before
    assert ALT in picture.value
    assert plt.get_fignums() == []
    data, metadata = live._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"} <= set(data)
    assert metadata["image/png"]["alt"] == ALT


def test_live_sliders_tell_equal_values_apart_and_open_at_none():
    drawn: list[object] = []

    def remember(choice: object):
        drawn.append(choice)
        return plt.figure()

    live = explore(remember, alt=ALT, choice=[None, 1, True])
    assert isinstance(live, Live)
    slider = live.widget.children[0]
    slider.index = 1
    slider.index = 2
    assert [repr(choice) for choice in drawn] == ["None", "1", "True"]


def fragile(t: int) -> Any:
    fig = line(t)
    if t == 2:
        raise ValueError("no <picture> for 2")
    return None if t == 3 else fig


def test_a_live_figure_that_fails_shows_no_other_one():
    live = explore(fragile, alt=ALT, t=[0, 1, 2, 3])
    assert isinstance(live, Live)
    slider, picture = live.widget.children
    slider.index = 1
    assert "<img" in picture.value
    for index, said in (
        (2, "at t = 2: ValueError: no &lt;picture&gt; for 2"),
        (3, "at t = 3: ValueError: fn returned"),
    ):
        with pytest.raises(ValueError, match=r"no <picture>|fn returned"):
            slider.index = index
        assert "<img" not in picture.value
        assert said in picture.value
    slider.index = 0
    assert "<img" in picture.value


def test_a_printed_figure_that_fails_says_where(monkeypatch):
    monkeypatch.setenv("MSD_TEACH_STATIC", "1")
    with pytest.raises(ValueError, match="no <picture> for 2") as failed:
        explore(fragile, alt=ALT, t=[0, 1, 2])
    assert failed.value.__notes__ == ["drawing the figure at t = 2"]
    assert plt.get_fignums() == []  # also the half-drawn one, which a notebook would show under the cell


def test_explore_refuses_by_name():
    for message, kwargs in {
        "alt is 'short'": {"alt": "short", "t": [1]},
        "at least one value": {"alt": ALT, "t": []},
        "65 combinations.*at most 64": {"alt": ALT, "t": range(13), "s": range(5)},
        r"default has t=3; it must be one of \[1, 2\]": {"alt": ALT, "t": [1, 2], "default": {"t": 3}},
    }.items():
        with pytest.raises(ValueError, match=message):
            explore(line, **kwargs)


FLAT = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1))


@pytest.mark.parametrize("make", [mean_shift_canvas, distillation_canvas])
def test_canvases_refuse_by_name(make):
    with pytest.raises(ValueError, match="mixture has dimension 1"):
        make(FLAT)
    with pytest.raises(ValueError, match="bandwidth is nan"):
        make(eight_gaussians(), float("nan"))
    with pytest.raises(ValueError, match="is 251; it must be from 1 to 250"):
        make(eight_gaussians(), 0.1, 251)


def test_six_digits_are_enough():
    density = fractal()
    rows = json.loads(re.findall(r'"components":(\[\[.*?\]\])', mean_shift_canvas(density).html)[0])
    w, mx, my, xx, xy, yy = torch.tensor(rows, dtype=torch.float64).T
    rounded = GaussianMixture(w, torch.stack([mx, my], -1), torch.stack([xx, xy, xy, yy], -1).reshape(-1, 2, 2))
    x = 4 * torch.rand(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 2
    assert (rounded.denoise(x, 0.1) - density.denoise(x, 0.1)).abs().max() < 1e-4


# Recorded runs


def replay(states: torch.Tensor, **kwargs):
    return replay_canvas({("eight", "SDS"): states}, {"eight": eight_gaussians()}, [0, 5], **kwargs)


def test_what_a_replay_stores():
    states = torch.rand(2, 100, 2, generator=torch.Generator().manual_seed(0))
    first, second = replay(states), replay(states)
    data, metadata = first._repr_mimebundle_()
    assert (data, metadata) == second._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == data["text/plain"]
    assert len(first.html) - len(replay(states[:, :50]).html) < 2 * 50 * 4 * 4 / 3 + 10
    assert Image.open(io.BytesIO(first.png)).size[0] > 400


def test_a_stray_point_waits_at_the_edge():
    """One point at 1000 must not cost all others the picture; its loss is told as it is."""
    states = torch.zeros(2, 3, 2)
    states[-1, 0] = torch.tensor([1000.0, -1000.0])
    html = replay(states).html
    assert float(re.findall(r'"box":\[.*,(.*?)\]', html)[0]) < 5
    assert float(re.findall(r'"losses":\[\[.*?,(.*?)\]', html)[0]) > 1e5


def test_a_replay_refuses_by_name():
    states = torch.zeros(2, 3, 2)
    for message, kwargs in {
        r"runs\[.*\] has shape \(3, 3, 2\); it must be \(2, 3, 2\)": {"states": torch.zeros(3, 3, 2)},
        "and finite": {"states": states / 0},
        r"levels\['SDS'\] has 1 notes; it takes 2": {"states": states, "levels": {"SDS": ["λ"]}},
        "default is .*'ISM'": {"states": states, "default": ("eight", "SDS", "ISM")},
    }.items():
        with pytest.raises(ValueError, match=message):
            replay(**kwargs)
    with pytest.raises(ValueError, match=r"runs has .*every method on each of the densities"):
        replay_canvas({("eight", "SDS"): states}, {"eight": eight_gaussians(), "nine": eight_gaussians()}, [0, 5])
