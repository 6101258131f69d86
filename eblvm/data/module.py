"""What all data modules share: three splits, one loader, and batches finished where they lie.

A batch is `(x, label)`. Loaders hand out what is cheap to move (bytes for images); `finish` turns
that into what models see, on the device that the batch has reached. Under a Trainer this happens in
`on_after_batch_transfer`; without one the loader does it, so a plain loop sees the same batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from .loader import ResumableLoader, ResumableSampler

__all__ = ["DataModule", "Split"]

Split = Literal["train", "val", "test"]


class DataModule(LightningDataModule, ABC):
    """Train, validation and test data, in batches of `(x, label)`.

    Training batches are shuffled by (seed, epoch) and are all full; evaluation is in order and
    visits every item once, also on several devices.

    Arguments:
        batch_size: Items per batch and device.
        num_workers: Worker processes that load items; 0 loads in this process.
        seed: Determines the order of training and random transforms.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, batch_size: int, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}; expected 0 or more.")
        if seed < 0:
            raise ValueError(f"seed is {seed}; expected 0 or more.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.pseudo_label: Tensor | None = None
        """Labels of all training items, int64 `(N,)`, that training batches carry in place of the
        data's own; None by default."""

    @property
    @abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one x, without the batch axis."""

    @abstractmethod
    def dataset(self, split: Split) -> Dataset:
        """The items of a split; `setup` must have run."""

    def finish(
        self, batch: tuple[Tensor, Tensor], split: Split, epoch: int, index: int
    ) -> tuple[Tensor, Tensor]:
        """Turn what a loader collated into what a model sees; the batch itself by default.

        Arguments:
            batch: `(x, label)` as collated, on any device.
            split: Where it is from. Random transforms are for `train` only.
            epoch: Which pass over the data it is part of.
            index: Its place in that pass, from 0.
        """
        return batch

    def sampler(self, data: Dataset, train: bool) -> ResumableSampler:
        """The order of a split's items on this device: shuffled in training."""
        return ResumableSampler(
            data, self.num_replicas, self.rank, shuffle=train, seed=self.seed, drop_last=train
        )

    def keep(self, folder: Path) -> None:
        """Write what a run's folder needs beside its checkpoints; nothing by default."""

    def loader(self, split: Split, in_order: bool = False) -> ResumableLoader:
        """A new loader of a split; outside of a Trainer its batches are finished.

        Arguments:
            split: Which.
            in_order: Visit each item once and in order, as in evaluation, also of training data.

        Raises:
            ValueError: If the training data do not fill one batch on every device.
        """
        if split not in get_args(Split):
            raise ValueError(f"split is {split!r}; expected one of {get_args(Split)}.")
        train = split == "train" and not in_order
        data = self.dataset(split)
        sampler = self.sampler(data, train)
        if train and len(sampler) < self.batch_size:
            raise ValueError(
                f"batch_size is {self.batch_size}, but each of {self.num_replicas} devices has "
                f"{len(sampler)} training items. Expected one full batch or more: lower batch_size."
            )
        in_memory = hasattr(data, "__getitems__")
        num_workers = 0 if in_memory else self.num_workers
        return ResumableLoader(
            data,
            batch_size=self.batch_size,
            finish=None if self.trainer is not None else self._finisher(split),
            sampler=sampler,
            drop_last=train,
            num_workers=num_workers,
            persistent_workers=num_workers > 0 and train,
            pin_memory=torch.cuda.is_available(),
        )

    def batches(self, split: Split, in_order: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over this device's share of a split, finished, on the CPU.

        Arguments:
            split: Which.
            in_order: Visit each item once, in order and without random transforms, also of training
                data.
        """
        loader = self.loader(split, in_order) if in_order else self.loader(split)
        loader.finish = self._finisher("val" if in_order and split == "train" else split)
        return iter(loader)

    def train_dataloader(self) -> ResumableLoader:
        self._place_restart()
        return self.loader("train")

    def val_dataloader(self) -> ResumableLoader:
        return self.loader("val")

    def test_dataloader(self) -> ResumableLoader:
        return self.loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        return self.loader("test")

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Finish the batch on the device where it now lies."""
        trainer = self.trainer
        if trainer is None:
            return batch
        if trainer.training:
            loader = trainer.train_dataloader
            if not isinstance(loader, ResumableLoader):
                raise TypeError(
                    f"The trainer's training loader is a {type(loader).__name__}; expected the "
                    "data module's ResumableLoader, which knows a batch's place in the epoch."
                )
            index = loader.position - 1
            finished = self.finish(batch, "train", loader.epoch, index)
            if self.pseudo_label is not None:
                label = self.pseudo_label[loader.rows(index)]
                finished = (finished[0], label.to(finished[0].device))
        else:
            finished = self.finish(batch, "val" if trainer.validating else "test", 0, 0)
        # Lightning has done this before, when images were still bytes: `--trainer.precision=…-true`
        return trainer.precision_plugin.convert_input(finished)

    @property
    def rank(self) -> int:
        """Which of the devices this process drives."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def num_replicas(self) -> int:
        """How many devices share the data."""
        return 1 if self.trainer is None else self.trainer.world_size

    def _finisher(self, split: Split) -> "_Finish":
        return _Finish(self, split)

    def _place_restart(self) -> None:
        """Tell Lightning (2.6) whether the checkpoint it resumes from lies within an epoch.

        It misjudges two cases, and then skips or repeats batches. Where `max_steps` is set it takes
        every restart to be within an epoch, also from `on_train_epoch_end`. And an epoch that
        `max_steps` cut short counts as finished. The progress counters tell both.
        """
        if self.trainer is None or not self.trainer.fit_loop.is_resuming:
            return
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress
        if not epochs.current.ready == epochs.current.started == epochs.current.processed > 0:
            return
        within = not loop.epoch_loop.batch_progress.is_last_batch
        if within:
            for count in (epochs.total, epochs.current):
                count.processed -= 1
                count.completed = min(count.completed, count.processed)
        for part in (loop, loop.epoch_loop, *vars(loop.epoch_loop).values()):
            if hasattr(part, "_restarting"):
                part._restarting = within


class _Finish:
    """`DataModule.finish` for one split; an object, so that worker processes can pickle it."""

    def __init__(self, module: DataModule, split: Split) -> None:
        self.module, self.split = module, split

    def __call__(
        self, batch: tuple[Tensor, Tensor], epoch: int, index: int
    ) -> tuple[Tensor, Tensor]:
        return self.module.finish(batch, self.split, epoch, index)
