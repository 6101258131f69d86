r"""The temperature of an energy that orders data rightly and has the wrong scale.

Games in which a generator follows an energy leave the energy's scale to their regularizers, so that
exp(−E) may be far too flat or too steep a density of the data, though its level sets are good. One
number mends that, β of :math:`p(x) \propto e^{-\beta E(x)}`, and can be had without log Z: by least
squares on the score, which is linear in it.

.. math:: \min_\beta \mathbb{E}\, \|\beta \nabla E(\tilde x) - \varepsilon / \sigma\|^2
    \quad\Rightarrow\quad \beta = \frac{\mathbb{E} \langle \nabla E(\tilde x), \varepsilon \rangle}
    {\sigma\, \mathbb{E} \|\nabla E(\tilde x)\|^2}, \qquad \tilde x = x + \sigma \varepsilon

This is denoising score matching (see :mod:`eblvm.matching`) of one parameter: of all densities
:math:`e^{-\beta E}` it finds the nearest, in Fisher's divergence, to the data with noise of
deviation σ. It is ours: no paper on such games has it.
"""

import torch
from torch import Tensor

from .samplers import EnergyFn, noise_like, score

__all__ = ["DenoisingTemperature"]


class DenoisingTemperature:
    """β by denoising score matching, on a given number of training data.

    Arguments:
        noise: σ, in units of x; well below the scale on which the data's density changes.
        num: Data that are looked at.

    Raises:
        ValueError: If one of them is not positive.
    """

    def __init__(self, noise: float = 0.2, num: int = 10_000) -> None:
        for name, value in (("noise", noise), ("num", num)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; expected a positive number.")
        self.noise = noise
        self.num = num

    def sums(self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Σ⟨∇E, ε⟩/σ and Σ‖∇E‖² over a batch, whose ratio, of all batches' sums, is β.

        Each ε comes with −ε: where E is smooth, what then varies in the first sum is of the order
        of its curvature instead of its slope.

        Arguments:
            energy: E, before β.
            x: Data, with shape `(B, *event)`.
            generator: Source of the noise.

        Returns:
            The two sums, with shape `(2,)`, in float64.
        """
        eps = noise_like(x, generator)
        total = torch.zeros(2, dtype=torch.float64, device=x.device)
        for noise in (eps, -eps):
            slope = -score(energy, x + self.noise * noise).double()
            total += torch.stack([(slope * noise).sum() / self.noise, slope.square().sum()])
        return total
