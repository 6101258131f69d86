"""Text: tokens, padding, the vocabulary, and errors that name file and line."""

import json
import os
from pathlib import Path

import pytest
import torch

from eblvm.data import TextDataModule, Vocabulary


@pytest.fixture
def text(tmp_path):
    """`text(train, val, test)` writes files and returns a module for them."""

    def make(train="a b a\nc a b\n", val="a d\n", test="b\n", **kwargs):
        paths = []
        for name, content in (("train", train), ("val", val), ("test", test)):
            paths.append(tmp_path / f"{name}.txt")
            content = content.encode() if isinstance(content, str) else content
            paths[-1].write_bytes(content)
        options = {"vocab_size": 7, "max_length": 6, "batch_size": 1, **kwargs}
        return TextDataModule(*map(str, paths), **options)

    return make


def test_words_are_numbered_by_count_then_spelling():
    vocabulary = Vocabulary.from_counts([["b", "c", "c"], ["a", "<unk>", "c"]])
    assert vocabulary.words == ["<pad>", "<unk>", "<s>", "</s>", "c", "a", "b"]
    assert Vocabulary.from_counts([["b", "c", "c"]], max_size=5).words[4:] == ["c"]


def test_decoding_undoes_encoding_and_strangers_are_unknown():
    vocabulary = Vocabulary.from_counts([["a", "b"]])
    assert vocabulary.decode(vocabulary.encode(["b", "a", "<s>", "z"])) == [
        "b",
        "a",
        "<s>",
        "<unk>",
    ]


def test_a_vocabulary_survives_saving(tmp_path):
    vocabulary = Vocabulary.from_counts([["ä", '"', "b"]])
    vocabulary.save(tmp_path / "words.json")
    assert Vocabulary.load(tmp_path / "words.json").words == vocabulary.words


def test_batches_are_right_padded_sentences(text):
    module = text()
    tokens, label = next(module.batches("val"))
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[2, 4, 1, 3, 0, 0]]  # <s> a <unk> </s> <pad> <pad>
    assert label.tolist() == [0]
    assert tokens.shape[1:] == module.event_shape


def test_long_sentences_keep_their_start_and_the_end_symbol(text):
    tokens, _ = next(text(test="a a a a a b b\n").batches("test"))
    assert tokens.tolist() == [[2, 4, 4, 4, 4, 3]]


def test_training_visits_every_sentence(text):
    rows = {tuple(tokens[0].tolist()) for tokens, _ in text().train_dataloader()}
    assert rows == {(2, 4, 5, 4, 3, 0), (2, 6, 4, 5, 3, 0)}


def test_a_stated_size_that_is_wrong_names_both_and_the_remedy(text, tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size is 9.*has 7 entries.*`vocab_size: 7`"):
        text(vocab_size=9).setup()
    Vocabulary.from_counts([["a"]]).save(tmp_path / "words.json")
    with pytest.raises(ValueError, match=r"vocab_size is 7.*words.json has 5 entries"):
        text(vocabulary_file=str(tmp_path / "words.json")).setup()


def test_errors_name_file_and_line(text, tmp_path):
    with pytest.raises(ValueError, match=r"train.txt, line 2: byte 0xe4 is not UTF-8"):
        text(train=b"a b\nc \xe4 d\n").setup()
    with pytest.raises(ValueError, match=r"train.txt, line 1: the file ends without a sentence"):
        text(train="").setup()
    with pytest.raises(ValueError, match=r"val.txt, line 3: the file ends without a sentence"):
        text(val="\n \n\n").dataset("val")
    module = text()
    (tmp_path / "test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"test.txt is missing"):
        module.dataset("test")


def test_arguments_out_of_range_are_refused(text):
    with pytest.raises(ValueError, match="max_length is 2; expected 3 or more"):
        text(max_length=2)
    with pytest.raises(ValueError, match="vocab_size is 4; expected 5 or more"):
        text(vocab_size=4)


def test_broken_vocabularies_are_refused(tmp_path):
    with pytest.raises(ValueError, match="begins with <pad>, <unk>, <s>, </s>; this one with"):
        Vocabulary(["a", "b"])
    with pytest.raises(ValueError, match="has 'a' twice"):
        Vocabulary([*Vocabulary.SPECIAL, "a", "a"])
    path = tmp_path / "words.json"
    path.write_text("{not json")
    with pytest.raises(ValueError, match=r"words.json is not a vocabulary: "):
        Vocabulary.load(path)
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"words.json is not a vocabulary; expected a JSON list"):
        Vocabulary.load(path)


def test_penn_treebank():
    root = os.environ.get("EBLVM_DATA")
    if root is None or not (Path(root) / "ptb").is_dir():
        pytest.skip("EBLVM_DATA names no folder with ptb")
    files = [str(Path(root) / "ptb" / f"ptb.{part}.txt") for part in ("train", "valid", "test")]
    module = TextDataModule(*files, vocab_size=10_002, max_length=40, batch_size=100)
    sizes = [len(module.dataset(split)) for split in ("train", "val", "test")]
    assert sizes == [42068, 3370, 3761]
