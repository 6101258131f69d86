"""What every run carries with it: exact resuming, a safe Ctrl-C, compiled networks."""

import random
import signal
import sys
from types import FrameType
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from torch import nn

__all__ = ["CompileNetworks", "Interrupt", "Progress", "RandomState"]


class RandomState(Callback):
    """Keeps the state of every random number generator, of every rank, in the checkpoint.

    Lightning's checkpoints hold weights, optimizers and loops, but no random state: dropout and
    shuffles of a resumed run would differ from those of the uninterrupted one.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] | None = None

    @staticmethod
    def capture() -> dict[str, Any]:
        """The generators' states as tensors and plain containers (loadable `weights_only`)."""
        _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
            "python": list(random.getstate()),
        }

    @staticmethod
    def restore(state: dict[str, Any]) -> None:
        """Set the generators to a captured state."""
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
        keys, *rest = state["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, self.capture())
        else:
            states = [self.capture()]
        checkpoint["random_state"] = states

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._restored = checkpoint.get("random_state")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # With another number of ranks there is no state to go back to, and seeds are fresh.
        if self._restored and len(self._restored) == trainer.world_size:
            self.restore(self._restored[trainer.global_rank])
        self._restored = None


class Progress(RichProgressBar):
    """One bar with the loss and the monitored figure; in a log file, a line for each validation.

    Arguments:
        monitor: The figure beside the loss.
    """

    def __init__(self, monitor: str = "val/loss") -> None:
        super().__init__()
        self.monitor = monitor

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        names = dict.fromkeys(("train/loss", self.monitor))
        figures = {n: trainer.logged_metrics[n] for n in names if n in trainer.logged_metrics}
        shown = {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}
        return shown | {name: f"{float(value):.4g}" for name, value in figures.items()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not sys.stdout.isatty() and trainer.is_global_zero:
            found = {n: v for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
            figures = "  ".join(f"{name} {float(value):.4g}" for name, value in found.items())
            print(f"epoch {trainer.current_epoch}: {figures}", flush=True)


class Interrupt(Callback):
    """Ctrl-C ends the run after the batch at hand, with its last checkpoint saved.

    A second Ctrl-C ends it at once.

    Arguments:
        path: Where the checkpoint goes.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked = False
        self._previous: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.path = trainer.strategy.broadcast(self.path)  # under torchrun each rank has its own

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        sys.stderr.write("\neblvm: stopping after this batch; Ctrl-C again stops at once.\n")
        signal.signal(signal.SIGINT, self._previous or signal.default_int_handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        except ValueError:  # not in the main thread, where Python lets nobody handle signals
            self._previous = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


class CompileNetworks(Callback):
    """`torch.compile` of each component's networks, in place; checkpoints keep their names.

    Worth its compile time (10–90 s) on a GPU and for networks that run long; the short chains of
    small tilts are better left alone, see `eblvm.samplers`.

    Arguments:
        backend: As in `torch.compile`.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.backend = backend

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for network in networks(pl_module):
            network.compile(backend=self.backend)


def networks(module: nn.Module) -> list[nn.Module]:
    """The encoders, decoders and nets inside a learner, the parts worth compiling."""
    names = ("encoder", "decoder", "net", "network")
    return [m for name, m in module.named_modules() if name.rpartition(".")[2] in names]
