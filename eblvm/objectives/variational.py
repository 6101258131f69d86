r"""Variational bounds."""

import math

import torch
from torch import Tensor

__all__ = ["gaussian_kl", "importance_bound"]


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""KL(N(m, diag exp ℓ) ‖ N(0, I)) = ½ Σ (m² + e^ℓ − 1 − ℓ), in nats.

    Arguments:
        mean: m, with shape `(B, D)`.
        log_variance: ℓ, with shape `(B, D)`.

    Returns:
        The divergence, with shape `(B,)`.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014), Appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


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
