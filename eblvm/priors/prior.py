"""The role of a prior, the standard normal, and its tilts."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..energies import Energy, SymbolVectorEnergy
from ..objectives.contrastive import contrastive_divergence
from ..objectives.variational import gaussian_kl
from ..samplers import ChainSetup, Kernel, ParallelTempering, noise_like
from ..samplers.buffer import ReplayBuffer
from ..signs import vital_signs

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
        self._phases: tuple[Tensor, ...] | None = None
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)

    @abstractmethod
    def energy(self, z: Tensor) -> Tensor:
        """−log p(z) up to a constant, with shape `(B,)`: what a posterior chain needs."""

    @abstractmethod
    def sample(
        self, num: int, generator: torch.Generator | None = None, label: Tensor | None = None
    ) -> Tensor:
        """Draw latents, detached, with shape `(num, D)`.

        Arguments:
            num: How many.
            generator: Source of the noise.
            label: Symbols int64 `(num,)`, for latents given the symbol.

        Raises:
            TypeError: If there is a label and the prior has no symbols.
        """

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

    def vital_signs(self) -> dict[str, Tensor]:
        """How energies and chains of the last `loss` fare: scalars; none without an energy.

        See :func:`~eblvm.signs.vital_signs`; the data are latents, and their scale is at least the
        1 of N(0, I), where chains come from.
        """
        if self._phases is None:
            return {}
        signs = vital_signs(*self._phases)
        signs["data_scale"] = signs["data_scale"].clamp(min=1)
        return signs

    def _saw(
        self, z: Tensor, negative: Tensor, energy: Tensor, negative_energy: Tensor, start: Tensor
    ) -> None:
        """Keep what `vital_signs` needs, its arguments."""
        tensors = (z, negative, energy, negative_energy, start)
        self._phases = tuple(tensor.detach() for tensor in tensors)

    def chains(self, generator: torch.Generator | None = None) -> dict[str, ChainSetup]:
        """The chains behind `sample` and `loss`, by name; none if draws are exact.

        Arguments:
            generator: Draws what a chain is conditioned on, where there is such.
        """
        return {}

    def symbol_logits(
        self, z: Tensor, generator: torch.Generator | None = None, noise: bool = False
    ) -> Tensor:
        """Logits of the symbols of latents, `(B, D)` to `(B, K)`; p(y|z) is their softmax.

        Arguments:
            z: Latents.
            generator: Source of the noise.
            noise: Whether to read symbols off z with the prior's first noise, where it has levels.

        Raises:
            TypeError: If the prior has no symbols.
        """
        raise self._without_symbols()

    def _without_symbols(self) -> TypeError:
        return TypeError(
            f"{type(self).__name__} has no symbols; use an EnergyPrior whose tilt is a "
            "SymbolVectorEnergy, or a DiffusionEnergyPrior with a SymbolVectorTimeEnergy."
        )

    def state(self, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the variable that `sample` draws, given those of q(z|x)."""
        return mean, log_variance

    def log_prob(
        self,
        z: Tensor,
        log_normalizer: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(z), or log of an estimate of p(z), with shape `(B,)`.

        Arguments:
            z: With shape `(B, D)`.
            log_normalizer: What `log_normalizer()` returned; estimated if None.
            generator: Source of the noise.
        """
        if log_normalizer is None:
            log_normalizer = self.log_normalizer(generator=generator)
        return -self.energy(z) - log_normalizer

    @torch.no_grad()
    def released_log_prob(
        self, z: Tensor, log_q: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """log p(z) as published code estimates it, self-normalized by the posterior's draws.

        Z is taken to be the mean of exp(−energy)/q over draws of q(z|x), which misses what of the
        prior q does not cover: likelihoods come out too high wherever q is narrower than the prior.
        For comparison with published figures only.

        Arguments:
            z: K draws of q(z|x) per datum, with shape `(K, B, D)`.
            log_q: Their log density, with shape `(K, B)`.
            generator: Source of the noise.

        Returns:
            With shape `(K, B)`.
        """
        log_p = -self.energy(z.flatten(0, 1)).view_as(log_q)
        return log_p - (torch.logsumexp(log_p - log_q, 0) - math.log(len(z)))

    @torch.no_grad()
    def nodes(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """A quadrature over latents: nodes `(M, D)` and log weights `(M,)`, their total 1.

        With two latents a 1000² grid over [−6, 6]², weighted by the density; with more 200,000
        samples.

        Arguments:
            generator: Source of the noise of samples.
        """
        if self.latent_dim != 2:
            return self._as_nodes(self.sample(200_000, generator))
        axis = 6 * ((torch.arange(1000).to(self.origin) + 0.5) / 500 - 1)
        z = torch.cartesian_prod(axis, axis)
        return z, self.log_prob_on_axis(axis).flatten().log_softmax(0)

    def _as_nodes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Samples as the nodes of a quadrature, with equal weights."""
        return z, z.new_full((len(z),), -math.log(len(z)), dtype=torch.float64)

    @torch.no_grad()
    def log_prob_on_axis(self, axis: Tensor) -> Tensor:
        """log p(z) of a prior of the plane, by quadrature.

        Arguments:
            axis: Evenly spaced coordinates `(N,)`, the same for both axes.

        Returns:
            Nats, normalized over the grid, with shape `(N, N)`, in float64.
        """
        nodes = torch.cartesian_prod(axis, axis)
        log_p = -torch.cat([self.energy(z) for z in nodes.split(50_000)]).double()
        log_cell = 2 * float((axis[1] - axis[0]).double().log())
        return (log_p.log_softmax(0) - log_cell).view(len(axis), len(axis))

    @torch.no_grad()
    def log_normalizer(self, num: int = 10_000, generator: torch.Generator | None = None) -> Tensor:
        """log Z with log p(z) = −energy(z) − log Z, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no estimate of its log-normalizer.")


class GaussianPrior(Prior):
    """The standard normal, p(z) = N(z; 0, I).

    Arguments:
        latent_dim: D.
        free_bits: In `divergence`, dimensions whose KL is at most this many nats do not count; None
            counts all.
    """

    def __init__(self, latent_dim: int, free_bits: float | None = None) -> None:
        super().__init__(latent_dim)
        self.free_bits = free_bits

    def energy(self, z: Tensor) -> Tensor:
        return 0.5 * z.square().sum(-1)

    def _noise(self, num: int, generator: torch.Generator | None) -> Tensor:
        return noise_like(self.origin.expand(num, -1), generator)

    def sample(
        self, num: int, generator: torch.Generator | None = None, label: Tensor | None = None
    ) -> Tensor:
        if label is not None:
            raise self._without_symbols()
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
        return gaussian_kl(mean, log_variance, self.free_bits)

    def log_normalizer(self, num: int = 10_000, generator: torch.Generator | None = None) -> Tensor:
        return self.origin.new_tensor(0.5 * self.latent_dim * math.log(2 * math.pi))


class EnergyPrior(GaussianPrior):
    r"""A learned tilt of the standard normal.

    .. math:: p(z) = \frac{1}{Z} \exp(-\mathrm{tilt}(z))\, N(z; 0, I)

    The gradient of log Z is estimated with samples of a short chain, so `loss` costs
    `sampler.num_steps` gradients of the tilt. The chain starts from N(0, I) at each call, or, with
    `num_persistent`, from ends of earlier calls; only calls in training mode store their ends.

    With a `SymbolVectorEnergy` as tilt this is the prior of the symbol-vector coupling model.

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
        free_bits: In `divergence`, dimensions whose KL to N(0, I) is at most this many nats do not
            count; None counts all.
        num_persistent: Chains kept from call to call, at least as many as a batch has rows; none if
            None. Under distributed training the first rank's are everybody's.
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
        free_bits: float | None = None,
        num_persistent: int | None = None,
        restart_probability: float = 0.05,
    ) -> None:
        super().__init__(latent_dim, free_bits)
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

    def sample(
        self, num: int, generator: torch.Generator | None = None, label: Tensor | None = None
    ) -> Tensor:
        if label is None:
            return self.sampler(self.energy, self.start(num, generator), generator)
        symbols, base = self._symbols(), super().energy

        def energy(z: Tensor) -> Tensor:
            return symbols.given(z, label) + base(z)

        return self.sampler(energy, self._noise(num, generator), generator)

    def _symbols(self) -> SymbolVectorEnergy:
        if not isinstance(self.tilt, SymbolVectorEnergy):
            raise TypeError(
                f"the prior's tilt is a {type(self.tilt).__name__}, which has no symbols; use a "
                "SymbolVectorEnergy."
            )
        return self.tilt

    def symbol_logits(
        self, z: Tensor, generator: torch.Generator | None = None, noise: bool = False
    ) -> Tensor:
        return self._symbols().logits(z)

    def chains(self, generator: torch.Generator | None = None) -> dict[str, ChainSetup]:
        return {"prior": ChainSetup(self.energy, self.sampler, self.start)}

    def _negatives(self, num: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
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
        self._saw(z, negative, positive_energy, negative_energy, start)
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
