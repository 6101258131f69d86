"""BLEU of a corpus, as the script multi-bleu of Moses computes it."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["CorpusBLEU", "corpus_bleu"]

Words = Sequence[str]


def corpus_bleu(hypotheses: Sequence[Words], references: Sequence[Words], order: int = 4) -> float:
    """BLEU in percent of sentences against one reference each; see `CorpusBLEU`."""
    metric = CorpusBLEU(order)
    metric.update(hypotheses, references)
    return float(metric.compute())


class CorpusBLEU(Metric):
    r"""BLEU of a corpus in percent, without smoothing, with one reference a sentence.

    .. math:: 100 \exp\Big(\min(0, 1 - r/c) + \tfrac14 \sum_{n=1}^4 \log p_n\Big)

    Counts are summed over the corpus before anything is divided; words are compared as they are.
    Zero where a p_n is.

    References:
        BLEU: a Method for Automatic Evaluation of Machine Translation (Papineni et al., 2002).

    Arguments:
        order: The longest n-gram.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    matches: Tensor
    totals: Tensor
    lengths: Tensor
    num: Tensor

    def __init__(self, order: int = 4) -> None:
        super().__init__()
        if order < 1:
            raise ValueError(f"order is {order}; expected 1 or more.")
        self.order = order
        self.add_state("matches", torch.zeros(order, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(order, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("lengths", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("num", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[Words], references: Sequence[Words]) -> None:
        """Add sentences, each a sequence of words, and what they should have been.

        Raises:
            ValueError: If there are not as many of both.
        """
        if len(hypotheses) != len(references):
            raise ValueError(
                f"{len(hypotheses)} hypotheses for {len(references)} references; expected one for "
                "each."
            )
        self.num += len(hypotheses)
        for said, meant in zip(hypotheses, references, strict=True):
            self.lengths += torch.tensor([len(said), len(meant)], device=self.lengths.device)
            for n in range(1, self.order + 1):
                grams = Counter(tuple(said[i : i + n]) for i in range(len(said) - n + 1))
                wanted = Counter(tuple(meant[i : i + n]) for i in range(len(meant) - n + 1))
                self.matches[n - 1] += (grams & wanted).total()
                self.totals[n - 1] += grams.total()

    def compute(self) -> Tensor:
        """BLEU in percent, a float64 scalar."""
        said, meant = self.lengths.tolist()
        if said == 0 or not self.matches.all():
            return torch.zeros((), dtype=torch.float64)
        log_precision = (self.matches.double() / self.totals.double()).log().mean()
        return 100 * (log_precision + min(0.0, 1 - meant / said)).exp()

    @property
    def protocol(self) -> dict[str, Any]:
        """How the figure was made."""
        said, meant = self.lengths.tolist()
        brevity = math.exp(min(0.0, 1 - meant / said)) if said else 0.0
        return {
            "metric": f"BLEU-{self.order}, corpus, no smoothing, case as given",
            "num_sentences": int(self.num),
            "words": said,
            "reference_words": meant,
            "brevity_penalty": brevity,
            "dtype": "counts int64, mean float64",
        }
