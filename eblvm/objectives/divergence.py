r"""Which divergence the sampler of an energy minimizes, and what stands for its entropy.

.. math:: D(a, p) = r \, KL(a \| p) + f \, KL(p \| a)

The reverse direction (the sampler a comes first, as in variational inference) seeks modes and needs
samples of a; the forward one covers mass and needs samples of p, or data in their place. Their sum
is Jeffrey's divergence. The two directions themselves are those of :mod:`eblvm.objectives.jeffrey`,
or closed forms where there are any. Objects here say which, and do not compute; what the players of
a diffusion step minimize is another thing and stands in :mod:`eblvm.divergences`.
"""

import torch
from torch import Tensor

from .jeffrey import gaussian_nll

__all__ = [
    "Cycle",
    "Divergence",
    "ForwardDivergence",
    "GaussianCycle",
    "ReverseDivergence",
    "SquaredCycle",
    "SymmetricDivergence",
    "density_ratio",
]


class Divergence:
    """r KL(a‖p) + f KL(p‖a).

    Arguments:
        reverse: r.
        forward: f.

    Raises:
        ValueError: If a weight is negative, or both are zero.
    """

    def __init__(self, reverse: float, forward: float) -> None:
        if not (reverse >= 0 and forward >= 0 and reverse + forward > 0):
            raise ValueError(
                f"the weights are reverse={reverse} and forward={forward}; expected two numbers "
                "that are not negative, and one of them positive."
            )
        self.reverse = reverse
        self.forward = forward


class ReverseDivergence(Divergence):
    """KL(a‖p): seeks modes; with an energy and an encoder, an adversarial energy-based model."""

    def __init__(self) -> None:
        super().__init__(1.0, 0.0)


class ForwardDivergence(Divergence):
    """f KL(p‖a): covers mass; on data in place of samples of p it is the evidence bound of a VAE.

    Arguments:
        forward: f.
    """

    def __init__(self, forward: float = 1.0) -> None:
        super().__init__(0.0, forward)


class SymmetricDivergence(Divergence):
    """KL(a‖p) + f KL(p‖a): Jeffrey's divergence where f = 1.

    Arguments:
        forward: f. On data in place of samples of p it also stands for the ratio of their
            densities.
    """

    def __init__(self, forward: float = 1.0) -> None:
        super().__init__(1.0, forward)


class Cycle:
    """How badly latents are found again in what was made of them: −log q(z|x), or a stand-in."""

    def __call__(self, z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """With shape `(B,)`.

        Arguments:
            z: The latents that made x, with shape `(B, D)`.
            mean: Of q(z|x), with shape `(B, D)`.
            log_variance: Of q(z|x), with shape `(B, D)`.
        """
        raise NotImplementedError


class SquaredCycle(Cycle):
    r"""w ‖z − m‖²: −log N(z; m, s² I) with the constant variance s² = 1/2w.

    Arguments:
        weight: w; 1/D if None.
    """

    def __init__(self, weight: float | None = None) -> None:
        self.weight = weight

    def __call__(self, z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        weight = 1 / z.shape[1] if self.weight is None else self.weight
        return weight * (z - mean).square().sum(1)


class GaussianCycle(Cycle):
    r"""−log N(z; m, diag exp ℓ), in nats.

    Arguments:
        floor: The least ℓ: where an encoder is confident and wrong, exp(−ℓ) explodes. None: none.
    """

    def __init__(self, floor: float | None = -3.0) -> None:
        self.floor = floor

    def __call__(self, z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        return gaussian_nll(z, mean, log_variance, self.floor)


def density_ratio(energy: Tensor, low: float, high: float) -> Tensor:
    r"""p(x)/π(x) of data, up to scale and clamped: exp(mean E − E(x)), detached, `(B,)`.

    Arguments:
        energy: E of a batch of data, with shape `(B,)`.
        low: The least ratio.
        high: The greatest.
    """
    energy = energy.detach()
    return torch.exp(energy.mean() - energy).clamp(low, high)
