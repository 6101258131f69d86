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

Noise makes a density wider, so β comes out too small: for a mode of deviation s by the factor
s²/(s² + σ²). Then 1/β is linear in σ², and its value at σ = 0 follows from two fits, at σ and √2 σ:
:math:`1/\beta_0 = 2/\beta(\sigma) - 1/\beta(\sqrt2 \sigma)`.
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
        extrapolate: Whether β is that of no noise, from fits at σ and √2 σ. Where they have no
            common straight line to a positive 1/β_0, or signs differ, β(σ) it is.

    Raises:
        ValueError: If one of them is not positive.
    """

    def __init__(self, noise: float = 0.2, num: int = 10_000, extrapolate: bool = False) -> None:
        for name, value in (("noise", noise), ("num", num)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; expected a positive number.")
        self.noise = noise
        self.num = num
        self.extrapolate = extrapolate

    def sums(self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Σ⟨∇E, ε⟩/σ and Σ‖∇E‖² over a batch, for each σ; sums of batches add up for `fit`.

        Each ε comes with −ε: where E is smooth, what then varies in the first sum is of the order
        of its curvature instead of its slope. All σ have the same ε.

        Arguments:
            energy: E, before β.
            x: Data, with shape `(B, *event)`.
            generator: Source of the noise.

        Returns:
            The two sums, with shape `(1, 2)`, or `(2, 2)` to extrapolate, in float64.
        """
        eps, rows = noise_like(x, generator), []
        for sigma in (self.noise, 2**0.5 * self.noise)[: 1 + self.extrapolate]:
            total = torch.zeros(2, dtype=torch.float64, device=x.device)
            for noise in (eps, -eps):
                slope = -score(energy, x + sigma * noise).double()
                total += torch.stack([(slope * noise).sum() / sigma, slope.square().sum()])
            rows.append(total)
        return torch.stack(rows)

    def fit(self, sums: Tensor) -> Tensor | None:
        """β, a scalar, from sums over all data; None where the energy is flat all over them."""
        slope, square = sums.unbind(1)
        if not bool((square > 0).all()):
            return None
        fits = slope / square
        if not self.extrapolate:
            return fits[0]
        inverse = 2 / fits[0] - 1 / fits[1]
        agree = bool((fits > 0).all()) or bool((fits < 0).all())
        return 1 / inverse if agree and bool(inverse * fits[0] > 0) else fits[0]
