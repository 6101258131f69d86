r"""The Gaussian–Bernoulli restricted Boltzmann machine: an EBLVM where everything is known.

.. math:: E(v, h) = \sum_i \frac{(v_i - b_i)^2}{2\sigma_i^2} - c^\top h - v^\top W h,
    \qquad v \in \mathbb R^N,\ h \in \{0, 1\}^H

Both conditionals factorize, the free energy F(v) = −log Σ_h exp(−E(v, h)) is closed form, and
log Z is a sum over the 2^H states of the hidden layer: ground truth for samplers and estimators.

References:
    Reducing the dimensionality of data with neural networks (Hinton & Salakhutdinov, 2006).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .energies import Energy, JointEnergy

__all__ = ["GaussianBernoulliRBM"]

MAX_ENUMERATED = 20  # hidden units: a million states


class GaussianBernoulliRBM(JointEnergy, Energy):
    r"""The free energy of a Gaussian–Bernoulli restricted Boltzmann machine.

    .. math:: F(v) = \sum_i \frac{(v_i - b_i)^2}{2\sigma_i^2}
        - \sum_j \operatorname{softplus}(c_j + (v^\top W)_j)

    Arguments:
        num_visible: N.
        num_hidden: H.
        uniform: Whether weights and biases start uniform in ±1/√H, as in the released code of
            bi-level score matching (Bao et al., 2020); else weights start normal, biases at zero.
    """

    def __init__(self, num_visible: int, num_hidden: int, uniform: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_visible, num_hidden) / num_visible**0.5)
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))
        self.log_scale = nn.Parameter(torch.zeros(num_visible))
        if uniform:
            for parameter in (self.weight, self.visible_bias, self.hidden_bias):
                nn.init.uniform_(parameter, -(num_hidden**-0.5), num_hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The free energy `(B,)` of visible states `x` `(B, N)`."""
        quadratic = 0.5 * ((x - self.visible_bias) / self.log_scale.exp()).square().sum(-1)
        return quadratic - softplus(self.hidden_bias + x @ self.weight).sum(-1)

    def joint(self, x: Tensor, z: Tensor) -> Tensor:
        """E(v, h) for `x` `(B, N)` and `z` `(B, H)`; linear in h, so probabilities give means."""
        quadratic = 0.5 * ((x - self.visible_bias) / self.log_scale.exp()).square().sum(-1)
        return quadratic - z @ self.hidden_bias - ((x @ self.weight) * z).sum(-1)

    def hidden_probability(self, v: Tensor) -> Tensor:
        """p(h_j = 1 | v), with shape `(B, H)`, for `v` `(B, N)`."""
        return torch.sigmoid(self.hidden_bias + v @ self.weight)

    def visible_mean(self, h: Tensor) -> Tensor:
        """E[v | h] = b + σ² W h, with shape `(B, N)`, for `h` `(B, H)`."""
        return self.visible_bias + (2 * self.log_scale).exp() * (h @ self.weight.T)

    def sample_hidden(self, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """h ~ p(h | v), with shape `(B, H)`, for `v` `(B, N)`."""
        return torch.bernoulli(self.hidden_probability(v), generator=generator)

    def sample_visible(self, h: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """v ~ p(v | h), with shape `(B, N)`, for `h` `(B, H)`."""
        mean = self.visible_mean(h)
        eps = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        return mean + self.log_scale.exp() * eps

    def hidden_states(self) -> Tensor:
        """All hidden states `(2^H, H)`, in the order 00…0, 00…1, …, 11…1.

        Raises:
            ValueError: If there are too many to enumerate.
        """
        num_hidden = len(self.hidden_bias)
        if num_hidden > MAX_ENUMERATED:
            raise ValueError(
                f"{num_hidden} hidden units have 2^{num_hidden} states; expected at most "
                f"{MAX_ENUMERATED} units. Estimate log Z with `samplers.AIS`."
            )
        numbers = torch.arange(2**num_hidden, device=self.hidden_bias.device)
        bits = torch.arange(num_hidden - 1, -1, -1, device=self.hidden_bias.device)
        return ((numbers[:, None] >> bits) & 1).to(self.hidden_bias.dtype)

    def hidden_logits(self, states: Tensor | None = None) -> Tensor:
        r"""log p(h) + log Z − (N/2) log 2π − Σ log σ for every hidden state, `(2^H,)`.

        Completing the square in v gives :math:`c^\top h + b^\top W h + \tfrac12 \sum_i \sigma_i^2
        (W h)_i^2`: the model is a mixture of 2^H Gaussians.

        Arguments:
            states: `hidden_states`, where they are at hand.
        """
        h = self.hidden_states() if states is None else states
        field = h @ self.weight.T  # (2^H, N)
        quadratic = 0.5 * field * (2 * self.log_scale).exp() + self.visible_bias
        return h @ self.hidden_bias + (field * quadratic).sum(1)

    def log_normalizer(self) -> Tensor:
        """log Z by enumeration of the hidden layer, a scalar with gradients.

        Raises:
            ValueError: If there are too many hidden states.
        """
        gaussian = 0.5 * len(self.visible_bias) * math.log(2 * math.pi) + self.log_scale.sum()
        return gaussian + torch.logsumexp(self.hidden_logits(), 0)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(v), exact, with shape `(B,)`, in nats, for `x` `(B, N)`."""
        return -self(x) - self.log_normalizer()

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact samples of v, with shape `(num, N)`: h by enumeration, then v given h."""
        with torch.no_grad():
            p = torch.softmax(self.hidden_logits(), 0)
            index = torch.multinomial(p, num, replacement=True, generator=generator)
            return self.sample_visible(self.hidden_states()[index], generator)
