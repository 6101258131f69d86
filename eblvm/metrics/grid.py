r"""Figures on the plane, where normalizers and divergences can be had by quadrature.

A box is cut into `resolution` × `resolution` cells of area :math:`\Delta`, with midpoints
:math:`x_i`. Then, by the midpoint rule,

.. math::
    \log Z &= \log \sum_i e^{-E(x_i)} \Delta \\
    \mathrm{KL}(p \| q) &= \sum_i p(x_i) \log \frac{p(x_i)}{q(x_i)} \Delta,

with an error of second order in the cell's width, and far below for smooth densities that vanish
at the border of the box. What lies outside the box is missed: the functions report or refuse it.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Bounds",
    "energy_log_prob",
    "LogNormalizer",
    "grid_points",
    "cell_probabilities",
    "histogram_kl",
    "kl_of_masses",
    "kl_of_histogram",
    "kl_on_grid",
    "log_normalizer",
    "push_forward",
]

Bounds = Sequence[tuple[float, float]]
"""Lowest and highest value of either axis: `((x_low, x_high), (y_low, y_high))`."""

LogDensity = Callable[[Tensor], Tensor]

_CHUNK = 65536  # points handed to a function at once


class LogNormalizer(NamedTuple):
    """A log normalizer by quadrature.

    Attributes:
        log_z: log Z in float64, a scalar.
        boundary_mass: Fraction of Z in the outermost ring of cells, a float64 scalar: where it is
            not small, the box is too narrow.
    """

    log_z: Tensor
    boundary_mass: Tensor


def grid_points(
    bounds: Bounds,
    resolution: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Midpoints of the cells of a box.

    Arguments:
        bounds: The box.
        resolution: Cells per axis.
        device: Where the points are made.
        dtype: Their type; PyTorch's default if None.

    Returns:
        Points, with shape `(resolution², 2)`; the second coordinate runs fastest, so that values
        at the points become a picture by `values.view(resolution, resolution).T`.

    Raises:
        ValueError: If the box is empty or not of the plane, or there is no cell.
    """
    if len(bounds) != 2 or not all(
        math.isfinite(low) and math.isfinite(high) and low < high for low, high in bounds
    ):
        raise ValueError(
            f"bounds are {bounds}; expected ((x_low, x_high), (y_low, y_high)), each low below its "
            "high and finite."
        )
    if resolution < 1:
        raise ValueError(f"resolution is {resolution}; expected 1 or more cells per axis.")
    cells = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    axes = [low + (high - low) * cells for low, high in bounds]
    return torch.cartesian_prod(*axes).to(device=device, dtype=dtype or torch.get_default_dtype())


def log_normalizer(
    energy: LogDensity,
    bounds: Bounds,
    resolution: int,
    max_boundary_mass: float = 0.01,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LogNormalizer:
    """The log normalizer of p(x) ∝ exp(−E(x)) on the plane.

    Arguments:
        energy: E, `(B, 2) -> (B,)`.
        bounds: The box.
        resolution: Cells per axis; their width should resolve the narrowest mode.
        max_boundary_mass: Largest `boundary_mass` that is accepted; 1 accepts any.
        device: Where the energy lives.
        dtype: The type of its inputs; sums are in float64.

    Returns:
        log Z, and the fraction of Z in the outermost ring of cells.

    Raises:
        ValueError: If too much of Z lies at the border of the box, or an energy is not finite.
    """
    log_mass = _log_mass(lambda x: -energy(x), "energy", bounds, resolution, device, dtype)
    log_z = log_mass.logsumexp(0)
    ring = torch.ones(resolution, resolution, dtype=torch.bool, device=log_mass.device)
    ring[1:-1, 1:-1] = False
    boundary_mass = (log_mass[ring.flatten()].logsumexp(0) - log_z).exp()
    if boundary_mass > max_boundary_mass:
        raise ValueError(
            f"a fraction {boundary_mass.item():.3g} of the mass lies in the outermost cells of "
            f"the box {tuple(bounds)}; expected at most {max_boundary_mass:g}. Widen the bounds; "
            "or, if the density is meant to end there, pass `max_boundary_mass=1`."
        )
    return LogNormalizer(log_z, boundary_mass)


def energy_log_prob(
    energy: LogDensity,
    bounds: Bounds,
    resolution: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """log p(x) of an energy of the plane; log Z is summed over a box twice as wide.

    What lies outside even of that box is missed. For another box of normalization take
    `log_normalizer`, or `box` of `eblvm.evaluation.GridDensity`.

    Arguments:
        energy: E, `(B, 2) -> (B,)`.
        bounds: The box, `((x_low, x_high), (y_low, y_high))`.
        resolution: Cells per axis.
        device: Where the energy lives.
        dtype: The type of its inputs.

    Returns:
        Nats at the centers of the cells, with shape `(resolution²,)`, in float64.
    """
    wide = [((3 * low - high) / 2, (3 * high - low) / 2) for low, high in bounds]
    with torch.no_grad():
        z = log_normalizer(energy, wide, 2 * resolution, 1.0, device, dtype)
        points = grid_points(bounds, resolution, device, dtype)
        energies = torch.cat([energy(part) for part in points.split(_CHUNK)])
    return -energies.double() - z.log_z


def kl_on_grid(
    log_p: LogDensity,
    log_q: LogDensity,
    bounds: Bounds,
    resolution: int,
    tolerance: float = 0.01,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """KL(p‖q) of two normalized densities on the plane, in nats.

    Arguments:
        log_p: Log density of p, `(B, 2) -> (B,)`, normalized.
        log_q: Log density of q, normalized; for an energy `lambda x: -energy(x) - log_z`.
        bounds: A box that holds p; q may lie elsewhere.
        resolution: Cells per axis.
        tolerance: How far from 1 the mass of p in the box may be, and how far above 1 that of q.
        device: Where the densities live.
        dtype: The type of their inputs; sums are in float64.

    Returns:
        The divergence in float64, a scalar; infinite where q is zero and p is not.

    Raises:
        ValueError: If p or q is not normalized in the box, or a log density is nan or +inf.
    """
    log_mass_p = _log_mass(log_p, "log_p", bounds, resolution, device, dtype)
    log_mass_q = _log_mass(log_q, "log_q", bounds, resolution, device, dtype)
    mass_p, mass_q = log_mass_p.exp().sum().item(), log_mass_q.exp().sum().item()
    if abs(mass_p - 1) > tolerance or mass_q > 1 + tolerance:
        raise ValueError(
            f"over the box {tuple(bounds)} p integrates to {mass_p:.4g} and q to {mass_q:.4g}; "
            f"expected 1 for p and at most 1 for q, within {tolerance:g}. Widen the bounds, raise "
            "the resolution, or normalize with `log_normalizer`."
        )
    return _kl(log_mass_p, log_mass_q)


def histogram_kl(
    samples: Tensor,
    log_prob: LogDensity,
    bounds: Bounds,
    bins: int,
    pseudocount: float = 0.5,
    refinement: int = 8,
) -> Tensor:
    r"""KL(data‖samples) of a known density and a histogram of samples, in nats.

    The plane is cut into `bins` × `bins` cells and the outside of the box; the data's probabilities
    of the cells come by quadrature, the samples' are :math:`(n_i + \alpha) / (n + \alpha K)`, K the
    number of cells. Three errors: binning lowers the divergence (what differs within a cell is not
    seen); n samples of the data itself give, instead of 0, up to about :math:`(K - 1) / 2n`, less
    where cells expect fewer than one sample; and a cell the samples never reach costs a finite
    amount that depends on α. Compare figures of equal `bins`, n and α only.

    Who compares many sets of samples with one density keeps `cell_probabilities` and calls
    `kl_of_histogram`.

    Arguments:
        samples: Points, with shape `(n, 2)`.
        log_prob: The data's normalized log density, `(B, 2) -> (B,)`.
        bounds: The box.
        bins: Cells per axis.
        pseudocount: α, added to the count of each cell; 1/2 is Jeffreys' prior.
        refinement: Quadrature points per cell and axis.

    Returns:
        The divergence in float64, a scalar; never negative.

    Raises:
        ValueError: If there are no samples, one is not finite, or the data's density integrates to
            more than 1.
    """
    _check_samples(samples)  # before the work
    data = cell_probabilities(log_prob, bounds, bins, refinement, samples.device, samples.dtype)
    return kl_of_histogram(samples, data, bounds, pseudocount)


def cell_probabilities(
    log_prob: LogDensity,
    bounds: Bounds,
    bins: int,
    refinement: int = 8,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The probability of each cell of a histogram, and of all that lies outside it, by quadrature.

    Arguments:
        log_prob: A normalized log density, `(B, 2) -> (B,)`.
        bounds: The histogram's box.
        bins: Cells per axis.
        refinement: Quadrature points per cell and axis.
        device: Where the density lives.
        dtype: The type of its inputs.

    Returns:
        Probabilities with shape `(bins² + 1,)` and sum 1 in float64, the outside's last.

    Raises:
        ValueError: If the density integrates to more than 1.
    """
    if refinement < 1:
        raise ValueError(f"refinement is {refinement}; expected 1 or more.")
    fine = _log_mass(log_prob, "log_prob", bounds, bins * refinement, device, dtype)
    fine = fine.view(bins, refinement, bins, refinement).permute(0, 2, 1, 3)
    data = fine.exp().sum((2, 3)).flatten()  # (bins²,)
    if data.sum() > 1.01:
        raise ValueError(
            f"log_prob integrates to {data.sum().item():.4g} over the box {tuple(bounds)}; "
            "expected at most 1. Normalize it with `log_normalizer`, or raise `refinement`."
        )
    data = torch.cat([data, (1 - data.sum()).clamp_min(0)[None]])
    return data / data.sum()  # quadrature may give a little more than 1


def kl_of_histogram(
    samples: Tensor, probabilities: Tensor, bounds: Bounds, pseudocount: float = 0.5
) -> Tensor:
    """`histogram_kl`, where the data's probabilities of the cells are known already.

    Arguments:
        samples: Points, with shape `(n, 2)`.
        probabilities: Of the cells and of the outside, as from `cell_probabilities`, with shape
            `(bins² + 1,)`.
        bounds: The box.
        pseudocount: α, added to the count of each cell.

    Returns:
        The divergence in float64, a scalar; never negative.

    Raises:
        ValueError: If there are no samples or one is not finite, or α is not positive.
    """
    _check_samples(samples)
    if not pseudocount > 0:
        raise ValueError(f"pseudocount is {pseudocount}; expected a positive number.")
    bins = math.isqrt(len(probabilities) - 1)
    low, high = samples.new_tensor([list(axis) for axis in bounds], dtype=torch.float64).T
    cell = ((samples.double() - low) / (high - low) * bins).floor()
    inside = ((cell >= 0) & (cell < bins)).all(1)
    index = torch.where(inside, cell[:, 0] * bins + cell[:, 1], bins**2).long()
    counts = torch.bincount(index, minlength=bins**2 + 1).double() + pseudocount
    return _kl(probabilities.log(), (counts / counts.sum()).log())


def _check_samples(samples: Tensor) -> None:
    if samples.ndim != 2 or samples.shape[1] != 2 or len(samples) == 0:
        raise ValueError(
            f"samples have shape {tuple(samples.shape)}; expected (n, 2) with n of 1 or more."
        )
    if not samples.isfinite().all():
        raise ValueError(
            f"{int((~samples.isfinite()).any(1).sum())} of {len(samples)} samples are not finite. "
            "Look for chains that diverged: `samples.isfinite().all(1)`."
        )


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ p log(p/q) over cells, where 0 log 0 = 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum()


def _log_mass(
    log_density: LogDensity,
    name: str,
    bounds: Bounds,
    resolution: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """Log of density times area for each cell, in float64, with shape `(resolution²,)`."""
    points = grid_points(bounds, resolution, device, dtype)
    pieces = []
    for chunk in points.split(_CHUNK):
        with torch.no_grad():
            piece = log_density(chunk)
        if piece.shape != chunk.shape[:1]:
            raise ValueError(
                f"{name} returned shape {tuple(piece.shape)} for {len(chunk)} points; expected "
                f"({len(chunk)},). Sum over the event, e.g. `net(x).sum(1)`."
            )
        pieces.append(piece.double())
    log_values = torch.cat(pieces)
    if log_values.isnan().any() or (log_values == math.inf).any():
        raise ValueError(
            f"{name} is nan or infinitely likely at {int((~(log_values < math.inf)).sum())} of "
            f"{len(points)} points of the box {tuple(bounds)}; expected finite numbers. Was the "
            "function trained that far out? Narrow the bounds."
        )
    (x_low, x_high), (y_low, y_high) = bounds
    return log_values + math.log((x_high - x_low) * (y_high - y_low) / resolution**2)


def push_forward(
    points: Tensor, log_weights: Tensor, scale: float, bounds: Bounds, resolution: int
) -> Tensor:
    r"""Log density of a weighted mixture of narrow Gaussians, on the cells of a grid.

    .. math:: p(x) = \sum_i w_i N(x; m_i, \sigma^2 I)

    A latent-variable model with Gaussian noise has this density, with m the decoded nodes of a
    quadrature over latents, however many: the mass is first shared among the four nearest cells and
    then blurred, so the cost is that of the points plus that of the grid. Sharing widens a Gaussian
    by less than h²/4 in variance, h the width of a cell.

    Arguments:
        points: m, with shape `(M, 2)`.
        log_weights: log w, with shape `(M,)`; their exponentials sum to 1.
        scale: σ.
        bounds: The box.
        resolution: Cells per axis.

    Returns:
        The log density at the centers of the cells, as in `grid_points`, with shape
        `(resolution²,)`, in float64; at least log 1e-300.

    Raises:
        ValueError: If a cell is wider than σ, which the grid could then not resolve.
    """
    (x_low, x_high), (y_low, y_high) = bounds
    low = points.new_tensor([x_low, y_low], dtype=torch.float64)
    width = points.new_tensor([x_high - x_low, y_high - y_low], dtype=torch.float64) / resolution
    if width.max() > scale:
        raise ValueError(
            f"cells of {float(width.max()):.3g} cannot show Gaussians of scale {scale:.3g}; raise "
            f"resolution to {math.ceil(resolution * float(width.max()) / scale)} or more."
        )
    place = (points.double() - low) / width - 0.5  # 0 is the center of the first cell
    corner = place.floor()
    mass = torch.zeros(resolution, resolution, dtype=torch.float64, device=points.device)
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cell = corner + place.new_tensor(step)
        share = (1 - (place - cell).abs()).prod(1) * log_weights.double().exp()
        inside = ((cell >= 0) & (cell < resolution)).all(1)
        mass.index_put_(tuple(cell[inside].long().T), share[inside], accumulate=True)
    kernels = []
    for h in width.tolist():
        distance = torch.arange(resolution, dtype=torch.float64, device=points.device) * h
        squared = (distance[:, None] - distance).square()
        kernels.append(torch.exp(-squared / (2 * scale**2)) / math.sqrt(2 * math.pi * scale**2))
    density = kernels[0] @ mass @ kernels[1].T
    return density.clamp_min(1e-300).log().flatten()


def kl_of_masses(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) of two densities given on the cells of one grid, in nats.

    Arguments:
        log_p: Log density of p on all cells, with shape `(N,)`; normalized here over the cells.
        log_q: Log density of q likewise, in units of the same cells, *not* normalized: what of it
            lies outside of the grid counts against it. Subtract log Z before.

    Returns:
        The divergence in float64, a scalar.
    """
    return _kl(log_p.double().log_softmax(0), log_q.double() - log_p.double().logsumexp(0))
