r"""Where an energy of data gets its negatives from.

All methods share the chain and differ in who starts it, and in what becomes of its ends:

========================  ==========================  ==========================================
class                     starts at                   afterwards
========================  ==========================  ==========================================
`NoiseNegatives`          noise, afresh each time     nothing (short-run chains)
`PersistentNegatives`     earlier ends                ends are stored
`CooperativeNegatives`    a generator g(z)            g learns the ends, from the z of its start
`AmortizedNegatives`      a VAE's decoder g(z)        the VAE learns the ends, z inferred anew
========================  ==========================  ==========================================

Gradients never pass between the energy and a starter: starts are drawn without a graph and ends are
detached.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .latent import LatentVariableModel, bound
from .likelihoods import Likelihood
from .objectives.variational import gaussian_kl
from .priors import GaussianPrior, Prior
from .samplers import ChainSetup, EnergyFn, Kernel, noise_like
from .samplers.buffer import ReplayBuffer

__all__ = [
    "AmortizedNegatives",
    "CooperativeNegatives",
    "Draw",
    "GeneratedNegatives",
    "Negatives",
    "NoiseNegatives",
    "PersistentNegatives",
    "with_steps",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Draw:
    """Chains from start to end, detached.

    Arguments:
        start: Where they began, with shape `(N, *event)`.
        x: Where they ended; the start before they have run.
        condition: What they were conditioned on, `(N, *c)`, or None.
        z: The latents that gave the starts, `(N, D)`, or None.
        places: The rows of a replay buffer they came from, `(N,)`, or None.
        restarted: Which of these began anew, `(N,)`, or None.
    """

    start: Tensor
    x: Tensor
    condition: Tensor | None = None
    z: Tensor | None = None
    places: Tensor | None = None
    restarted: Tensor | None = None


def with_steps(kernel: Kernel, num_steps: int) -> Kernel:
    """The kernel for another number of steps; settings that change from step to step stay last."""
    settings: Any = kernel
    if num_steps == kernel.num_steps:
        return kernel
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    annealed = {
        name: value[-1]
        for name, value in values.items()
        if name in ("step_size", "noise_scale") and isinstance(value, Sequence) and value
    }
    return dataclasses.replace(settings, num_steps=num_steps, **annealed)


class Negatives(nn.Module, ABC):
    """Chains on an energy: starts, a kernel, and perhaps a starter that learns.

    Arguments:
        sampler: The chain of training.
        num_chains: Chains per step; as many as there are data if None.
    """

    factor: Tensor

    def __init__(self, sampler: Kernel, num_chains: int | None = None) -> None:
        super().__init__()
        if num_chains is not None and num_chains < 1:
            raise ValueError(f"num_chains is {num_chains}; expected 1 or more, or None.")
        self._sampler = sampler
        self.num_chains = num_chains
        self.register_buffer("factor", torch.ones((), dtype=torch.float64))
        self.diagnostics: dict[str, Tensor] = {}
        """What the last `loss` saw: scalars, detached, for the log."""

    @property
    def step_factor(self) -> float:
        """A factor on the kernel's step size: what a guard lowered it to.

        A buffer, so that checkpoints and averaged copies of a model have it.
        """
        return float(self.factor)

    @step_factor.setter
    def step_factor(self, value: float) -> None:
        self.factor.fill_(value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Negatives":
        """As of any module, but the factor stays a float64 on the processor.

        There it is read without waiting for a GPU, whoever changed it last.
        """
        factor = self.factor
        super()._apply(fn, recurse)
        self.factor = factor
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Checkpoints of earlier versions have the factor under another name."""
        if f"{prefix}_extra_state" in state_dict:
            state_dict[f"{prefix}factor"] = state_dict.pop(f"{prefix}_extra_state")
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def sampler(self) -> Kernel:
        """The chain, its step size times `step_factor`."""
        factor = self.step_factor
        if factor == 1.0:
            return self._sampler
        settings: Any = self._sampler
        size = settings.step_size
        scaled = [s * factor for s in size] if isinstance(size, Sequence) else size * factor
        return dataclasses.replace(settings, step_size=scaled)

    @abstractmethod
    def start(
        self,
        num: int,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
    ) -> Draw:
        """Starts of `num` chains, detached.

        Arguments:
            num: N.
            generator: Source of the noise.
            condition: With shape `(N, *c)`, or None.
        """

    def forward(
        self,
        energy: EnergyFn,
        num: int,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
        num_steps: int | None = None,
    ) -> Draw:
        """Start chains and run them on an energy.

        Arguments:
            energy: `(N, *event) -> (N,)`, its condition already bound.
            num: N.
            generator: Source of all noise.
            condition: With shape `(N, *c)`, or None.
            num_steps: Steps; those of training if None, and 0 returns the starts.
        """
        drawn = self.start(num, generator, condition)
        kernel = self.sampler if num_steps is None else with_steps(self.sampler, num_steps)
        return dataclasses.replace(drawn, x=kernel(energy, drawn.start, generator))

    def loss(
        self, drawn: Draw, generator: torch.Generator | None = None, data: Draw | None = None
    ) -> dict[str, Tensor]:
        """What the starter learns: terms `(N,)`, in nats; none if it does not learn.

        Arguments:
            drawn: Chains that have run; their ends are what most starters learn.
            generator: Source of the noise.
            data: The batch of data as chains of no steps, for starters that learn them, too.
        """
        return {}

    def keep(self, drawn: Draw) -> None:
        """Remember the ends, where the starts of later chains are earlier ends."""

    def chain(self, energy: EnergyFn, condition: Tensor | None = None) -> ChainSetup:
        """The chain, for diagnostics."""

        def start(num: int, generator: torch.Generator | None) -> Tensor:
            return self.start(num, generator, repeat_rows(condition, num)).start

        return ChainSetup(energy, self.sampler, start)


def repeat_rows(condition: Tensor | None, num: int) -> Tensor | None:
    """The rows of a condition, over and over, until there are `num`; None stays None."""
    if condition is None or len(condition) == num:
        return condition
    return condition[torch.arange(num, device=condition.device) % len(condition)]


class NoiseNegatives(Negatives):
    """Short chains from noise.

    References:
        Learning Non-Convergent Non-Persistent Short-Run MCMC Toward Energy-Based Model (Nijkamp et
        al., 2019).

    Arguments:
        event_shape: The shape of a datum.
        sampler: The chain.
        num_chains: Chains per step; as many as there are data if None.
        scale: Starts are uniform on [−scale, scale], or N(0, scale²).
        gaussian: Whether they are Gaussian.
    """

    origin: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        sampler: Kernel,
        num_chains: int | None = None,
        scale: float = 1.0,
        gaussian: bool = False,
    ) -> None:
        super().__init__(sampler, num_chains)
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a positive number.")
        self.scale = scale
        self.gaussian = gaussian
        self.register_buffer("origin", torch.zeros(tuple(event_shape)), persistent=False)

    def noise(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Fresh starts, with shape `(num, *event)`."""
        like = self.origin.expand(num, *self.origin.shape)
        if self.gaussian:
            return self.scale * noise_like(like, generator)
        unit = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
        return self.scale * (2 * unit - 1)

    def start(
        self,
        num: int,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
    ) -> Draw:
        x = self.noise(num, generator)
        return Draw(x, x, condition)


class PersistentNegatives(NoiseNegatives):
    """Chains that go on where earlier ones ended, now and then begun anew.

    In evaluation mode nothing is begun anew, and nothing is stored: samples are states of the
    buffer, refined. Several devices keep a buffer each; a checkpoint holds that of the first.

    References:
        Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient
        (Tieleman, 2008); Implicit Generation and Modeling with Energy-Based Models (Du and
        Mordatch, 2019), Sec. 3.

    Arguments:
        event_shape: The shape of a datum.
        sampler: The chain.
        num_chains: Chains per step; as many as there are data if None.
        scale: As in `NoiseNegatives`, for chains that begin.
        gaussian: As in `NoiseNegatives`.
        capacity: How many states are kept.
        restart_probability: Share of chains that begin anew at each step.

    Raises:
        ValueError: If a number is out of range, or a condition is given: states are not tied to it.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        sampler: Kernel,
        num_chains: int | None = None,
        scale: float = 1.0,
        gaussian: bool = False,
        capacity: int = 10_000,
        restart_probability: float = 0.05,
    ) -> None:
        super().__init__(event_shape, sampler, num_chains, scale, gaussian)
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; expected 1 or more.")
        if not 0 <= restart_probability <= 1:
            raise ValueError(
                f"restart_probability is {restart_probability}; expected a number in [0, 1]."
            )
        self.restart_probability = restart_probability
        self.buffer = ReplayBuffer(self.noise(capacity))

    def start(
        self,
        num: int,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
    ) -> Draw:
        if condition is not None:
            raise ValueError(
                "the states of PersistentNegatives are not tied to a condition. Use "
                "NoiseNegatives, CooperativeNegatives or AmortizedNegatives for a conditional "
                "model."
            )
        capacity = len(self.buffer)
        device = self.buffer.states.device
        if not self.training:  # any number, as evaluation asks for
            places = torch.randint(capacity, (num,), generator=generator, device=device)
            x = self.buffer.states[places]
            return Draw(x, x)
        places = self.buffer.draw(num, generator)
        restarted = torch.rand(num, generator=generator, device=device) < self.restart_probability
        mask = restarted.view(-1, *[1] * self.origin.dim())
        x = torch.where(mask, self.noise(num, generator), self.buffer.states[places])
        return Draw(x, x, places=places, restarted=restarted)

    def loss(
        self, drawn: Draw, generator: torch.Generator | None = None, data: Draw | None = None
    ) -> dict[str, Tensor]:
        self.diagnostics = {"buffer_age": self.buffer.ages.double().mean().float()}
        return {}

    def keep(self, drawn: Draw) -> None:
        if drawn.places is not None and drawn.restarted is not None:
            self.buffer.store(drawn.places, drawn.x, drawn.restarted)


class GeneratedNegatives(Negatives):
    """Chains that start at the mean of p(x|z) for z of a prior; no observation noise is added."""

    @property
    @abstractmethod
    def prior(self) -> Prior:
        """p(z)."""

    @abstractmethod
    def likelihood_given(self, condition: Tensor | None) -> Likelihood:
        """p(x|z), or p(x|z, c)."""

    @torch.no_grad()
    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The mean of p(x|z), with shape `(B, *event)`."""
        return self.likelihood_given(condition).mean(z)

    def start(
        self,
        num: int,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
    ) -> Draw:
        with torch.no_grad():
            z = self.prior.sample(num, generator)
            x = self.decode(z, condition)
        return Draw(x, x, condition, z)


class CooperativeNegatives(GeneratedNegatives):
    r"""A generator starts the chains and is regressed on their ends, at the z of its own start.

    .. math:: L = -\log N(\tilde x; g(z), \sigma^2 I)

    References:
        Cooperative Training of Descriptor and Generator Networks (Xie et al., 2018), Sec. 3.

    Arguments:
        prior: p(z).
        likelihood: p(x|z); its decoder is the generator.
        sampler: The chain.
        num_chains: Chains per step; as many as there are data if None.
    """

    def __init__(
        self,
        prior: Prior,
        likelihood: Likelihood,
        sampler: Kernel,
        num_chains: int | None = None,
    ) -> None:
        super().__init__(sampler, num_chains)
        self.latent_prior = prior
        self.likelihood = likelihood

    @property
    def prior(self) -> Prior:
        return self.latent_prior

    def likelihood_given(self, condition: Tensor | None) -> Likelihood:
        return bound(self.likelihood, "decoder", condition)

    def loss(
        self, drawn: Draw, generator: torch.Generator | None = None, data: Draw | None = None
    ) -> dict[str, Tensor]:
        assert drawn.z is not None
        likelihood = self.likelihood_given(drawn.condition)
        return {"regression": -likelihood.log_prob(drawn.x, drawn.z)}


class AmortizedNegatives(GeneratedNegatives):
    r"""A VAE starts the chains and learns their ends by its bound: variational MCMC teaching.

    .. math:: L(x) = -\mathbb{E}_{q(z|x)} \log p(x|z) + \lambda\, \mathrm{KL}(q(z|x) \| p(z))

    averaged over the ends x̃ of the chains. The latent is inferred anew from x̃, because after T
    steps the z that began it need not explain it. As published, the VAE never sees data. With
    `data_weight` w it minimizes (1 − w) L(x̃) + w L(x) of ends and data: at w = 1 it is an ordinary
    VAE beside which the energy learns, in between it learns both, and a perfect model is a fixed
    point for each w. While the chains are far from the data, their ends teach little of them.

    Under a Gaussian prior its diagnostics are the KL per latent unit, in nats: `kl_per_unit`, the
    mean over units, and `kl_smallest_unit` and `kl_largest_unit`; a unit at zero holds nothing.

    The released code minimizes ‖x̃ − g(z)‖² + w KL; that is 2σ² times this loss with σ² = w/2 and
    `kl_weight` 1.

    References:
        Learning Energy-Based Model with Variational Auto-Encoder as Amortized Sampler (Xie, Zheng
        and Li, 2021).

    Arguments:
        latent: The VAE; its prior may be learned, too.
        sampler: The chain.
        num_chains: Chains per step; as many as there are data if None.
        kl_weight: λ.
        data_weight: w.
    """

    def __init__(
        self,
        latent: LatentVariableModel,
        sampler: Kernel,
        num_chains: int | None = None,
        kl_weight: float = 1.0,
        data_weight: float = 0.0,
    ) -> None:
        super().__init__(sampler, num_chains)
        if not kl_weight >= 0:
            raise ValueError(f"kl_weight is {kl_weight}; expected 0 or more.")
        if not 0 <= data_weight <= 1:
            raise ValueError(f"data_weight is {data_weight}; expected a number in [0, 1].")
        self.latent = latent
        self.kl_weight = kl_weight
        self.data_weight = data_weight

    @property
    def prior(self) -> Prior:
        return self.latent.prior

    def likelihood_given(self, condition: Tensor | None) -> Likelihood:
        return self.latent.given(condition).likelihood

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The mean of q(z|x), or a draw of a chain, with shape `(B, D)`."""
        return self.latent.given(condition).infer(x, generator).at_mean().z

    def loss(
        self, drawn: Draw, generator: torch.Generator | None = None, data: Draw | None = None
    ) -> dict[str, Tensor]:
        w = self.data_weight if data is not None else 0.0
        terms: dict[str, Tensor] = {}
        if w < 1:
            terms |= self._bound(drawn, generator, 1 - w)
        if w > 0 and data is not None:
            of_ends = self.diagnostics
            terms |= {f"data_{k}": v for k, v in self._bound(data, generator, w).items()}
            if w < 1:  # what is watched are the chains
                self.diagnostics = of_ends
        return terms

    def _bound(
        self, draw: Draw, generator: torch.Generator | None, weight: float
    ) -> dict[str, Tensor]:
        """The terms of L at the ends of a draw, times a weight."""
        latent = self.latent.given(draw.condition)
        inference = latent.infer(draw.x, generator)
        terms = latent.loss(draw.x, generator, inference)
        self.diagnostics = dict(self.latent.prior.diagnostics)
        mean, log_variance = inference.mean, inference.log_variance
        exact = type(self.latent.prior) is GaussianPrior  # of others log Z is not known
        if exact and mean is not None and log_variance is not None:
            with torch.no_grad():
                of_units = gaussian_kl(mean[..., None], log_variance[..., None]).mean(0)  # (D,)
            self.diagnostics["kl_per_unit"] = of_units.mean()
            self.diagnostics["kl_smallest_unit"] = of_units.min()
            self.diagnostics["kl_largest_unit"] = of_units.max()
        factors = {"prior": weight * self.kl_weight}
        return {name: factors.get(name, weight) * term for name, term in terms.items()}
