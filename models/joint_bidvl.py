"""Bi-level doubly variational learning of any energy of data and latents."""

from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.func import functional_call

from eblvm.energies import Energy, JointEnergy
from eblvm.objectives import Divergence, SymmetricDivergence
from eblvm.pairs import EnumeratedPair, VariationalPair
from eblvm.rbm import GaussianBernoulliRBM
from eblvm.samplers import score

from .two_player import TwoPlayer
from .unroll import unroll

__all__ = ["JointBiDVL", "gradient_fit"]


class JointBiDVL(TwoPlayer):
    r"""An energy E(x, z) and two distributions, q(z|x) and p(x, z), that follow it.

    On each batch the pair takes K steps on D₁(q, p_E(z|x)) + D₂(p, p_E(x, z)); then the energy one
    on J, see :mod:`eblvm.pairs`. The total derivative of J has a second part, through the
    pair's dependence on the energy. It vanishes where both divergences are reverse, or the pair
    can reach the energy; otherwise `unroll_steps` approximates it.

    References:
        Bi-level Doubly Variational Learning for Energy-based Latent Variable Models (Kan et al.,
        2022); unrolling as in Bi-level Score Matching (Bao et al., 2020).

    Arguments:
        energy: E.
        pair: q and p.
        learning_rates: Rates of `energy` and `pair`; the pair's should be the higher by 3 or so.
        posterior: D₁; symmetric if None, which a GaussianPair cannot compute: give it
            `ReverseDivergence`.
        joint: D₂; symmetric if None.
        unroll_steps: Steps of the pair's optimizer that the energy's gradient sees; 0 is first
            order, and keeps no graph.
        critic_optimizer: Of the energy.
        player_optimizer: Of the pair.
        critic_scheduler: As in `TwoPlayer`.
        player_scheduler: As in `TwoPlayer`.
        player_steps: K.
        clip_norm: As in `TwoPlayer`.

    Raises:
        ValueError: If `unroll_steps` is negative, or the pair cannot compute a divergence.
    """

    player_first = True

    exact_likelihood = True

    def __init__(
        self,
        energy: JointEnergy,
        pair: VariationalPair,
        learning_rates: dict[str, float],
        posterior: Divergence | None = None,
        joint: Divergence | None = None,
        unroll_steps: int = 0,
        critic_optimizer: OptimizerCallable = torch.optim.Adam,
        player_optimizer: OptimizerCallable = torch.optim.Adam,
        critic_scheduler: LRSchedulerCallable | None = None,
        player_scheduler: LRSchedulerCallable | None = None,
        player_steps: int = 5,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(
            learning_rates,
            critic_optimizer,
            player_optimizer,
            critic_scheduler,
            player_scheduler,
            1,
            player_steps,
            clip_norm,
        )
        if unroll_steps < 0:
            raise ValueError(f"unroll_steps is {unroll_steps}; expected 0 or more.")
        self.save_recipe()
        self.energy = energy
        self.pair = pair
        self.posterior = SymmetricDivergence() if posterior is None else posterior
        self.joint = SymmetricDivergence() if joint is None else joint
        self.unroll_steps = unroll_steps
        self._gradients: Tensor | None = None
        """Of J and of minus the log-likelihood, summed over data seen, `(2, parameters)`."""
        self.pair.check(self.posterior, self.joint)
        self.configure_optimizers()  # a missing learning rate is found before any data is read

    def critic(self) -> dict[str, nn.Module]:
        return {"energy": self.energy}

    def player(self) -> dict[str, nn.Module]:
        return {"pair": self.pair}

    def twice_differentiated(self) -> list[nn.Module]:
        return [self.energy, self.pair] if self.unroll_steps else []

    def critic_terms(
        self, batch: tuple[Tensor, Tensor], generator: torch.Generator, step: int
    ) -> dict[str, Tensor]:
        x = batch[0]
        if not self.unroll_steps or self._trainer is None:
            upper = self.pair.upper(self.energy, x, generator)
        else:
            upper = self.unrolled(x, self._players()[1].optimizer, generator)
        if self.noting:
            self.signs["upper"] = upper.detach().mean()
        return {"upper": upper}

    def unrolled(
        self, x: Tensor, optimizer: torch.optim.Optimizer, generator: torch.Generator | None = None
    ) -> Tensor:
        """J at where the optimizer would take the pair, with a graph to the energy, `(B,)`.

        The pair stays as it is, its buffers (of batch normalization, say) included.
        """
        buffers = {name: buffer.clone() for name, buffer in self.pair.named_buffers()}

        def loss(values: dict[str, Tensor]) -> Tensor:
            settings = (self.energy, x, self.posterior, self.joint, generator)
            terms = functional_call(self.pair, values | buffers, ("lower", *settings))
            return torch.stack([term.mean() for term in terms.values()]).sum()

        parameters = dict(self.pair.named_parameters())
        values = unroll(loss, parameters, optimizer, self.unroll_steps)
        return functional_call(self.pair, values | buffers, ("upper", self.energy, x, generator))

    def player_terms(
        self, batch: tuple[Tensor, Tensor], generator: torch.Generator, step: int
    ) -> dict[str, Tensor]:
        return self.pair.lower(self.energy, batch[0], self.posterior, self.joint, generator)

    def evaluate(self, batch: tuple[Tensor, Tensor], batch_idx: int, stage: str) -> None:
        """Log the divergences and, where the likelihood is exact, how well its gradient is met."""
        x, generator = batch[0], self.generator(batch_idx)
        terms = self.player_terms(batch, generator, 0)
        figures = {name: term.mean() for name, term in terms.items()}
        figures["loss"] = torch.stack(list(figures.values())).sum()
        if isinstance(self.energy, GaussianBernoulliRBM) and isinstance(self.pair, EnumeratedPair):
            figures["loss"] = -self.log_likelihood(x).mean()
            figures["posterior_kl"] = self.pair.posterior_divergence(self.energy, x)[0].mean()
            figures["joint_kl"] = self.pair.joint_divergence(self.energy)[0]
            self._add_gradients(self.energy, x)
        self.log_dict(
            {f"{stage}/{name}": value.detach() for name, value in figures.items()},
            batch_size=len(x),
            sync_dist=True,
        )

    def _add_gradients(self, energy: GaussianBernoulliRBM, x: Tensor) -> None:
        """Sums over the data, as the ratio of their norms is no mean over batches."""
        upper = self.pair.upper(energy, x).mean()
        both = torch.stack(gradients(energy, upper, x)) * len(x)
        self._gradients = both if self._gradients is None else self._gradients + both

    def _log_gradients(self, stage: str) -> None:
        if self._gradients is not None:
            gathered: Any = self.all_gather(self._gradients)
            found, truth = gathered.view(-1, *self._gradients.shape).sum(0)
            cosine, error = compared(found, truth)
            figures = {f"{stage}/gradient_cosine": cosine, f"{stage}/gradient_error": error}
            self.log_dict(figures, sync_dist=True)  # the same on all ranks
        self._gradients = None

    def _begin_gradients(self) -> None:
        """Zeros where the likelihood is exact, so that a rank without data has a sum, too."""
        self._gradients = None
        if isinstance(self.energy, GaussianBernoulliRBM) and isinstance(self.pair, EnumeratedPair):
            flat = torch.cat([p.detach().flatten() for p in self.energy.parameters()])
            self._gradients = torch.zeros_like(flat).expand(2, -1)

    def on_validation_epoch_start(self) -> None:
        self._begin_gradients()

    def on_validation_epoch_end(self) -> None:
        self._log_gradients("val")

    def on_test_epoch_start(self) -> None:
        self._begin_gradients()

    def on_test_epoch_end(self) -> None:
        self._log_gradients("test")

    @torch.enable_grad()
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(batch, batch_idx, "val")

    @torch.enable_grad()
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(batch, batch_idx, "test")

    def sample(
        self, num: int, generator: torch.Generator | None = None, noise: bool = False
    ) -> Tensor:
        """Draw x of p(x, z), with shape `(num, *event)`; `noise` is without effect."""
        return self.pair.sample(num, generator)

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, num_samples: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """log p_E(x), `(B,)`, in nats: exact, by enumeration of the latents.

        Raises:
            TypeError: If the energy's latents cannot be enumerated.
        """
        if not isinstance(self.energy, GaussianBernoulliRBM):
            raise TypeError(
                f"the latents of {type(self.energy).__name__} cannot be enumerated; its likelihood "
                "is not known."
            )
        return self.energy.log_prob(x)

    @torch.no_grad()
    def scores(
        self, x: Tensor, generator: torch.Generator | None = None, num_draws: int = 4
    ) -> dict[str, Tensor]:
        r"""How much each of `x` looks like the data, `(B,)` each; high means in-distribution.

        `energy`, −F(x), the log-density up to a constant, where the energy knows its marginal, else
        its bound by q, −E_q[E(x, z)] + H(q); `gradient_norm`, minus the norm of its gradient;
        `joint`, −E(x, z) at q's mean.

        Arguments:
            x: Data, with shape `(B, *event)`.
            generator: Source of the noise.
            num_draws: Latents of each datum, for the bound.
        """

        def free(x: Tensor) -> Tensor:
            if isinstance(self.energy, Energy):
                return self.energy(x)
            draws = [self.pair.free(self.energy, x, generator) for _ in range(num_draws)]
            return torch.stack(draws).mean(0)

        return {
            "energy": -free(x),
            "gradient_norm": -score(free, x).flatten(1).norm(dim=1),
            "joint": -self.energy.joint(x, self.pair.posterior_mean(x)),
        }


def gradient_fit(
    energy: GaussianBernoulliRBM, objective: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """How an objective's gradient in the energy's parameters compares with maximum likelihood's.

    Arguments:
        energy: Whose likelihood is exact.
        objective: A scalar with a graph to its parameters, to be minimized.
        x: The data, with shape `(B, N)`.

    Returns:
        The cosine of the angle between the gradients, and the norm of their difference over that
        of the exact one.
    """
    return compared(*gradients(energy, objective, x))


def gradients(energy: GaussianBernoulliRBM, objective: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the objective and of minus the mean log-likelihood, flat; arguments of `gradient_fit`."""
    parameters = list(energy.parameters())
    exact = energy(x).mean() + energy.log_normalizer()
    found, truth = (
        torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])
        for value in (objective, exact)
    )
    return found, truth


def compared(found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine of two vectors, and the norm of their difference over the second's."""
    cosine = found @ truth / (found.norm() * truth.norm())
    return cosine, (found - truth).norm() / truth.norm()
