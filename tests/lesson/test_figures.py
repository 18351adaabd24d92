"""Promises of the figures that no eye would check: whole pixels, order, the same bytes in every run."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from msd_teach import eight_gaussians
from msd_teach.lesson import budget, figures
from msd_teach.lesson.explore import mean_shift_canvas


@pytest.fixture(autouse=True)
def unstamped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(budget, "NAME", "laptop")


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)


def sheet(*batch: int, side: int = 32) -> torch.Tensor:
    """Images (*batch, 3, side, side) of black and white pixels, the colours that no palette changes."""
    return torch.rand(*batch, 3, side, side, generator=torch.Generator().manual_seed(0)).round()


@pytest.mark.parametrize("side", [32, 64, 128])
def test_a_gallery_enlarges_by_a_whole_number(side):
    """Every picture is found in the figure, at its place, with pixels of 128 / side each way."""
    images, zoom, gap = sheet(2, 3, side=side), 128 // side, max(2, side // 32)
    shown = pixels(figures.png(figures.gallery(images, ("a", "b"), ("one", "two", "three"))))
    wanted = (255 * images.permute(0, 1, 3, 4, 2).numpy()).repeat(zoom, 2).repeat(zoom, 3)
    step = (side + gap) * zoom
    y, x = next(
        (y, x)
        for y in range(shown.shape[0] - step - 127)
        for x in range(shown.shape[1] - 2 * step - 127)
        if (shown[y, x : x + 128] == wanted[0, 0, 0]).all()
    )
    for row in range(2):
        for column in range(3):
            there = shown[y + row * step :, x + column * step :][:128, :128]
            assert (there == wanted[row, column]).all()


def test_a_gallery_shrinks_large_pictures():
    plain = figures.gallery(sheet(1, 2, side=512), size=100)
    height, width, _ = pixels(figures.png(plain)).shape
    assert 200 < width < 240 and 100 < height < 130  # two of about 100 pixels, a gap, a rim


def test_the_same_figure_has_the_same_bytes():
    images = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    first, second = (figures.png(figures.gallery(images, ["row"])) for _ in range(2))
    assert first == second
    assert not plt.get_fignums()  # closed


def test_the_librarys_figures_are_in_the_books_style_whatever_is_set():
    def drawn() -> list[bytes]:
        fig, axes = figures.planes(["a", "b"])
        figures.paths(axes[0], [figures.lattice(3), figures.lattice(3, 0.5)])
        images = torch.zeros(1, 2, 3, 32, 32)
        return [figures.png(fig), figures.png(figures.gallery(images, ["row"])), mean_shift_canvas(ring, 0.2, 3).png]

    ring = eight_gaussians()
    with plt.rc_context({"font.size": 20, "figure.dpi": 50, "axes.titlelocation": "right", "lines.linewidth": 9}):
        set_by_others = dict(plt.rcParams)
        before = drawn()
        assert dict(plt.rcParams) == set_by_others
        figures.use_style()
        assert drawn() == before
        fig, ax = plt.subplots()
        assert fig.dpi == 110 and ax.plot([0, 1])[0].get_linewidth() == 1.8 and not ax.spines["top"].get_visible()
        plt.close(fig)


def test_shades_stay_apart_and_in_order():
    """128 colours are enough for 64 greys and a label."""
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 3, 64, 64)
    shown = pixels(figures.png(figures.gallery(ramp, ["ramp"])))
    line = shown[shown.shape[0] // 2 + 40, :, 0]
    inside = line[line < 255]
    assert (np.diff(inside) >= 0).all() and len(set(inside)) == 63


def test_a_gallery_has_room_for_its_names():
    """Also where a figure is saved as it is, not cropped: the frames of `explore`."""
    images = torch.zeros(2, 2, 3, 32, 32)
    fig = figures.gallery(images, ("a long name", "b"), ("two\nlines", "one"))
    box, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    plt.close(fig)
    assert box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01


def test_a_gallery_refuses_by_name():
    images = torch.zeros(2, 3, 3, 32, 32)
    for wrong in (images[0], images[:, :, :1], (255 * images).byte(), images[:0]):
        with pytest.raises(ValueError, match=r"images have shape .* it must be \(rows, columns, 3, H, W\)"):
            figures.gallery(wrong)
    with pytest.raises(ValueError, match="2 rows and 4 columns of names for 2 and 3 of images"):
        figures.gallery(images, ("a", "b"), ("1", "2", "3", "4"))
