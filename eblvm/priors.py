r"""Priors p(z) over the latent variable.

A prior can say how likely a latent is (`energy`), draw one (`sample`), and learn from posterior
samples (`loss`). `loss` hides the negative phase: it may run a Markov chain, and then `diagnostics`
shows what that chain did.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .energies import Energy
from .objectives.contrastive import contrastive_divergence
from .objectives.variational import gaussian_kl
from .samplers import ChainSetup, Kernel, ParallelTempering, noise_like
from .samplers.buffer import ReplayBuffer

__all__ = ["EnergyPrior", "GaussianPrior", "Prior"]


class Prior(nn.Module, ABC):
    """A density over latents `(B, D)`.

    Arguments:
        latent_dim: D.
    """

    origin: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim is {latent_dim}; expected 1 or more.")
        self.latent_dim = latent_dim
        self.diagnostics: dict[str, Tensor] = {}
        """What the last `loss` saw: scalars, detached, for the log."""
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)

    @abstractmethod
    def energy(self, z: Tensor) -> Tensor:
        """−log p(z) up to a constant, with shape `(B,)`: what a posterior chain needs."""

    @abstractmethod
    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents, detached, with shape `(num, D)`."""

    @abstractmethod
    def loss(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`(B,)`, with the gradient of −log p(z) in `z` and in the parameters of the prior."""

    def divergence(
        self,
        z: Tensor,
        mean: Tensor,
        log_variance: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`(B,)`, with the gradient of KL(q(z|x) ‖ p(z)) for a diagonal Gaussian q.

        Arguments:
            z: One reparameterized draw of q per row, with shape `(B, D)`.
            mean: The mean of q, with shape `(B, D)`.
            log_variance: The log-variance of q, with shape `(B, D)`.
            generator: Source of the negative phase's noise.
        """
        log_q = -0.5 * ((z - mean).square() / log_variance.exp() + log_variance).sum(-1)
        return log_q - 0.5 * self.latent_dim * math.log(2 * math.pi) + self.loss(z, generator)

    def chain(self) -> ChainSetup | None:
        """The chain behind `sample` and `loss`; None if draws are exact."""
        return None

    @torch.no_grad()
    def log_normalizer(self, num: int = 10_000, generator: torch.Generator | None = None) -> Tensor:
        """log Z with log p(z) = −energy(z) − log Z, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no estimate of its log-normalizer.")


class GaussianPrior(Prior):
    """The standard normal, p(z) = N(z; 0, I)."""

    def energy(self, z: Tensor) -> Tensor:
        return 0.5 * z.square().sum(-1)

    def _noise(self, num: int, generator: torch.Generator | None) -> Tensor:
        return noise_like(self.origin.expand(num, -1), generator)

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        return self._noise(num, generator)

    def loss(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return GaussianPrior.energy(self, z) + 0.5 * self.latent_dim * math.log(2 * math.pi)

    def divergence(
        self,
        z: Tensor,
        mean: Tensor,
        log_variance: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return gaussian_kl(mean, log_variance)

    def log_normalizer(self, num: int = 10_000, generator: torch.Generator | None = None) -> Tensor:
        return self.origin.new_tensor(0.5 * self.latent_dim * math.log(2 * math.pi))


class EnergyPrior(GaussianPrior):
    r"""A learned tilt of the standard normal.

    .. math:: p(z) = \frac{1}{Z} \exp(-\mathrm{tilt}(z))\, N(z; 0, I)

    The gradient of log Z is estimated with samples of a short chain, so `loss` costs
    `sampler.num_steps` gradients of the tilt. The chain starts from N(0, I) at each call, or, with
    `num_persistent`, from ends of earlier calls; only calls in training mode store their ends.

    References:
        Learning Latent Space Energy-Based Prior Model (Pang et al., 2020), Eqs. 3 and 8. The paper
        writes f = −tilt, and starts from N(0, I).
        Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient
        (Tieleman, 2008), for persistent chains.

    Arguments:
        latent_dim: D.
        tilt: The correction, `(B, D) -> (B,)`.
        sampler: The short chain. Where it cannot follow the tilt, an encoder and the tilt run away
            together; persistent chains or tempering help.
        num_persistent: Chains kept from call to call, more than a batch has rows; none if None.
            Under distributed training the first rank's are everybody's.
        restart_probability: How often a persistent chain begins anew from N(0, I).

    Raises:
        ValueError: If `restart_probability` is no probability, or, in `loss`, if there are fewer
            persistent chains than rows.
    """

    def __init__(
        self,
        latent_dim: int,
        tilt: Energy,
        sampler: Kernel | ParallelTempering,
        num_persistent: int | None = None,
        restart_probability: float = 0.05,
    ) -> None:
        super().__init__(latent_dim)
        if not 0 <= restart_probability <= 1:
            raise ValueError(
                f"restart_probability is {restart_probability}; expected 0 to 1, e.g. 0.05."
            )
        self.tilt = tilt
        self.sampler = sampler
        self.restart_probability = restart_probability
        self.buffer = (
            None if num_persistent is None else ReplayBuffer(self._noise(num_persistent, None))
        )

    def energy(self, z: Tensor) -> Tensor:
        return self.tilt(z) + super().energy(z)

    def start(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Starts `(num, D)`: persistent states, drawn with repetition, or N(0, I)."""
        if self.buffer is None:
            return self._noise(num, generator)
        states = self.buffer.states
        drawn = torch.randint(len(states), (num,), generator=generator, device=states.device)
        return states[drawn]

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        return self.sampler(self.energy, self.start(num, generator), generator)

    def chain(self) -> ChainSetup:
        return ChainSetup(self.energy, self.sampler, self.start)

    def _negatives(
        self, num: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Starts and ends of `num` chains; persistent ones are stored in training mode."""
        noise = self._noise(num, generator)
        if self.buffer is None:
            return noise, self.sampler(self.energy, noise, generator)
        places = self.buffer.draw(num, generator)
        u01 = torch.rand(num, generator=generator, device=noise.device)
        restarted = u01 < self.restart_probability
        start = torch.where(restarted[:, None], noise, self.buffer.states[places])
        end = self.sampler(self.energy, start, generator)
        if self.training:
            self.buffer.store(places, end, restarted)
        return start, end

    def _contrast(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        """tilt(z) minus the tilt of as many samples of the prior, with shape `(B,)`."""
        start, negative = self._negatives(len(z), generator)
        positive_energy, negative_energy = self.tilt(torch.cat([z, negative])).split(len(z))
        self.diagnostics = {
            "tilt_positive": positive_energy.detach().mean(),
            "tilt_negative": negative_energy.detach().mean(),
            "displacement": (negative - start).square().sum(-1).sqrt().mean(),
            "negative_scale": negative.std(),
        }
        return contrastive_divergence(positive_energy, negative_energy)

    def loss(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return super().loss(z) + self._contrast(z, generator)

    def divergence(
        self,
        z: Tensor,
        mean: Tensor,
        log_variance: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return super().divergence(z, mean, log_variance) + self._contrast(z, generator)

    @torch.no_grad()
    def log_normalizer(self, num: int = 10_000, generator: torch.Generator | None = None) -> Tensor:
        r"""log Z of `energy`, by importance sampling from N(0, I).

        log Z = (D/2) log 2π + log E[exp(−tilt(z))], unbiased for Z and hence low for log Z on
        average. Good where the tilt is mild; in many dimensions use annealed importance sampling.
        """
        tilt = torch.cat([self.tilt(z) for z in self._noise(num, generator).split(4096)])
        return super().log_normalizer() + torch.logsumexp(-tilt, dim=0) - math.log(num)
