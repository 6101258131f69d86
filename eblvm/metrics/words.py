"""Whether generated sentences use words as often as the real ones do."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["WordKL", "word_kl"]


def split_possessives(words: Sequence[str]) -> list[str]:
    """`it's` as `it 's`, and all else as it is."""
    return " ".join(words).replace("'s", " 's").split()


def word_kl(sentences: Iterable[Sequence[str]], real: Iterable[Sequence[str]]) -> float:
    """KL of word frequencies in nats; see `WordKL`."""
    metric = WordKL(real)
    metric.update(sentences)
    return float(metric.compute())


class WordKL(Metric):
    r"""KL divergence of the words of sentences from those of real ones, in nats.

    .. math:: \sum_w p_w \log(p_w / q_w)

    over words that occur in both: p are shares among all words of the sentences, q among all words
    of the real ones. Words that the real sentences never have are skipped, so that the figure is
    finite, and is no divergence of normalized distributions.

    References:
        Dispersed Exponential Family Mixture VAEs (Shi et al., 2020), wKL.

    Arguments:
        real: Sentences, each a sequence of words: a training text.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    counts: Tensor

    def __init__(self, real: Iterable[Sequence[str]]) -> None:
        super().__init__()
        found = Counter(word for words in real for word in split_possessives(words))
        if not found:
            raise ValueError("there are no real words; expected sentences of words.")
        self.number = {word: i for i, word in enumerate(found)}
        self.real = torch.tensor(list(found.values()), dtype=torch.float64)
        # the last place counts words that the real sentences never have
        self.add_state(
            "counts", torch.zeros(len(found) + 1, dtype=torch.long), dist_reduce_fx="sum"
        )

    def update(self, sentences: Iterable[Sequence[str]]) -> None:
        """Add sentences, each a sequence of words."""
        strangers = len(self.number)
        places = [
            self.number.get(word, strangers)
            for words in sentences
            for word in split_possessives(words)
        ]
        found = torch.bincount(torch.tensor(places, dtype=torch.long), minlength=strangers + 1)
        self.counts += found.to(self.counts.device)

    def compute(self) -> Tensor:
        """Nats, a float64 scalar.

        Raises:
            ValueError: If no word was given.
        """
        counts = self.counts.cpu().double()
        if counts.sum() == 0:
            raise ValueError("no words were given. Call `update(sentences)` first.")
        p = (counts / counts.sum())[:-1]
        q = self.real / self.real.sum()
        both = p > 0
        return (p[both] * (p[both] / q[both]).log()).sum()
