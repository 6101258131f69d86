"""A watch on the training of energies, which can run away without any loss telling.

The contrast of an energy has no floor and no meaning of its own: it swings around zero in a healthy
run and keeps doing so, for a while, in one that is lost. What tells is how chains and energies
behave; the guard looks at that and says which lever to pull.
"""

import copy
from collections import Counter, deque
from collections.abc import Mapping
from statistics import median
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.nn.utils import get_total_norm

__all__ = ["DivergenceError", "DivergenceGuard", "NonFiniteError"]

STEP_FACTOR = "negatives.factor"
"""Where a learner's state has the factor on the step size of its chains."""


LEVERS = {
    "separation": "data far below the negatives: the energy grows faster than chains can follow. "
    "Raise the sampler's num_steps or step_size, or lower the learning rate of the energy, or set "
    "energy_penalty",
    "overshoot": "negatives far below the data: chains overshoot. Lower the sampler's step_size",
    "scale": "chains escape. Lower the sampler's step_size, narrow the reference, or give the "
    "sampler bounds",
    "displacement": "they overshoot. Lower the sampler's step_size, or the learning rate of the "
    "energy",
}
"""What each sign asks for; a learner's own `levers` go before these."""


FLAT = 1e-8
"""The standard deviation below which an energy is taken for constant."""


class NonFiniteError(RuntimeError):
    """A loss term is NaN or infinite."""


class DivergenceError(NonFiniteError):
    """Training has left the regime in which chains follow the energy."""


class DivergenceGuard(Callback):
    """Watches a learner's vital signs and the gradients of its components; stops, or goes back.

    Those of an energy of data are in :meth:`~eblvm.models.DataEBM.vital_signs`; a prior's are taken
    on latents, two players' on what the player makes. It looks at steps of training, when the
    trainer logs (`log_every_n_steps`). A sign must be bad
    for `patience` looks in a row, except one that is not finite, which counts at once. Nothing is
    ever masked: going back is logged as `guard/returns` and said on the terminal. Averaged weights
    go back, too.

    Arguments:
        patience: Looks in a row.
        max_separation: Largest |energy gap| in standard deviations of the energy among data or
            negatives. Beyond, the energy tells the two apart far faster than chains can move. Steps
            of one datum and one chain have no such deviation, and are not judged by it.
        max_scale: Largest root mean square of negatives, in units of that of the data.
        max_displacement: Farthest a chain may move, as a root mean square in the same units.
        max_gradient_growth: Largest norm of a component's gradient, in units of its median so far.
        max_buffer_age: Highest mean number of visits to a state of a replay buffer; None sets no
            bound. The mean tends to 1/restart_probability, 20 for 0.05, whatever the capacity, so a
            bound above that never speaks: it is for chains that hardly ever begin anew, or never,
            whose age grows with training for good.
        returns: How often to go back to the last good state before stopping; 0 stops at once.
        lever: What is lowered then: all learning rates, or the step size of the chain.
        factor: By what factor.
        keep_every: Looks between two states that are kept for going back. The older of two is used,
            so that trouble which took `patience` looks to be seen is not gone back to.
    """

    def __init__(
        self,
        patience: int = 5,
        max_separation: float = 20.0,
        max_scale: float = 5.0,
        max_displacement: float = 5.0,
        max_gradient_growth: float = 1e4,
        max_buffer_age: float | None = None,
        returns: int = 0,
        lever: Literal["learning_rate", "step_size"] = "learning_rate",
        factor: float = 0.5,
        keep_every: int = 10,
    ) -> None:
        if min(patience, keep_every) < 1 or returns < 0:
            raise ValueError(
                f"patience, keep_every and returns are {patience}, {keep_every} and {returns}; "
                "expected 1 or more, 1 or more, and 0 or more."
            )
        if not 0 < factor < 1:
            raise ValueError(f"factor is {factor}; expected a number between 0 and 1.")
        self.patience = patience
        self.max_separation = max_separation
        self.max_scale = max_scale
        self.max_displacement = max_displacement
        self.max_gradient_growth = max_gradient_growth
        self.max_buffer_age = max_buffer_age
        self.returns = returns
        self.lever = lever
        self.factor = factor
        self.keep_every = keep_every
        self.events: list[str] = []
        """What was done, in order."""
        self._bad: Counter[str] = Counter()
        self._norms: dict[str, deque[float]] = {}
        self._kept: deque[dict[str, Any]] = deque(maxlen=2)
        self._looks = 0
        self._last: object = None
        self._levers = LEVERS

    def state_dict(self) -> dict[str, Any]:
        return {"events": list(self.events), "looks": self._looks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.events = list(state_dict["events"])
        self._looks = state_dict["looks"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        learner: Any = pl_module
        if self.returns and trainer.world_size > 1:
            raise ValueError(
                f"the guard goes back on one device only, and there are {trainer.world_size}. "
                "Set returns to 0."
            )
        chains = getattr(learner, "negatives", None)
        if self.returns and self.lever == "step_size" and not hasattr(chains, "step_factor"):
            raise ValueError(
                f"lever is step_size, and {type(learner).__name__} has no chains whose step size "
                "could be lowered. Set lever to learning_rate."
            )
        if self.returns and hasattr(learner, "goes_back"):
            learner.goes_back = True
        self._levers = LEVERS | getattr(learner, "levers", {})

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        learner: Any = pl_module
        if getattr(learner, "signs", None) is self._last:
            return
        for group in optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                norm = float(get_total_norm(gradients))
                pl_module.log(f"train/gradient_{group['name']}", norm)
                self._norms.setdefault(group["name"], deque(maxlen=100)).append(norm)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        learner: Any = pl_module
        trouble, learner.trouble = getattr(learner, "trouble", None), None
        signs: Mapping[str, Tensor] = getattr(learner, "signs", {})
        if trouble is None and signs is not self._last and signs:
            trouble = self.judge({name: float(value) for name, value in signs.items()})
            self._looks += 1
            if trouble is None and self.returns and not self._bad.total():
                if not self._kept or self._looks % self.keep_every == 0:
                    self._keep(trainer, pl_module)
        self._last = signs
        if trouble is not None:
            self._act(trainer, pl_module, trouble)

    def judge(self, signs: Mapping[str, float]) -> str | None:
        """What is wrong, with the lever to pull; None if nothing is, or not for long enough.

        Arguments:
            signs: The learner's vital signs.
        """
        norms = {f"gradient of {n}": history[-1] for n, history in self._norms.items() if history}
        for name, value in {**signs, **norms}.items():
            if value != value or value in (float("inf"), float("-inf")):
                return (
                    f"{name} is {value}. Lower the learning rates or the sampler's step_size, or "
                    "set --trainer.gradient_clip_val."
                )
        found = self._complaints(signs)
        for name in list(self._bad):
            if name not in found:
                del self._bad[name]
        self._bad.update(found.keys())
        for name, complaint in found.items():
            if self._bad[name] >= self.patience:
                return complaint
        return None

    def _complaints(self, signs: Mapping[str, float]) -> dict[str, str]:
        """Signs that are out of bounds, and what each asks for."""
        found: dict[str, str] = {}
        gap, spread = signs.get("energy_gap", 0.0), signs.get("energy_spread", float("inf"))
        scale = max(signs.get("data_scale", 1.0), 1e-12)
        if abs(gap) > self.max_separation * spread:
            way = self._levers["separation" if gap < 0 else "overshoot"]
            found["separation"] = (
                f"the energy gap is {gap:.3g}, {abs(gap) / max(spread, 1e-30):.3g} standard "
                f"deviations of the energy; {way}."
            )
        if spread < FLAT:
            found["flatness"] = (
                f"the energy is the same everywhere, to {spread:.1g}: its units are dead, or its "
                "last activation is on its flat side. Lower its learning rate, which moved it "
                "there, or take an activation that has no flat side, such as torch.nn.Identity."
            )
        if (negative := signs.get("negative_scale", 0.0)) > self.max_scale * scale:
            found["scale"] = (
                f"negatives have a root mean square of {negative:.3g}, data {scale:.3g}: "
                f"{self._levers['scale']}."
            )
        if (moved := signs.get("displacement", 0.0)) > self.max_displacement * scale:
            found["displacement"] = (
                f"chains move by {moved:.3g} per number where data have a root mean square of "
                f"{scale:.3g}: {self._levers['displacement']}."
            )
        age, oldest = signs.get("buffer_age", 0.0), self.max_buffer_age
        if oldest is not None and age > oldest:
            found["age"] = (
                f"states of the replay buffer were visited {age:.3g} times on average and have "
                f"lost touch with fresh chains. Raise restart_probability above {1 / oldest:.3g}: "
                "the mean tends to its inverse."
            )
        for name, history in self._norms.items():
            if len(history) >= 20 and history[-1] > self.max_gradient_growth * median(history):
                found[f"gradient of {name}"] = (
                    f"the gradient of {name} has norm {history[-1]:.3g}, its median is "
                    f"{median(history):.3g}. Lower its learning rate, or set "
                    "--trainer.gradient_clip_val."
                )
        return found

    def _keep(self, trainer: Trainer, learner: LightningModule) -> None:
        """Remember weights, averaged ones too, and the optimizer's state, if all are finite."""
        state: dict[str, Any] = {"state_dict": learner.state_dict()}
        for average in averages(trainer):
            average.on_save_checkpoint(trainer, learner, state)
        state = {
            part: {name: v.detach().cpu().clone() for name, v in tensors.items()}
            for part, tensors in state.items()
        }
        weights = [v for tensors in state.values() for v in tensors.values()]
        if all(v.isfinite().all() for v in weights if v.is_floating_point()):
            optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
            state["optimizers"] = copy.deepcopy(optimizers)
            self._kept.append(state)

    def _act(self, trainer: Trainer, learner: LightningModule, trouble: str) -> None:
        """Stop, or go back.

        Raises:
            DivergenceError: If going back is not asked for, or has been tried often enough.
        """
        where = f"step {trainer.global_step} (epoch {trainer.current_epoch})"
        done = len(self.events)
        if done >= self.returns or not self._kept:
            after = f" after going back {done} times" if done else ""
            raise DivergenceError(f"training diverges at {where}{after}: {trouble}")
        state = self._kept[0]
        self._kept = deque([state], maxlen=2)
        share = self.factor if self.lever == "learning_rate" else 1.0
        step_factor = getattr(getattr(learner, "negatives", None), "step_factor", 1.0)
        for weights in (state["state_dict"], state.get("current_model_state", {})):
            if STEP_FACTOR in weights:
                weights[STEP_FACTOR].fill_(step_factor * self.factor / share)
        self._restore(trainer, learner, state, share)
        lowered = "learning rates" if self.lever == "learning_rate" else "the chain's step size"
        event = f"{where}: {trouble} Went back to a good state, {lowered} times {self.factor:g}."
        self.events.append(event)
        self._bad.clear()
        self._norms.clear()
        rank_zero_info(f"divergence guard, {event}")
        learner.log("guard/returns", float(len(self.events)))

    def _restore(
        self, trainer: Trainer, learner: LightningModule, state: dict[str, Any], share: float
    ) -> None:
        """Go back to a state, with a share of the learning rates that are in force now."""
        learner.load_state_dict(state["state_dict"])
        for average in averages(trainer):  # which has the learner's own weights elsewhere
            average.on_load_checkpoint(trainer, learner, state)
        for optimizer, kept in zip(trainer.optimizers, state["optimizers"], strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(copy.deepcopy(kept))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
        for config in trainer.lr_scheduler_configs:
            bases: Any = getattr(config.scheduler, "base_lrs", [])
            config.scheduler.base_lrs = [base * share for base in bases]


def averages(trainer: Trainer) -> list[WeightAveraging]:
    """The callbacks that average weights, such as `--ema` adds: one, or none."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
