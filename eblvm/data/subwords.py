"""Pieces of words, by the `tokenizers` library: words of known letters are no strangers."""

import json
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from .vocabulary import Vocabulary

__all__ = ["Subwords"]


def _tokenizers() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "subwords need the tokenizers library: `pip install 'eblvm[text]'`."
        ) from error
    return tokenizers


class Subwords(Vocabulary):
    """Byte-pair pieces, learned from a text; a new word begins with `▁`.

    A word that the text does not have is spelled by pieces, down to single characters. A character
    that the text does not have, or that `max_size` leaves no room for, is `<unk>`.

    Arguments:
        state: The tokenizer as the library writes it, in plain containers.

    References:
        Neural Machine Translation of Rare Words with Subword Units (Sennrich et al., 2016).
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self.tokenizer = _tokenizers().Tokenizer.from_str(json.dumps(state))
        numbers = self.tokenizer.get_vocab()
        super().__init__(sorted(numbers, key=numbers.__getitem__))

    @classmethod
    def from_counts(
        cls, sentences: Iterable[Sequence[str]], max_size: int | None = None, min_count: int = 1
    ) -> "Subwords":
        """Learn pieces of the words of some sentences.

        Arguments:
            sentences: Each a sequence of words.
            max_size: How many entries to keep at most, the special ones included; 30,000 if None.
            min_count: How often two pieces must be neighbours to become one.
        """
        tokenizers = _tokenizers()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        tokenizer.decoder = tokenizers.decoders.Metaspace()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=max_size or 30_000,
            min_frequency=min_count,
            special_tokens=list(cls.SPECIAL),
            show_progress=False,
        )
        lines = (" ".join(words) for words in sentences)
        tokenizer.train_from_iterator(lines, trainer)
        return cls(json.loads(tokenizer.to_str()))

    def state(self) -> Any:
        return json.loads(self.tokenizer.to_str())

    def encode(self, words: Iterable[str]) -> list[int]:
        """Numbers of the pieces of words."""
        return self.plain(self.tokenizer.encode(" ".join(words), add_special_tokens=False).ids)

    def sentence(self, numbers: Iterable[int]) -> list[str]:
        """Whole words again."""
        kept = self.within(numbers)
        return self.tokenizer.decode(kept, skip_special_tokens=False).split()
