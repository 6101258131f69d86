"""What every single-optimizer learner shares: seeded chains, optimizer groups, an honest log."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn

from eblvm.data.loader import seeded_generator
from eblvm.negatives import Negatives
from eblvm.samplers.buffer import ReplayBuffer

from .guard import DivergenceGuard, NonFiniteError
from .optim import check_clip_norms, clip_per_group, parameter_groups

__all__ = ["Learner", "NonFiniteError"]

STAGES = {"train": 0, "validate": 1, "test": 2, "predict": 3, "sanity_check": 1}


class Learner(LightningModule):
    """A Lightning module whose losses can be summed: one optimizer, automatic optimization.

    Arguments:
        optimizer: From parameter groups to an optimizer.
        learning_rates: Component name to learning rate.
        scheduler: From the optimizer to a schedule that steps once an epoch; none if None.
        clip_norms: Largest gradient norm by component; `a+b` clips two jointly. Components that are
            not named follow `--trainer.gradient_clip_val`.
        weight_decays: Weight decay by component, in place of the optimizer's.
    """

    levers: Mapping[str, str] = {}
    """What a guard advises, by what it sees, in place of the words it has for chains on data."""

    def __init__(
        self,
        optimizer: OptimizerCallable,
        learning_rates: Mapping[str, float],
        scheduler: LRSchedulerCallable | None = None,
        clip_norms: Mapping[str, float] | None = None,
        weight_decays: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.learning_rates = dict(learning_rates)
        self.scheduler = scheduler
        self.clip_norms = dict(clip_norms or {})
        self.weight_decays = dict(weight_decays or {})
        self.signs: dict[str, Tensor] = {}
        """The vital signs of the latest step of training at which they were taken."""
        self.goes_back = False
        """Set by a guard that goes back to a good state: what is not finite is its affair."""
        self.trouble: str | None = None
        """What was not finite in the last step, for that guard."""

    def setup(self, stage: str) -> None:
        """Chains that go on are a device's own: DDP must not copy the first one's to the others.

        Nor can it copy what stays on the processor, the factor of `Negatives`.
        """
        self._ddp_params_and_buffers_to_ignore = [
            f"{name}.{buffer}"
            for name, module in self.named_modules()
            if isinstance(module, ReplayBuffer | Negatives)
            for buffer, _ in module.named_buffers(recurse=False)
        ]

    @property
    def learns_energy(self) -> bool:
        """Whether there is an energy that can run away, so that a guard has to watch."""
        return False

    def twice_differentiated(self) -> list[nn.Module]:
        """Modules whose gradients are differentiated in training, which compiled code cannot be."""
        return []

    def configure_callbacks(self) -> list[Callback]:
        """A `DivergenceGuard` for those that learn an energy, unless the recipe has its own."""
        callbacks: list[Callback] = getattr(self._trainer, "callbacks", [])
        if not self.learns_energy or any(isinstance(c, DivergenceGuard) for c in callbacks):
            return []
        return [DivergenceGuard()]

    @property
    def noting(self) -> bool:
        """Whether the trainer writes down what this training step logs; figures cost time."""
        if self._trainer is None or not self.training:
            return False
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps
        return bool(every) and (self.global_step + 1) % every == 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Leave what is not finite inside to a guard that goes back, if there is one.

        Raises:
            NonFiniteError: If there is none.
        """
        try:
            yield
        except NonFiniteError as error:
            if not self.goes_back:
                raise
            self.trouble = str(error)

    def components(self) -> dict[str, nn.Module]:
        """The parts that have a learning rate each."""
        raise NotImplementedError

    def terms(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss terms of a batch, each with shape `(B,)`, in nats."""
        raise NotImplementedError

    def save_recipe(self) -> None:
        """Keep the recipe's part in the checkpoint, so that the checkpoint alone makes the model.

        Models built from Python objects have no recipe, and nothing is kept: their checkpoints
        hold weights only, never pickled objects.
        """
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters(logger=False)

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.components(), self.learning_rates, self.weight_decays)
        check_clip_norms(self.clip_norms, [group["name"] for group in groups])
        optimizer = self.optimizer(groups)
        if self.scheduler is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        clip_per_group(optimizer, gradient_clip_val, gradient_clip_algorithm, self.clip_norms)

    def generator(self, batch_idx: int = 0, offset: int = 0) -> torch.Generator:
        """A source of noise that is this step's alone.

        Seeded by (seed, rank, stage, epoch, batch), so that ranks differ and a resumed run repeats
        the uninterrupted one. Outside training the epoch does not count: the same noise each time
        makes epochs comparable.

        Arguments:
            batch_idx: The batch's index within the epoch.
            offset: Tells apart several uses within a batch.
        """
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        trainer = self._trainer
        stage = STAGES.get(trainer.state.stage or "train", 0) if trainer else 0
        epoch = self.current_epoch if trainer and stage == 0 else 0
        rank = self.global_rank if trainer else 0
        numbers = (seed, rank, stage, epoch, batch_idx, offset)
        return seeded_generator(*numbers, device=self.device)

    def require_finite(self, terms: Mapping[str, Tensor]) -> None:
        """Stop, naming the term, if one is not finite: nothing is masked.

        On a GPU only every sixteenth step looks, because looking waits for the device.

        Raises:
            NonFiniteError: With the term, its value and the step.
        """
        step = self.global_step
        if self.device.type != "cpu" and step % 16:
            return
        for name, term in terms.items():
            if not torch.isfinite(term).all():
                raise NonFiniteError(
                    f"the loss term {name!r} is {float(term.detach().mean())} at step {step} "
                    f"(epoch {self.current_epoch}). Lower this component's learning rate or the "
                    "sampler's step_size, or set --trainer.gradient_clip_val."
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the last good checkpoint: weights that are not finite do not replace it.

        Raises:
            NonFiniteError: With the parameter and the step.
        """
        for name, parameter in self.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(
                    f"the parameter {name!r} is not finite after step {self.global_step} (epoch "
                    f"{self.current_epoch}). Lower this component's learning rate or the "
                    "sampler's step_size, or set --trainer.gradient_clip_val."
                )
