"""Sentences, dialogues and documents as numbered words."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .corpora import Corpus, Example
from .loader import BucketSampler, ResumableSampler, TensorRows
from .module import DataModule, Split
from .subwords import Subwords
from .vocabulary import Vocabulary

__all__ = ["BagOfWordsDataModule", "DialogueDataModule", "TextDataModule", "TooLong"]

TooLong = Literal["error", "cut", "drop"]


class TextDataModule(DataModule):
    """Sentences in batches of `(tokens, label)`: int64, `(B, L)` and `(B,)`.

    A sentence is `<s>`, its words, `</s>`, then `<pad>` up to L, the longest of its batch. Labels
    are −1, for unlabeled, `(B,)` where there is none, and `(B, C)` where C of them, two or more,
    are asked for.

    The vocabulary is part of the checkpoint, as plain containers, and of the run's folder, as
    `vocabulary.json`.

    Arguments:
        corpus: Where sentences come from.
        vocab_size: Entries of the vocabulary, the four special ones included. It is stated, because
            the model's sizes refer to it, and checked.
        max_length: The largest L, with `<s>` and `</s>`.
        batch_size: Sentences per batch and device.
        too_long: What becomes of a longer sentence: an `error`; `cut` keeps its first words and
            ends with `</s>`; `drop` leaves it out.
        min_words: Sentences of fewer words are left out.
        labels: Which of the corpus's labels to give, by name. None gives all.
        bucket: Whether batches gather sentences of about one length in training.
        subwords: Whether to number pieces of words; needs the extra `text`.
        vocabulary_file: A vocabulary saved as JSON. None counts the training text and keeps the
            `vocab_size` most frequent entries.
        min_count: How often the training text must have a word that is counted, or two pieces side
            by side.
        root: The folder of all data sets; `$EBLVM_DATA` if None, or else `./data`.
        seed: Determines the order of training.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocab_size: int,
        max_length: int,
        batch_size: int,
        too_long: TooLong = "error",
        min_words: int = 1,
        labels: Sequence[str] | None = None,
        bucket: bool = True,
        subwords: bool = False,
        vocabulary_file: str | None = None,
        min_count: int = 1,
        root: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, 0, seed)
        if max_length < 3:
            raise ValueError(f"max_length is {max_length}; expected 3 or more: <s>, a word, </s>.")
        if vocab_size < 5:
            raise ValueError(f"vocab_size is {vocab_size}; expected 5 or more: 4 special, a word.")
        if min_words < 1:
            raise ValueError(f"min_words is {min_words}; expected 1 or more.")
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}; expected 1 or more.")
        if min_count > 1 and vocabulary_file is not None:
            raise ValueError("min_count is about counted words, and vocabulary_file has them all.")
        if too_long not in get_args(TooLong):
            raise ValueError(f"too_long is {too_long!r}; expected one of {get_args(TooLong)}.")
        for name in labels or ():
            if name not in corpus.labels:
                raise ValueError(
                    f"labels has {name!r}; {type(corpus).__name__} has {list(corpus.labels)}."
                )
        self.corpus = corpus
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.too_long = too_long
        self.min_words = min_words
        self.labels = list(corpus.labels if labels is None else labels)
        self.bucket = bucket
        self.subwords = subwords
        self.vocabulary_file = vocabulary_file
        self.min_count = min_count
        self.root = Path(root or os.environ.get("EBLVM_DATA") or "data")
        self.vocabulary: Vocabulary | None = None
        self._read: dict[Split, list[Example]] = {}
        self._items: dict[Split, list[Example]] = {}
        self._encoded: dict[Split, TensorRows] = {}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(L,), the largest."""
        return (self.max_length,)

    @property
    def label_values(self) -> dict[str, Sequence[str]]:
        """Name of each label that batches have to the names of its values."""
        return {name: self.corpus.labels[name] for name in self.labels}

    def examples(self, split: Split) -> list[Example]:
        """The sentences of a split that have `min_words` words, also those that are too long.

        `items` are those that batches are made of.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If it cannot be read, or nothing is left of it.
        """
        if split not in self._read:
            every = self.corpus.read(split, self.root)
            kept = [example for example in every if len(example.words) >= self.min_words]
            if not kept:
                where = first_place(every) if every else f"the files below {self.root}"
                raise ValueError(
                    f"{type(self.corpus).__name__} has {len(every)} sentences in its {split} split "
                    f"and none of {self.min_words} words or more. Lower min_words, or look at "
                    f"{where}."
                )
            self._read[split] = kept
        return self._read[split]

    def setup(self, stage: str | None = None) -> None:
        """Read or count the vocabulary.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the vocabulary has not the stated size, or a text cannot be read.
        """
        if self.vocabulary is not None:
            return
        if self.vocabulary_file is None:
            sentences = counted(self.examples("train"))
            kind = Subwords if self.subwords else Vocabulary
            vocabulary = kind.from_counts(sentences, self.vocab_size, self.min_count)
        else:
            vocabulary = Vocabulary.load(self.vocabulary_file)
        if len(vocabulary) != self.vocab_size:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, but the vocabulary of {self._source()} has "
                f"{len(vocabulary)} entries. Write `vocab_size: {len(vocabulary)}` in the recipe."
            )
        self.vocabulary = vocabulary

    def _source(self) -> str:
        """Where the vocabulary is from, in words."""
        if self.vocabulary_file is not None:
            return self.vocabulary_file
        place = self.examples("train")[0].place.rpartition(",")[0]
        return place or type(self.corpus).__name__

    def dataset(self, split: Split) -> Dataset:
        """The encoded sentences of a split."""
        if split not in self._encoded:
            self.setup()
            examples, numbers = self._fitting(split)
            names = list(self.corpus.labels)
            columns = [names.index(name) for name in self.labels]
            labels = torch.tensor([[e.labels[i] for i in columns] for e in examples]).long()
            labels = labels.view(len(examples), len(columns))
            if len(columns) < 2:
                labels = labels[:, 0] if columns else torch.full((len(examples),), -1)
            self._items[split] = examples
            self._encoded[split] = self.rows(examples, numbers, labels)
        return self._encoded[split]

    def items(self, split: Split) -> list[Example]:
        """The sentences of a split that batches are made of, one for each row of the data set."""
        self.dataset(split)
        return self._items[split]

    def rows(self, examples: list[Example], numbers: list[list[int]], labels: Tensor) -> TensorRows:
        """The data set of sentences, given the numbers of their words."""
        return SentenceRows(self.frame(numbers), labels)

    def _fitting(self, split: Split) -> tuple[list[Example], list[list[int]]]:
        """Sentences and the numbers of their words, as `too_long` wants them."""
        assert self.vocabulary is not None
        most = self.max_length - 2
        examples = self.examples(split)
        numbers = [self.vocabulary.encode(example.words) for example in examples]
        if self.too_long == "cut":
            return examples, [words[:most] for words in numbers]
        lengths = list(map(self.longest, examples, numbers))
        long = [i for i, length in enumerate(lengths) if length > most]
        if long and self.too_long == "error":
            first = examples[long[0]]
            raise ValueError(
                f"{first.place or type(self.corpus).__name__}: a sentence of "
                f"{lengths[long[0]]} words, and max_length {self.max_length} leaves room for "
                f"{most} beside <s> and </s>. It is the first of {len(long)} in this split; the "
                f"longest has {max(lengths)}. Raise max_length, or choose "
                "`too_long: cut` or `too_long: drop`."
            )
        if long:
            if len(long) == len(examples):
                raise ValueError(
                    f"all {len(long)} sentences of {first_place(examples)} are longer than "
                    f"max_length {self.max_length} allows, so dropping them leaves none. Raise it."
                )
            dropped = set(long)
            kept = [i for i in range(len(examples)) if i not in dropped]
            return [examples[i] for i in kept], [numbers[i] for i in kept]
        return examples, numbers

    def longest(self, example: Example, numbers: list[int]) -> int:
        """Words of an item's longest sentence, given the numbers of its own."""
        return len(numbers)

    def frame(self, numbers: list[list[int]]) -> Tensor:
        """Tokens `(N, L)`: `<s>`, the numbers, `</s>`, padding."""
        longest = max((len(row) for row in numbers), default=0) + 2
        tokens = torch.full((len(numbers), longest), Vocabulary.PAD)
        for row, kept in zip(tokens, numbers, strict=True):
            row[: len(kept) + 2] = torch.tensor([Vocabulary.START, *kept, Vocabulary.END])
        return tokens

    def encode(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Tokens `(N, L)` of N sentences; what is too long is cut."""
        self.setup()
        assert self.vocabulary is not None
        most = self.max_length - 2
        return self.frame([self.vocabulary.encode(words)[:most] for words in sentences])

    def sampler(self, data: Dataset, train: bool) -> ResumableSampler:
        if train and self.bucket and isinstance(data, SentenceRows):
            share = self.num_replicas, self.rank
            return BucketSampler(data, data.lengths, self.batch_size, *share, self.seed)
        return super().sampler(data, train)

    def keep(self, folder: Path) -> None:
        """Write `vocabulary.json`."""
        if self.vocabulary is not None:
            self.vocabulary.save(folder / "vocabulary.json")

    def state_dict(self) -> dict[str, Any]:
        """The vocabulary, in plain containers: what a checkpoint needs to say words."""
        return {} if self.vocabulary is None else {"vocabulary": self.vocabulary.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the checkpoint's vocabulary, or check that it is this one.

        Raises:
            ValueError: If it is another.
        """
        if "vocabulary" not in state_dict:
            return
        saved = Vocabulary.from_state(state_dict["vocabulary"])
        if self.vocabulary is None:
            self.vocabulary = saved
        elif saved != self.vocabulary:
            pairs = zip(saved.words, self.vocabulary.words, strict=False)
            place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            where = (
                f"they have {len(saved)} and {len(self.vocabulary)} entries"
                if place is None
                else f"number {place} is {saved.words[place]!r} there and "
                f"{self.vocabulary.words[place]!r} here"
            )
            raise ValueError(
                f"the checkpoint's vocabulary is not that of {self._source()}: {where}. Use the "
                "checkpoint's own, which its run's folder keeps: "
                "--data.vocabulary_file=RUN/vocabulary.json."
            )


def counted(examples: list[Example]) -> Iterator[list[str]]:
    """What a vocabulary counts: every sentence once, and what opens a dialogue."""
    for example in examples:
        yield example.words
        if example.context and len(example.context[0]) == 1:
            yield example.context[0]


def first_place(examples: list[Example]) -> str:
    """The file of the first example."""
    return examples[0].place.rpartition(",")[0] or "the corpus"


class SentenceRows(TensorRows):
    """Padded rows of tokens, cut to the longest of each batch.

    Arguments:
        tokens: `(N, …, L)`; every axis but the first is cut where all that is left is padding.
        labels: `(N,)` or `(N, C)`.
    """

    def __init__(self, tokens: Tensor, labels: Tensor) -> None:
        super().__init__(tokens, labels)
        self.lengths = (tokens != Vocabulary.PAD).flatten(1).sum(1)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, ...]:
        tokens, labels = super().__getitems__(index)
        full = tokens != Vocabulary.PAD
        for axis in range(1, tokens.dim()):
            others = [a for a in range(tokens.dim()) if a != axis]
            length = int(full.amax(dim=others).sum())
            tokens = tokens.narrow(axis, 0, max(1, length))
        return tokens, labels


class DialogueDataModule(TextDataModule):
    """Responses and what was said before, in batches of `(tokens, label)`, `(B, 1 + T, L)`.

    Row 0 of an item is the response, rows 1 … T the turns before it, the oldest first; turns that
    are not there are all padding. Each turn is framed as a sentence is, and `too_long` is about
    each: `drop` leaves out a response before which a turn is too long, too.
    """

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(1 + T, L), the largest."""
        turns = 1 + max(len(example.context) for example in self.examples("train"))
        return (turns, self.max_length)

    def longest(self, example: Example, numbers: list[int]) -> int:
        assert self.vocabulary is not None
        turns = (self.vocabulary.encode(words) for words in example.context)
        return max(len(numbers), *map(len, turns), 0)

    def rows(self, examples: list[Example], numbers: list[list[int]], labels: Tensor) -> TensorRows:
        assert self.vocabulary is not None
        most = self.max_length - 2
        turns = 1 + max(len(example.context) for example in examples)
        tokens = torch.full((len(examples), turns, self.max_length), Vocabulary.PAD)
        responses = self.frame(numbers)
        tokens[:, 0, : responses.shape[1]] = responses
        for row, example in zip(tokens, examples, strict=True):
            for place, words in enumerate(example.context, start=1):
                kept = self.vocabulary.encode(words)[:most]
                framed = torch.tensor([Vocabulary.START, *kept, Vocabulary.END])
                row[place, : len(framed)] = framed
        return SentenceRows(tokens, labels)


class BagOfWordsDataModule(TextDataModule):
    """Documents as counts of words, in batches of `(counts, label)`, `(B, V)` and `(B,)`.

    V is `vocab_size`: column i counts the word number i. Special words, and with them strangers,
    are not counted: their columns, the first four, are empty. `min_words` is about the words
    counted. Batches travel as tokens and are counted on the device that they have reached.
    """

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(V,)."""
        return (self.vocab_size,)

    def _fitting(self, split: Split) -> tuple[list[Example], list[list[int]]]:
        examples, numbers = super()._fitting(split)
        sizes = [sum(number > Vocabulary.END for number in row) for row in numbers]
        kept = [i for i, size in enumerate(sizes) if size >= self.min_words]
        if not kept:
            raise ValueError(
                f"no document of {first_place(examples)} has {self.min_words} words of the "
                f"vocabulary; the richest has {max(sizes)}. Lower min_words, or raise vocab_size."
            )
        return [examples[i] for i in kept], [numbers[i] for i in kept]

    def finish(
        self, batch: tuple[Tensor, Tensor], split: Split, epoch: int, index: int
    ) -> tuple[Tensor, Tensor]:
        tokens, label = batch
        return count_words(tokens, self.event_shape[0]), label

    def log_frequency(self) -> Tensor:
        """log of each column's share of the training words, at least log 10⁻¹², `(V,)`."""
        tokens = self.dataset("train").columns[0]  # type: ignore[attr-defined]
        counts = torch.zeros(self.event_shape[0], dtype=torch.float64)
        for part in tokens.split(1000):
            counts += count_words(part, len(counts)).double().sum(0)
        return (counts / counts.sum()).clamp_min(1e-12).log().float()


def count_words(tokens: Tensor, num_columns: int) -> Tensor:
    """Counts `(B, V)` of tokens `(B, L)`; see `BagOfWordsDataModule` for the columns."""
    counted = (tokens > Vocabulary.END).float()
    return counted.new_zeros(len(tokens), num_columns).scatter_add_(1, tokens, counted)
