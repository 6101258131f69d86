r"""The symmetric (Jeffrey) divergence between a generator and an energy, bounded by an encoder.

A generator π(x, z) = p(z) p(x|z) has no tractable marginal, an energy p(x) ∝ exp(−E(x)) no
tractable normalizer. Completed by one encoder q(z|x), to ρ(x, z) = p(x) q(z|x), both directions of
the divergence are free of either:

.. math::
    KL(\pi \| \rho) &= \mathbb{E}_\pi[E(x) - \log q(z|x)] - H(\pi) + \log Z \\
    KL(\rho \| \pi) &= \mathbb{E}_{p(x)}\bigl[KL(q(z|x) \| p(z))
        - \mathbb{E}_q \log p(x|z)\bigr] - H(p)

log Z cancels in the sum and is constant for generator and encoder anyway; H(π) is constant where
the noise of p(x|z) is; and samples of p(x) are replaced by data, which is exact once the energy has
learned. Each direction is an upper bound of that of the marginals, tight where q is the exact
posterior. :class:`~eblvm.divergences.Jeffrey` and :class:`~eblvm.models.BiDVL` put the terms
together.
"""

import math

import torch
from torch import Tensor

__all__ = ["gaussian_jeffrey", "gaussian_nll"]


def gaussian_nll(
    z: Tensor, mean: Tensor, log_variance: Tensor, floor: float | None = None
) -> Tensor:
    r"""−log N(z; m, diag exp ℓ), in nats: with z's own x, a bound on the generator's entropy.

    :math:`H(x) \ge H(x, z) + \mathbb{E}_\pi[\log q(z|x)]`, with equality at the exact posterior.

    Arguments:
        z: The latents that made x, with shape `(B, D)`.
        mean: m of q(z|x), with shape `(B, D)`.
        log_variance: ℓ of q(z|x), with shape `(B, D)`.
        floor: The least ℓ: where an encoder is confident and wrong, exp(−ℓ) explodes. None: none.

    Returns:
        Nats, with shape `(B,)`.
    """
    if floor is not None:
        log_variance = log_variance.clamp(min=floor)
    error = (z - mean).square() * torch.exp(-log_variance)
    return 0.5 * (error + log_variance + math.log(2 * math.pi)).flatten(1).sum(1)


def gaussian_jeffrey(
    mean_p: Tensor, log_variance_p: Tensor, mean_q: Tensor, log_variance_q: Tensor
) -> Tensor:
    r"""KL(p ‖ q) + KL(q ‖ p) of diagonal Gaussians, in nats.

    .. math:: \tfrac12 \sum \bigl[e^{\ell_p - \ell_q} + e^{\ell_q - \ell_p} - 2
        + (m_p - m_q)^2 (e^{-\ell_p} + e^{-\ell_q})\bigr]

    Arguments:
        mean_p: With shape `(B, D)`.
        log_variance_p: With shape `(B, D)`.
        mean_q: With shape `(B, D)`.
        log_variance_q: With shape `(B, D)`.

    Returns:
        With shape `(B,)`.
    """
    ratio = log_variance_p - log_variance_q
    distance = (mean_p - mean_q).square() * (
        log_variance_p.neg().exp() + log_variance_q.neg().exp()
    )
    return 0.5 * (ratio.exp() + ratio.neg().exp() - 2 + distance).flatten(1).sum(1)
