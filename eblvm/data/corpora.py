"""Texts as their authors published them: files to words and labels.

A corpus reads one split at a time. Files are looked for below the root of all data sets; a name
ending in `.gz` is opened as such, and where a file is missing its `.gz` is tried. What cannot be
read is an error that names the file and the line.
"""

import csv
import gzip
import io
import json
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .module import Split

__all__ = [
    "AGNews",
    "CocoCaptions",
    "Corpus",
    "Example",
    "PennTreebank",
    "StanfordSentiment",
    "TextFiles",
    "Yelp",
]


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence.

    Arguments:
        words: Its words, without `<s>` and `</s>`.
        labels: Numbers, as many as the corpus has labels; −1 where there is none.
        context: The words of the sentences before it, the oldest first.
        place: File and line, for errors.
    """

    words: list[str]
    labels: tuple[int, ...] = ()
    context: tuple[list[str], ...] = ()
    place: str = ""


class Corpus(ABC):
    """Sentences in three splits.

    Attributes:
        labels: Name of each label to the names of its values, of which value i is the i-th.
    """

    labels: Mapping[str, Sequence[str]] = MappingProxyType({})

    @abstractmethod
    def read(self, split: Split, root: Path) -> list[Example]:
        """The sentences of a split.

        Arguments:
            split: `train`, `val` or `test`.
            root: The folder of all data sets.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If it cannot be understood; the message names file and line.
        """


def split_words(text: str) -> list[str]:
    """Words as white space separates them."""
    return text.split()


def basic_words(text: str) -> list[str]:
    """Lower-cased words, with punctuation apart and quotation marks dropped.

    The rules are those of torchtext's `basic_english`.
    """
    text = text.lower().replace("<br />", " ").replace('"', "")
    text = re.sub(r"([.,()!?'])", r" \1 ", text)
    return re.sub(r"[;:]", " ", text).split()


def dialogue_words(text: str) -> list[str]:
    """Runs of letters and digits, `<sil>`, and runs of other characters."""
    return re.findall(r"<sil>|\w+|[^\w\s]+", text)


NOT_TEXT = ("json", "parquet", "xlsx", "xml")
"""Suffixes of files whose lines are no sentences."""

TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "whitespace": split_words,
    "basic": basic_words,
    "dialogue": dialogue_words,
}


def find(root: Path, *names: str) -> Path:
    """The first file of these names, or such a name with `.gz`, that is there.

    Raises:
        FileNotFoundError: If none is.
    """
    for name in names:
        for path in (root / name, root / f"{name}.gz"):
            if path.is_file():
                return path
    raise FileNotFoundError(
        f"{root / names[0]} is missing. Put it there, or say where data sets lie: --data.root or "
        "EBLVM_DATA."
    )


def read_text(path: Path) -> str:
    """A UTF-8 file, unpacked where it ends in `.gz`.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is not UTF-8 or cannot be unpacked; with the line.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; expected a text file.") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); fetch it again.") from error
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte {content[error.start]:#04x} is not UTF-8. Convert the "
            "file, e.g. with `iconv -f latin1 -t utf-8`."
        ) from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines, without the blank ones.

    Raises:
        ValueError: At the end, if all are blank.
    """
    blank = True
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            blank = False
            yield number, line.rstrip("\r")
    if blank:
        raise no_sentence(path)


def no_sentence(path: Path) -> ValueError:
    """The error of a file of which nothing can be read."""
    return ValueError(
        f"{path}, line {read_text(path).count(chr(10)) + 1}: the file ends without a sentence; "
        "expected one a line."
    )


def number_in(text: Any, count: int, place: str, what: str, first: int = 0) -> int:
    """A label read as a number of `first … first + count − 1`, counted from 0.

    Raises:
        ValueError: If it is none.
    """
    if not re.fullmatch(r"-?[0-9]+", str(text).strip()):
        raise ValueError(f"{place}: {what} is {text!r}; expected a number.")
    number = int(text) - first
    if not 0 <= number < count:
        raise ValueError(
            f"{place}: {what} is {int(text)}; expected {first} to {first + count - 1}."
        )
    return number


class TextFiles(Corpus):
    """Any text: `.txt`, one sentence a line, or `.csv`, `.tsv`, `.jsonl` with named columns.

    A file may be packed, as in `.txt.gz`. Labels are named by what the file says of them; they are
    numbered in the order of their spelling, as numbers where all are. A row whose label is empty,
    or null in `.jsonl`, is unlabeled: its label is −1, which is no class. So a few labels among
    many sentences make semi-supervised data.

    Arguments:
        train_file: Training text. It lies below the root of data sets, or where the name says.
        val_file: Validation text. None takes every twentieth sentence out of the training text.
        test_file: Test text. None takes every twentieth out, too, starting with the eleventh.
        text_column: The column that holds the sentence. Not for `.txt`.
        label_columns: Columns that hold labels. Not for `.txt`.
        tokenizer: `whitespace`; `basic`, which lower-cases and sets punctuation apart; `dialogue`,
            which sets it apart only.
    """

    def __init__(
        self,
        train_file: str,
        val_file: str | None = None,
        test_file: str | None = None,
        text_column: str = "text",
        label_columns: Sequence[str] = (),
        tokenizer: str = "whitespace",
    ) -> None:
        if tokenizer not in TOKENIZERS:
            raise ValueError(f"tokenizer is {tokenizer!r}; expected one of {list(TOKENIZERS)}.")
        self.files: dict[Split, str | None] = {
            "train": train_file,
            "val": val_file,
            "test": test_file,
        }
        self.text_column = text_column
        self.label_columns = list(label_columns)
        self.tokenizer = tokenizer
        self.values: dict[str, list[str]] = {name: [] for name in self.label_columns}
        self.labels = self.values

    def read(self, split: Split, root: Path) -> list[Example]:
        train = self._rows("train", root)
        self._name_values(train)
        if split == "train" or self.files[split] is None:
            rows = [row for i, row in enumerate(train) if self._part(i) == split]
            if not rows:
                raise ValueError(
                    f"{self.files['train']} has {len(train)} sentences, too few to hold some out "
                    f"for {split}. Name a {split}_file, or give 11 sentences or more."
                )
        else:
            rows = self._rows(split, root)
        words = TOKENIZERS[self.tokenizer]
        examples = [Example(words(t), self._numbers(v, p), place=p) for t, v, p in rows]
        return [example for example in examples if example.words]

    def _part(self, index: int) -> Split:
        """The split of a training file's sentence."""
        for split, place in (("val", 0), ("test", 10)):
            if self.files[split] is None and index % 20 == place:  # type: ignore[index]
                return split  # type: ignore[return-value]
        return "train"

    def _rows(self, split: Split, root: Path) -> list[tuple[str, list[str], str]]:
        """Text, values of the labels and place of each sentence of a file."""
        name = str(self.files[split])
        path = Path(name) if Path(name).exists() else find(root, name)
        kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
        if kind in NOT_TEXT:
            raise ValueError(
                f"{path} is neither a table nor text with a sentence a line; expected .csv, .tsv, "
                ".jsonl (a JSON object a line) or .txt."
            )
        rows: list[tuple[str, list[str], str]]
        if kind not in ("csv", "tsv", "jsonl"):
            if self.label_columns:
                raise ValueError(
                    f"{path} has no columns, so none is named {self.label_columns[0]!r}; labels "
                    "need a .csv, .tsv or .jsonl."
                )
            rows = [(line, [], f"{path}, line {n}") for n, line in read_lines(path)]
        else:
            names = [self.text_column, *self.label_columns]
            found = records(path, kind, names)
            rows = [(*self._columns(record, place), place) for record, place in found]
        if not any(text.strip() for text, _, _ in rows):
            raise no_sentence(path)
        return rows

    def _columns(self, record: dict[str, Any], place: str) -> tuple[str, list[str]]:
        for name, option in (
            (self.text_column, "text_column"),
            *((name, "label_columns") for name in self.label_columns),
        ):
            if name not in record:
                raise ValueError(
                    f"{place}: there is no column {name!r}; the columns are {list(record)}. Set "
                    f"{option} to one of them."
                )
        if record[self.text_column] is None:
            raise ValueError(f"{place}: {self.text_column!r} is null; expected a sentence.")
        labels = (record[name] for name in self.label_columns)
        return str(record[self.text_column]), ["" if y is None else str(y) for y in labels]

    def _name_values(self, rows: list[tuple[str, list[str], str]]) -> None:
        """The values that each label takes in the training file."""
        for i, name in enumerate(self.label_columns):
            values = {row[1][i] for row in rows if not unlabeled(row[1][i])}
            if not values:
                raise ValueError(
                    f"{self.files['train']} has no row with a {name!r}: all are empty. "
                    "Label some, or leave it out of label_columns."
                )
            numeric = all(re.fullmatch(r"-?\d+", value) for value in values)
            self.values[name] = sorted(values, key=int if numeric else str)

    def _numbers(self, values: list[str], place: str) -> tuple[int, ...]:
        for name, value in zip(self.label_columns, values, strict=True):
            if value not in self.values[name] and not unlabeled(value):
                raise ValueError(
                    f"{place}: {name} is {value!r}, which the training text never has; it has "
                    f"{self.values[name]}."
                )
        pairs = zip(self.label_columns, values, strict=True)
        return tuple(-1 if unlabeled(v) else self.values[name].index(v) for name, v in pairs)


def unlabeled(value: str) -> bool:
    """Whether what a file says of a label is that there is none."""
    return not value.strip()


def records(path: Path, kind: str, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows of a `.csv`, `.tsv` or `.jsonl` by column, each with its place.

    Arguments:
        path: The file.
        kind: What its name ends in.
        names: Columns that a row of a table has to reach, where there are such.

    Raises:
        ValueError: If a row cannot be read, with file and line.
    """
    if kind == "jsonl":
        for number, line in read_lines(path):
            place = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{place}: no JSON object ({error}).") from error
            if not isinstance(record, dict):
                raise ValueError(f'{place}: expected a JSON object, such as {{"text": …}}.')
            yield record, place
        return
    quoting: dict[str, Any] = {"delimiter": ","}
    if kind == "tsv":
        quoting = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    head: list[str] = []
    for row, place in fields(path, **quoting):
        if not head:
            head = row
            continue
        short = [name for name in names if name in head[len(row) :]]
        if short:
            raise ValueError(
                f"{place}: the row has {len(row)} of {len(head)} fields, and {short[0]!r} is not "
                f"among them. The columns are {head}: write one field for each."
            )
        named: dict[str, Any] = dict.fromkeys(head) | dict(zip(head, row, strict=False))
        yield {name: value for name, value in named.items() if name}, place


def fields(path: Path, **quoting: Any) -> Iterator[tuple[list[str], str]]:
    """Rows of a table without the blank ones, each with its place: the line where it ends.

    Raises:
        ValueError: If one cannot be read, with file and line.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), **quoting)
    while True:
        begin = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {begin}: the row that begins here cannot be read ({error}). Look "
                "for a quotation mark that is opened and never closed."
            ) from error
        if row is None:
            return
        if row:
            yield row, f"{path}, line {reader.line_num}"


class PennTreebank(Corpus):
    """Sentences of the Wall Street Journal, 10,000 words: `ptb/ptb.{train,valid,test}.txt`.

    The version of Mikolov (2010): 42,068, 3,370 and 3,761 sentences, `<unk>` and `N` in place.
    """

    def read(self, split: Split, root: Path) -> list[Example]:
        name = {"train": "train", "val": "valid", "test": "test"}[split]
        return plain(find(root, f"ptb/ptb.{name}.txt"))


class CocoCaptions(Corpus):
    """Captions of images: `coco_captions/image_coco.txt` and `test_coco.txt`, 10,000 each.

    Every tenth training caption is for validation.
    """

    def read(self, split: Split, root: Path) -> list[Example]:
        name = "test_coco" if split == "test" else "image_coco"
        examples = plain(find(root, f"coco_captions/{name}.txt"))
        if split == "test":
            return examples
        return [e for i, e in enumerate(examples) if (i % 10 == 0) == (split == "val")]


def plain(path: Path) -> list[Example]:
    """A file with one sentence a line, without labels."""
    return [Example(line.split(), place=f"{path}, line {n}") for n, line in read_lines(path)]


class StanfordSentiment(Corpus):
    """Sentences of film reviews with their sentiment: `sst/stsa.{binary,fine}.{train,dev,test}`.

    References:
        Recursive Deep Models for Semantic Compositionality (Socher et al., 2013).

    Arguments:
        fine: Whether to tell five degrees apart instead of two.
    """

    def __init__(self, fine: bool = False) -> None:
        self.kind = "fine" if fine else "binary"
        degrees = ["very negative", "negative", "neutral", "positive", "very positive"]
        self.labels = {"sentiment": degrees if fine else ["negative", "positive"]}

    def read(self, split: Split, root: Path) -> list[Example]:
        name = {"train": "train", "val": "dev", "test": "test"}[split]
        path = find(root, f"sst/stsa.{self.kind}.{name}")
        examples = []
        for number, line in read_lines(path):
            label, _, text = line.partition(" ")
            place = f"{path}, line {number}"
            value = number_in(label, len(self.labels["sentiment"]), place, "the label")
            examples.append(Example(text.split(), (value,), place=place))
        return examples


class Yelp(Corpus):
    """Sentences of reviews by sentiment: `yelp/sentiment.{train,dev,test}.{0,1}`, words apart.

    The experiments of SVEBM and LDEBM train on the development sentences as well.

    Arguments:
        dev_in_train: Whether the training split has the development sentences, too.
    """

    labels = MappingProxyType({"sentiment": ["negative", "positive"]})

    def __init__(self, dev_in_train: bool = False) -> None:
        self.dev_in_train = dev_in_train

    def read(self, split: Split, root: Path) -> list[Example]:
        names = {"train": ["train"], "val": ["dev"], "test": ["test"]}[split]
        if split == "train" and self.dev_in_train:
            names = ["train", "dev"]
        examples = []
        for name in names:
            for value in (0, 1):
                for example in plain(find(root, f"yelp/sentiment.{name}.{value}")):
                    words = [word.lower() for word in example.words]
                    examples.append(Example(words, (value,), place=example.place))
        return examples


class AGNews(Corpus):
    """Short news in four topics, below `agnews/`.

    Read are `{train,test}.csv` as published (class 1 to 4, title, description; without a head), or
    else `{train,test}.tokens.tsv`, class and words; the validation split is every 24th training
    document then, 5,000 of 120,000. Or else `{train,dev,test}.jsonl`, objects with `label` (1 to
    4), `headline` and `text`, the form of the experiments of SVEBM and LDEBM.

    Arguments:
        num_labeled: How many training documents of each class keep their label, the first ones in
            order; the others get −1. None keeps all.

    References:
        Character-level Convolutional Networks for Text Classification (Zhang et al., 2015).
    """

    labels = MappingProxyType({"topic": ["world", "sports", "business", "science and technology"]})

    def __init__(self, num_labeled: int | None = None) -> None:
        if num_labeled is not None and num_labeled < 1:
            raise ValueError(f"num_labeled is {num_labeled}; expected 1 or more, or None.")
        self.num_labeled = num_labeled

    def read(self, split: Split, root: Path) -> list[Example]:
        name = "test" if split == "test" else "train"
        own = "dev" if split == "val" else name
        files = f"{name}.csv", f"{name}.tokens.tsv", f"{own}.jsonl"
        path = find(root, *(f"agnews/{file}" for file in files))
        objects = path.name.startswith(f"{own}.jsonl")
        rows: list[tuple[Any, list[str], str]] = []
        if objects:
            for record, place in records(path, "jsonl", ()):
                for key in ("label", "headline", "text"):
                    if key not in record:
                        raise ValueError(f"{place}: there is no {key!r}, only {list(record)}.")
                words = basic_words(f"{record['headline']} {record['text']}")
                rows.append((record["label"], words, place))
        elif path.name.startswith(f"{name}.tokens"):
            for number, line in read_lines(path):
                label, _, text = line.partition("\t")
                rows.append((label, text.split(), f"{path}, line {number}"))
        else:
            rows = [
                (row[0], basic_words(" ".join(row[1:])), place)
                for row, place in fields(path)
                if "".join(row).strip()
            ]
            if not rows:
                raise no_sentence(path)
        if split != "test" and not objects:
            rows = [row for i, row in enumerate(rows) if (i % 24 == 0) == (split == "val")]
        seen = [0] * 4
        examples = []
        for label, words, place in rows:
            value = number_in(label, 4, place, "the class", first=1)
            seen[value] += 1
            hidden = split == "train" and 0 < (self.num_labeled or 0) < seen[value]
            examples.append(Example(words, (-1 if hidden else value,), place=place))
        return examples
