r"""Densities on the plane that can be sampled *and* evaluated: the truth that a model is held to.

Each `log_prob` is normalized, in nats, and exact: a closed form, or a deterministic one-dimensional
quadrature or root search with an error below 1e-6. Computation is in float64 throughout. Published
generators differ in scale; a `scale` multiplies the finished point.

Below, LDEBM, DDAEBM and BiSM stand for the experiments of Yu et al. (ICML 2022), Geng et al.
(ICML 2024) and Bao et al. (NeurIPS 2020). Most generators go back to FFJORD (Grathwohl et al.,
ICLR 2019).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .loader import TensorRows, seeded_generator
from .module import DataModule, Split

__all__ = [
    "Checkerboard",
    "Density2D",
    "DensityDataModule",
    "EightGaussians",
    "GaussianGrid",
    "GaussianRings",
    "Moons",
    "Pinwheel",
    "Rings",
    "SwissRoll",
    "TwoMoons",
]

_CHUNK = 2**20
"""Numbers that an intermediate array may hold."""

_NODES = 40
"""Nodes on each side between which `Pinwheel` looks for solutions."""


class Density2D(ABC):
    """A normalized density on the plane.

    Attributes:
        bounds: `((x_min, x_max), (y_min, y_max))`, a box with all but 1e-6 of the mass.
    """

    bounds: tuple[tuple[float, float], tuple[float, float]]

    @abstractmethod
    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points `(num, 2)` in float64 and the component of each, int64 `(num,)`, on the CPU."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """The log density in nats.

        Arguments:
            x: Points, with shape `(N, 2)`.

        Returns:
            Shape `(N,)`, with the type and on the device of `x`.
        """

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent points, with shape `(num, 2)` and the default type, on the CPU.

        Arguments:
            num: How many.
            generator: A CPU generator; the global one if None.
        """
        x, _ = self.draw(num, torch.default_generator if generator is None else generator)
        return x.to(torch.get_default_dtype())


def _check_points(x: Tensor) -> Tensor:
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (N, 2), points of the plane.")
    return x.double()


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; expected a positive number.")


def _normal(num: int, generator: torch.Generator) -> Tensor:
    return torch.randn(num, dtype=torch.float64, generator=generator)


def _uniform(num: int, generator: torch.Generator) -> Tensor:
    return torch.rand(num, dtype=torch.float64, generator=generator)


def _component(weights: Tensor, num: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(weights, num, replacement=True, generator=generator)


def _square(radius: float) -> tuple[tuple[float, float], tuple[float, float]]:
    return ((-radius, radius), (-radius, radius))


class _IsotropicMixture(Density2D):
    """A mixture of Gaussians of one standard deviation, at weighted centers.

    With centers on a curve at quadrature nodes it is the density of the curve plus noise.
    """

    def __init__(self, centers: Tensor, std: float, weights: Tensor | None = None) -> None:
        num = len(centers)
        self.std = std
        self.centers = centers  # (K, 2)
        self.weights = torch.full((num,), 1 / num).double() if weights is None else weights
        low, high = centers.amin(0) - 6 * std, centers.amax(0) + 6 * std
        self.bounds = ((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))

    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        label = _component(self.weights, num, generator)
        noise = torch.stack([_normal(num, generator), _normal(num, generator)], dim=1)
        return self.centers[label] + self.std * noise, label

    def log_prob(self, x: Tensor) -> Tensor:
        points = _check_points(x)
        centers, weights = self.centers.to(points) / self.std, self.weights.to(points)
        offset = weights.log() - centers.square().sum(1) / 2  # (K,)
        parts = [points.new_empty(0)]
        for part in (points / self.std).split(max(1, _CHUNK // len(centers))):
            # −‖x − c‖² / 2 with the square written out, so that the pairs are one product
            parts.append((part @ centers.T + offset).logsumexp(1) - part.square().sum(1) / 2)
        return (torch.cat(parts) - math.log(2 * math.pi * self.std**2)).to(x.dtype)


class EightGaussians(_IsotropicMixture):
    """Eight Gaussians on a circle.

    DDAEBM uses the defaults (entropy 2.831880); LDEBM has `scale=4 / 1.414`. The
    ring of 8 with `radius=2, std=0.15, scale=1` has entropy 1.123078.

    Arguments:
        radius: Of the circle of centers, before scaling.
        std: Of each Gaussian, before scaling.
        scale: Factor on the point.
    """

    def __init__(self, radius: float = 4.0, std: float = 0.5, scale: float = 1 / 1.414) -> None:
        _check_positive(radius=radius, std=std, scale=scale)
        angle = torch.arange(8).double() * math.pi / 4
        super().__init__(scale * radius * torch.stack([angle.cos(), angle.sin()], 1), scale * std)


class GaussianGrid(_IsotropicMixture):
    """Gaussians on a square grid around 0.

    DDAEBM uses the defaults: 25 Gaussians of unit variance in all, entropy −0.6276. LDEBM's
    16 Gaussians are `num_side=4, spacing=8 / 3, std=0.5, scale=4 / 1.414`. The grid of 25 with
    `spacing=1, std=0.05, scale=1` has entropy 0.065288.

    Arguments:
        num_side: Gaussians along each axis.
        spacing: Between neighboring centers, before scaling.
        std: Of each Gaussian, before scaling.
        scale: Factor on the point.
    """

    def __init__(
        self, num_side: int = 5, spacing: float = 2.0, std: float = 0.1, scale: float = 1 / 2.828
    ) -> None:
        _check_positive(num_side=num_side, spacing=spacing, std=std, scale=scale)
        place = scale * spacing * (torch.arange(num_side).double() - (num_side - 1) / 2)
        super().__init__(torch.cartesian_prod(place, place), scale * std)


class _NoisyCurves(_IsotropicMixture, ABC):
    """Points on curves, uniform in their parameter and equally likely, plus Gaussian noise.

    The density is the integral of a Gaussian along the curves. Eight Gauss–Legendre nodes for
    every two standard deviations of length leave an error near rounding.

    Arguments:
        num_curves: K.
        std: Of the noise.
    """

    def __init__(self, num_curves: int, std: float) -> None:
        self.num_curves = num_curves
        dense = self.curves(torch.linspace(0, 1, 4097).double())
        steepest = float(dense.diff(dim=1).norm(dim=-1).max()) * 4096  # length per unit of t
        t, weight = _gauss_legendre(max(8, math.ceil(steepest / (2 * std))))
        centers = self.curves(t)  # (K, M, 2)
        super().__init__(centers.flatten(0, 1), std, weight.repeat(num_curves) / num_curves)

    @abstractmethod
    def curves(self, t: Tensor) -> Tensor:
        """Points `(K, M, 2)` of the K curves at t in [0, 1], `(M,)`."""

    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        label = torch.randint(self.num_curves, (num,), generator=generator)
        points = self.curves(_uniform(num, generator))[label, torch.arange(num)]
        noise = torch.stack([_normal(num, generator), _normal(num, generator)], dim=1)
        return points + self.std * noise, label


def _gauss_legendre(num_panels: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of composite Gauss–Legendre quadrature on [0, 1], eight per panel."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(8))
    t = (torch.arange(num_panels).double()[:, None] + (nodes + 1) / 2).flatten() / num_panels
    return t, (weights / 2).repeat(num_panels) / num_panels


class SwissRoll(_NoisyCurves):
    r"""A spiral, :math:`(t \cos t, t \sin t)` with :math:`t = 1.5 \pi (1 + 2u)`, plus noise.

    Coordinates 0 and 2 of scikit-learn's `make_swiss_roll`; the defaults are DDAEBM's.

    Arguments:
        noise: Standard deviation, before scaling.
        scale: Factor on the point.
    """

    def __init__(self, noise: float = 1.0, scale: float = 0.2) -> None:
        _check_positive(noise=noise, scale=scale)

        self.scale = scale
        super().__init__(1, scale * noise)

    def curves(self, t: Tensor) -> Tensor:
        turn = 1.5 * math.pi * (1 + 2 * t)
        return self.scale * torch.stack([turn * turn.cos(), turn * turn.sin()], -1)[None]


class Moons(_NoisyCurves):
    """Two interleaved half circles plus noise, as scikit-learn's `make_moons`.

    Arguments:
        noise: Standard deviation, before scaling (DDAEBM: 0.1).
        scale: Factor on the point.
    """

    def __init__(self, noise: float = 0.1, scale: float = 1.0) -> None:
        _check_positive(noise=noise, scale=scale)

        self.scale = scale
        super().__init__(2, scale * noise)

    def curves(self, t: Tensor) -> Tensor:
        cos, sin = (math.pi * t).cos(), (math.pi * t).sin()
        outer, inner = torch.stack([cos, sin], -1), torch.stack([1 - cos, 0.5 - sin], -1)
        return self.scale * torch.stack([outer, inner])


class Rings(Density2D):
    r"""Equally likely concentric circles plus isotropic noise.

    .. math:: p(x) = \frac{1}{K} \sum_r \frac{1}{2 \pi \sigma^2} I_0\!\left(\frac{\|x\| r}{\sigma^2}
        \right) \exp\!\left(-\frac{\|x\|^2 + r^2}{2 \sigma^2}\right)

    The defaults are DDAEBM's rings; its circles are `radii=[3, 1.5], noise=0.24`.

    Arguments:
        radii: r, of the K circles.
        noise: σ.
    """

    def __init__(self, radii: list[float] | None = None, noise: float = 0.08) -> None:
        radii = [3.0, 2.25, 1.5, 0.75] if radii is None else list(radii)
        _check_positive(noise=noise, **{f"radii[{i}]": r for i, r in enumerate(radii)})
        self.radii, self.noise = torch.tensor(radii).double(), noise
        self.bounds = _square(max(radii) + 6 * noise)

    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        label = torch.randint(len(self.radii), (num,), generator=generator)
        noise = torch.stack([_normal(num, generator), _normal(num, generator)], dim=1)
        return _turned(self.radii[label], generator) + self.noise * noise, label

    def log_prob(self, x: Tensor) -> Tensor:
        rho = _check_points(x).norm(dim=1, keepdim=True)
        radii, variance = self.radii.to(rho), self.noise**2
        # i0e(a) = exp(−a) I₀(a) takes the large part of the exponent
        bessel = torch.special.i0e(rho * radii / variance).log()
        terms = bessel - (rho - radii) ** 2 / (2 * variance)
        constant = math.log(2 * math.pi * variance * len(radii))
        return (terms.logsumexp(1) - constant).to(x.dtype)


def _turned(radius: Tensor, generator: torch.Generator) -> Tensor:
    """Points `(N, 2)` at these distances from 0, in uniform directions."""
    angle = 2 * math.pi * _uniform(len(radius), generator)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


class GaussianRings(Density2D):
    r"""Concentric rings with a Gaussian profile in the radius.

    .. math:: p(x) \propto \sum_r \exp\!\left(-\frac{(\|x\| - r)^2}{2 \sigma^2}\right)

    A ring has mass proportional to :math:`2\pi(\sigma^2 e^{-r^2/2\sigma^2} +
    r \sigma \sqrt{2\pi}\, \Phi(r/\sigma))`. The defaults have log Z = 3.162281, entropy 3.660419.

    Arguments:
        radii: r.
        std: σ.
    """

    def __init__(self, radii: list[float] | None = None, std: float = 0.15) -> None:
        radii = [1.0, 2.0, 3.0, 4.0] if radii is None else list(radii)
        _check_positive(std=std, **{f"radii[{i}]": r for i, r in enumerate(radii)})
        self.radii, self.std = torch.tensor(radii).double(), std
        self.masses = _ring_mass(torch.full_like(self.radii, math.inf), self.radii, std)
        self.log_normalizer = float(self.masses.sum().log())
        self.bounds = _square(max(radii) + 6 * std)

    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        label = _component(self.masses, num, generator)
        radius = _ring_radius(_uniform(num, generator), self.radii[label], self.std)
        return _turned(radius, generator), label

    def log_prob(self, x: Tensor) -> Tensor:
        radius = _check_points(x).norm(dim=1, keepdim=True)
        terms = -((radius - self.radii.to(radius)) ** 2) / (2 * self.std**2)
        return (terms.logsumexp(1) - self.log_normalizer).to(x.dtype)


def _ring_mass(upper: Tensor, radius: Tensor, std: float) -> Tensor:
    """2π ∫₀^upper ρ exp(−(ρ − radius)²/2std²) dρ."""
    low, high = -radius / std, (upper - radius) / std
    bump = (-low.square() / 2).exp() - (-high.square() / 2).exp()
    bulk = torch.special.ndtr(high) - torch.special.ndtr(low)
    return 2 * math.pi * (std**2 * bump + radius * std * math.sqrt(2 * math.pi) * bulk)


def _ring_radius(u: Tensor, radius: Tensor, std: float) -> Tensor:
    """The radius below which a ring has a share u of its mass, by bisection."""
    low, high = (radius - 10 * std).clamp(min=0), radius + 10 * std
    target = u * _ring_mass(torch.full_like(radius, math.inf), radius, std)
    for _ in range(60):
        middle = (low + high) / 2
        below = _ring_mass(middle, radius, std) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


class TwoMoons(Density2D):
    r"""Two facing crescents of a ring.

    .. math:: E(x) = \frac{(\|x\| - r)^2}{2 \sigma^2} - \log \sum_{\pm}
        \exp\!\left(-\frac{(x_1 \pm r)^2}{2 w^2}\right)

    The defaults are the two moons of Rezende and Mohamed (ICML 2015, Table 1) with σ = 0.4:
    log Z = 1.877502, entropy 2.660013.

    Arguments:
        radius: r.
        std: σ, across the ring.
        width: w, along the first axis.
    """

    def __init__(self, radius: float = 2.0, std: float = 0.4, width: float = 0.6) -> None:
        _check_positive(radius=radius, std=std, width=width)
        self.radius, self.std, self.width = radius, std, width
        self.bounds = _square(radius + 6 * std)
        # around the circle midpoints are as good; across it, the ring is smooth down to 0
        t, weight = _gauss_legendre(64)
        rho = (radius + 12 * std) * t
        angle = 2 * math.pi * (torch.arange(512).double() + 0.5) / 512
        x = rho[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1)  # (R, A, 2)
        values = (-self._energy(x.flatten(0, 1))).exp().view(len(rho), len(angle))
        weight = weight * (radius + 12 * std) * rho * 2 * math.pi / len(angle)
        self.log_normalizer = float((weight[:, None] * values).sum().log())

    def _energy(self, x: Tensor) -> Tensor:
        ring = ((x.norm(dim=1) - self.radius) / self.std) ** 2 / 2
        sides = torch.stack([x[:, 0] - self.radius, x[:, 0] + self.radius])
        return ring - (-((sides / self.width) ** 2) / 2).logsumexp(0)

    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        largest = 1 + math.exp(-2 * (self.radius / self.width) ** 2)  # of the sum over sides
        while sum(map(len, kept)) < num:  # rejection from the whole ring
            size = 4 * num + 64
            radii = torch.full((size,), self.radius).double()
            rho = _ring_radius(_uniform(size, generator), radii, self.std)
            x = _turned(rho, generator)
            ring = ((rho - self.radius) / self.std) ** 2 / 2
            accept = (ring - self._energy(x)).exp() / largest
            kept.append(x[_uniform(size, generator) < accept])
        x = torch.cat(kept)[:num]
        return x, (x[:, 0] > 0).long()

    def log_prob(self, x: Tensor) -> Tensor:
        return (-self._energy(_check_points(x)) - self.log_normalizer).to(x.dtype)


class Checkerboard(Density2D):
    """Uniform on every second cell of a square board, the corner cell at `low` included.

    The defaults are BiSM's: [0, ½]² and [½, 1]², entropy log ½. FFJORD's board of 4 × 4 cells is
    `num_cols=4, low=-4, high=4`.

    Arguments:
        num_cols: Cells along each side.
        low: Smallest coordinate of the board.
        high: Largest coordinate.
    """

    def __init__(self, num_cols: int = 2, low: float = 0.0, high: float = 1.0) -> None:
        _check_positive(num_cols=num_cols)
        if not high > low:
            raise ValueError(f"high is {high} and low is {low}; expected high above low.")
        self.num_cols, self.low, self.side = num_cols, low, (high - low) / num_cols
        index = torch.arange(num_cols)
        cells = torch.cartesian_prod(index, index).view(-1, 2)
        self.cells = cells[cells.sum(1) % 2 == 0]  # (K, 2)
        self.bounds = ((low, high), (low, high))

    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        label = torch.randint(len(self.cells), (num,), generator=generator)
        place = torch.stack([_uniform(num, generator), _uniform(num, generator)], dim=1)
        return self.low + self.side * (self.cells[label] + place), label

    def log_prob(self, x: Tensor) -> Tensor:
        cell = ((_check_points(x) - self.low) / self.side).floor()
        inside = ((cell >= 0) & (cell < self.num_cols)).all(1) & (cell.sum(1) % 2 == 0)
        log_density = -math.log(len(self.cells) * self.side**2)
        return (inside.double().log() + log_density).to(x.dtype)


class Pinwheel(Density2D):
    r"""Gaussian blades, twisted.

    :math:`r \sim N(1, \sigma_r^2)` and :math:`s \sim N(0, \sigma_s^2)` are turned by the angle
    :math:`\varphi_j(r) = 2\pi j / J + a e^r` of a random arm j:

    .. math:: x = c \begin{pmatrix} r \cos\varphi_j + s \sin\varphi_j \\
        -r \sin\varphi_j + s \cos\varphi_j \end{pmatrix}, \qquad
        p(x) = \frac{1}{J c^2} \sum_j \sum_{r:\, g_j(r) = 0} \frac{N(r)\, N(s)}{|1 + a e^r s|}

    The sum is over all solutions of :math:`g_j(r) = (x_1 \cos\varphi_j - x_2 \sin\varphi_j)/c - r`
    within 9 standard deviations, with :math:`s = (x_1 \sin\varphi_j + x_2 \cos\varphi_j)/c`. Each
    is bracketed between nodes and extrema of g, and found by bisection and Newton's method.

    DDAEBM uses the defaults, LDEBM `num_arms=10, scale=8`.

    Arguments:
        num_arms: J.
        radial_std: σ_r.
        tangential_std: σ_s.
        rate: a.
        scale: c.
    """

    def __init__(
        self,
        num_arms: int = 5,
        radial_std: float = 0.3,
        tangential_std: float = 0.1,
        rate: float = 0.25,
        scale: float = 2.0,
    ) -> None:
        _check_positive(
            num_arms=num_arms,
            radial_std=radial_std,
            tangential_std=tangential_std,
            rate=rate,
            scale=scale,
        )
        self.num_arms, self.rate, self.scale = num_arms, rate, scale
        self.radial_std, self.tangential_std = radial_std, tangential_std
        self.bounds = _square(scale * math.hypot(1 + 6 * radial_std, 6 * tangential_std))

    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        label = torch.randint(self.num_arms, (num,), generator=generator)
        r = 1 + self.radial_std * _normal(num, generator)
        s = self.tangential_std * _normal(num, generator)
        angle = 2 * math.pi * label / self.num_arms + self.rate * r.exp()
        x = torch.stack(
            [r * angle.cos() + s * angle.sin(), -r * angle.sin() + s * angle.cos()], dim=1
        )
        return self.scale * x, label

    def log_prob(self, x: Tensor) -> Tensor:
        points = _check_points(x) / self.scale
        parts = [points.new_empty(0)]
        for part in points.split(max(1, _CHUNK // (2 * _NODES * self.num_arms))):
            parts.append(self._log_prob(part))
        return torch.cat(parts).to(x.dtype)

    def _nodes(self, rho: Tensor) -> Tensor:
        """Values of r, `(N, M)`, around all solutions within 9 standard deviations."""
        # |s| ≤ 9 σ_s confines |r| to [inner, outer], since r² + s² = ρ²
        outer = rho * 1.001 + 1e-9
        inner = (rho**2 - (9 * self.tangential_std) ** 2).clamp(min=0).sqrt() * 0.999
        t = torch.linspace(0, 1, _NODES).to(rho)
        positive = inner[:, None] + t * (outer - inner)[:, None]
        low, high = 1 - 9 * self.radial_std, 1 + 9 * self.radial_std
        return torch.cat([-positive.flip(1), positive], 1).clamp(low, high)

    def _log_prob(self, x: Tensor) -> Tensor:
        """For points `(N, 2)` at scale 1."""
        rho, theta = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
        arms = 2 * math.pi * torch.arange(self.num_arms).to(x) / self.num_arms
        shift = theta[:, None] + arms  # (N, J)
        nodes = self._nodes(rho)[:, None]  # (N, 1, M)
        g, slope = self._at_nodes(rho[:, None, None], shift[..., None], nodes)  # (N, J, M)
        nodes = nodes.expand(-1, self.num_arms, -1)

        # an extremum inside an interval may hide two roots: it becomes a bound of two intervals
        turns = (slope[..., :-1] * slope[..., 1:] < 0).nonzero(as_tuple=True)
        low, high = nodes[..., :-1][turns], nodes[..., 1:][turns]
        at = rho[turns[0]], shift[turns[0], turns[1]]
        left, right = self._bisect(self._slope, *at, low, high, 52)
        extremum = (left + right) / 2
        middle = self._g(*at, extremum)
        first, second = g[..., :-1][turns] * middle < 0, middle * g[..., 1:][turns] < 0

        crosses = g[..., :-1] * g[..., 1:] < 0
        crosses[turns] = False
        plain = crosses.nonzero(as_tuple=True)
        point = torch.cat([plain[0], turns[0][first], turns[0][second]])
        arm = torch.cat([plain[1], turns[1][first], turns[1][second]])
        lows = torch.cat([nodes[..., :-1][plain], low[first], extremum[second]])
        highs = torch.cat([nodes[..., 1:][plain], extremum[first], high[second]])

        at = rho[point], shift[point, arm]
        r = self._roots(*at, lows, highs)
        s = at[0] * (at[1] + self.rate * r.exp()).sin()
        log_terms = (
            -((r - 1) ** 2) / (2 * self.radial_std**2)
            - s**2 / (2 * self.tangential_std**2)
            - (1 + self.rate * r.exp() * s).abs().log()
        )
        largest = torch.full_like(rho, -math.inf).scatter_reduce(0, point, log_terms, "amax")
        share = (log_terms - largest[point]).exp()
        total = torch.zeros_like(rho).scatter_add(0, point, share)
        constant = 2 * math.pi * self.radial_std * self.tangential_std * self.num_arms
        return largest + total.log() - math.log(constant * self.scale**2)

    def _g(self, rho: Tensor, shift: Tensor, r: Tensor) -> Tensor:
        return rho * (shift + self.rate * r.exp()).cos() - r

    def _slope(self, rho: Tensor, shift: Tensor, r: Tensor) -> Tensor:
        turn = self.rate * r.exp()
        return -1 - turn * rho * (shift + turn).sin()

    def _at_nodes(self, rho: Tensor, shift: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """g and its slope, for nodes that all arms share: only sums and products for each arm."""
        turn = self.rate * r.exp()
        x, y = rho * turn.cos(), rho * turn.sin()
        cos, sin = shift.cos(), shift.sin()
        return cos * x - sin * y - r, -1 - turn * (sin * x + cos * y)

    def _roots(self, rho: Tensor, shift: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Where g changes sign between `low` and `high`."""
        low, high = self._bisect(self._g, rho, shift, low, high, 8)
        r = (low + high) / 2
        for _ in range(4):
            step = self._g(rho, shift, r) / self._slope(rho, shift, r)
            r = (r - step).clamp(low, high)
        slow = (~(step.abs() <= 1e-13)).nonzero()[:, 0]  # near double roots, mostly
        low, high = self._bisect(self._g, rho[slow], shift[slow], low[slow], high[slow], 44)
        return r.index_copy(0, slow, (low + high) / 2)

    @staticmethod
    def _bisect(
        function: Callable[[Tensor, Tensor, Tensor], Tensor],
        rho: Tensor,
        shift: Tensor,
        low: Tensor,
        high: Tensor,
        halvings: int,
    ) -> tuple[Tensor, Tensor]:
        """Bounds of where a function of (ρ, shift, r) changes sign between `low` and `high`."""
        sign = function(rho, shift, low).sign()
        for _ in range(halvings):
            middle = (low + high) / 2
            same = function(rho, shift, middle) * sign > 0
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        return low, high


class DensityDataModule(DataModule):
    """Points of a density, drawn once and kept, in batches of `(x, label)`.

    x has shape `(B, 2)` and the default type; the label is the component, int64 `(B,)`. Validation
    and test points do not depend on `seed`, so that all runs are scored on the same.

    Arguments:
        density: What to draw from.
        batch_size: Points per batch and device.
        num_train: Training points.
        num_val: Validation points.
        num_test: Test points.
        seed: Determines the training points and their order.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        density: Density2D,
        batch_size: int,
        num_train: int = 50_000,
        num_val: int = 10_000,
        num_test: int = 10_000,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, 0, seed)
        _check_positive(num_train=num_train, num_val=num_val, num_test=num_test)
        self.density = density
        self.sizes: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
        self._drawn: dict[Split, TensorRows] = {}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(2,)."""
        return (2,)

    def dataset(self, split: Split) -> Dataset:
        """The points of a split and their components."""
        if split not in self._drawn:
            number = list(self.sizes).index(split)
            generator = seeded_generator(self.seed if split == "train" else 0, number)
            x, label = self.density.draw(self.sizes[split], generator)
            self._drawn[split] = TensorRows(x.to(torch.get_default_dtype()), label)
        return self._drawn[split]
