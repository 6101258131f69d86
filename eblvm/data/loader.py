"""The one loader: (seed, epoch) determine its order, and it resumes with the very next batch.

Epoch e of a training loader visits the permutation that (seed, e) determines, on any machine and
any number of devices: rank r of R takes places r, r + R, r + 2R, … of it. Lightning stores
`state_dict()` of the training loader in every checkpoint. It counts the batches handed out, and
since the loader has a length, Lightning fetches none ahead: a batch handed out is a batch
trained on. A checkpoint written *during* a training step (by an exception) counts that batch too.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, default_collate

__all__ = ["BucketSampler", "ResumableLoader", "ResumableSampler", "TensorRows", "seeded_generator"]


def seeded_generator(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on all of `numbers`, e.g. (seed, rank, epoch, batch).

    The numbers are hashed, so neighbors such as (0, 1) and (1, 0) have unrelated streams.

    Arguments:
        numbers: Non-negative integers.
        device: Where the generator draws. A GPU's stream differs from the CPU's.

    Raises:
        ValueError: If a number is negative.
    """
    if min(numbers, default=0) < 0:
        raise ValueError(f"seeds are {numbers}; expected integers of 0 or more.")
    words = (len(numbers), *numbers)  # numpy pads with zeros: the length tells (1,) from (1, 0)
    (state,) = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state) >> 1)


class ResumableSampler(DistributedSampler[int]):
    """Indices of one rank's share of a data set, from a given position on.

    It is a `DistributedSampler`, so Lightning leaves it alone under DDP.

    Arguments:
        dataset: Anything with a length.
        num_replicas: R, how many ranks share the data.
        rank: r, which of them this is.
        shuffle: Whether to permute by (seed, epoch); otherwise 0, 1, 2, …
        seed: The seed of all permutations.
        drop_last: Whether to leave out a remainder so that all shares are equally long, as training
            on several devices needs. Otherwise each item is visited once: shares may differ by one.

    Attributes:
        epoch: Set by `set_epoch`, which Lightning calls.
        position: How many items of the share the next iteration skips; it is then 0 again.
        order: Indices, as many as items, in place of the permutation by (seed, epoch); None by
            default. A `BucketSampler` cuts it into batches of one length as it does that one.
        share: This rank's indices in the latest iteration.
    """

    def __init__(
        self,
        dataset: Dataset,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle, seed, drop_last)
        num = len(dataset)  # type: ignore[arg-type]
        self.total_size = num - num % num_replicas if drop_last else num
        self.num_samples = len(range(rank, self.total_size, num_replicas))
        self.position = 0
        self.order: list[int] | None = None
        self.share: list[int] = []

    def permutation(self) -> list[int]:
        """All indices in the order of this epoch, of which every rank takes its share."""
        if self.order is not None:
            return self.order
        num = len(self.dataset)  # type: ignore[arg-type]
        if not self.shuffle:
            return list(range(num))
        return torch.randperm(num, generator=seeded_generator(self.seed, self.epoch)).tolist()

    def __iter__(self) -> Iterator[int]:
        self.share = self.permutation()[self.rank : self.total_size : self.num_replicas]
        start, self.position = self.position, 0
        return iter(self.share[start:])


class BucketSampler(ResumableSampler):
    """Items of about one length beside each other, so that batches need little padding.

    A permutation by (seed, epoch), or the `order` that is set, is cut into pools; each pool is
    sorted by length and cut into batches, and the batches are permuted again, by (seed, epoch).
    With several ranks such a batch is the one that all ranks share, so they wait little for each
    other.

    Arguments:
        dataset: Anything with a length.
        lengths: The length of each item.
        batch_size: Items per batch and rank.
        num_replicas: R, how many ranks share the data.
        rank: r, which of them this is.
        seed: The seed of all permutations.
        pool: Batches in a pool: more make lengths more equal and the order less random.
    """

    def __init__(
        self,
        dataset: Dataset,
        lengths: Tensor,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        pool: int = 50,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed, drop_last=True)
        if pool < 1:
            raise ValueError(f"pool is {pool}; expected 1 or more batches.")
        self.lengths, self.together, self.pool = lengths, batch_size * num_replicas, pool

    def permutation(self) -> list[int]:
        order = torch.tensor(super().permutation())
        num_full = len(order) - len(order) % self.together
        pools = order[:num_full].split(self.pool * self.together)
        batches = [
            b for p in pools for b in p[self.lengths[p].argsort(stable=True)].split(self.together)
        ]
        generator = seeded_generator(self.seed, self.epoch, 1)
        places = torch.randperm(len(batches), generator=generator).tolist()
        return torch.cat([*(batches[i] for i in places), order[num_full:]]).tolist()


def whole_batch(items: Any) -> Any:
    """Collate a list of items; a batch that `__getitems__` made at once is passed through."""
    return default_collate(items) if isinstance(items, list) else items


class ResumableLoader(DataLoader):
    """A `DataLoader` whose place in the data is part of the checkpoint.

    A data set with `__getitems__(indices) -> batch` returns a whole batch in one indexing
    operation; others are collated item by item. An iteration that runs to its end moves on to
    the next epoch, so plain loops see a new order each time; Lightning sets the epoch itself.

    Arguments:
        dataset: The data.
        batch_size: Items per batch and rank.
        finish: `(batch, epoch, index) -> batch`, applied to each batch as it is handed out, in this
            process. None hands out what was collated.
        kwargs: As for `DataLoader`; `sampler` should be a `ResumableSampler`.

    Attributes:
        epoch: The epoch of the last batch handed out, or of the next where there is none yet.
        position: How many batches of that epoch have been handed out.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int | None = 1,
        finish: Callable[[Any, int, int], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("collate_fn") is None:
            kwargs["collate_fn"] = whole_batch
        # Each iteration draws a seed for worker processes: from the global generator, a run resumed
        # within an epoch would have drawn once more than the uninterrupted one.
        kwargs.setdefault("generator", torch.Generator())
        super().__init__(dataset, batch_size, **kwargs)
        self.finish = finish
        self.epoch = 0
        self.position = 0
        self._resumed: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing happens before the first `next`. Lightning makes the iterator before
        # it sets the epoch, and worker processes would start on the wrong one.
        sampler = self._resumable_sampler()
        self.epoch = sampler.epoch if sampler is not None else self.epoch
        self.position = self._start()
        skip = self.position
        if sampler is not None:
            sampler.position = self.position * self._size()["batch_size"]
            skip = 0
        for batch in islice(super().__iter__(), skip, None):
            index = self.position
            self.position += 1
            yield batch if self.finish is None else self.finish(batch, self.epoch, index)
        self.epoch, self.position = self.epoch + 1, 0
        if sampler is not None:
            sampler.set_epoch(self.epoch)

    def rows(self, index: int) -> list[int]:
        """Which items of the data set are in the batch of that index, in this epoch.

        Raises:
            TypeError: If the sampler is not a `ResumableSampler`.
        """
        sampler, size = self._resumable_sampler(), self._size()["batch_size"]
        if sampler is None:
            raise TypeError(
                "the rows of a batch are known with a ResumableSampler only; this loader has a "
                f"{type(self.sampler).__name__}."
            )
        return sampler.share[index * size : (index + 1) * size]

    def state_dict(self) -> dict[str, int]:
        """The epoch, how many of its batches are done, and the sizes that give them meaning."""
        if self._resumed is not None:  # loaded, and no batch asked for since
            return dict(self._resumed)
        return {"epoch": self.epoch, "position": self.position, **self._size()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue after the batches that `state_dict` counts, where its epoch is not over."""
        self._resumed = dict(state_dict)
        self.epoch, self.position = state_dict["epoch"], state_dict["position"]
        if (sampler := self._resumable_sampler()) is not None:
            sampler.set_epoch(self.epoch)

    def _resumable_sampler(self) -> ResumableSampler | None:
        for sampler in (self.sampler, getattr(self.batch_sampler, "sampler", None)):
            if isinstance(sampler, ResumableSampler):
                return sampler
        return None

    def _size(self) -> dict[str, int]:
        sampler: Sampler | None = self._resumable_sampler()
        batch_size: Any = self.batch_size or getattr(self.batch_sampler, "batch_size", 1)
        return {
            "batch_size": int(batch_size),
            "num_items": len(self.dataset),  # type: ignore[arg-type]
            "num_replicas": getattr(sampler, "num_replicas", 1),
            "seed": getattr(sampler, "seed", 0),
            "pool": getattr(sampler, "pool", 0),
        }

    def _start(self) -> int:
        """The index of the first batch to hand out in this iteration."""
        state, self._resumed = self._resumed, None
        if state is None or state["epoch"] != self.epoch or state["position"] == 0:
            return 0
        size = self._size()
        changed = [
            f"{key} was {state[key]} and is {size[key]}"
            for key in size
            if state.get(key, size[key]) != size[key]
        ]
        if changed:
            raise ValueError(
                f"The checkpoint lies {state['position']} batches into epoch {state['epoch']}, and "
                f"that place means nothing here: {'; '.join(changed)}. Resume with the same data "
                "settings and number of devices, or from a checkpoint of the end of an epoch."
            )
        return state["position"]


class TensorRows(Dataset):
    """Rows of tensors in memory; a batch is one indexing operation a column.

    Arguments:
        columns: Tensors of one length, e.g. x and label.
        rows: int64 indices: which rows belong to the set, and in which order. None takes all.
    """

    def __init__(self, *columns: Tensor, rows: Tensor | None = None) -> None:
        self.columns, self.rows = columns, rows

    def __len__(self) -> int:
        return len(self.columns[0] if self.rows is None else self.rows)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, ...]:
        rows = torch.as_tensor(index)
        rows = rows if self.rows is None else self.rows[rows]
        return tuple(column.index_select(0, rows) for column in self.columns)
