r"""Energies: p(x) ∝ exp(−E(x)).

Low is likely, everywhere. Papers that write f for the *negative* energy are translated at the
border: E = −f. An energy returns one number per row, in nats, and is defined up to a constant;
those with a known normalizer carry it as `log_normalizer`, so that log p(x) = −E(x) − log Z.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = [
    "BoxReference",
    "Energy",
    "GaussianEnergy",
    "GaussianReference",
    "JointEnergy",
    "MaskedEnergy",
    "MixtureEnergy",
    "RecoveryEnergy",
    "SymbolVectorEnergy",
    "SymbolVectorTimeEnergy",
    "TiltedEnergy",
    "TimeEnergy",
]


class Energy(nn.Module, ABC):
    """An energy `(B, *event) -> (B,)`, in nats; defined up to a constant."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The energy of each row of `x`, with shape `(B,)`."""


class JointEnergy(nn.Module, ABC):
    """An energy of data and latents, `(B, *event), (B, D) -> (B,)`, in nats."""

    @abstractmethod
    def joint(self, x: Tensor, z: Tensor) -> Tensor:
        """E(x, z) of each row, with shape `(B,)`."""


class TimeEnergy(nn.Module, ABC):
    """A family of energies, one for each level of noise: `(B, *event), (B,) -> (B,)`, in nats."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """The energy of each row, with shape `(B,)`.

        Arguments:
            x: States, with shape `(B, *event)`.
            t: Their levels, int64 `(B,)`, in 0 … T − 1.
            context: What the energy is conditioned on, with shape `(B, C)`, where it takes that.
        """


class GaussianEnergy(Energy):
    r"""The energy of a Gaussian, :math:`E(x) = \tfrac12 (x - m)^\top \Lambda (x - m)`.

    Arguments:
        mean: m, with shape `(D,)`.
        covariance: Λ⁻¹, with shape `(D, D)`; the identity if None.

    Raises:
        ValueError: If the covariance is not `(D, D)` and positive definite.
    """

    mean: Tensor
    precision: Tensor
    log_normalizer: Tensor

    def __init__(self, mean: Tensor, covariance: Tensor | None = None) -> None:
        super().__init__()
        dim = len(mean)
        if covariance is None:
            covariance = torch.eye(dim, dtype=mean.dtype, device=mean.device)
        if covariance.shape != (dim, dim):
            raise ValueError(
                f"covariance has shape {tuple(covariance.shape)}; expected ({dim}, {dim}) to go "
                f"with a mean of {dim} entries."
            )
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            raise ValueError("covariance is not positive definite; add a multiple of the identity.")
        self.register_buffer("mean", mean)
        self.register_buffer("precision", torch.cholesky_inverse(factor))
        log_det = 2 * factor.diagonal().log().sum()
        self.register_buffer("log_normalizer", 0.5 * (dim * math.log(2 * math.pi) + log_det))

    def forward(self, x: Tensor) -> Tensor:
        d = x - self.mean
        return 0.5 * ((d @ self.precision) * d).sum(-1)


class MixtureEnergy(Energy):
    r"""The energy of a mixture of isotropic Gaussians, normalized (log Z = 0).

    .. math:: E(x) = -\log \sum_k w_k N(x; m_k, \sigma^2 I)

    Arguments:
        means: m, with shape `(K, D)`.
        scale: σ, in units of x.
        weights: w, with shape `(K,)`, summing to 1; uniform if None.
    """

    means: Tensor
    log_weights: Tensor
    log_normalizer: Tensor

    def __init__(self, means: Tensor, scale: float, weights: Tensor | None = None) -> None:
        super().__init__()
        if weights is None:
            weights = means.new_full((len(means),), 1 / len(means))
        if weights.shape != means.shape[:1] or abs(float(weights.sum()) - 1) > 1e-5:
            raise ValueError(
                f"weights have shape {tuple(weights.shape)} and sum {float(weights.sum()):.6g}; "
                f"expected ({len(means)},) and 1."
            )
        self.scale = scale
        self.register_buffer("means", means)
        self.register_buffer("log_weights", weights.log())
        self.register_buffer("log_normalizer", means.new_zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        dim = self.means.shape[-1]
        squared = (x[:, None] - self.means).square().sum(-1)  # (B, K)
        log_norm = 0.5 * dim * math.log(2 * math.pi * self.scale**2)
        return log_norm - torch.logsumexp(self.log_weights - squared / (2 * self.scale**2), dim=1)


class GaussianReference(Energy):
    r"""The energy of N(0, σ² I) for events of any shape, :math:`E(x) = \|x\|^2 / 2\sigma^2`.

    Arguments:
        scale: σ, in units of x.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a positive number.")
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(1) / (2 * self.scale**2)


class BoxReference(Energy):
    """The uniform density on a box: 0 within, infinite outside.

    Chains that accept or reject stay inside by themselves. Langevin chains do not see a wall of no
    width: give them the same `bounds`.

    Arguments:
        low: The least value of each entry.
        high: The greatest.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"low is {low} and high {high}; expected low < high.")
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        outside = ((rows < self.low) | (rows > self.high)).any(1)
        return (0 * rows).sum(1).masked_fill(outside, math.inf)


class TiltedEnergy(Energy):
    r"""A base density, exponentially tilted: p(x) ∝ exp(−tilt(x)) · base(x).

    Arguments:
        tilt: The learned correction.
        base: The energy of the reference density.
    """

    def __init__(self, tilt: Energy, base: Energy) -> None:
        super().__init__()
        self.tilt = tilt
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.tilt(x) + self.base(x)


class MaskedEnergy(Energy):
    """The energy of what is hidden, given what is seen: E at x with the seen part put in its place.

    A chain on it samples p(hidden | seen) of any kernel. The seen part of its state is without
    meaning and is to be replaced in the end.

    Arguments:
        energy: `(B, *event) -> (B,)`.
        seen: Values of the seen part, with shape `(B, *event)`.
        visible: Where it is, boolean, broadcast to the same shape.
    """

    def __init__(self, energy: nn.Module, seen: Tensor, visible: Tensor) -> None:
        super().__init__()
        self.energy = energy
        self.seen = seen
        self.visible = visible

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(torch.where(self.visible, self.seen, x))


class SymbolVectorEnergy(Energy):
    r"""A vector z coupled to a symbol y, with the symbol summed out.

    .. math:: p(y, z) \propto \exp(f(z)_y), \qquad E(z) = -\log \sum_y \exp(f(z)_y), \qquad
        p(y \mid z) = \mathrm{softmax}(f(z))_y

    References:
        Latent Space Energy-Based Model of Symbol-Vector Coupling for Text Generation and
        Classification (Pang and Wu, 2021).

    Arguments:
        net: f, one logit per symbol, `(B, *event) -> (B, K)`.
        bound: b, for a marginal energy b tanh(E(z)/b) in (−b, b) with the same p(y|z). As a tilt of
            a Gaussian it can then not run away from its base, however far short chains lag behind;
            None leaves it unbounded.

    Raises:
        ValueError: If `bound` is not positive.
    """

    def __init__(self, net: nn.Module, bound: float | None = None) -> None:
        super().__init__()
        if bound is not None and not bound > 0:
            raise ValueError(f"bound is {bound}; expected a positive number, or None.")
        self.net = net
        self.bound = bound

    def logits(self, x: Tensor) -> Tensor:
        """f(x), with shape `(B, K)`."""
        return self.net(x)

    def forward(self, x: Tensor) -> Tensor:
        e = -torch.logsumexp(self.logits(x), dim=1)
        return e if self.bound is None else self.bound * torch.tanh(e / self.bound)

    def given(self, x: Tensor, y: Tensor) -> Tensor:
        """The energy of x and the symbols `y`, E(x) − log p(y|x), `(B,)`; y is int64 `(B,)`.

        Unbounded that is −f(x)_y.
        """
        logits = self.logits(x)
        joint = -(logits * one_hot(y, self.num_symbols, x)).sum(1)
        if self.bound is None:
            return joint
        e = -torch.logsumexp(logits, dim=1)
        return self.bound * torch.tanh(e / self.bound) + (joint - e)

    @property
    def num_symbols(self) -> int:
        """K, as the last weight of the network says."""
        return symbols_of(self.net)


class SymbolVectorTimeEnergy(TimeEnergy):
    r"""A symbol-vector energy for each level of noise.

    .. math:: E(x, t) = -\kappa \log \sum_y \exp(f(x, t)_y / \kappa), \qquad
        p(y \mid x, t) = \mathrm{softmax}(f(x, t) / \kappa)_y

    A prior that divides energies by τ draws from p(y, x) ∝ exp(f(x, t)_y/τ) if κ = τ: its symbols
    are then those of its own density. The published κ is 1 whatever τ; a net whose layers have
    spectral norm 1 has logits of next to no spread, and then is seldom sure of a symbol.

    References:
        Latent Diffusion Energy-Based Model for Interpretable Text Modelling (Yu et al., 2022). The
        paper writes F = −E. κ is ours.

    Arguments:
        net: f, `(x, t[, context]) -> (B, K)`.
        symbol_temperature: κ.

    Raises:
        ValueError: If `symbol_temperature` is not positive.
    """

    def __init__(self, net: nn.Module, symbol_temperature: float = 1.0) -> None:
        super().__init__()
        if not symbol_temperature > 0:
            raise ValueError(
                f"symbol_temperature is {symbol_temperature}; expected a positive number."
            )
        self.net = net
        self.symbol_temperature = symbol_temperature

    def logits(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-odds of the symbols, f(x, t)/κ, with shape `(B, K)`."""
        f = self.net(x, t) if context is None else self.net(x, t, context)
        return f if self.symbol_temperature == 1 else f / self.symbol_temperature

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return -self.symbol_temperature * torch.logsumexp(self.logits(x, t, context), dim=1)

    def given(self, x: Tensor, t: Tensor, y: Tensor, context: Tensor | None = None) -> Tensor:
        """The energy of x and the symbols `y`, −f(x, t)_y, with shape `(B,)`; y is int64 `(B,)`."""
        logits = self.logits(x, t, context)
        chosen = (logits * one_hot(y, self.num_symbols, x)).sum(1)
        return -self.symbol_temperature * chosen

    @property
    def num_symbols(self) -> int:
        """K, as the last weight of the network says."""
        return symbols_of(self.net)


def symbols_of(net: nn.Module) -> int:
    """How many logits a network ends in."""
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise TypeError(
            f"{type(net).__name__} holds no linear layer, so the number of symbols is unknown; end "
            "it in one."
        )
    return linear[-1].out_features


def one_hot(y: Tensor, num: int, like: Tensor) -> Tensor:
    """Symbols `(B,)` as rows of the identity, `(B, num)`, in the type and place of `like`."""
    return nn.functional.one_hot(y, num).to(dtype=like.dtype, device=y.device)


class RecoveryEnergy:
    r"""The energy of a state given its noisier successor.

    .. math:: E(x \mid c) = \frac{E_\theta(x, t)}{\tau} + \frac{\|a x - c\|^2}{2 \sigma^2}

    with the center c = x_{t+1}. The tie keeps the conditional close to unimodal, so short chains
    mix. With `state_scale` a = a_{t+1} the state is x_t; where the energy sees x̃_t = a_{t+1} x_t,
    as in the latent diffusion model, the state is x̃_t and `state_scale` 1. A tie to c = 0 makes the
    last level an ordinary tilted Gaussian.

    This is the one place that defines the density of a step, temperature included.

    References:
        Learning Energy-Based Models by Diffusion Recovery Likelihood (Gao et al., 2021). The paper
        writes f = −E, and its sampler divides f by the square of its own step size: that is τ.

    Arguments:
        energy: A time-conditional energy, `(B, *event), (B,) -> (B,)`.
        t: Levels of the cleaner state, int64 `(B,)`.
        center: c, with shape `(B, *event)`.
        sigma: σ_{t+1}: a number, or `(B,)`.
        state_scale: a: a number, or `(B,)`.
        temperature: τ: a number, or `(B,)`.
    """

    def __init__(
        self,
        energy: Callable[[Tensor, Tensor], Tensor],
        t: Tensor,
        center: Tensor,
        sigma: Tensor | float,
        state_scale: Tensor | float = 1.0,
        temperature: Tensor | float = 1.0,
    ) -> None:
        self.energy = energy
        self.t = t
        self.center = center
        self.precision = 0.5 / sigma**2
        self.state_scale = state_scale
        self.temperature = temperature
        if isinstance(state_scale, Tensor) and state_scale.ndim:
            self.state_scale = state_scale.reshape(-1, *[1] * (center.ndim - 1))

    def __call__(self, x: Tensor) -> Tensor:
        """The energy of each row of `x`, with shape `(B,)`."""
        return self.energy(x, self.t) / self.temperature + self.tie(x)

    def tie(self, x: Tensor) -> Tensor:
        """The quadratic term alone, with shape `(B,)`."""
        if isinstance(self.state_scale, Tensor) or self.state_scale != 1.0:
            x = x * self.state_scale
        return (x - self.center).square().flatten(1).sum(1) * self.precision
