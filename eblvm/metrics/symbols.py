"""Whether symbols that a model infers say something of the data: information, labels, accuracy."""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Homogeneity", "MutualInformation", "SymbolAccuracy", "homogeneity"]


class MutualInformation(Metric):
    r"""I(z; y) in nats, estimated from p(y|z) of data: the entropy of their mean, less their mean
    entropy.

    .. math:: H\Big(\frac1B \sum_b p(y|z_b)\Big) - \frac1B \sum_b H\big(p(y|z_b)\big)

    At most log K, and at most log B. By default B is all data; per batch it is the batch, and the
    figure the mean over batches, as in the released code of SVEBM and LDEBM.

    Arguments:
        num_symbols: K.
        per_batch: Whether to compute the figure in each batch and average.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    share: Tensor
    entropy: Tensor
    num: Tensor
    batches: Tensor
    total: Tensor

    def __init__(self, num_symbols: int, per_batch: bool = False) -> None:
        super().__init__()
        self.per_batch = per_batch
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("share", zero.repeat(num_symbols), dist_reduce_fx="sum")
        self.add_state("entropy", zero.clone(), dist_reduce_fx="sum")
        self.add_state("num", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("batches", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", zero.clone(), dist_reduce_fx="sum")

    def update(self, logits: Tensor) -> None:
        """Add the logits of a batch's symbols, `(B, K)`."""
        share = logits.detach().double().softmax(1)
        entropies = -torch.special.xlogy(share, share).sum(1)
        self.share += share.sum(0)
        self.entropy += entropies.sum()
        self.num += len(logits)
        self.batches += 1
        self.total += _information(share.mean(0), entropies.mean())

    def compute(self) -> Tensor:
        """Nats, a float64 scalar.

        Raises:
            ValueError: If there were no data.
        """
        if int(self.num) == 0:
            raise ValueError("no logits were given. Call `update(logits)` first.")
        if self.per_batch:
            return self.total / self.batches
        return _information(self.share / self.num, self.entropy / self.num)

    @property
    def protocol(self) -> dict[str, Any]:
        """How the figure was made."""
        size = int(self.num) / max(1, int(self.batches))
        return {
            "metric": "mutual information of latents and symbols, nats",
            "estimated_over": f"batches of {size:g}" if self.per_batch else "all data",
            "num_data": int(self.num),
            "dtype": "shares float64",
        }


def _information(share: Tensor, entropy: Tensor) -> Tensor:
    return -torch.special.xlogy(share, share).sum() - entropy


def homogeneity(counts: Tensor) -> Tensor:
    """1 − H(label | symbol) / H(label) of a table of counts `(K, C)`; 1 where all labels agree.

    NaN where there are none.
    """
    total = counts.sum()
    # integers are added first: labels that all agree have a share of exactly 1
    joint, symbol, label = (c.double() / total for c in (counts, counts.sum(1), counts.sum(0)))
    label_entropy = -torch.special.xlogy(label, label).sum()
    conditional = -torch.special.xlogy(joint, joint / symbol[:, None].clamp_min(1e-300)).sum()
    if total == 0:
        return label_entropy * torch.nan
    if label_entropy <= 0:
        return torch.ones_like(label_entropy)
    return 1 - conditional / label_entropy


class Homogeneity(Metric):
    """How much of the labels the symbols tell: 1 − H(label | symbol) / H(label).

    By default over all data at once. Per batch it is computed in each batch and averaged, as in the
    released code of SVEBM and LDEBM: with few data for each symbol that is high for symbols which
    know nothing. `chance`, what uniformly random symbols score on the same labels, stands beside it
    either way. Batches without a label do not count; without any label both are NaN.

    Arguments:
        num_symbols: K.
        num_labels: C.
        per_batch: Whether to compute the figure in each batch and average.
        seed: Of the random symbols.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    table: Tensor
    random: Tensor
    totals: Tensor
    batches: Tensor

    def __init__(
        self, num_symbols: int, num_labels: int, per_batch: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        self.per_batch = per_batch
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        table = torch.zeros(num_symbols, num_labels, dtype=torch.long)
        self.add_state("table", table, dist_reduce_fx="sum")
        self.add_state("random", table.clone(), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("batches", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, symbol: Tensor, label: Tensor) -> None:
        """Add the symbols and the labels of a batch, int64 `(B,)` each; labels below 0 are none."""
        known = label >= 0
        symbol, label = symbol[known], label[known]
        if not len(label):
            return
        shape = self.table.shape
        guess = torch.randint(shape[0], (len(label),), generator=self.generator)
        found = _tabulate(symbol, label, shape)
        random = _tabulate(guess.to(label.device), label, shape)
        self.table += found
        self.random += random
        self.totals += torch.stack([homogeneity(found), homogeneity(random)]).to(self.totals)
        self.batches += 1

    def compute(self) -> dict[str, Tensor]:
        """`homogeneity` and `chance`, float64 scalars."""
        if self.per_batch:
            mean, chance = self.totals / self.batches
        else:
            mean, chance = homogeneity(self.table), homogeneity(self.random)
        return {"homogeneity": mean, "chance": chance}

    def reset(self) -> None:
        super().reset()
        self.generator.manual_seed(self.seed)

    @property
    def protocol(self) -> dict[str, Any]:
        """How the figure was made."""
        num = int(self.table.sum())
        size = num / max(1, int(self.batches))
        return {
            "metric": "homogeneity of labels given symbols",
            "computed_over": f"batches of {size:g}" if self.per_batch else "all data",
            "num_data": num,
            "dtype": "counts int64, entropies float64",
        }


def _tabulate(symbol: Tensor, label: Tensor, shape: torch.Size) -> Tensor:
    """How often each symbol meets each label, `(K, C)`."""
    place = symbol * shape[1] + label
    return torch.bincount(place, minlength=shape[0] * shape[1]).view(shape)


class SymbolAccuracy(Metric):
    """The share of data whose symbol is their label.

    Where symbols are trained with labels (semi-supervised models), symbol and label of one number
    mean the same. Symbols found without labels have no names: `match` gives each symbol a label of
    its own so that most agree. Without any label it is NaN.

    Arguments:
        num_symbols: K.
        num_labels: C.
        match: Whether to match symbols with labels, one to one.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    table: Tensor

    def __init__(self, num_symbols: int, num_labels: int, match: bool = False) -> None:
        super().__init__()
        if not match and num_symbols != num_labels:
            raise ValueError(
                f"{num_symbols} symbols cannot be {num_labels} labels; set match=True to match "
                "them."
            )
        self.match = match
        table = torch.zeros(num_symbols, num_labels, dtype=torch.long)
        self.add_state("table", table, dist_reduce_fx="sum")

    def update(self, symbol: Tensor, label: Tensor) -> None:
        """Add the symbols and the labels of a batch, int64 `(B,)` each; labels below 0 are none."""
        known = label >= 0
        self.table += _tabulate(symbol[known], label[known], self.table.shape)

    def compute(self) -> Tensor:
        """A share, a float64 scalar."""
        table = self.table.cpu().double()
        if self.match:
            rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
            return table[rows, columns].sum() / table.sum()
        return table.diagonal().sum() / table.sum()

    @property
    def protocol(self) -> dict[str, Any]:
        """How the figure was made."""
        return {
            "metric": "share of symbols that are the label" + ", matched one to one" * self.match,
            "num_data": int(self.table.sum()),
            "dtype": "counts int64, share float64",
        }
