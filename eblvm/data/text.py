"""Sentences from text files, one a line, as numbered tokens."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .loader import TensorRows
from .module import DataModule, Split
from .vocabulary import Vocabulary

__all__ = ["TextDataModule"]


class TextDataModule(DataModule):
    """Sentences in batches of `(tokens, label)`: int64, `(B, L)` and zeros `(B,)`.

    A sentence is `<s>`, its words (split at white space), `</s>`, then `<pad>` up to L. One that is
    too long keeps its first L − 1 tokens and `</s>`. Blank lines are skipped.

    Arguments:
        train_file: Training text in UTF-8, one sentence a line.
        val_file: Validation text.
        test_file: Test text.
        vocab_size: Entries of the vocabulary, the four special ones included. It is stated, because
            the model's sizes refer to it, and checked.
        max_length: L, with `<s>` and `</s>`.
        batch_size: Sentences per batch and device.
        vocabulary_file: A vocabulary saved as JSON. None counts the training text and keeps the
            `vocab_size` most frequent entries.
        seed: Determines the order of training.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        train_file: str,
        val_file: str,
        test_file: str,
        vocab_size: int,
        max_length: int,
        batch_size: int,
        vocabulary_file: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, 0, seed)
        if max_length < 3:
            raise ValueError(f"max_length is {max_length}; expected 3 or more: <s>, a word, </s>.")
        if vocab_size < 5:
            raise ValueError(f"vocab_size is {vocab_size}; expected 5 or more: 4 special, a word.")
        self.files: dict[Split, str] = {"train": train_file, "val": val_file, "test": test_file}
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.vocabulary_file = vocabulary_file
        self.vocabulary: Vocabulary | None = None
        self._encoded: dict[Split, TensorRows] = {}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (self.max_length,)

    def setup(self, stage: str | None = None) -> None:
        """Read or count the vocabulary.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the vocabulary has not the stated size, or a text cannot be read.
        """
        if self.vocabulary is not None:
            return
        if self.vocabulary_file is None:
            sentences = _read_sentences(self.files["train"])
            vocabulary = Vocabulary.from_counts(sentences, max_size=self.vocab_size)
            source = self.files["train"]
        else:
            vocabulary = Vocabulary.load(self.vocabulary_file)
            source = self.vocabulary_file
        if len(vocabulary) != self.vocab_size:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, but the vocabulary of {source} has "
                f"{len(vocabulary)} entries. Write `vocab_size: {len(vocabulary)}` in the recipe."
            )
        self.vocabulary = vocabulary

    def dataset(self, split: Split) -> Dataset:
        """The encoded sentences of a split."""
        if split not in self._encoded:
            self.setup()
            tokens = self.encode(_read_sentences(self.files[split]))
            self._encoded[split] = TensorRows(tokens, torch.zeros(len(tokens)).long())
        return self._encoded[split]

    def encode(self, sentences: list[list[str]]) -> Tensor:
        """Tokens `(N, L)` of N sentences."""
        assert self.vocabulary is not None
        tokens = torch.full((len(sentences), self.max_length), Vocabulary.PAD)
        for row, words in zip(tokens, sentences, strict=True):
            kept = self.vocabulary.encode(words)[: self.max_length - 2]
            row[: len(kept) + 2] = torch.tensor([Vocabulary.START, *kept, Vocabulary.END])
        return tokens


def _read_sentences(path: str) -> list[list[str]]:
    """The words of each line that has any."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing; expected a text file, one sentence a line."
        ) from None
    sentences = []
    for number, line in enumerate(lines, start=1):
        try:
            words = line.decode("utf-8").split()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: byte {line[error.start]:#04x} is not UTF-8. Convert the "
                "file, e.g. with `iconv -f latin1 -t utf-8`."
            ) from error
        if words:
            sentences.append(words)
    if not sentences:
        raise ValueError(
            f"{path}, line {max(len(lines), 1)}: the file ends without a sentence; expected one a "
            "line."
        )
    return sentences
