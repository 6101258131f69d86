r"""Two variational distributions of an energy E(x, z): q(z|x), and p(x, z) of its own.

.. math::
    J &= \mathbb{E}_{\pi q}[E(x, z)] - H(q(z|x)) - \mathbb{E}_p[E(x, z)] + H(p) \\
      &= -\mathbb{E}_\pi[\log p_E(x)] + KL(q(z|x) \| p_E(z|x)) - KL(p \| p_E)

is free of log Z, and its explicit gradient in the energy's parameters is the likelihood's where
both divergences vanish. J itself is no bound: q and p must be learned by divergences of their own,
the lower level.

References:
    Bi-level Doubly Variational Learning for Energy-based Latent Variable Models (Kan et al., 2022).
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .energies import JointEnergy
from .latent import LatentVariableModel
from .objectives import Divergence
from .rbm import GaussianBernoulliRBM
from .samplers import noise_like

__all__ = ["EnumeratedPair", "GaussianPair", "VariationalPair"]


class VariationalPair(nn.Module, ABC):
    """q(z|x) and p(x, z)."""

    @abstractmethod
    def free(
        self, energy: JointEnergy, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """E_q[E(x, z)] − H(q(z|x)) for data `(B, *event)`, with shape `(B,)`, in nats.

        At least the free energy −log ∫ exp(−E(x, z)) dz, and equal to it where q is the posterior.
        """

    @abstractmethod
    def posterior_mean(self, x: Tensor) -> Tensor:
        """The mean of q(z|x), with shape `(B, D)`."""

    @abstractmethod
    def upper(
        self, energy: JointEnergy, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """J for data `(B, *event)`, with shape `(B,)`, in nats, with a graph to all parameters."""

    @abstractmethod
    def lower(
        self,
        energy: JointEnergy,
        x: Tensor,
        posterior: Divergence,
        joint: Divergence,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The divergences of q(z|x) and of p(x, z), `(B,)` or scalars, up to constants.

        Arguments:
            energy: The energy that they follow.
            x: Data, with shape `(B, *event)`.
            posterior: D₁, between q(z|x) and p_E(z|x).
            joint: D₂, between p(x, z) and p_E(x, z).
            generator: Source of the noise.
        """

    def check(self, posterior: Divergence, joint: Divergence) -> None:
        """Raise a `ValueError` if the pair cannot compute one of these; none by default.

        Arguments:
            posterior: D₁.
            joint: D₂.
        """

    @abstractmethod
    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw x of p, detached, with shape `(num, *event)`."""

    def forward(self, level: str, *arguments: Any) -> Any:
        """`upper` or `lower`, by name: the door for `torch.func.functional_call`."""
        return getattr(self, level)(*arguments)


class EnumeratedPair(VariationalPair):
    r"""Families that hold a Gaussian–Bernoulli RBM exactly; every divergence in closed form.

    q(h|v) has independent bits with logits :math:`d + v^\top D`; p(v, h) is a categorical over all
    2^H states with Gaussians :math:`N(v; a + A h, \mathrm{diag}\, s^2)`.

    Arguments:
        num_visible: N.
        num_hidden: H.
    """

    states: Tensor

    def __init__(self, num_visible: int, num_hidden: int) -> None:
        super().__init__()
        states = GaussianBernoulliRBM(num_visible, num_hidden).hidden_states()
        self.register_buffer("states", states, persistent=False)
        self.encoder_weight = nn.Parameter(0.1 * torch.randn(num_visible, num_hidden))
        self.encoder_bias = nn.Parameter(torch.zeros(num_hidden))
        self.logits = nn.Parameter(torch.zeros(len(states)))
        self.offset = nn.Parameter(torch.zeros(num_visible))
        self.gain = nn.Parameter(0.1 * torch.randn(num_visible, num_hidden))
        self.log_variance = nn.Parameter(torch.zeros(num_visible))

    @torch.no_grad()
    def match(self, energy: GaussianBernoulliRBM) -> None:
        """Become exactly q(h|v) = p_E(h|v) and p(v, h) = p_E(v, h)."""
        variance = (2 * energy.log_scale).exp()
        self.encoder_weight.copy_(energy.weight)
        self.encoder_bias.copy_(energy.hidden_bias)
        self.logits.copy_(energy.hidden_logits())
        self.offset.copy_(energy.visible_bias)
        self.gain.copy_(variance[:, None] * energy.weight)
        self.log_variance.copy_(2 * energy.log_scale)

    def _check(self, energy: JointEnergy) -> GaussianBernoulliRBM:
        if not isinstance(energy, GaussianBernoulliRBM):
            raise TypeError(
                f"EnumeratedPair goes with a GaussianBernoulliRBM, not with a "
                f"{type(energy).__name__}; use GaussianPair."
            )
        return energy

    def posterior_divergence(
        self, energy: GaussianBernoulliRBM, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """KL(q(h|v) ‖ p_E(h|v)) and its reverse, each with shape `(B,)`."""
        a = torch.addmm(self.encoder_bias, x, self.encoder_weight)
        b = torch.addmm(energy.hidden_bias, x, energy.weight)
        gap, bend = a - b, softplus(b) - softplus(a)
        return (a.sigmoid() * gap + bend).sum(1), -(b.sigmoid() * gap + bend).sum(1)

    def joint_divergence(self, energy: GaussianBernoulliRBM) -> tuple[Tensor, Tensor]:
        """KL(p ‖ p_E) and its reverse, scalars."""
        log_p = self.logits.log_softmax(0)
        log_e = energy.hidden_logits(self.states).log_softmax(0)
        p, e, gap = log_p.exp(), log_e.exp(), log_p - log_e
        scale = (2 * energy.log_scale).exp()
        ratio = self.log_variance - 2 * energy.log_scale
        distance = torch.addmm(  # of the means, (2^H, N)
            self.offset - energy.visible_bias,
            self.states,
            (self.gain - scale[:, None] * energy.weight).T,
        )
        squares, grown = distance.square(), ratio.exp()
        here = (grown - ratio - 1 + (p @ squares) / scale).sum()
        there = (1 / grown + ratio - 1 + (e @ squares) * (-self.log_variance).exp()).sum()
        return p @ gap + 0.5 * here, 0.5 * there - e @ gap

    def free(
        self, energy: JointEnergy, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        logits = torch.addmm(self.encoder_bias, x, self.encoder_weight)
        q = logits.sigmoid()
        return self._check(energy).joint(x, q) - (softplus(logits) - q * logits).sum(1)

    def posterior_mean(self, x: Tensor) -> Tensor:
        return torch.addmm(self.encoder_bias, x, self.encoder_weight).sigmoid()

    def _means(self) -> Tensor:
        return torch.addmm(self.offset, self.states, self.gain.T)

    def upper(
        self, energy: JointEnergy, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        positive, rbm = self.free(energy, x), self._check(energy)
        log_p, means = self.logits.log_softmax(0), self._means()
        spread = 0.5 * (self.log_variance - 2 * rbm.log_scale).exp().sum()
        negative = rbm.joint(means, self.states) + spread + log_p
        width = 0.5 * (self.log_variance + math.log(2 * math.pi * math.e)).sum()
        return positive - (log_p.exp() * negative).sum() + width

    def lower(
        self,
        energy: JointEnergy,
        x: Tensor,
        posterior: Divergence,
        joint: Divergence,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        rbm = self._check(energy)
        here, there = self.posterior_divergence(rbm, x)
        forth, back = self.joint_divergence(rbm)
        return {
            "posterior": posterior.reverse * here + posterior.forward * there,
            "joint": joint.reverse * forth + joint.forward * back,
        }

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        with torch.no_grad():
            p = self.logits.softmax(0)
            index = torch.multinomial(p, num, replacement=True, generator=generator)
            means = self._means()[index]
            return means + (0.5 * self.log_variance).exp() * noise_like(means, generator)


class GaussianPair(VariationalPair):
    r"""A Gaussian encoder and a generator p(z) p(x|z) of fixed noise, for deep joint energies.

    D₁ is KL(q(z|x) ‖ p_E(z|x)) through reparameterized draws. Of D₂ the reverse direction is the
    energy of the generator's own pairs, whose joint entropy is constant; the forward one, on data
    and q's latents in place of samples of p_E, is the evidence bound.

    Arguments:
        latent: A GaussianPrior, an AmortizedPosterior, and a likelihood.
    """

    def __init__(self, latent: LatentVariableModel) -> None:
        super().__init__()
        self.latent = latent

    def _free(self, energy: JointEnergy, x: Tensor, generator: Any) -> tuple[Tensor, Any]:
        """E_q[E] − H(q) on one draw, and what q says."""
        inference = self.latent.infer(x, generator)
        log_variance = inference.log_variance
        if log_variance is None:
            raise TypeError("GaussianPair needs an AmortizedPosterior; a chain has no entropy.")
        entropy = 0.5 * (log_variance + math.log(2 * math.pi * math.e)).sum(1)
        return energy.joint(x, inference.z) - entropy, inference

    def free(
        self, energy: JointEnergy, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return self._free(energy, x, generator)[0]

    def posterior_mean(self, x: Tensor) -> Tensor:
        return self.latent.posterior.proposal(x, self.latent.prior, self.latent.likelihood)[0]

    def _pairs(self, num: int, generator: Any) -> tuple[Tensor, Tensor]:
        z = self.latent.prior.sample(num, generator)
        return self.latent.likelihood.sample(z, generator), z

    def upper(
        self, energy: JointEnergy, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.free(energy, x, generator) - energy.joint(*self._pairs(len(x), generator))

    def check(self, posterior: Divergence, joint: Divergence) -> None:
        if posterior.forward:
            raise ValueError(
                "KL(p_E(z|x) ‖ q) needs samples of the model's posterior, which GaussianPair does "
                "not have. Use ReverseDivergence for the posterior."
            )

    def lower(
        self,
        energy: JointEnergy,
        x: Tensor,
        posterior: Divergence,
        joint: Divergence,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        self.check(posterior, joint)
        free, inference = self._free(energy, x, generator)
        terms = {"posterior": posterior.reverse * free}
        if joint.reverse:
            terms["energy"] = joint.reverse * energy.joint(*self._pairs(len(x), generator))
        if joint.forward:
            bound = self.latent.loss(x, generator, inference)
            terms |= {name: joint.forward * term for name, term in bound.items()}
        return terms

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        return self.latent.sample(num, generator)
