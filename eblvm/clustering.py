r"""Geometric clustering: pseudo-labels from where the posterior puts the data.

Before each epoch all training data are encoded; their posterior means are whitened, put on the
unit sphere and clustered. A datum's cluster is its pseudo-label for the epoch, in place of the
data's own label, and :class:`eblvm.regularizers.CrossEntropy` makes the symbols agree with it. The
epoch's order holds equally many data of each cluster; sentences are gathered by length within it,
as in any other epoch.

References:
    Latent Diffusion Energy-Based Model for Interpretable Text Modelling (Yu et al., 2022), released
    code. There, the last incomplete batch goes without labels; here nothing does.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .data.loader import ResumableLoader, ResumableSampler, seeded_generator
from .data.module import DataModule
from .regularizers import FewLabels

__all__ = [
    "GeometricClustering",
    "LabeledSubset",
    "balanced_order",
    "kmeans",
    "matched",
    "whitened",
]


def whitened(x: Tensor, num_components: int) -> Tensor:
    """Principal components with unit variance, with shape `(N, num_components)`.

    Arguments:
        x: Points, with shape `(N, D)`.
        num_components: How many, at most D.

    Raises:
        ValueError: If there are fewer than that many directions.
    """
    if not 1 <= num_components <= min(x.shape):
        raise ValueError(
            f"num_components is {num_components} for {len(x)} points of {x.shape[1]} numbers; "
            f"expected 1 to {min(x.shape)}."
        )
    x = x - x.mean(0)
    variance, directions = torch.linalg.eigh(x.T @ x / max(1, len(x) - 1))
    scale = variance[-num_components:].clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    return (x @ directions[:, -num_components:] / scale).flip(1)


def kmeans(
    x: Tensor, num_clusters: int, num_iterations: int = 20, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from randomly chosen points.

    A cluster that loses all its points is put beside the largest one, which it then shares.

    Arguments:
        x: Points, with shape `(N, D)`.
        num_clusters: K, at most N.
        num_iterations: Rounds of assigning points and moving centers.
        generator: Chooses the first centers.

    Returns:
        Centers `(K, D)`, and each point's nearest, int64 `(N,)`.

    Raises:
        ValueError: If there are more clusters than points.
    """
    if not 1 <= num_clusters <= len(x):
        raise ValueError(
            f"num_clusters is {num_clusters} for {len(x)} points; expected 1 to {len(x)}."
        )
    centers = x[torch.randperm(len(x), generator=generator)[:num_clusters]].clone()
    for _ in range(num_iterations):
        label = _nearest(x, centers)
        count = torch.bincount(label, minlength=num_clusters)
        sums = torch.zeros_like(centers).index_add_(0, label, x)
        centers = torch.where(count[:, None] > 0, sums / count.clamp_min(1)[:, None], centers)
        for empty in (count == 0).nonzero()[:, 0].tolist():
            largest = int(count.argmax())
            shift = 1 / 1024 * (1 - 2 * (torch.arange(x.shape[1]) % 2)).to(x)
            centers[empty] = centers[largest] * (1 + shift)
            centers[largest] = centers[largest] * (1 - shift)
            count[empty] = count[largest] // 2
            count[largest] -= count[empty]
    return centers, _nearest(x, centers)


def _nearest(x: Tensor, centers: Tensor) -> Tensor:
    """Index of the nearest center of each point, `(N,)`."""
    squared = centers.square().sum(1)
    return torch.cat([(squared - 2 * part @ centers.T).argmin(1) for part in x.split(65_536)])


def contiguous(label: Tensor) -> Tensor:
    """Labels renamed 0, 1, … without gaps, in the same order."""
    return torch.unique(label, return_inverse=True)[1]


def matched(label: Tensor, previous: Tensor, num_labels: int) -> Tensor:
    """Labels permuted so that as many data as can be keep the label that they had.

    Arguments:
        label: int64 `(N,)` in 0 … num_labels − 1.
        previous: int64 `(N,)` likewise.
        num_labels: K.
    """
    overlap = torch.zeros(num_labels, num_labels, dtype=torch.long)
    overlap.index_put_((label, previous), torch.ones_like(label), accumulate=True)
    rows, columns = linear_sum_assignment(overlap.numpy(), maximize=True)
    permutation = torch.empty(num_labels, dtype=torch.long)
    permutation[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return permutation[label]


def balanced_order(label: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """As many indices as labels, equally many of each label, shuffled: int64 `(N,)`.

    Of each of C labels ⌊N/C⌋ + 1 data are drawn, with replacement only where there are fewer, and
    the shuffled list is cut to N.

    Arguments:
        label: int64 `(N,)`.
        generator: Source of the draws.
    """
    labels = label.unique().tolist()
    each = len(label) // len(labels) + 1
    drawn = []
    for value in labels:
        members = (label == value).nonzero()[:, 0]
        if len(members) >= each:
            drawn.append(members[torch.randperm(len(members), generator=generator)[:each]])
        else:
            drawn.append(members[torch.randint(len(members), (each,), generator=generator)])
    order = torch.cat(drawn)
    return order[torch.randperm(len(order), generator=generator)[: len(label)]]


@runtime_checkable
class Encoding(Protocol):
    """A learner that infers latents."""

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The inferred latents of data `(B, *event)`, with shape `(B, D)`."""


class GeometricClustering(Callback):
    """Clusters the training data before an epoch, labels them, and balances their order.

    Labels, and with them the order, are kept in checkpoints: a run that goes on within an epoch
    does not cluster anew.

    Arguments:
        num_clusters: K, at most the number of symbols.
        num_components: Principal components that are clustered: 3 for text, 2 for the plane.
        num_iterations: Rounds of k-means.
        seed: Of the first centers (the same each epoch), and of the order.
        balanced: Whether each cluster gets an equal share of the epoch; otherwise the order is the
            loader's.
        match: Whether clusters take over the labels of the last epoch's that they overlap with;
            otherwise labels may permute from epoch to epoch.
        every_n_epochs: Epochs between clusterings; in those between, labels stay.
    """

    gives_labels = True

    def __init__(
        self,
        num_clusters: int,
        num_components: int = 3,
        num_iterations: int = 20,
        seed: int = 2021,
        balanced: bool = True,
        match: bool = False,
        every_n_epochs: int = 1,
    ) -> None:
        self.num_clusters = num_clusters
        self.num_components = num_components
        self.num_iterations = num_iterations
        self.seed = seed
        self.balanced = balanced
        self.match = match
        self.every_n_epochs = every_n_epochs
        self.epoch = -1
        """The epoch of which the labels are; −1 where there are none."""
        self.label: Tensor | None = None
        """Pseudo-labels of the training data in their own order, int64 `(N,)`."""

    def cluster(self, features: Tensor) -> Tensor:
        """Clusters of latents `(N, D)`, int64 `(N,)`, without gaps."""
        points = whitened(features.double().cpu(), self.num_components)
        points = torch.nn.functional.normalize(points, dim=1)
        generator = seeded_generator(self.seed)
        return contiguous(kmeans(points, self.num_clusters, self.num_iterations, generator)[1])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.label is not None and self.epoch == trainer.current_epoch:
            self._apply(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if self.epoch != epoch:
            if self.label is None or epoch % self.every_n_epochs == 0:
                label = self.cluster(encoded(trainer, pl_module))
                if self.match and self.label is not None:
                    label = matched(label, self.label, self.num_clusters)
                self.label = label
            self.epoch = epoch
        self._apply(trainer)

    def _apply(self, trainer: Trainer) -> None:
        """Give the epoch its labels and its order."""
        data, loader, sampler = parts(trainer)
        assert self.label is not None
        if len(self.label) != len(loader.dataset):  # type: ignore[arg-type]
            raise ValueError(
                f"the checkpoint holds pseudo-labels of {len(self.label)} data, and the training "
                f"data are {len(loader.dataset)}; resume with the same data."  # type: ignore[arg-type]
            )
        data.pseudo_label = self.label
        if self.balanced:
            generator = seeded_generator(self.seed, self.epoch)
            sampler.order = balanced_order(self.label, generator).tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "label": self.label}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.label = state_dict["epoch"], state_dict["label"]


class LabeledSubset(Callback):
    """Hands the first training data of each class to the regularizers that learn from few labels.

    Data must have one shape; sequences padded by batch have not.

    Arguments:
        per_class: Labels per class.

    Raises:
        ValueError: When training starts, if rows have several labels, or none has one.
    """

    def __init__(self, per_class: int) -> None:
        if per_class < 1:
            raise ValueError(f"per_class is {per_class}; expected 1 or more.")
        self.per_class = per_class

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        few = [r for r in getattr(pl_module, "regularizers", []) if isinstance(r, FewLabels)]
        if not few:
            raise TypeError(
                f"LabeledSubset found no regularizer FewLabels in {type(pl_module).__name__}; add "
                "one to the learner's `regularizers`, or drop the callback."
            )
        x, label = self.first(trainer)
        for regularizer in few:
            regularizer.subset = x.to(pl_module.device), label.to(pl_module.device)

    def first(self, trainer: Trainer) -> tuple[Tensor, Tensor]:
        """The first `per_class` data of each label, in the data's order; the same on all ranks."""
        found: dict[int, list[tuple[int, Tensor]]] = {}
        index = trainer.global_rank
        for x, label in parts(trainer)[0].batches("train", in_order=True):
            if label.dim() != 1:
                raise ValueError(
                    f"labels of a batch have shape {tuple(label.shape)}; LabeledSubset expects one "
                    "per row. Name one label in the data module's `labels`."
                )
            x = trainer.precision_plugin.convert_input(x)
            for row, y in zip(x, label.tolist(), strict=True):
                if y >= 0 and len(found.setdefault(y, [])) < self.per_class:
                    found[y].append((index, row))
                index += trainer.world_size
        shares: list[Any] = [found]
        if trainer.world_size > 1:
            shares = [None] * trainer.world_size
            torch.distributed.all_gather_object(shares, found)
        kept: list[tuple[int, int, Tensor]] = []
        for y in sorted({y for share in shares for y in share}):
            rows = sorted(
                (pair for share in shares for pair in share.get(y, [])), key=lambda pair: pair[0]
            )
            kept += [(i, y, row) for i, row in rows[: self.per_class]]
        if not kept:
            raise ValueError(
                "LabeledSubset found no labeled training datum; expected labels of 0 or more. "
                "Choose data with labels, or drop the callback and FewLabels."
            )
        kept.sort(key=lambda entry: entry[0])
        return torch.stack([row for _, _, row in kept]), torch.tensor([y for _, y, _ in kept])


def parts(trainer: Trainer) -> tuple[DataModule, ResumableLoader, ResumableSampler]:
    """The data module, its training loader, and that loader's sampler.

    Raises:
        TypeError: If they are not eblvm's.
    """
    data: Any = getattr(trainer, "datamodule", None)
    loader: Any = trainer.train_dataloader
    sampler = getattr(loader, "sampler", None)
    if not (
        isinstance(data, DataModule)
        and isinstance(loader, ResumableLoader)
        and isinstance(sampler, ResumableSampler)
    ):
        raise TypeError(
            f"training data can be clustered, relabeled or picked from where they come from an "
            f"eblvm.data.DataModule; this run has a {type(data).__name__} and a "
            f"{type(loader).__name__}."
        )
    return data, loader, sampler


def encoded(trainer: Trainer, learner: LightningModule) -> Tensor:
    """Latents of all training data in their own order, on the CPU, `(N, D)`; the same on all ranks.

    Raises:
        TypeError: If the learner infers no latents.
    """
    if not isinstance(learner, Encoding):
        raise TypeError(
            f"GeometricClustering needs a learner with a method encode(x), and "
            f"{type(learner).__name__} has none. Drop that callback from the recipe."
        )
    data = parts(trainer)[0]
    mode = learner.training
    learner.eval()
    try:
        found = []
        with torch.no_grad():
            for batch in data.batches("train", in_order=True):
                x = trainer.precision_plugin.convert_input(batch[0].to(learner.device))
                found.append(learner.encode(x).float().cpu())
    finally:
        learner.train(mode)
    share = torch.cat(found)
    if trainer.world_size == 1:
        return share
    shares: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(shares, share)
    rows = share.new_empty((sum(map(len, shares)), share.shape[1]))
    for rank, piece in enumerate(shares):
        rows[rank :: len(shares)] = piece
    return rows
