import pytest
import torch

from msd_teach import IdealDenoiser, product_denoiser, sample, sample_product
from msd_teach.tensors import noise_like, per_item


def test_levels_are_padded_on_the_right():
    like = torch.zeros(4, 3, 2, dtype=torch.float64)
    assert per_item(0.5, like).shape == ()
    assert per_item(0.5, like).dtype == torch.float64
    assert per_item(torch.ones(4), like).shape == (4, 1, 1)
    assert per_item(torch.ones(4, 3), like).shape == (4, 3, 1)
    assert per_item(torch.ones(1, 3), like).shape == (1, 3, 1)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 3, 2, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"weight has shape .*; it must be a prefix of \(4, 3, 2\)"):
        per_item(torch.ones(shape), torch.zeros(4, 3, 2), "weight")


def test_whole_numbers_and_numbers_without_axes():
    assert per_item(torch.tensor(0.1), torch.tensor(2.0)) == torch.tensor(0.1)
    with pytest.raises(ValueError, match=r"points have dtype torch.int64; it must be a floating-point type"):
        per_item(0.1, torch.zeros(3, dtype=torch.int64))


def test_noise_repeats_with_its_generator_and_follows_x():
    x = torch.zeros(5, 2, dtype=torch.float64)
    first, second = (noise_like(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == x.dtype
    assert noise_like(x.float()).dtype == torch.float32


@pytest.mark.parametrize("points", [[0.0, 1.0], None, torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2) * 1j])
def test_what_is_no_tensor_of_floats_is_refused_by_everything_that_takes_points(points):
    denoise = IdealDenoiser(torch.eye(2))
    for take in (
        lambda: denoise(points, 0.1),
        lambda: sample(denoise, points, torch.tensor([1.0, 0.0])),
        lambda: sample_product(denoise, points, 0.1, torch.tensor([1.0, 0.0])),
        lambda: product_denoiser(denoise, points, 0.1),
    ):
        with pytest.raises(ValueError, match=r"points (are of type .*|have dtype .*); (they|it) must be a"):
            take()
