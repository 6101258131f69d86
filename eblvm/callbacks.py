"""What every run carries with it: exact resuming, a safe Ctrl-C, its cost, compiled networks."""

import itertools
import json
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, RichProgressBar
from torch import nn

from eblvm.averaging import RunningAverage, estimate_statistics, statistics
from eblvm.data import DataModule

__all__ = ["AveragedWeights", "CompileNetworks", "Cost", "Interrupt", "Progress", "RandomState"]


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


class AveragedWeights(EMAWeightAveraging):
    """Lightning's running average of weights, with the statistics that batch normalization needs.

    Validation, checkpoints and the end of training have the average; see
    `eblvm.averaging.RunningAverage` for what is averaged. Before each of them the running
    statistics of batch normalization are computed from training batches by the averaged weights
    themselves, if a learner normalizes so and the data are a `DataModule`'s.

    Arguments:
        decay: What is kept of the average at each step.
        num_batches: Batches for the statistics; as many as weigh in a running mean of momentum 0.1.
    """

    def __init__(self, decay: float, num_batches: int = 20) -> None:
        super().__init__(decay=decay)
        self.decay = decay
        self.num_batches = num_batches
        self._settled = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._average_model = RunningAverage(pl_module, self.decay).to(pl_module.device)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle(trainer, pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._settle(trainer, pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle(trainer, pl_module)
        super().on_train_end(trainer, pl_module)

    def _settle(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Statistics of the averaged weights; once a step, and equal on all ranks."""
        data = getattr(trainer, "datamodule", None)
        average: Any = self._average_model
        if average is None or trainer.sanity_checking or self._settled == trainer.global_step:
            return
        self._settled = trainer.global_step
        found = statistics(average.module)
        if not found or not isinstance(data, DataModule) or not hasattr(pl_module, "terms"):
            return

        learner: Any = pl_module

        def passes() -> Iterator[tuple[Any, torch.Generator]]:
            for i, batch in enumerate(itertools.islice(data.batches("train"), self.num_batches)):
                batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
                yield trainer.precision_plugin.convert_input(batch), learner.generator(i, 9)

        with trainer.precision_plugin.train_step_context():
            estimate_statistics(average.module, passes())
        for value in found:
            gathered: Any = pl_module.all_gather(value)
            value.copy_(gathered.view(-1, *value.shape).mean(0))


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


class Cost(Callback):
    """What a run has cost so far, in `cost.json` of the run folder when training ends.

    Seconds of wall and of processor time, for training and for validation apart, steps per second
    of training, and peak memory in MiB: resident, of the first process, and allocated on its GPU.
    Checkpoints keep seconds and peaks, so that a resumed run has those of its earlier parts, too.
    """

    def __init__(self) -> None:
        self.spent = {f"{k}_{c}_s": 0.0 for k in ("train", "validation") for c in ("wall", "cpu")}
        self.peaks: dict[str, int] = {}
        self._device = torch.device("cpu")
        self._phase = "train"
        self._since = 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        self._book()
        self._look()
        return {**self.spent, "peaks": dict(self.peaks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.peaks = dict(state_dict.get("peaks", {}))
        self.spent |= {name: state_dict[name] for name in self.spent if name in state_dict}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._phase, self._since = "train", clocks(trainer)
        self._device = trainer.strategy.root_device

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._turn_to("validation", trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._turn_to("train", trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._turn_to("train", trainer)
        if not trainer.is_global_zero:
            return
        rate = trainer.global_step / max(self.spent["train_wall_s"], 1e-9)
        figures = {"steps": trainer.global_step, "steps_per_s": round(rate, 3)}
        figures |= {name: round(seconds, 2) for name, seconds in self.spent.items()}
        self._look()
        figures |= self.peaks
        path = Path(trainer.default_root_dir) / "cost.json"
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

    def _turn_to(self, phase: str, trainer: Trainer) -> None:
        if trainer.state.fn == "fit":
            clocks(trainer)
            self._book()
            self._phase = phase

    def _look(self) -> None:
        found = {"peak_memory_mib": peak_memory()}
        if self._device.type == "cuda":
            found["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated(self._device) // 2**20
        self.peaks |= {name: max(peak, self.peaks.get(name, 0)) for name, peak in found.items()}

    def _book(self) -> None:
        now = time.perf_counter(), time.process_time()
        if self._since != (0.0, 0.0):
            for clock, new, old in zip(("wall", "cpu"), now, self._since, strict=True):
                self.spent[f"{self._phase}_{clock}_s"] += new - old
            self._since = now


def clocks(trainer: Trainer) -> tuple[float, float]:
    """Seconds of wall and of processor time, once the device has done what it was asked."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.perf_counter(), time.process_time()


def peak_memory() -> int:
    """The most resident memory that this process has had, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


class CompileNetworks(Callback):
    """`torch.compile` of each component's networks, in place; checkpoints keep their names.

    Worth its compile time (10–90 s) on a GPU and for networks that run long; the short chains of
    small tilts are better left alone, see `eblvm.samplers`. Energies with a gradient penalty, and
    others whose gradients are differentiated, stay as they are: compiled code has no second
    derivatives.

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
    twice: list[nn.Module] = getattr(module, "twice_differentiated", list)()
    left = {id(part) for whole in twice for part in whole.modules()}
    return [
        part
        for name, part in module.named_modules()
        if name.rpartition(".")[2] in names and id(part) not in left
    ]
