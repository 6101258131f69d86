"""Words and their numbers."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["Vocabulary"]


class Vocabulary:
    """A list of words; a word's number is its place.

    The first four are special: `<pad>` 0, `<unk>` 1, `<s>` 2, `</s>` 3.

    Arguments:
        words: All entries, the four special ones first.

    Raises:
        ValueError: If the special words do not come first or a word occurs twice.

    Example:
        >>> vocabulary = Vocabulary.from_counts([["a", "b", "a"]])
        >>> vocabulary.encode(["a", "c"])
        [4, 1]
        >>> vocabulary.decode([2, 4, 5, 3, 0])
        ['<s>', 'a', 'b', '</s>', '<pad>']
    """

    SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
    PAD, UNK, START, END = range(4)

    def __init__(self, words: Sequence[str]) -> None:
        if tuple(words[:4]) != self.SPECIAL:
            raise ValueError(
                f"A vocabulary begins with {', '.join(self.SPECIAL)}; this one with {words[:4]}."
            )
        self.words = list(words)
        self.number = {word: i for i, word in enumerate(self.words)}
        if len(self.number) < len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ValueError(f"The vocabulary has {twice!r} twice; expected each word once.")

    @classmethod
    def from_counts(
        cls, sentences: Iterable[Sequence[str]], max_size: int | None = None
    ) -> "Vocabulary":
        """The words of some sentences, the most frequent first; equally frequent ones by spelling.

        Arguments:
            sentences: Each a sequence of words.
            max_size: How many entries to keep at most, the special ones included.
        """
        counts = Counter(word for sentence in sentences for word in sentence)
        for word in cls.SPECIAL:
            counts.pop(word, None)
        words = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([*cls.SPECIAL, *words][:max_size])

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a JSON list of words.
        """
        try:
            words = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:  # JSON and UTF-8 errors are both ValueErrors
            raise ValueError(f"{path} is not a vocabulary: {error}.") from error
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path} is not a vocabulary; expected a JSON list of words.")
        return cls(words)

    def save(self, path: str | Path) -> None:
        """Write the words as JSON."""
        text = json.dumps(self.words, ensure_ascii=False, indent=0)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def encode(self, words: Iterable[str]) -> list[int]:
        """Numbers of words; that of `<unk>` for strangers."""
        return [self.number.get(word, self.UNK) for word in words]

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """Words of numbers."""
        return [self.words[i] for i in numbers]

    def __len__(self) -> int:
        return len(self.words)
