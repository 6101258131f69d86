"""Text: tokens, padding, the vocabulary, and errors that name file and line."""

import json
import os
from pathlib import Path

import pytest
import torch

from eblvm.clustering import balanced_order
from eblvm.data import (
    BagOfWordsDataModule,
    Corpus,
    DialogueDataModule,
    Example,
    GrammarCorpus,
    PennTreebank,
    Subwords,
    TextDataModule,
    TextFiles,
    Vocabulary,
    seeded_generator,
)


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
        return TextDataModule(TextFiles(*map(str, paths)), **options)

    return make


def test_words_are_numbered_by_count_then_spelling():
    vocabulary = Vocabulary.from_counts([["b", "c", "c"], ["a", "<unk>", "c"]])
    assert vocabulary.words == ["<pad>", "<unk>", "<s>", "</s>", "c", "a", "b"]
    assert Vocabulary.from_counts([["b", "c", "c"]], max_size=5).words[4:] == ["c"]
    assert Vocabulary.from_counts([["b", "c", "c"]], min_count=2).words[4:] == ["c"]


def test_decoding_undoes_encoding_and_strangers_are_unknown():
    vocabulary = Vocabulary.from_counts([["a", "b"]])
    words = vocabulary.decode(vocabulary.encode(["b", "a", "<unk>", "z"]))
    assert words == ["b", "a", "<unk>", "<unk>"]


def test_words_that_spell_the_frame_of_a_sentence_are_strangers(text):
    module = text(val="a </s> b <pad>\n<s> c\n", batch_size=2)
    tokens, _ = next(module.batches("val"))
    assert tokens.tolist() == [[2, 4, 1, 5, 1, 3], [2, 1, 6, 3, 0, 0]]
    assert module.dataset("val").lengths.tolist() == [6, 4]


def test_a_sentence_ends_where_it_ends():
    vocabulary = Vocabulary.from_counts([["a", "b"]])
    assert vocabulary.sentence([2, 4, 5, 3, 4, 0]) == ["a", "b"]
    assert vocabulary.sentence([2, 4, 0, 5]) == ["a"]
    assert vocabulary.sentences(torch.tensor([[2, 3, 0], [2, 5, 4]])) == [[], ["b", "a"]]


def test_a_vocabulary_survives_saving(tmp_path):
    vocabulary = Vocabulary.from_counts([["ä", '"', "b"]])
    vocabulary.save(tmp_path / "words.json")
    assert Vocabulary.load(tmp_path / "words.json") == vocabulary


def test_subwords_spell_what_words_cannot(tmp_path):
    pytest.importorskip("tokenizers")
    sentences = [["low", "lower", "lowest"], ["new", "newer", "newest"]] * 5
    subwords = Subwords.from_counts(sentences, max_size=40)
    assert subwords.words[:4] == list(Vocabulary.SPECIAL)
    strange = ["newlow", "west", "erst"]
    numbers = subwords.encode(strange)
    assert Vocabulary.UNK not in numbers and len(numbers) > len(strange)
    assert subwords.sentence([2, *numbers, 3, 0]) == strange
    framed = subwords.encode(["low", "</s>", "<pad>", "<s>", "<unk>", "low"])
    assert framed.count(Vocabulary.UNK) == 4 and not {0, 2, 3} & set(framed)
    assert Vocabulary.UNK in subwords.encode(["löw"])  # a letter that the text does not have
    subwords.save(tmp_path / "pieces.json")
    again = Vocabulary.load(tmp_path / "pieces.json")
    assert isinstance(again, Subwords) and again.encode(strange) == numbers


def test_a_module_of_subwords(text):
    pytest.importorskip("tokenizers")
    train = "\n".join(["low lower lowest", "new newer newest"] * 5)
    module = text(train, "slower", "news", subwords=True, vocab_size=25, max_length=20)
    tokens, _ = next(module.batches("train"))
    assert len(module.vocabulary) == 25
    assert module.vocabulary.sentence(tokens[0]) in [t.split() for t in train.split("\n")[:2]]


def test_batches_are_right_padded_sentences(text):
    module = text(val="a d\nb a a\n", batch_size=2)
    tokens, label = next(module.batches("val"))
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[2, 4, 1, 3, 0], [2, 5, 4, 4, 3]]  # <s> a <unk> </s> <pad>
    assert label.dtype == torch.int64 and label.tolist() == [-1, -1]  # no labels, no class
    assert module.event_shape == (6,)


def test_what_is_too_long_is_refused_cut_or_dropped(text):
    long = {"test": "b\na a a a a b b\n", "batch_size": 2}
    with pytest.raises(ValueError, match=r"test.txt, line 2: a sentence of 7 words, .*room for 4"):
        next(text(**long).batches("test"))
    tokens, _ = next(text(**long, too_long="cut").batches("test"))
    assert tokens.tolist() == [[2, 5, 3, 0, 0, 0], [2, 4, 4, 4, 4, 3]]
    tokens, _ = next(text(**long, too_long="drop").batches("test"))
    assert tokens.tolist() == [[2, 5, 3]]
    with pytest.raises(ValueError, match=r"all 1 sentences of .*test.txt are longer"):
        text(test="a a a a a a\n", too_long="drop").dataset("test")
    with pytest.raises(ValueError, match="too_long is 'trim'"):
        text(too_long="trim")


def test_training_visits_every_sentence(text):
    rows = {tuple(tokens[0].tolist()) for tokens, _ in text().train_dataloader()}
    assert rows == {(2, 4, 5, 4, 3), (2, 6, 4, 5, 3)}


def test_a_stated_size_that_is_wrong_names_both_and_the_remedy(text, tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size is 9.*train.txt has 7 .*`vocab_size: 7`"):
        text(vocab_size=9).setup()
    Vocabulary.from_counts([["a"]]).save(tmp_path / "words.json")
    with pytest.raises(ValueError, match=r"vocab_size is 7.*words.json has 5 entries"):
        text(vocabulary_file=str(tmp_path / "words.json")).setup()


def test_rare_words_are_strangers_where_that_is_asked_for(text, tmp_path):
    module = text(train="a b a\nb c a\n", min_count=2, vocab_size=6)
    module.setup()
    assert module.vocabulary.words[4:] == ["a", "b"]
    with pytest.raises(ValueError, match=r"vocab_size is 7.*train.txt has 6 .*`vocab_size: 6`"):
        text(train="a b a\nb c a\n", min_count=2, vocab_size=7).setup()
    with pytest.raises(ValueError, match="min_count is 0; expected 1 or more"):
        text(min_count=0)
    with pytest.raises(ValueError, match="min_count is about counted words"):
        text(min_count=2, vocabulary_file=str(tmp_path / "words.json"))


def test_errors_name_file_and_line(text, tmp_path):
    with pytest.raises(ValueError, match=r"train.txt, line 2: byte 0xe4 is not UTF-8.*iconv"):
        text(train=b"a b\nc \xe4 d\n").setup()
    with pytest.raises(ValueError, match=r"train.txt, line 1: the file ends without a sentence"):
        text(train="").setup()
    with pytest.raises(ValueError, match=r"val.txt, line 4: the file ends without a sentence"):
        text(val="\n \n\n").dataset("val")
    module = text()
    (tmp_path / "test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"test.txt is missing.*--data.root"):
        module.dataset("test")


def test_a_corpus_of_one_sentence(text):
    module = text(train="a b c", vocab_size=7)
    assert [t.tolist() for t, _ in module.train_dataloader()] == [[[2, 4, 5, 6, 3]]]
    with pytest.raises(ValueError, match=r"batch_size is 2, .* has 1 training items.*lower batch"):
        text(train="a b c", vocab_size=7, batch_size=2).train_dataloader()
    with pytest.raises(ValueError, match=r"none of 4 words or more. Lower .* look at .*train.txt"):
        text(train="a b c", min_words=4).setup()


def test_arguments_out_of_range_are_refused(text):
    with pytest.raises(ValueError, match="max_length is 2; expected 3 or more"):
        text(max_length=2)
    with pytest.raises(ValueError, match="vocab_size is 4; expected 5 or more"):
        text(vocab_size=4)
    with pytest.raises(ValueError, match=r"labels has 'mood'; TextFiles has \[\]"):
        text(labels=["mood"])


def test_broken_vocabularies_are_refused(tmp_path):
    with pytest.raises(ValueError, match="begins with <pad>, <unk>, <s>, </s>; this one with"):
        Vocabulary(["a", "b"])
    with pytest.raises(ValueError, match="has 'a' twice"):
        Vocabulary([*Vocabulary.SPECIAL, "a", "a"])
    path = tmp_path / "words.json"
    with pytest.raises(FileNotFoundError, match=r"words.json is missing"):
        Vocabulary.load(path)
    path.write_text("{not json")
    with pytest.raises(ValueError, match=r"words.json is not a vocabulary: "):
        Vocabulary.load(path)
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"words.json is not a vocabulary: expected a JSON list"):
        Vocabulary.load(path)


def test_the_vocabulary_travels_with_the_state_and_another_is_refused(text, tmp_path):
    module = text()
    module.setup()
    state = module.state_dict()
    assert state == {"vocabulary": ["<pad>", "<unk>", "<s>", "</s>", "a", "b", "c"]}
    fresh = text()
    fresh.load_state_dict(state)
    assert fresh.vocabulary == module.vocabulary
    other = text(train="a b a\nc x b\n", vocab_size=8)
    other.setup()
    with pytest.raises(
        ValueError, match=r"not that of .*train.txt: they have 7 and 8 entries.*RUN"
    ):
        other.load_state_dict(state)
    other = text(train="b a b\nx a b\n")
    other.setup()
    with pytest.raises(ValueError, match="number 4 is 'a' there and 'b' here"):
        other.load_state_dict(state)
    module.keep(tmp_path)
    assert Vocabulary.load(tmp_path / "vocabulary.json") == module.vocabulary


GRAMMAR = {"vocab_size": 200, "max_length": 16}


def grammar(batch_size=16, num_train=230, kind=TextDataModule, **kwargs):
    corpus = GrammarCorpus(num_train, 20, 20)
    return kind(corpus, batch_size=batch_size, **GRAMMAR, **kwargs)


def test_bucketed_batches_are_of_one_length_and_hold_everything_once():
    loader = grammar().train_dataloader()
    batches = [tokens for tokens, _ in loader]
    assert len(batches) == 230 // 16
    widths = [(tokens != 0).sum(1) for tokens in batches]
    spread = sum(int(w.max() - w.min()) for w in widths) / len(widths)
    plain = grammar(bucket=False).train_dataloader()
    plain_widths = [(tokens != 0).sum(1) for tokens, _ in plain]
    assert spread < 0.5 * sum(int(w.max() - w.min()) for w in plain_widths) / len(plain_widths)
    rows = [tuple(row[row != 0].tolist()) for tokens in batches for row in tokens]
    assert len(set(rows)) == len(rows) == 14 * 16
    again = [tokens for tokens, _ in loader]
    assert any(a.shape != b.shape or not a.equal(b) for a, b in zip(batches, again, strict=True))
    lengths = [int(w.max()) for w in widths]
    assert lengths != sorted(lengths)  # batches come in no order of length


def test_bucketing_resumes_exactly_and_needs_the_same_pools():
    loader = grammar().train_dataloader()
    whole = [tokens for _ in range(2) for tokens, _ in loader]
    loader = grammar().train_dataloader()
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state = loader.state_dict()
    resumed = grammar().train_dataloader()
    resumed.load_state_dict(state)
    rest = [tokens for _ in range(2) for tokens, _ in resumed]
    assert len(rest) == len(whole) - 5
    assert all(a.equal(b) for a, b in zip(rest, whole[5:], strict=True))
    plain = grammar(bucket=False).train_dataloader()
    plain.load_state_dict(state)
    with pytest.raises(ValueError, match="pool was 50 and is 0"):
        next(iter(plain))


def test_ranks_share_a_batch_of_one_length():
    shares = []
    for rank in (0, 1):
        module = grammar(batch_size=8)
        module.trainer = type("Trainer", (), {"world_size": 2, "global_rank": rank})()
        loader = module.loader("train")
        shares.append([tokens for tokens, _ in loader])
    whole = [tokens for tokens, _ in grammar(batch_size=16).train_dataloader()]
    assert len(shares[0]) == len(shares[1]) == len(whole)
    for one, other, both in zip(*shares, whole, strict=True):
        rows = sorted(row[row != 0].tolist() for part in (one, other) for row in part)
        assert rows == sorted(row[row != 0].tolist() for row in both)


def padding(loader):
    """The share of padding in an epoch's batches."""
    batches = [tokens for tokens, _ in loader]
    return float(sum((t == 0).sum() for t in batches) / sum(t.numel() for t in batches))


def test_a_balanced_order_is_bucketed_too():
    """Geometric clustering says who is in an epoch, and sentences of one length still meet."""
    label = torch.tensor([0] * 150 + [1] * 50 + [2] * 24)  # 14 full batches
    order = balanced_order(label, seeded_generator(0)).tolist()
    loader = grammar(num_train=224).train_dataloader()
    usual = padding(loader)
    loader.sampler.order = order
    loader.sampler.set_epoch(0)
    first = list(loader.sampler)
    loader.sampler.set_epoch(1)
    second = list(loader.sampler)
    assert sorted(first) == sorted(second) == sorted(order)
    assert first != second  # shuffled anew, though the order stays
    assert padding(loader) < usual + 0.05
    plain = grammar(num_train=224, bucket=False).train_dataloader()
    plain.sampler.order = order
    assert list(plain.sampler) == order
    assert padding(plain) > 2 * padding(loader)
    # what there is to know of a batch is known by its place, and (seed, epoch) say all
    again = grammar(num_train=224).train_dataloader()
    again.sampler.order = order
    again.sampler.set_epoch(1)
    tokens = again.dataset.columns[0]
    for index, (batch, _) in enumerate(again):
        assert again.rows(index) == second[16 * index : 16 * index + 16]
        assert torch.equal(tokens[again.rows(index)][:, : batch.shape[1]], batch)
    # ranks share what one device would have
    shares = []
    for rank in (0, 1):
        module = grammar(batch_size=8, num_train=224)
        module.trainer = type("Trainer", (), {"world_size": 2, "global_rank": rank})()
        share = module.loader("train").sampler
        share.order = order
        shares.append(list(share))
    assert [i for pair in zip(*shares, strict=True) for i in pair] == first


def test_labels_by_name():
    _, label = next(grammar().batches("val"))
    assert label.shape == (16, 3)
    _, topic = next(grammar(labels=["topic"]).batches("val"))
    assert torch.equal(topic, label[:, 0])
    assert list(grammar(labels=["sentiment"]).label_values) == ["sentiment"]


def test_dialogues_put_the_response_first(tmp_path):
    folder = tmp_path / "sgd"
    folder.mkdir()
    turns = [["U", "Hi there!", []], ["S", "Hello.", []], ["U", "Bye", []]]
    line = json.dumps({"services": ["Hotels_1"], "turns": turns})
    for name in ("train", "dev", "test"):
        (folder / f"{name}.jsonl").write_text(line + "\n")
    from eblvm.data import SchemaGuidedDialogue

    corpus = SchemaGuidedDialogue(num_context=2)
    module = DialogueDataModule(corpus, 13, 10, 3, root=str(tmp_path))
    assert module.event_shape == (3, 10)
    x, label = next(module.batches("val"))
    said = [[" ".join(words) for words in module.vocabulary.sentences(row)] for row in x]
    assert said == [
        ["<usr> hi there !", "<d>", ""],
        ["<sys> hello .", "<d>", "<usr> hi there !"],
        ["<usr> bye", "<usr> hi there !", "<sys> hello ."],
    ]
    assert x.shape == (3, 3, 6)  # as wide as its longest turn
    assert label.tolist() == [[7, 0], [7, 1], [7, 0]]


def test_turns_before_a_response_may_not_be_too_long_either(tmp_path):
    class Said(Corpus):
        def read(self, split, root):
            long = ["d"] * 6 if split == "test" else ["d"]
            turns = (["a"], ["b"], long)
            return [
                Example(["a"], (), tuple(turns[:i]), f"said.txt, line {i}") for i in range(1, 4)
            ]

    def module(too_long):
        return DialogueDataModule(Said(), 5, 6, 1, too_long, vocabulary_file=words)

    words = str(tmp_path / "words.json")
    Vocabulary.from_counts([["a"]]).save(words)
    with pytest.raises(ValueError, match=r"said.txt, line 3: a sentence of 6 words, .*room for 4"):
        module("error").dataset("test")
    assert len(module("error").dataset("val")) == 3
    assert len(module("drop").dataset("test")) == 2
    assert module("cut").dataset("test").columns[0][2, 3].tolist() == [2, 1, 1, 1, 1, 3]


def test_bags_count_words_of_the_vocabulary():
    module = grammar(kind=BagOfWordsDataModule)
    counts, _ = next(module.batches("val"))
    tokens, _ = next(grammar().batches("val"))
    assert counts.shape == (16, 200) and module.event_shape == (200,)
    assert (tokens == Vocabulary.UNK).any() and not counts[:, :4].any()
    word = int(tokens[0, 1])
    assert counts[0, word] == (tokens[0] == word).sum()
    assert torch.equal(counts.sum(1), (tokens > 3).sum(1).float())
    # whatever is counted has a background: −log p of it is finite, and not that of 10⁻¹²
    background = module.log_frequency()
    seen = torch.cat([c for c, _ in module.batches("train", in_order=True)]).sum(0) > 0
    assert float(background[seen].min()) > -12 and float(background[~seen].max()) < -27
    words = torch.cat([t.flatten() for t, _ in grammar(bucket=False, batch_size=1).loader("train")])
    known = words[words > 3]
    truth = torch.bincount(known, minlength=200) / len(known)
    torch.testing.assert_close(background.exp()[4:], truth[4:], atol=1e-6, rtol=1e-4)


def test_documents_of_too_few_counted_words_are_left_out(text, tmp_path):
    words = str(tmp_path / "words.json")
    Vocabulary.from_counts([["a", "b"]]).save(words)

    def module(test):
        corpus = text(test=test).corpus
        return BagOfWordsDataModule(corpus, 6, 9, 2, min_words=2, vocabulary_file=words)

    counts, _ = next(module("a x x x\nb x a\na <unk>\na a\n").batches("test"))
    assert counts[:, 4:].tolist() == [[1, 1], [2, 0]]
    with pytest.raises(ValueError, match=r"no document of .*test.txt has 2 words of the vocab.* 1"):
        module("a x x x\n").dataset("test")


def data_root(name):
    root = os.environ.get("EBLVM_DATA")
    if root is None or not (Path(root) / name).is_dir():
        pytest.skip(f"EBLVM_DATA names no folder with {name}")
    return root


def test_penn_treebank():
    root = data_root("ptb")
    module = TextDataModule(PennTreebank(), 10_002, 40, 100, too_long="cut", root=root)
    sizes = [len(module.dataset(split)) for split in ("train", "val", "test")]
    assert sizes == [42068, 3370, 3761]
    lengths = module.dataset("train").lengths.float()
    assert float(lengths.mean()) == pytest.approx(22.7, abs=0.05)  # published, <s> and </s> counted
