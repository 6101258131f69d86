"""How near a sentence is to its reference, by vectors of words."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

__all__ = ["EmbeddingSimilarity", "read_vectors"]


def read_vectors(path: str | Path, words: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Vectors of words from a text file, `word v1 v2 …` a line, as GloVe is published.

    The first line says how many numbers a vector has: all after its word. Elsewhere as many are
    taken from the end, for a few words of GloVe have spaces in them.

    Arguments:
        path: The file, in UTF-8.
        words: Which words to keep; all if None.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not UTF-8, no vector, or not as long as the first; with its number.
    """
    wanted = None if words is None else set(words)
    vectors: dict[str, Tensor] = {}
    width = 0
    with open(path, "rb") as file:
        for number, content in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                line = content.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{place}: byte {content[error.start]:#04x} is not UTF-8. Convert the file, "
                    "e.g. with `iconv -f latin1 -t utf-8`."
                ) from error
            first, *rest = line.split(" ")
            values = [value for value in rest if value]
            width = width or len(values)
            more = len(values) - width
            if not width or more < 0 or (more and is_number(values[more - 1])):
                raise ValueError(
                    f"{place}: {len(values)} numbers, where the first line has {width}."
                )
            try:
                vector = torch.tensor([float(value) for value in values[more:]])
            except ValueError as error:
                raise ValueError(
                    f"{place}: no vector ({error}); expected a word and numbers."
                ) from error
            word = " ".join([first, *values[:more]])
            if wanted is None or word in wanted:
                vectors[word] = vector
    return vectors


def is_number(text: str) -> bool:
    """Whether a number is written there."""
    try:
        float(text)
    except ValueError:
        return False
    return True


class EmbeddingSimilarity(Metric):
    """Cosines of sentences and their references, in percent: `average`, `extrema`, `greedy`.

    *Average* compares mean vectors; *extrema* the vectors of those values that are largest in
    magnitude, dimension by dimension; *greedy* averages, over the words of either side, the best
    cosine with a word of the other, and then the two sides. Words that begin with `<` or end with
    `>` are dropped, and pairs of which a side has no known word are skipped.

    References:
        How NOT to Evaluate Your Dialogue System (Liu et al., 2016).

    Arguments:
        vectors: Word to vector, all of one length.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    totals: Tensor
    num: Tensor

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        super().__init__()
        if not vectors:
            raise ValueError(
                "there are no vectors of words; expected a word and its vector or more."
            )
        self.vectors = {word: vector.double() for word, vector in vectors.items()}
        self.add_state("totals", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num", torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self, hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
    ) -> None:
        """Add sentences, each a sequence of words, and what they should have been."""
        for said, meant in zip(hypotheses, references, strict=True):
            one, other = self._known(said), self._known(meant)
            if len(one) and len(other):
                self.totals += torch.stack(
                    [
                        _cosine(one.mean(0), other.mean(0)),
                        _cosine(_extrema(one), _extrema(other)),
                        _greedy(one, other),
                    ]
                ).to(self.totals)
                self.num += 1

    def _known(self, words: Sequence[str]) -> Tensor:
        found = [
            self.vectors[word]
            for word in words
            if word in self.vectors and not (word.startswith("<") or word.endswith(">"))
        ]
        return torch.stack(found) if found else torch.empty(0, 0)

    def compute(self) -> dict[str, Tensor]:
        """`average`, `extrema` and `greedy` in percent, float64 scalars.

        Raises:
            ValueError: If no pair could be compared.
        """
        if int(self.num) == 0:
            raise ValueError("no pair of sentences has known words on both sides.")
        mean = 100 * self.totals / self.num
        return dict(zip(("average", "extrema", "greedy"), mean, strict=True))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=0)


def _extrema(vectors: Tensor) -> Tensor:
    high, low = vectors.amax(0), vectors.amin(0)
    return torch.where(high.abs() > low.abs(), high, low)


def _greedy(one: Tensor, other: Tensor) -> Tensor:
    cosines = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T
    return (cosines.amax(1).mean() + cosines.amax(0).mean()) / 2
