r"""What an energy and the generator of one diffusion step want of each other.

One step of a diffusion has, for a noisier state :math:`x_{t+1}`, an energy's conditional and a
generator's,

.. math::
    p_\theta(x_t \mid x_{t+1}) &\propto e^{-E_\theta(x_t, t)}\, q(x_{t+1} \mid x_t), \\
    \pi_\phi(x_t \mid x_{t+1}) &= \int p(z)\, q(x_t \mid x_{t+1}, \hat x_\phi(x_{t+1}, t, z))\, dz,

the energy with the Gaussian tie of :class:`~eblvm.energies.RecoveryEnergy`, the generator drawing
from the diffusion's posterior around the clean datum that it predicts. A divergence says what the
critic (the energy) and the player (the generator, and an encoder where there is one) minimize.

With :math:`x_{t+1}` free of :math:`x_t`, as after one step to pure noise, the tie is constant, and
these are the losses of adversarial energy-based models.

References:
    Improving Adversarial Energy-Based Model via Diffusion Process (Geng et al., 2024); the paper
    and its code write f = −E.
    Tackling the Generative Learning Trilemma with Denoising Diffusion GANs (Xiao et al., 2022).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .energies import RecoveryEnergy, TimeEnergy
from .objectives import contrastive_divergence, gaussian_kl, gaussian_nll
from .samplers import EnergyFn, noise_like, value_and_squared_gradient
from .schedules import NoiseSchedule, at

__all__ = [
    "GaussianReconstruction",
    "GradientPenalty",
    "Jeffrey",
    "Jump",
    "NonSaturating",
    "Reconstruction",
    "ReverseKL",
    "SquaredReconstruction",
    "StepDivergence",
]

StepMean = Callable[[Tensor], Tensor]
"""From z `(B, D)` to the generator's mean of x_t, `(B, *event)`, given x_{t+1} and t."""


@dataclass
class Jump:
    """A batch of diffusion steps, of the data and of the generator.

    Arguments:
        t: Levels of the cleaner states, int64 `(B,)`.
        x: x_t of the data, with shape `(B, *event)`.
        x_next: x_{t+1}, of the data, the condition of both, with shape `(B, *event)`.
        z: Latents of the generated states, with shape `(B, D)`.
        fake: x_t of the generator, with shape `(B, *event)`; the player's gradients pass through.
        fake_mean: Its mean given z, with shape `(B, *event)`.
    """

    t: Tensor
    x: Tensor
    x_next: Tensor
    z: Tensor
    fake: Tensor
    fake_mean: Tensor


class GradientPenalty:
    r""":math:`\tfrac\gamma2 \|\nabla_x E\|^2` on data: how sharp an energy may become.

    In balance a penalized energy of curvature c has the curvature of data (1 + 2γc) times as wide,
    so γ acts as the bandwidth of the density. `final_weight` anneals it geometrically.

    The tie's part of the gradient of the whole conditional has mean zero and is independent of the
    energy's, so `total` has, on average, the same gradient and a larger variance:
    :math:`\mathbb E \|\nabla_x E + \nabla_x \mathrm{tie}\|^2 = \mathbb E \|\nabla_x E\|^2
    + a_{t+1}^2 d / \sigma_{t+1}^2`.

    Arguments:
        weight: γ.
        total: Whether the tie to x_{t+1} counts (the released code) or the energy alone.
        every: Steps between penalties; each then counts `every` times.
        final_weight: γ after `num_steps` steps and later; constant if None.
        num_steps: Over how many steps.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        weight: float = 0.02,
        total: bool = False,
        every: int = 1,
        final_weight: float | None = None,
        num_steps: int = 1,
    ) -> None:
        if not weight > 0 or every < 1 or num_steps < 1:
            raise ValueError(
                f"weight is {weight}, every {every} and num_steps {num_steps}; expected a positive "
                "number, and counts of 1 or more. Without a penalty pass None in its place."
            )
        if final_weight is not None and not final_weight > 0:
            raise ValueError(f"final_weight is {final_weight}; expected a positive number.")
        self.weight = weight
        self.total = total
        self.every = every
        self.final_weight = weight if final_weight is None else final_weight
        self.num_steps = num_steps

    def at(self, step: int) -> float:
        """γ of a step, times `every`; 0 where it is left out, and for a negative step."""
        if step < 0 or step % self.every:
            return 0.0
        progress = min(step / self.num_steps, 1.0)
        return self.every * self.weight * (self.final_weight / self.weight) ** progress

    def __call__(
        self, energy: EnergyFn, x: Tensor, weight: float, tie: EnergyFn | None = None
    ) -> tuple[Tensor, Tensor]:
        """The energies of data and their penalty, of one pass, each with shape `(B,)`.

        Arguments:
            energy: E.
            x: Data, with shape `(B, *event)`.
            weight: γ, of `at`.
            tie: The tie, needed by `total`.
        """
        value, squared = value_and_squared_gradient(energy, x, tie if self.total else None)
        return value, 0.5 * weight * squared


class Reconstruction(ABC):
    """−log p(x_t | x_{t+1}, z) of data, or a stand-in."""

    @abstractmethod
    def __call__(self, jump: Jump, schedule: NoiseSchedule, mean: StepMean, z: Tensor) -> Tensor:
        """With shape `(B,)`.

        Arguments:
            jump: The steps.
            schedule: Of the diffusion.
            mean: The generator's mean.
            z: Latents drawn from the encoder, with shape `(B, D)`.
        """


class GaussianReconstruction(Reconstruction):
    r"""−log N(x_t; m(z), v_t I) with z from the encoder: the term of the evidence bound.

    Up to its constant. :math:`v_t = \max(\tilde b_t, \mathrm{floor})`, the variance of the
    diffusion's posterior; at level 0 the generator adds no noise, and the floor is all there is.

    Arguments:
        floor: The least variance.
        floor_level: A level whose variance is the floor, in place of `floor`; the released code
            has 1 for images.
        weights: A factor for each level; 1 if None. The released code for LSUN has 0.6 τ^1.585 of
            the noisier level's time τ.
    """

    def __init__(
        self,
        floor: float = 1e-2,
        floor_level: int | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.floor = floor
        self.floor_level = floor_level
        self.weights = weights

    def variance(self, schedule: NoiseSchedule, t: Tensor | int, like: Tensor) -> Tensor:
        """v of levels, `(B, 1, …)` to go with `like`."""
        floor = self.floor
        if self.floor_level is not None:
            floor = float(step_variance(schedule, self.floor_level, like).flatten()[0])
        return step_variance(schedule, t, like).clamp(min=floor)

    def __call__(self, jump: Jump, schedule: NoiseSchedule, mean: StepMean, z: Tensor) -> Tensor:
        v = self.variance(schedule, jump.t, jump.x)
        error = (jump.x - mean(z)).square() / v + v.log()
        loss = 0.5 * error.flatten(1).sum(1)
        if self.weights is None:
            return loss
        if len(self.weights) != len(schedule):
            raise ValueError(
                f"weights has {len(self.weights)} entries; expected {len(schedule)}, one per level."
            )
        return loss * loss.new_tensor(self.weights)[jump.t]


class SquaredReconstruction(Reconstruction):
    """‖x_t − m(z)‖², the Gaussian term at variance 1/2.

    Arguments:
        posterior: Whether z is the encoder's. If not it is that of the generated state, as in the
            released code for CIFAR-10 and CelebA: no term of an evidence bound, but a regression
            of the generator's mean that switches the latent off.
    """

    def __init__(self, posterior: bool = True) -> None:
        self.posterior = posterior

    def __call__(self, jump: Jump, schedule: NoiseSchedule, mean: StepMean, z: Tensor) -> Tensor:
        made = mean(z) if self.posterior else jump.fake_mean
        return (jump.x - made).square().flatten(1).sum(1)


class StepDivergence(nn.Module, ABC):
    """What critic and player of a diffusion step minimize."""

    def __init__(self) -> None:
        super().__init__()
        self.energies: tuple[Tensor, Tensor] | None = None
        """The energies of data and of generated states in the last `critic_terms`, detached."""

    @abstractmethod
    def critic_terms(
        self, energy: TimeEnergy, schedule: NoiseSchedule, jump: Jump, step: int
    ) -> dict[str, Tensor]:
        """The critic's terms, each with shape `(B,)`; nothing reaches the player.

        Arguments:
            energy: E.
            schedule: Of the diffusion.
            jump: Steps of data and generator.
            step: How many batches went before, for what is lazy or annealed.
        """

    @abstractmethod
    def player_terms(
        self,
        energy: TimeEnergy,
        schedule: NoiseSchedule,
        jump: Jump,
        mean: StepMean,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The player's terms, each with shape `(B,)`, with the critic held still.

        Arguments:
            energy: E.
            schedule: Of the diffusion.
            jump: Steps of data and generator.
            mean: The generator's mean of x_t, from latents.
            generator: Source of the encoder's noise.
        """


def step_variance(schedule: NoiseSchedule, t: Tensor | int, like: Tensor) -> Tensor:
    """The variance of q(x_t | x_{t+1}, x), of levels `t`, to go with `like`."""
    own, total = at(schedule.sigma_bar, t, like), at(schedule.sigma_bar, t + 1, like)
    return (at(schedule.sigma, t + 1, like) * own / total).square()


def tied(
    energy: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    x_next: Tensor,
    t: Tensor,
) -> RecoveryEnergy:
    """E(x_t, t) plus the tie of x_t to `x_next`: −log p(x_t | x_{t+1}) up to a constant."""
    return RecoveryEnergy(energy, t, x_next, schedule.sigma[t + 1], schedule.a[t + 1])


class ReverseKL(StepDivergence):
    r"""The critic's maximum likelihood, against a generator that minimizes KL(π ‖ p).

    .. math::
        L_\theta &= E_\theta(x_t) - E_\theta(\tilde x_t)
        + \tfrac\gamma2 \|\nabla_x E_\theta\|^2 \\
        L_{\phi,\psi} &= E_\theta(\tilde x_t) + \frac{\|a_{t+1} \tilde x_t - x_{t+1}\|^2}
        {2 \sigma_{t+1}^2} - \lambda \log q_\psi(z \mid \tilde x_t, x_{t+1})

    with :math:`\tilde x_t` and its z of the generator. The last term bounds the generator's entropy
    from below, exactly at λ = 1 and the exact posterior; the released code has λ = 0.1, which lets
    the generator be too narrow, and the energy become too flat.

    Arguments:
        encoder: q(z | x_t, x_{t+1}), `(x_t, x_{t+1}, t) -> (B, 2 D)`: means, then log-variances.
        entropy_weight: λ; 0 leaves the bound out.
        penalty: On the critic; none if None.
        log_variance_floor: The least log-variance in the bound; none if None.
    """

    def __init__(
        self,
        encoder: nn.Module,
        entropy_weight: float = 1.0,
        penalty: GradientPenalty | None = None,
        log_variance_floor: float | None = -13.8,
    ) -> None:
        super().__init__()
        if not entropy_weight >= 0:
            raise ValueError(f"entropy_weight is {entropy_weight}; expected 0 or more.")
        self.encoder = encoder
        self.entropy_weight = entropy_weight
        self.penalty = penalty
        self.log_variance_floor = log_variance_floor

    def encode(self, x: Tensor, x_next: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x_t, x_{t+1}), each with shape `(B, D)`."""
        mean, log_variance = self.encoder(x, x_next, t).chunk(2, dim=1)
        return mean, log_variance

    def critic_terms(
        self, energy: TimeEnergy, schedule: NoiseSchedule, jump: Jump, step: int
    ) -> dict[str, Tensor]:
        if self.penalty is None or not (weight := self.penalty.at(step)):
            both = energy(torch.cat([jump.x, jump.fake.detach()]), jump.t.repeat(2))
            real, fake = both.chunk(2)
            self.energies = real.detach(), fake.detach()
            return {"contrast": contrastive_divergence(real, fake)}
        tie = tied(energy, schedule, jump.x_next, jump.t).tie
        real, penalty = self.penalty(partial(energy, t=jump.t), jump.x, weight, tie)
        fake = energy(jump.fake.detach(), jump.t)
        self.energies = real.detach(), fake.detach()
        return {"contrast": contrastive_divergence(real, fake), "penalty": penalty}

    def player_terms(
        self,
        energy: TimeEnergy,
        schedule: NoiseSchedule,
        jump: Jump,
        mean: StepMean,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        adversarial = tied(energy, schedule, jump.x_next, jump.t)(jump.fake)
        nll = gaussian_nll(
            jump.z, *self.encode(jump.fake, jump.x_next, jump.t), floor=self.log_variance_floor
        )
        return {"adversarial": adversarial, "entropy": self.entropy_weight * nll}


class Jeffrey(ReverseKL):
    r"""Both directions: `ReverseKL`, and the evidence bound of the generator on data.

    .. math:: L_{\phi,\psi} \mathrel{+}= KL(q_\psi(z \mid x_t, x_{t+1}) \| p(z))
        - \mathbb{E}_{q_\psi} \log \pi_\phi(x_t \mid x_{t+1}, z)

    Samples of the energy's conditional are replaced by data, which is exact once it has learned.

    Arguments:
        encoder: As in `ReverseKL`.
        reconstruction: The last term; at its own defaults if None.
        entropy_weight: As in `ReverseKL`.
        forward_weight: Factor on both terms of the evidence bound.
        penalty: As in `ReverseKL`.
        log_variance_floor: As in `ReverseKL`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        reconstruction: Reconstruction | None = None,
        entropy_weight: float = 1.0,
        forward_weight: float = 1.0,
        penalty: GradientPenalty | None = None,
        log_variance_floor: float | None = -13.8,
    ) -> None:
        super().__init__(encoder, entropy_weight, penalty, log_variance_floor)
        if not forward_weight >= 0:
            raise ValueError(f"forward_weight is {forward_weight}; expected 0 or more.")
        self.reconstruction = reconstruction or GaussianReconstruction()
        self.forward_weight = forward_weight

    def player_terms(
        self,
        energy: TimeEnergy,
        schedule: NoiseSchedule,
        jump: Jump,
        mean: StepMean,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        terms = super().player_terms(energy, schedule, jump, mean, generator)
        location, log_variance = self.encode(jump.x, jump.x_next, jump.t)
        z = location + (0.5 * log_variance).exp() * noise_like(location, generator)
        reconstruction = self.reconstruction(jump, schedule, mean, z)
        return terms | {
            "latent_kl": self.forward_weight * gaussian_kl(location, log_variance),
            "reconstruction": self.forward_weight * reconstruction,
        }


class NonSaturating(StepDivergence):
    r"""The losses of denoising diffusion GANs, in energies: D = −E sees x_{t+1}, too.

    .. math:: L_\theta = \mathrm{softplus}(E(x_t)) + \mathrm{softplus}(-E(\tilde x_t))
        + \tfrac\gamma2 \|\nabla_x E(x_t)\|^2, \qquad L_\phi = \mathrm{softplus}(E(\tilde x_t))

    The energy is called `energy(x_t, t, x_{t+1})`. It tells data from the generator's samples and
    is no density of the data. The released code penalizes every fifteenth step without the factor
    of 15 that `every` brings: divide γ by it for parity.

    Arguments:
        penalty: R1; none if None.
    """

    def __init__(self, penalty: GradientPenalty | None = None) -> None:
        super().__init__()
        if penalty is not None and penalty.total:
            raise ValueError("there is no tie in this divergence; pass a penalty with total=False.")
        self.penalty = penalty

    def critic_terms(
        self, energy: TimeEnergy, schedule: NoiseSchedule, jump: Jump, step: int
    ) -> dict[str, Tensor]:
        alone = partial(energy, t=jump.t, context=jump.x_next)
        fake, penalties = alone(jump.fake.detach()), {}
        if self.penalty is None or not (weight := self.penalty.at(step)):
            real = alone(jump.x)
        else:
            real, penalties["penalty"] = self.penalty(alone, jump.x, weight)
        self.energies = real.detach(), fake.detach()
        return {"real": F.softplus(real), "fake": F.softplus(-fake), **penalties}

    def player_terms(
        self,
        energy: TimeEnergy,
        schedule: NoiseSchedule,
        jump: Jump,
        mean: StepMean,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        return {"adversarial": F.softplus(energy(jump.fake, jump.t, jump.x_next))}
