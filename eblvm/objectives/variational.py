r"""Variational bounds."""

import math

import torch
from torch import Tensor

__all__ = ["gaussian_kl", "importance_bound", "negative_entropy"]


def gaussian_kl(mean: Tensor, log_variance: Tensor, free_bits: float | None = None) -> Tensor:
    r"""KL(N(m, diag exp ℓ) ‖ N(0, I)) = ½ Σ (m² + e^ℓ − 1 − ℓ), in nats.

    Arguments:
        mean: m, with shape `(B, D)`.
        log_variance: ℓ, with shape `(B, D)`.
        free_bits: Dimensions whose divergence is at most this many nats are left out, value and
            gradient; None leaves none out.

    Returns:
        The divergence, with shape `(B,)`.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014), Appendix B.
    """
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return _above(kl, free_bits).sum(-1)


def negative_entropy(log_variance: Tensor, free_bits: float | None = None) -> Tensor:
    r"""−H of N(m, diag exp ℓ) plus ½ D log 2π: Σ h_d with h_d = −½ (1 + ℓ_d), in nats.

    Arguments:
        log_variance: ℓ, with shape `(B, D)`.
        free_bits: Dimensions with h_d at most this are left out, value and gradient: with 1, those
            whose log-variance is −3 or more. None leaves none out.

    Returns:
        With shape `(B,)`.
    """
    return _above(-0.5 * (1 + log_variance), free_bits).sum(-1)


def _above(values: Tensor, threshold: float | None) -> Tensor:
    """The values, with zeros for those that do not exceed the threshold."""
    return values if threshold is None else values * (values > threshold).detach()


def importance_bound(log_weights: Tensor) -> Tensor:
    r"""The importance-weighted bound :math:`\log \frac1K \sum_k w_k`.

    With w = p(x, z) / q(z|x), a lower bound on log p(x) in expectation that rises with K.

    Arguments:
        log_weights: log w, with shape `(K, B)`.

    Returns:
        The bound, with shape `(B,)`, in nats.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016), Eq. 8.
    """
    return torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))
