import numpy as np
import pytest
import torch

from msd_teach import checkerboard, eight_gaussians, fractal, image_density, pinwheel, spiral
from msd_teach.plane.densities import SPREAD


def entropy(mixture, n=200_000, seed=0):
    """Mean negative log-likelihood of the mixture's own samples, in nats, and its standard error."""
    nll = -mixture.log_prob(mixture.sample(n, generator=torch.Generator().manual_seed(seed)))
    return nll.mean().item(), (nll.std() / n**0.5).item()


@pytest.mark.parametrize(
    ("classes", "components", "published"), [("A", 1016, -1.3375), ("B", 1016, -1.304), ("AB", 2032, -0.654)]
)
def test_fractal_has_the_published_size_and_entropy(classes, components, published):
    mixture = fractal(classes)
    assert mixture.means.shape == (components, 2)
    value, error = entropy(mixture)
    assert abs(value - published) < 3 * (0.008 + error)


def test_fractal_union_has_half_unit_spread():
    means, covariances, weights = (getattr(fractal("AB"), name) for name in ("means", "covariances", "weights"))
    second = torch.einsum("k,ki->i", weights, covariances.diagonal(dim1=1, dim2=2) + means**2)
    variance = second - (weights @ means) ** 2
    assert abs(variance.mean().sqrt() - 0.4999) < 1e-3


def test_fractal_classes_are_the_union():
    parts = torch.cat([fractal("A").means, fractal("B").means])
    assert torch.equal(fractal("AB").means, parts)
    with pytest.raises(ValueError, match="classes is 'C'; it may be 'A', 'B' or 'AB'"):
        fractal("C")


def spiral_recipe(n, g):
    turn = torch.rand(n, generator=g, dtype=torch.float64).sqrt() * np.radians(540)
    arm = torch.stack([-turn * turn.cos(), turn * turn.sin()], -1)
    sign = torch.randint(0, 2, (n, 1), generator=g) * 2 - 1
    return (arm * sign + 0.1 * torch.randn(n, 2, generator=g, dtype=torch.float64)) / 12


def pinwheel_recipe(n, g):
    r, t = (torch.randn(n, 2, generator=g, dtype=torch.float64) * torch.tensor([0.3, 0.1]) + torch.tensor([1.0, 0])).T
    angle = 2 * np.pi / 5 * torch.randint(0, 5, (n,), generator=g) + 0.25 * r.exp()
    return torch.stack([r * angle.cos() - t * angle.sin(), r * angle.sin() + t * angle.cos()], -1) / 2.5


@pytest.mark.parametrize(("mixture", "recipe"), [(spiral(), spiral_recipe), (pinwheel(), pinwheel_recipe)])
def test_mixture_stands_for_its_recipe(mixture, recipe):
    """The recipe's own samples are as likely as the mixture's, to .05 nats."""
    nll = -mixture.log_prob(recipe(100_000, torch.Generator().manual_seed(1)))
    assert abs(nll.mean() - entropy(mixture)[0]) < 0.05


def test_finer_chains_change_little():
    """A chain of components SPREAD spacings wide is smooth: twice as many give the same density."""
    x = spiral().sample(20_000, generator=torch.Generator().manual_seed(2))
    assert (spiral().log_prob(x) - spiral(400).log_prob(x)).mean().abs() < 0.02
    assert 0.4 < SPREAD < 1


def test_checkerboard_is_dark_where_it_should_be():
    y = checkerboard().sample(50_000, generator=torch.Generator().manual_seed(0))
    i, j = ((y + 1) / 0.5).floor().T
    assert ((i + j) % 2 == 0).double().mean() > 0.85


def test_eight_gaussians_stand_on_the_circle():
    mixture = eight_gaussians()
    torch.testing.assert_close(mixture.means.norm(dim=-1), torch.ones(8, dtype=torch.float64))
    assert mixture.covariances[0, 0, 0] == 0.125**2


def test_image_points_follow_the_grey_levels():
    image = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0]])
    y = image_density(image, 40_000, torch.Generator().manual_seed(0))
    assert y.abs().max() <= 1
    bright = (y[:, 0] > 0.5) & (y[:, 1] < 0)  # second row, last column: three quarters of the light
    first = (y[:, 0] > -0.5) & (y[:, 0] < 0) & (y[:, 1] > 0)
    assert (bright | first).all()
    assert abs(bright.double().mean() - 0.75) < 0.011
    assert abs(y[bright, 0].mean() - 0.75) < 0.003


@pytest.mark.parametrize("image", [np.zeros((3, 3)), -np.ones((2, 2)), np.ones((2, 2, 3)), np.full((2, 2), np.nan)])
def test_images_without_a_density_are_refused(image):
    with pytest.raises(ValueError, match=r"image has shape .* it must be"):
        image_density(image, 10)


def test_pictures_in_any_form_and_whole_counts():
    image = np.array([[0.0, 1.0], [2.0, 3.0]])
    first, *others = (
        image_density(kind, 9, torch.Generator().manual_seed(0))  # pyright: ignore[reportArgumentType]
        for kind in (image, image.tolist(), image.astype(np.uint8), torch.tensor(image, requires_grad=True))
    )
    assert all(torch.equal(first, other) for other in others)
    for call, message in (
        (lambda: image_density(image, 5.0), "n is 5.0; it must be a whole number, at least 1"),  # pyright: ignore
        (lambda: image_density(image * 1j, 5), "image has dtype torch.complex128; it must be real"),
        (lambda: spiral(0), "components is 0"),
        (lambda: pinwheel(1), "components is 1; a vane needs at least 2"),
        (lambda: checkerboard(2.5), "components is 2.5; it must be a whole number"),  # pyright: ignore
    ):
        with pytest.raises(ValueError, match=message):
            call()
