"""The product of a density with a Gaussian kernel, q(y | x) ∝ p(y) N(y; x, λ²I) (Eq. 8), is again a denoiser."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .denoisers import Denoiser, cost
from .tensors import per_item


@dataclass(frozen=True)
class _Product:
    denoise: Denoiser
    x: Tensor
    bandwidth: float | Tensor

    def _share_of_z(self, z: Tensor, sigma: Tensor) -> Tensor:
        bandwidth = per_item(self.bandwidth, self.x, "bandwidth", positive=True)
        return 1 / (1 + (sigma / bandwidth) ** 2)

    def __call__(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        s = per_item(sigma, z)
        w = self._share_of_z(z, s)
        return self.denoise(self.x + w * (z - self.x), s * w.sqrt())

    def cost(self, z: Tensor, sigma: float | Tensor) -> int:
        s = per_item(sigma, z)
        return cost(self.denoise, z, s * self._share_of_z(z, s).sqrt())


def product_denoiser(denoise: Denoiser, x: Tensor, bandwidth: float | Tensor) -> Denoiser:
    """The denoiser of q(y | x) ∝ p(y) N(y; x, λ²I), exact wherever `denoise` is.

    Seeing y through noise σ as z, and through noise λ as x, is seeing it once:

        D_q(z; σ | x) = D((λ²z + σ²x)/(λ² + σ²); λσ/√(λ² + σ²))

    `x` has shape (*batch, *event); z may carry further axes on the left (N samples for each x). `bandwidth` is λ, the
    kernel's standard deviation: a number, or a tensor whose shape is a prefix of x's. As λ → ∞ this is `denoise`.

    Raises:
        ValueError: a bandwidth that is NaN or not positive.
    """
    per_item(bandwidth, x, "bandwidth", positive=True)
    return _Product(denoise, x, bandwidth)
