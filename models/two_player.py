"""Learners with two players who take turns: a critic (the energy) and a sampler that chases it."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.core.optimizer import LightningOptimizer, do_nothing_closure
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from eblvm.signs import vital_signs

from .learner import Learner
from .optim import parameter_groups

__all__ = ["TwoPlayer"]


class TwoPlayer(Learner):
    """Alternates steps of a critic and of a player, each with an optimizer of its own.

    The critic's loss does not reach the player and the other way round: while one moves, the
    parameters of the other are frozen, though gradients pass through them. One batch is one step of
    the trainer (`max_steps`, `global_step`), however many steps the players take in it. Schedules
    step once an epoch.

    Arguments:
        learning_rates: A rate for each component that has parameters, of either player.
        critic_optimizer: From the critic's parameter groups to an optimizer.
        player_optimizer: From the player's parameter groups to an optimizer.
        critic_scheduler: From the critic's optimizer to a schedule; none if None.
        player_scheduler: From the player's optimizer to a schedule; none if None.
        critic_steps: Steps of the critic per batch.
        player_steps: Steps of the player per batch.
        clip_norm: Largest gradient norm of a component; not clipped if None.

    Raises:
        ValueError: If a number of steps is less than 1; when a run starts, if `clip_norm` meets
            scaled gradients.
    """

    player_first = False
    """Whether the player moves before the critic."""

    levers: Mapping[str, str] = {
        "separation": "data far below the samples: the energy tells them apart faster than the "
        "player can follow. Lower the learning rate of the energy, raise that of the player, or "
        "set a gradient penalty",
        "overshoot": "samples far below the data: the player runs ahead of the energy. Lower its "
        "learning rates",
        "scale": "samples escape. Lower the learning rates of the player",
    }

    @property
    def learns_energy(self) -> bool:
        return True

    def __init__(
        self,
        learning_rates: Mapping[str, float],
        critic_optimizer: OptimizerCallable = torch.optim.Adam,
        player_optimizer: OptimizerCallable = torch.optim.Adam,
        critic_scheduler: LRSchedulerCallable | None = None,
        player_scheduler: LRSchedulerCallable | None = None,
        critic_steps: int = 1,
        player_steps: int = 1,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(critic_optimizer, learning_rates, critic_scheduler)
        for name, steps in (("critic_steps", critic_steps), ("player_steps", player_steps)):
            if steps < 1:
                raise ValueError(f"{name} is {steps}; expected 1 or more.")
        self.automatic_optimization = False
        self.player_optimizer = player_optimizer
        self.player_scheduler = player_scheduler
        self.critic_steps = critic_steps
        self.player_steps = player_steps
        self.clip_norm = clip_norm

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if isinstance(self.trainer.strategy, DDPStrategy):
            # while one player moves, the parameters of the other get no gradient
            self.trainer.strategy._ddp_kwargs["find_unused_parameters"] = True
        if self.clip_norm is not None and getattr(self.trainer.precision_plugin, "scaler", None):
            raise ValueError(
                "clip_norm would clip gradients that 16-mixed has scaled. Use bf16-mixed, or set "
                "clip_norm to null."
            )

    @abstractmethod
    def critic(self) -> dict[str, nn.Module]:
        """The critic's components, by name."""

    @abstractmethod
    def player(self) -> dict[str, nn.Module]:
        """The player's components, by name."""

    @abstractmethod
    def critic_terms(self, batch: Any, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        """Terms of the critic's loss, `(B,)` or scalars; their sum of means is minimized.

        Arguments:
            batch: A batch of the data module.
            generator: Source of all noise on this batch.
            step: Which of the critic's steps on this batch.
        """

    @abstractmethod
    def player_terms(self, batch: Any, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        """Terms of the player's loss, as `critic_terms`."""

    def components(self) -> dict[str, nn.Module]:
        return {**self.critic(), **self.player()}

    def terms(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of both players, at the parameters as they are."""
        critic = self.critic_terms(batch, generator, 0)
        return {**critic, **self.player_terms(batch, generator, 0)}

    def turns(self) -> tuple[int, int]:
        """How many steps critic and player take on this batch."""
        return self.critic_steps, self.player_steps

    def _rates(self, components: Mapping[str, nn.Module]) -> dict[str, float]:
        return {name: lr for name, lr in self.learning_rates.items() if name in components}

    def configure_optimizers(self) -> Any:
        parameter_groups(self.components(), self.learning_rates)  # names every missing rate at once
        critic, player = self.critic(), self.player()
        pairs = (
            (self.optimizer, critic, self.scheduler),
            (self.player_optimizer, player, self.player_scheduler),
        )
        optimizers = [make(parameter_groups(parts, self._rates(parts))) for make, parts, _ in pairs]
        schedules = [
            schedule(optimizer)
            for optimizer, (_, _, schedule) in zip(optimizers, pairs, strict=True)
            if schedule is not None
        ]
        return optimizers, schedules

    @contextmanager
    def frozen(self, components: Mapping[str, nn.Module]) -> Iterator[None]:
        """No gradient is formed for these parameters inside; flags are left as found."""
        parameters = [p for m in components.values() for p in m.parameters() if p.requires_grad]
        for p in parameters:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in parameters:
                p.requires_grad_(True)

    def look(self, x: Tensor, sample: Tensor, energy: Tensor, sample_energy: Tensor) -> None:
        """Take the vital signs, if this step is one that the trainer writes down.

        Arguments:
            x: What of the data the critic saw, with shape `(B, *event)`.
            sample: What of the player it saw, likewise.
            energy: The critic's energies of the former, with shape `(B,)`.
            sample_energy: Of the latter, likewise.
        """
        if self.noting:
            tensors = (x, sample, energy, sample_energy)
            self.signs.update(vital_signs(*(t.detach() for t in tensors)))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        with self.watched():
            self._turns(batch, batch_idx)

    def _turns(self, batch: Any, batch_idx: int) -> None:
        noting, generator = self.noting, self.generator(batch_idx)
        if noting:
            self.signs = {}
        critic, player = self._players()
        critic_steps, player_steps = self.turns()
        sides = [
            (critic_steps, critic, self.critic_terms, self.player()),
            (player_steps, player, self.player_terms, self.critic()),
        ]
        sides = [side for side in sides[:: -1 if self.player_first else 1] if side[0]]
        logged: dict[str, Tensor] = {}
        for side in sides:
            steps, optimizer, terms_of, still = side
            for step in range(steps):
                with self.frozen(still):
                    terms = terms_of(batch, generator, step)
                    ends = side is sides[-1] and step == steps - 1
                    self._move(optimizer, terms, counts=ends)
                logged.update(terms)
        if noting:
            terms = {name: term.detach().mean() for name, term in logged.items()}
            loss: Any = sum(terms.values())  # of both players, at their last steps
            self.signs["loss"] = loss  # also where the critic rests, for a guard
            figures = {**self.signs, **terms}
            self.log_dict({f"train/{name}": term.detach().mean() for name, term in figures.items()})

    def _players(self) -> tuple[LightningOptimizer, LightningOptimizer]:
        optimizers: Any = self.optimizers()
        critic, player = optimizers
        return critic, player

    def _move(
        self, optimizer: LightningOptimizer, terms: Mapping[str, Tensor], counts: bool
    ) -> None:
        """One step of a player; only steps that count advance `global_step`."""
        self.require_finite(terms)
        optimizer.zero_grad()
        self.manual_backward(torch.stack([term.mean() for term in terms.values()]).sum())
        if self.clip_norm is not None:
            for group in optimizer.param_groups:
                clip_grad_norm_(group["params"], self.clip_norm)
        before, after = optimizer._on_before_step, optimizer._on_after_step
        if not counts:
            optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure
        optimizer.step()
        optimizer._on_before_step, optimizer._on_after_step = before, after

    def on_train_epoch_end(self) -> None:
        schedules: Any = self.lr_schedulers()
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            if schedule is not None:
                schedule.step()
