r"""Score matching: an energy learns from its slope at the data, without samples and without log Z.

The score of p(x) ∝ exp(−E(x)) is −∇E. Fitting it to that of the data, by Fisher's divergence
:math:`\tfrac12 \mathbb{E}_\pi \|\nabla E + \nabla \log \pi\|^2`, needs the data's score. Two ways
around it: noise, whose score is known, and integration by parts. Neither sees how much mass lies
in regions that the data leave unconnected.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .samplers import EnergyFn, noise_like
from .samplers.score import live_curvature, live_gradient

__all__ = ["DenoisingMatching", "ScoreMatching", "SlicedMatching"]


class ScoreMatching(ABC):
    """From an energy and data to a loss."""

    @abstractmethod
    def __call__(
        self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Fisher's divergence up to a constant, `(B,)`, with a graph to the energy's parameters.

        Arguments:
            energy: E.
            x: Data, with shape `(B, *event)`.
            generator: Source of the noise.
        """


class DenoisingMatching(ScoreMatching):
    r""":math:`\tfrac12 \|\nabla E(x + \sigma\varepsilon) - \varepsilon / \sigma\|^2`.

    Exact for the density of data with noise of deviation σ.

    References:
        A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011).

    Arguments:
        scale: σ, in units of x.
    """

    def __init__(self, scale: float) -> None:
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a positive number.")
        self.scale = scale

    def __call__(
        self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        eps = noise_like(x, generator)
        gradient = live_gradient(energy, x + self.scale * eps)
        return 0.5 * (gradient - eps / self.scale).square().flatten(1).sum(1)


class SlicedMatching(ScoreMatching):
    r""":math:`\tfrac12 \|\nabla E\|^2 - u^\top \nabla^2 E\, u` with signs u = ±1 drawn afresh.

    Exact on average, for smooth energies: one that is linear in pieces has no curvature to see.

    References:
        Sliced Score Matching (Song et al., 2019), with the variance of the first term reduced.
    """

    def __call__(
        self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        u = noise_like(x, generator).sign()
        gradient, curvature = live_curvature(energy, x, u)
        return 0.5 * gradient.square().flatten(1).sum(1) - curvature
