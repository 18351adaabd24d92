"""Potentials in the plane: what SDS and mean shift really descend, and where their stationary points are.

Fields here point uphill in the potential, so that x ← x − η·field descends: SDS has E[w (x − D(x + σn; σ))], mean shift
x − D(x; λ) = −m.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedules import SigmaLaw, Weight, dreamfusion_weight, uniform_time
from ..tensors import at_least_one, per_item
from .mixture import GaussianMixture

Field = Callable[[Tensor], Tensor]
"""Points (n, 2) to vectors (n, 2)."""

REACH, STEP = 5.0, 0.5  # the lattice of the noise, in σ: what lies beyond weighs 6e-7
BLOCK = 2**20  # values of a (points, nodes) table held at once


def sds_potential(
    mixture: GaussianMixture,
    x: Tensor,
    sigma: SigmaLaw | None = None,
    weight: Weight = dreamfusion_weight,
    progress: float = 0.0,
    levels: int = 64,
) -> Tensor:
    """L_SDS(x) = −E[w(σ) σ² log p_σ(x + σn)] over σ and n, by quadrature: (*batch, 2) to (*batch,).

    Its gradient is `sds_field`. `sigma` is the law of the noise levels (`uniform_time()` if left out) at `progress`,
    taken at `levels` midpoints of u; the noise is summed by the trapezoidal rule on a lattice of σ/2 out to 5σ. On the
    fractal 64 levels give the field with an error of 1e-4 of its root mean square, of which the noise has 2e-5 (6e-4
    between two clusters far narrower than their distance). The 1/σ of `literal_weight` converges slowly: .002 under
    `uniform_time`, .06 under `uniform_sigma`.
    """
    return _over_levels(mixture, x, sigma, weight, progress, levels)[0]


def sds_field(
    mixture: GaussianMixture,
    x: Tensor,
    sigma: SigmaLaw | None = None,
    weight: Weight = dreamfusion_weight,
    progress: float = 0.0,
    levels: int = 64,
) -> Tensor:
    """E[w(σ) (x − D(x + σn; σ))] over σ and n, the mean update of SDS, by quadrature: the shape of x, (*batch, 2).

    Arguments as in `sds_potential`, of which this is the gradient. Since E[∇f(x + σn)] = E[n f(x + σn)]/σ, it needs
    the log-density alone, whose kinks a quadrature takes far better than the jumps of D.
    """
    return _over_levels(mixture, x, sigma, weight, progress, levels)[1]


def mean_shift_potential(mixture: GaussianMixture, x: Tensor, bandwidth: float | Tensor) -> Tensor:
    """L_MS(x) = −λ² log p_λ(x), whose gradient is x − D(x; λ): (*batch, 2) to (*batch,)."""
    _check_points(x)
    λ = per_item(bandwidth, x[..., 0], "bandwidth", positive=True)
    return -(λ**2) * mixture.log_prob(x, bandwidth)


def _over_levels(
    mixture: GaussianMixture, x: Tensor, law: SigmaLaw | None, weight: Weight, progress: float, levels: int
) -> tuple[Tensor, Tensor]:
    d = mixture.means.shape[1]
    _check_points(x)
    if d != 2 or x.shape[-1:] != (2,):
        raise ValueError(f"x has shape {tuple(x.shape)}, the mixture {d} dimensions; points and mixture must be 2-D")
    levels = at_least_one("levels", levels)
    u = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    σs, repeats = (law or uniform_time())(u, progress).unique(return_counts=True)
    points = x.detach().cpu().double().reshape(-1, 2)
    potential, field = points.new_zeros(len(points)), torch.zeros_like(points)
    for σ, share in zip(σs, repeats / levels, strict=True):
        mean, first = _noised(mixture, points, float(σ))
        w = share * weight(σ)
        potential -= w * σ**2 * mean
        field -= w * σ * first
    return potential.to(x).reshape(x.shape[:-1]), field.to(x).reshape(x.shape)


def _check_points(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"x is a {type(x).__name__}; it must be a torch tensor of floats")
    if not x.isfinite().all():
        raise ValueError(f"x contains {x[~x.isfinite()][0].item()}; all values must be finite")


def _noised(mixture: GaussianMixture, x: Tensor, σ: float) -> tuple[Tensor, Tensor]:
    """E[f] (n,) and E[n f] (n, 2) at x + σn for f = log p_σ."""
    start, end = x.amin(0) - REACH * σ, x.amax(0) + REACH * σ
    counts = [math.ceil(c) + 1 for c in ((end - start) / (STEP * σ)).tolist()]
    reach = math.ceil(REACH / STEP)
    if math.prod(counts) < len(x) * (2 * reach + 1) ** 2:  # nodes on one lattice for all x
        axes = [start[i] + STEP * σ * torch.arange(counts[i], dtype=x.dtype) for i in (0, 1)]
        table = mixture.log_prob(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1), σ)
        parts = x.split(max(1, BLOCK // max(counts)))
        results = [_convolve(table, *((axes[i] - part[:, i, None]) / σ for i in (0, 1))) for part in parts]
    else:  # nodes around each x
        n = STEP * torch.arange(-reach, reach + 1, dtype=x.dtype)
        nodes = σ * torch.stack(torch.meshgrid(n, n, indexing="ij"), -1)
        parts = x.split(max(1, BLOCK // len(n) ** 2))
        results = [_convolve(mixture.log_prob(part[:, None, None] + nodes, σ), n, n) for part in parts]
    means, firsts = zip(*results, strict=True)
    return torch.cat(means), torch.cat(firsts)


def _convolve(table: Tensor, n_x: Tensor, n_y: Tensor) -> tuple[Tensor, Tensor]:
    """E[f] and E[n f] from a table f ([points,] X, Y), at nodes n ([points,] X) and ([points,] Y) in units of σ."""
    w_x, w_y = (-(n_x**2) / 2).softmax(-1), (-(n_y**2) / 2).softmax(-1)
    along_x = torch.stack([w_x, w_x * n_x], -2) @ table
    mean, across = along_x.unbind(-2)
    first = torch.stack([(across * w_y).sum(-1), (mean * w_y * n_y).sum(-1)], -1)
    return (mean * w_y).sum(-1), first


class Potential(NamedTuple):
    """`potential` (rows, columns) with mean 0, and the share of the field that it leaves: |g − ∇φ|/|g|."""

    potential: Tensor
    residual: float


def least_squares_potential(field: Tensor, spacing: float) -> Potential:
    """The potential whose gradient is nearest to `field`, exactly, by one cosine transform (Neumann boundary).

    `field` (rows, columns, 2) holds (g_x, g_y) on a regular lattice whose rows run along y. Between neighbours the
    potential should rise by the mean of their two vectors times `spacing`; the sum of squared misfits over all such
    edges is minimised and, over the sum of squared rises, reported. Second order in `spacing`.

    Raises:
        ValueError: a field that is not (rows, columns, 2) with 2 or more of each, or not finite; spacing ≤ 0.
    """
    from scipy.fft import dctn, idctn

    if field.ndim != 3 or field.shape[-1] != 2 or min(field.shape[:2]) < 2 or not field.isfinite().all():
        raise ValueError(f"field has shape {tuple(field.shape)}; it must be (rows, columns, 2), finite, 2 or more each")
    if not 0 < spacing < math.inf:
        raise ValueError(f"spacing is {spacing}; it must be > 0")
    g = field.detach().cpu().double()
    rise_x = spacing * (g[:, 1:, 0] + g[:, :-1, 0]) / 2
    rise_y = spacing * (g[1:, :, 1] + g[:-1, :, 1]) / 2
    divergence = -torch.nn.functional.pad(rise_x, (1, 1)).diff(dim=1)
    divergence -= torch.nn.functional.pad(rise_y, (0, 0, 1, 1)).diff(dim=0)
    rates = [2 - 2 * torch.cos(math.pi * torch.arange(n, dtype=g.dtype) / n) for n in g.shape[:2]]
    eigenvalues = rates[0][:, None] + rates[1]
    eigenvalues[0, 0] = math.inf  # a constant is free: the mean becomes 0
    φ = torch.as_tensor(idctn(dctn(divergence.numpy()) / eigenvalues.numpy()))
    misfit = (rise_x - φ.diff(dim=1)).square().sum() + (rise_y - φ.diff(dim=0)).square().sum()
    total = rise_x.square().sum() + rise_y.square().sum()
    return Potential(φ, float((misfit / total).sqrt()) if total > 0 else 0.0)


def interpolate(field: Tensor, span: float) -> Field:
    """A field given on a square lattice (n, n, 2) over [−span, span]², rows along y, as a function of points (*, 2).

    Bicubic splines: the error falls with the fourth power of the spacing. Points outside are moved to the border.

    Raises:
        ValueError: a field that is not (n, n, 2) with n ≥ 4, or not finite; span not in (0, ∞).
    """
    from scipy.interpolate import RectBivariateSpline

    n = len(field)
    if field.shape != (n, n, 2) or n < 4 or not field.isfinite().all():
        raise ValueError(f"field has shape {tuple(field.shape)}; it must be (n, n, 2) with n >= 4, finite")
    _check_span(span)
    axis = torch.linspace(-span, span, n, dtype=torch.float64).numpy()
    splines = [RectBivariateSpline(axis, axis, field[..., i].detach().cpu().double().numpy()) for i in (0, 1)]

    def at(x: Tensor) -> Tensor:
        inside = x.detach().cpu().double().clamp(-span, span).numpy()
        return torch.stack([torch.as_tensor(s.ev(inside[..., 1], inside[..., 0])) for s in splines], -1).to(x)

    return at


class StationaryPoints(NamedTuple):
    """`points` (n, 2) where the field vanishes; `downhill` (n,) counts their falling directions.

    0 is a minimum of the potential, 1 a saddle, 2 a maximum.
    """

    points: Tensor
    downhill: Tensor


def stationary_points(field: Field, span: float, n: int = 64) -> StationaryPoints:
    """The stationary points in [−span, span]² of the potential whose gradient is `field`, by Newton's method.

    Every cell of an n × n lattice on whose corners both components change sign starts one search; searches that leave
    the square or do not converge are dropped, those that meet are merged. The lattice must resolve the field: double n
    to see. Where the field points outwards all around the square, minima − saddles + maxima = 1 is a further check.

    Raises:
        ValueError: span not in (0, ∞), n below 2 or not whole.
    """
    _check_span(span)
    if at_least_one("n", n) < 2:
        raise ValueError(f"n is {n}; a lattice needs at least 2")
    axis = torch.linspace(-span, span, n, dtype=torch.float64)
    spacing = 2 * span / (n - 1)
    corners = field(torch.cartesian_prod(axis, axis).flip(-1)).reshape(n, n, 2)
    cells = torch.stack([corners[:-1, :-1], corners[:-1, 1:], corners[1:, :-1], corners[1:, 1:]])
    row, column = ((cells.amin(0) <= 0) & (cells.amax(0) >= 0)).all(-1).nonzero().T
    x = torch.stack([axis[column], axis[row]], -1) + spacing / 2
    step = torch.full_like(x, math.inf)
    for _ in range(30):
        step = (torch.linalg.pinv(_jacobian(field, x, spacing)) @ field(x)[..., None])[..., 0]
        x = x - step * (spacing / step.norm(dim=-1, keepdim=True)).clamp(max=1)
    x = x[(step.norm(dim=-1) < 1e-6 * spacing) & (x.abs() <= span).all(-1)]
    repeats = torch.cdist(x, x).lt(1e-3 * spacing).tril(-1).any(-1)
    x = x[~repeats]
    return StationaryPoints(x, (torch.linalg.eigvals(_jacobian(field, x, spacing)).real < 0).sum(-1))


def _check_span(span: float) -> None:
    if not 0 < span < math.inf:
        raise ValueError(f"span is {span}; it must be > 0 and finite")


def _jacobian(field: Field, x: Tensor, spacing: float) -> Tensor:
    """∂field_i/∂x_j by central differences, (n, 2, 2)."""
    h = 1e-4 * spacing * torch.eye(2, dtype=x.dtype)
    return torch.stack([(field(x + e) - field(x - e)) / (2 * h[0, 0]) for e in h], -1)
