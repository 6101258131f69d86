"""The learner of diffusions in few steps: an energy and a generator that takes its samples."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from eblvm.averaging import RunningAverage
from eblvm.divergences import Jump, ReverseKL, StepDivergence, step_variance, tied
from eblvm.energies import Energy, TimeEnergy
from eblvm.metrics.grid import Bounds, energy_log_prob
from eblvm.metrics.likelihood import importance_log_likelihood
from eblvm.objectives import gaussian_nll
from eblvm.samplers import noise_like, score
from eblvm.schedules import NoiseSchedule

from .two_player import TwoPlayer

__all__ = ["DenoisingEBM", "LevelEnergy"]


class LevelEnergy(Energy):
    """A time-conditional energy at one level.

    Arguments:
        energy: E.
        t: The level.
    """

    def __init__(self, energy: nn.Module, t: int = 0) -> None:
        super().__init__()
        self.energy = energy
        self.t = t

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x, torch.full((len(x),), self.t, device=x.device))


class DenoisingEBM(TwoPlayer):
    r"""A diffusion in a few large steps, each undone by a generator that an energy teaches.

    At a level t, drawn for each datum, data give the pair :math:`(x_t, x_{t+1})` and the generator
    :math:`\tilde x_t \sim q(x_t \mid x_{t+1}, \hat x(x_{t+1}, t, z))`, without noise at t = 0. What
    critic and player then minimize is the `divergence`: with `Jeffrey` this is the adversarial
    energy-based model by a diffusion process, with `NonSaturating` the denoising diffusion GAN.

    With the former −E(x, 0) is, once learned, the log density of the (hardly noisy) data up to a
    constant. No chain is run in training or sampling.

    Arguments:
        energy: E.
        generator: :math:`\hat x`, `(x_next, t, z) -> (B, *event)`, the clean datum.
        schedule: The diffusion; its T is small.
        divergence: What the two minimize; its networks learn with the player.
        latent_dim: Width of z ~ N(0, I).
        event_shape: Shape of a datum, for sampling.
        learning_rates: Rates of `energy`, `generator` and, where it has networks, `divergence`.
        shared_fakes: Whether the player's step takes the generated states of the critic's (and
            saves a pass), or draws all anew.
        ema_decay: Decay of a running average of all weights, which then samples and scores; begun
            after the first step. None: none.
        fake_noise_at_zero: Whether the generator adds the noise of the posterior at t = 0, too.
        channels_last: Whether filters, and with them all maps, lie in memory with channels last,
            as convolutions of a CPU or a GPU's half precision like it.
        critic_optimizer: As in `TwoPlayer`.
        player_optimizer: As in `TwoPlayer`.
        critic_scheduler: As in `TwoPlayer`.
        player_scheduler: As in `TwoPlayer`.
        clip_norm: As in `TwoPlayer`.

    References:
        Improving Adversarial Energy-Based Model via Diffusion Process (Geng et al., 2024).
        Tackling the Generative Learning Trilemma with Denoising Diffusion GANs (Xiao et al., 2022),
        which draws levels, pairs and latents anew for the generator: `shared_fakes=False`.
    """

    def __init__(
        self,
        energy: TimeEnergy,
        generator: nn.Module,
        schedule: NoiseSchedule,
        divergence: StepDivergence,
        latent_dim: int,
        event_shape: Sequence[int],
        learning_rates: dict[str, float],
        shared_fakes: bool = True,
        ema_decay: float | None = None,
        fake_noise_at_zero: bool = False,
        channels_last: bool = False,
        critic_optimizer: OptimizerCallable = torch.optim.Adam,
        player_optimizer: OptimizerCallable = torch.optim.Adam,
        critic_scheduler: LRSchedulerCallable | None = None,
        player_scheduler: LRSchedulerCallable | None = None,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(
            learning_rates,
            critic_optimizer,
            player_optimizer,
            critic_scheduler,
            player_scheduler,
            clip_norm=clip_norm,
        )
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"ema_decay is {ema_decay}; expected a number between 0 and 1.")
        self.save_recipe()
        self.energy = energy
        self.net = generator
        self.schedule = schedule
        self.divergence = divergence
        self.latent_dim = latent_dim
        self.event_shape = tuple(event_shape)
        self.shared_fakes = shared_fakes
        self.fake_noise_at_zero = fake_noise_at_zero
        self.averaged = nn.ModuleDict()
        if ema_decay is not None:
            for name, module in self.components().items():
                if not list(module.parameters()):
                    continue
                self.averaged[name] = RunningAverage(module, ema_decay).requires_grad_(False)
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self._shared: Jump | None = None
        self.configure_optimizers()  # a missing learning rate is found before any data is read

    def critic(self) -> dict[str, nn.Module]:
        return {"energy": self.energy}

    def player(self) -> dict[str, nn.Module]:
        return {"generator": self.net, "divergence": self.divergence}

    def twice_differentiated(self) -> list[nn.Module]:
        return [] if getattr(self.divergence, "penalty", None) is None else [self.energy]

    def best(self, name: str) -> Any:
        """A component as it samples and scores: its running average, where there is one."""
        if name in self.averaged and not self.training:
            average: Any = self.averaged[name]
            return average.module
        return self.components()[name]

    def transition(self, x_next: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The mean of the generator's x_t given x_{t+1} and z, with the shape of `x_next`."""
        return self.schedule.reverse(self.best("generator")(x_next, t, z), x_next, t).mean

    def noise_scale(self, x_next: Tensor, t: Tensor) -> Tensor:
        """The standard deviation around that mean, to go with `x_next`."""
        scale = self.schedule.reverse(x_next, x_next, t).stddev
        if self.fake_noise_at_zero:
            return scale
        return scale * (t > 0).reshape(-1, *[1] * (x_next.ndim - 1))

    def jump(self, x: Tensor, generator: torch.Generator | None = None) -> Jump:
        """Steps at random levels: of data `x`, `(B, *event)`, and of the generator."""
        t = torch.randint(len(self.schedule), (len(x),), device=x.device, generator=generator)
        x_t, x_next = self.schedule.sample_pair(x, t, generator)
        z = noise_like(x.new_empty(len(x), self.latent_dim), generator)
        mean = self.transition(x_next, t, z)
        fake = mean + self.noise_scale(x_next, t) * noise_like(x, generator)
        return Jump(t, x_t, x_next, z, fake, mean)

    def critic_terms(self, batch: Any, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        jump = self._shared or self.jump(batch[0], generator)
        terms = self.divergence.critic_terms(self.energy, self.schedule, jump, self.global_step)
        if self.divergence.energies is not None:
            self.look(jump.x, jump.fake, *self.divergence.energies)
        return terms

    def player_terms(self, batch: Any, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        jump = self._shared or self.jump(batch[0], generator)
        mean = partial(self.transition, jump.x_next, jump.t)
        return self.divergence.player_terms(self.energy, self.schedule, jump, mean, generator)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        if self.shared_fakes:  # made before either player is frozen: the player needs its graph
            self._shared = self.jump(batch[0], self.generator(batch_idx, 2))
        super().training_step(batch, batch_idx)
        self._shared = None
        components = self.components()
        for name, average in self.averaged.items():
            average.update_parameters(components[name])  # type: ignore[operator]

    def evaluate(self, batch: Any, batch_idx: int, stage: str) -> None:
        """Log the player's terms, and how far the critic tells data from fakes."""
        generator = self.generator(batch_idx)
        with torch.no_grad():
            jump = self.jump(batch[0], generator)
            mean = partial(self.transition, jump.x_next, jump.t)
            energy, divergence = self.best("energy"), self.best("divergence")
            terms = divergence.player_terms(energy, self.schedule, jump, mean, generator)
            critic = divergence.critic_terms(energy, self.schedule, jump, -1)
        self.require_finite(terms)
        terms["loss"] = torch.stack([term.mean() for term in terms.values()]).sum()
        named = {f"{stage}/{n}": term.mean() for n, term in {**critic, **terms}.items()}
        self.log_dict(named, batch_size=len(batch[0]), sync_dist=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch, batch_idx, "test")

    def potential(self, t: int = 0) -> LevelEnergy:
        """−log of the density of level `t` up to a constant, `(B, *event) -> (B,)`.

        Raises:
            TypeError: If the energy is no density of data, as that of a GAN.
        """
        if not isinstance(self.divergence, ReverseKL):
            raise TypeError(
                f"the critic of {type(self.divergence).__name__} tells data from samples and is no "
                "density of data. Drop the callback or command that asks for one, or use Jeffrey."
            )
        return LevelEnergy(self.best("energy"), t)

    def at_lowest_level(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Data as E(·, 0) knows them: with the noise of level 0, with the shape of `x`."""
        return self.schedule.diffuse(x, 0, generator)

    def log_step_normalizer(
        self,
        x_next: Tensor,
        t: int,
        num_samples: int = 100,
        generator: torch.Generator | None = None,
        floor: float = 1e-2,
    ) -> Tensor:
        r"""log Z of a step, with proposals of the generator, in nats, `(B,)`.

        .. math:: Z(x_{t+1}) = \int e^{-E(x, t)} q(x_{t+1} \mid x)\, dx
            = \mathbb{E}_{z, x} \frac{e^{-E(x, t)}\, q(x_{t+1} \mid x)\, q_\psi(z \mid x, x_{t+1})}
            {p(z)\, \pi_\phi(x \mid x_{t+1}, z)}

        over z of the prior and x of the generator given z. The mean over K of them is unbiased, so
        its logarithm is a lower bound on average, which tightens with K.

        Arguments:
            x_next: x_{t+1}, with shape `(B, *event)`.
            t: The level.
            num_samples: K.
            generator: Source of the noise.
            floor: The least variance of the proposals, needed where the generator adds no noise.

        Raises:
            TypeError: If the divergence has no encoder, as that of a GAN.
        """
        energy = self.potential(t)
        divergence: Any = self.best("divergence")
        levels = torch.full((len(x_next),), t, device=x_next.device)
        variance = step_variance(self.schedule, t, x_next).clamp(min=floor)
        tie = tied(energy, self.schedule, x_next, levels).tie
        sigma = self.schedule.sigma[t + 1]
        dim = x_next[0].numel()
        constant = 0.5 * dim * torch.log(2 * torch.pi * sigma.square())
        rows = []
        with torch.no_grad():
            for _ in range(num_samples):
                z = noise_like(x_next.new_empty(len(x_next), self.latent_dim), generator)
                noise = noise_like(x_next, generator)
                x = self.transition(x_next, levels, z) + variance.sqrt() * noise
                log_target = -energy(x) - tie(x) - constant
                log_latent = -gaussian_nll(z, *divergence.encode(x, x_next, levels))
                log_prior = -gaussian_nll(z, torch.zeros_like(z), torch.zeros_like(z))
                squares = noise.square() + torch.log(2 * torch.pi * variance)
                log_proposal = -0.5 * squares.flatten(1).sum(1)
                rows.append((log_target + log_latent - log_prior - log_proposal).double())
        return importance_log_likelihood(torch.stack(rows))

    def log_likelihood(
        self,
        x: Tensor,
        num_samples: int = 100,
        generator: torch.Generator | None = None,
        floor: float = 1e-2,
    ) -> Tensor:
        r"""log p(x_0) of the whole chain of conditionals, in nats, `(B,)`.

        .. math:: \log p(x_0) \ge \mathbb{E}_q \Big[\log N(x_T; 0, I)
            + \sum_t \bigl(-E(x_t, t) - \log Z(x_{t+1})\bigr)\Big]

        with one draw of x_1 … x_T and normalizers by `log_step_normalizer`. These come from below,
        so that what is returned is a bound in neither direction unless `num_samples` is large.

        Arguments:
            x: Data, with shape `(B, *event)`; x_0 has the noise of level 0.
            num_samples: Proposals for each normalizer.
            generator: Source of the noise.
            floor: As in `log_step_normalizer`.
        """
        x_t = self.at_lowest_level(x, generator)
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for t in range(len(self.schedule)):
            x_next = self.schedule.step(x_t, t, generator)
            with torch.no_grad():
                total -= self.potential(t)(x_t).double()
            total -= self.log_step_normalizer(x_next, t, num_samples, generator, floor)
            x_t = x_next
        zero = torch.zeros_like(x_t)
        return total - gaussian_nll(x_t, zero, zero).double()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The energies E(ā_0 x, 0), `(B,)`: minus the score `energy`, low is likely."""
        return self.potential()(self.schedule.a_bar[0] * batch[0])

    def scores(
        self, x: Tensor, generator: torch.Generator | None = None, num_draws: int = 4
    ) -> dict[str, Tensor]:
        r"""How much each of `x` looks like the data, `(B,)` each; high means in-distribution.

        `energy`, :math:`-E(\bar a_0 x, 0)`; `gradient_norm`, minus the norm of its gradient;
        `energy_t`, the mean of −E(x_t, t) over draws of x_t, for t = 1 … T − 1; `energy_sum`, the
        sum of the energies of all levels. The critic of a GAN is no density: `critic`, the mean of
        what it says of pairs of neighbors, over draws and all levels.

        Arguments:
            x: Data, with shape `(B, *event)`.
            generator: Source of the noise.
            num_draws: Noisy states of each datum and level.
        """
        clean = self.schedule.a_bar[0] * x
        levels = range(len(self.schedule))
        if not isinstance(self.divergence, ReverseKL):
            with torch.no_grad():
                told = [self._tell(x, t, generator) for t in levels for _ in range(num_draws)]
            return {"critic": torch.stack(told).mean(0)}
        with torch.no_grad():
            found = {"energy": -self.potential()(clean)}
            for t in levels[1:]:
                draws = [self.schedule.diffuse(x, t, generator) for _ in range(num_draws)]
                energies = torch.stack([self.potential(t)(x_t) for x_t in draws])
                found[f"energy_{t}"] = -energies.mean(0)
        found["energy_sum"] = torch.stack(list(found.values())).sum(0)
        found["gradient_norm"] = -score(self.potential(), clean).flatten(1).norm(dim=1)
        return found

    def _tell(self, x: Tensor, t: int, generator: torch.Generator | None) -> Tensor:
        """What a GAN's critic says of data with noise of level `t`, `(B,)`; high is real."""
        x_t, x_next = self.schedule.sample_pair(x, t, generator)
        level = torch.full((len(x),), t, device=x.device)
        return -self.best("energy")(x_t, level, x_next)

    @torch.no_grad()
    def sample(
        self,
        num: int,
        generator: torch.Generator | None = None,
        noise: bool = False,
        trajectory: bool = False,
    ) -> Tensor:
        """Draw data, with shape `(num, *event)`, in T steps from noise.

        Arguments:
            num: How many.
            generator: Source of the noise.
            noise: Without effect: the last step is the data.
            trajectory: Whether to return x_T … x_0, with shape `(T + 1, num, *event)`.
        """
        like = next(self.net.parameters())
        x = noise_like(like.new_empty(num, *self.event_shape), generator)
        states = [x]
        for level in reversed(range(len(self.schedule))):
            t = torch.full((num,), level, device=x.device)
            z = noise_like(x.new_empty(num, self.latent_dim), generator)
            mean = self.transition(x, t, z)
            x = mean + self.noise_scale(x, t) * noise_like(x, generator)
            states.append(x)
        return torch.stack(states) if trajectory else x

    def log_prob_on_grid(self, bounds: Bounds, resolution: int) -> Tensor:
        """log p(x) of points of the plane, by the energy of level 0.

        Arguments:
            bounds: The box, `((x_low, x_high), (y_low, y_high))`; log Z is summed over one twice as
                wide.
            resolution: Cells per axis.

        Returns:
            Nats at the centers of the cells, with shape `(resolution²,)`, in float64.
        """
        dtype = next(self.energy.parameters()).dtype
        return energy_log_prob(self.potential(), bounds, resolution, self.device, dtype)

    def conditional(self, x_next: Tensor, t: Tensor) -> Any:
        """−log p(x_t | x_{t+1}) up to a constant, `(B, *event) -> (B,)`, for chains on a step."""
        return tied(self.best("energy"), self.schedule, x_next, t)
