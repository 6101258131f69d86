"""Words, or pieces of words, and their numbers."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Vocabulary"]


class Vocabulary:
    """A list of words; a word's number is its place.

    The first four are special: `<pad>` 0, `<unk>` 1, `<s>` 2, `</s>` 3. A text may have `<unk>` as
    a word; one that spells the others, which frame sentences, is a stranger.

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
        >>> vocabulary.sentence([2, 4, 5, 3, 0])
        ['a', 'b']
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
        cls, sentences: Iterable[Sequence[str]], max_size: int | None = None, min_count: int = 1
    ) -> "Vocabulary":
        """The words of some sentences, the most frequent first; equally frequent ones by spelling.

        Arguments:
            sentences: Each a sequence of words.
            max_size: How many entries to keep at most, the special ones included.
            min_count: How often a word must occur to be kept.
        """
        counts = Counter(word for sentence in sentences for word in sentence)
        for word in cls.SPECIAL:
            counts.pop(word, None)
        words = [word for word, count in counts.items() if count >= min_count]
        words.sort(key=lambda word: (-counts[word], word))
        return cls([*cls.SPECIAL, *words][:max_size])

    @staticmethod
    def load(path: str | Path) -> "Vocabulary":
        """Read what `save` wrote: a list of words, or the tokenizer of `Subwords`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is neither.
        """
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            return Vocabulary.from_state(state)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} is missing; expected a vocabulary that a run saved as vocabulary.json."
            ) from None
        except ValueError as error:  # JSON and UTF-8 errors are ValueErrors, too
            raise ValueError(f"{path} is not a vocabulary: {error}") from error

    @staticmethod
    def from_state(state: Any) -> "Vocabulary":
        """Undo `state`.

        Raises:
            ValueError: If it is not a state of a vocabulary.
        """
        if isinstance(state, dict) and "model" in state:
            from .subwords import Subwords

            return Subwords(state)
        if not isinstance(state, list) or not all(isinstance(word, str) for word in state):
            raise ValueError("expected a JSON list of words, or the tokenizer of subwords.")
        return Vocabulary(state)

    def state(self) -> Any:
        """All there is to know, in plain containers: for JSON and for checkpoints."""
        return list(self.words)

    def save(self, path: str | Path) -> None:
        """Write the state as JSON."""
        text = json.dumps(self.state(), ensure_ascii=False, indent=0)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def encode(self, words: Iterable[str]) -> list[int]:
        """Numbers of words; that of `<unk>` for strangers."""
        return self.plain(self.number.get(word, self.UNK) for word in words)

    def plain(self, numbers: Iterable[int]) -> list[int]:
        """Numbers with `<unk>` in place of `<pad>`, `<s>` and `</s>`."""
        return [number if number > self.END else self.UNK for number in numbers]

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """Words of numbers."""
        return [self.words[i] for i in numbers]

    def sentence(self, numbers: Iterable[int]) -> list[str]:
        """The words of a sentence: without `<s>`, and up to the first `</s>` or `<pad>`."""
        return self.decode(self.within(numbers))

    def within(self, numbers: Iterable[int]) -> list[int]:
        """The numbers between `<s>` and the first `</s>` or `<pad>`."""
        kept = []
        for number in map(int, numbers):
            if number in (self.END, self.PAD):
                break
            if number != self.START:
                kept.append(number)
        return kept

    def sentences(self, tokens: Iterable[Iterable[int]]) -> list[list[str]]:
        """The words of each row of tokens `(N, L)`; a tensor will do."""
        rows = tokens.tolist() if hasattr(tokens, "tolist") else tokens
        return [self.sentence(row) for row in rows]

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.state() == other.state()

    __hash__ = None  # type: ignore[assignment]
