r"""The two phases of maximum likelihood for an energy.

For p(x) ∝ exp(−E(x)), :math:`\nabla \mathbb{E}[-\log p(x)] = \mathbb{E}_{data}[\nabla E]
- \mathbb{E}_{p}[\nabla E]`: lower the energy of the data, raise it where the model samples.
"""

from torch import Tensor

__all__ = ["contrastive_divergence", "hinge"]


def contrastive_divergence(positive: Tensor, negative: Tensor) -> Tensor:
    """Energy of data minus energy of model samples, per row.

    Its gradient with respect to the parameters is that of the negative log-likelihood when the
    negatives come from the model. Its value is no measure of progress: in a healthy run it swings
    around zero.

    Arguments:
        positive: Energies of data, with shape `(B,)`.
        negative: Energies of model samples, with shape `(N,)`; their mean is used.

    Returns:
        The contrast, with shape `(B,)`.
    """
    return positive - negative.mean()


def hinge(positive: Tensor, negative: Tensor) -> Tensor:
    r"""A contrast that stops where it is met, :math:`\max(0, 1 + E^+) + \max(0, 1 - E^-)`.

    Its gradient is that of `contrastive_divergence` while E⁺ > −1 and E⁻ < 1; |E| stays near 1.

    Arguments:
        positive: Energies of data, with shape `(B,)`.
        negative: Energies of samples, with shape `(N,)`; the mean of their terms is used.

    Returns:
        With shape `(B,)`.
    """
    return (1 + positive).relu() + (1 - negative).relu().mean()
