"""Figures of text, each against a case computed by hand or an independent program."""

import math
import os
from pathlib import Path

import pytest
import torch
from sklearn.metrics import homogeneity_score
from torch import nn

from eblvm.data import DailyDialog, GrammarCorpus, PennTreebank, Vocabulary
from eblvm.metrics import (
    ControlAccuracy,
    CorpusBLEU,
    EmbeddingSimilarity,
    Homogeneity,
    LanguageModel,
    LSTMLanguageModel,
    MutualInformation,
    ReversePerplexity,
    SentenceClassifier,
    SymbolAccuracy,
    WordKL,
    corpus_bleu,
    read_vectors,
    word_kl,
)


def split(*lines):
    return [line.split() for line in lines]


def test_bleu_by_hand():
    said = split("the the the the the", "a b c d e f")
    meant = split("the cat the mat", "a b c d x f g")
    # n-grams that match: 2 + 5, 0 + 3, 0 + 2, 0 + 1 of 5 + 6, 4 + 5, 3 + 4, 2 + 3; both 11 words
    truth = 100 * (7 / 11 * 3 / 9 * 2 / 7 * 1 / 5) ** 0.25
    assert corpus_bleu(said, meant) == pytest.approx(truth, rel=1e-12)
    short = split("a b c d e")
    assert corpus_bleu(short, split("a b c d e f g")) == pytest.approx(100 * math.exp(1 - 7 / 5))
    assert corpus_bleu(short, short) == pytest.approx(100)
    assert corpus_bleu(split("a b c"), split("a b c")) == 0  # no 4-gram: multi-bleu says 0, too
    assert corpus_bleu([[]], split("a")) == 0


def test_bleu_is_that_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    real = [" ".join(e.words) for e in GrammarCorpus(300, 50, 50).read("train", Path())]
    said, meant = real[:150], real[150:]
    said[:40] = meant[:40]
    truth = sacrebleu.corpus_bleu(said, [meant], tokenize="none", smooth_method="none", force=True)
    assert 10 < truth.score < 60
    assert corpus_bleu(split(*said), split(*meant)) == pytest.approx(truth.score, abs=1e-9)


def test_bleu_adds_counts_not_figures():
    said, meant = split("a b c d e", "v w x y z"), split("a b c d e", "v w x z y")
    metric = CorpusBLEU()
    for pair in zip(said, meant, strict=True):
        metric.update(*([sentence] for sentence in pair))
    assert float(metric.compute()) == corpus_bleu(said, meant)
    with pytest.raises(ValueError, match="1 hypotheses for 2 references"):
        metric.update(said[:1], meant)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_word_kl_by_hand():
    # p over all 8 words: a 4/8, b 2/8, new 2/8; q: a 1/4, b 1/2, 's 1/4
    figure = word_kl(split("a a a a b b", "new new"), split("a b b 's"))
    assert figure == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.5))
    metric = WordKL(split("it 's"))
    metric.update(split("it's"))
    assert float(metric.compute()) == pytest.approx(0, abs=1e-15)
    with pytest.raises(ValueError, match="no words were given"):
        WordKL(split("a")).compute()
    with pytest.raises(ValueError, match="no real words"):
        WordKL([[]])


def test_word_kl_of_penn_treebank():
    root = data_root("ptb")
    parts = [[e.words for e in PennTreebank().read(s, root)] for s in ("train", "val", "test")]
    assert word_kl(parts[2], parts[0]) == pytest.approx(0.13624, abs=5e-6)
    assert word_kl(parts[1], parts[0]) == pytest.approx(0.17843, abs=5e-6)


def data_root(name):
    root = os.environ.get("EBLVM_DATA")
    if root is None or not (Path(root) / name).is_dir():
        pytest.skip(f"EBLVM_DATA names no folder with {name}")
    return Path(root)


def information(logits, per_batch=False):
    metric = MutualInformation(logits[0].shape[1], per_batch)
    for part in logits:
        metric.update(part)
    return float(metric.compute())


def test_mutual_information_at_its_ends():
    uniform = torch.zeros(8, 4)
    certain = 1e4 * torch.eye(4).repeat(2, 1)
    assert information([uniform]) == pytest.approx(0, abs=1e-12)
    assert information([certain]) == pytest.approx(math.log(4), rel=1e-12)
    assert information([torch.zeros(5, 1)]) == 0  # one symbol
    # each batch has one symbol only: nothing in a batch, all of it over all data
    parts = list(certain[:4].repeat_interleave(3, 0).split(3))
    assert information(parts) == pytest.approx(math.log(4))
    assert information(parts, per_batch=True) == pytest.approx(0, abs=1e-12)


def test_mutual_information_by_hand():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    h = [-sum(x * math.log(x) for x in row) for row in [(0.7, 0.3), (0.5, 0.5), (0.9, 0.1)]]
    assert information([p.log()]) == pytest.approx(h[0] - (h[1] + h[2]) / 2, rel=1e-6)


@pytest.mark.parametrize("per_batch", [False, True])
def test_homogeneity_is_that_of_scikit_learn(per_batch):
    symbol, label = torch.randint(7, (300,)), torch.randint(4, (300,))
    label[:150] = symbol[:150] % 4
    label[290:] = 2  # a batch whose labels agree: 1 by definition
    metric = Homogeneity(7, 4, per_batch)
    parts = list(zip(symbol.split(10), label.split(10), strict=True))
    for part in parts:
        metric.update(*part)
    truth = homogeneity_score(label, symbol)
    if per_batch:
        truth = sum(homogeneity_score(b, a) for a, b in parts) / 30
    assert float(metric.compute()["homogeneity"]) == pytest.approx(truth, abs=1e-9)
    before = metric.compute()["chance"]
    metric.reset()
    for part in parts:
        metric.update(*part)
    assert metric.compute()["chance"] == before


def test_homogeneity_leaves_out_hidden_labels():
    metric = Homogeneity(3, 2)
    metric.update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, -1]))
    assert float(metric.compute()["homogeneity"]) == pytest.approx(1)
    assert metric.protocol["num_data"] == 2


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_batches_without_a_label_do_not_count():
    symbol, label = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0])
    metric = Homogeneity(2, 2, per_batch=True)
    metric.update(symbol, label)
    metric.update(symbol, torch.full((4,), -1))
    assert float(metric.compute()["homogeneity"]) == pytest.approx(0, abs=1e-12)
    assert metric.protocol["computed_over"] == "batches of 4"
    for none in (Homogeneity(2, 2), Homogeneity(2, 2, per_batch=True)):
        none.update(symbol, torch.full((4,), -1))
        assert all(value.isnan() for value in none.compute().values())


CHANCE = [(128, 0.70, 0.73), (30, 0.91, 0.92), (None, 0.02, 0.07)]


@pytest.mark.parametrize(("batch", "act", "emotion"), CHANCE)
def test_chance_levels_on_daily_dialog(batch, act, emotion):
    examples = DailyDialog().read("test", data_root("dailydialog"))
    labels = torch.tensor([example.labels for example in examples])
    for column, (count, truth) in enumerate(((4, act), (7, emotion))):
        total = 0.0
        for seed in range(3):
            metric = Homogeneity(125, count, per_batch=batch is not None, seed=seed)
            for part in labels[:, column].split(batch or len(labels)):
                metric.update(torch.zeros_like(part), part)
            total += float(metric.compute()["chance"]) / 3
        assert total == pytest.approx(truth, abs=0.015)  # ±0.01, and ±0.005 of rounding


def test_accuracy_of_symbols():
    symbol, label = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([1, 1, 0, 2, -1])
    metric = SymbolAccuracy(3, 3)
    metric.update(symbol, label)
    assert float(metric.compute()) == 0
    matched = SymbolAccuracy(3, 3, match=True)
    matched.update(symbol, label)
    assert float(matched.compute()) == 0.75  # 0 is 1, and 1 is 0 or 2
    with pytest.raises(ValueError, match="4 symbols cannot be 3 labels"):
        SymbolAccuracy(4, 3)


def test_similarities_by_hand():
    vectors = {"x": [1.0, 0.0], "y": [0.0, 1.0], "z": [-3.0, 1.0], "<s>": [9.0, 9.0]}
    metric = EmbeddingSimilarity({word: torch.tensor(v) for word, v in vectors.items()})
    metric.update(split("x y"), split("<s> z"))
    metric.update(split("unheard"), split("z"))  # skipped
    root = 10**0.5
    figures = {name: float(value) for name, value in metric.compute().items()}
    # average: (½, ½) and (−3, 1); extrema: (1, 1) and (−3, 1)
    assert figures["average"] == pytest.approx(100 * -2 / (2**0.5 * root), rel=1e-6)
    assert figures["extrema"] == pytest.approx(100 * -2 / (2**0.5 * root), rel=1e-6)
    # greedy: x finds −3/√10, y finds 1/√10; z finds y
    greedy = ((-3 / root + 1 / root) / 2 + 1 / root) / 2
    assert figures["greedy"] == pytest.approx(100 * greedy, abs=1e-5)


def test_vectors_are_read_as_published(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("a 1 2\nb 0.5 -1e-1\n")
    vectors = read_vectors(path, ["b"])
    assert list(vectors) == ["b"] and vectors["b"].tolist() == pytest.approx([0.5, -0.1])
    path.write_text("a 1 2\nb 1\n")
    with pytest.raises(ValueError, match=r"vectors.txt, line 2: 1 numbers, where the first .* 2"):
        read_vectors(path)
    path.write_text("a 1 x\n")
    with pytest.raises(ValueError, match=r"vectors.txt, line 1: no vector"):
        read_vectors(path)


def test_words_of_vectors_may_have_spaces_and_lines_that_are_not_utf_8_are_named(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("a 1 2\n2005 3 4\nat name@domain.com 5 6\r\n. . . 7 8\n")
    vectors = {word: vector.tolist() for word, vector in read_vectors(path).items()}
    assert vectors == {"a": [1, 2], "2005": [3, 4], "at name@domain.com": [5, 6], ". . .": [7, 8]}
    path.write_text("400000 2\nword 1 2\n")  # a head is no vector of one number
    with pytest.raises(ValueError, match=r"line 2: 2 numbers, where the first line has 1"):
        read_vectors(path)
    path.write_text("a 1 2\n\n")
    with pytest.raises(ValueError, match=r"line 2: 0 numbers, where the first line has 2"):
        read_vectors(path)
    path.write_bytes(b"a 1 2\nb\xe9 1 2\n")
    with pytest.raises(ValueError, match=r"vectors.txt, line 2: byte 0xe9 is not UTF-8.* `iconv"):
        read_vectors(path)


class Unigram:
    """Counts tokens after the first."""

    def fit(self, tokens):
        counts = torch.bincount(tokens[:, 1:].flatten(), minlength=6).double()
        counts[0] = 0
        self.log_share = (counts / counts.sum()).log()
        self.log_share[0] = 0

    def log_prob(self, tokens):
        return self.log_share[tokens[:, 1:]].sum(1)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reverse_perplexity_by_hand():
    generated = torch.tensor([[2, 4, 4, 3], [2, 5, 3, 0]])  # shares: 4 2/5, 5 1/5, </s> 2/5
    real = torch.tensor([[2, 5, 3, 0]])
    assert isinstance(Unigram(), LanguageModel)
    metric = ReversePerplexity(real, Unigram())
    metric.update(generated[:1])
    metric.update(generated[1:])
    assert float(metric.compute()) == pytest.approx((1 / 5 * 2 / 5) ** -0.5)
    assert metric.protocol["num_generated"] == 2
    with pytest.raises(ValueError, match="no sentences were generated"):
        ReversePerplexity(real, Unigram()).compute()


def framed(sentences, vocabulary):
    rows = [[2, *vocabulary.encode(words), 3] for words in sentences]
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def test_the_language_model_learns_a_chain_and_does_not_touch_the_global_generator():
    # after `a` comes b or c with equal probability, then the end: 2 nats·ln 2 over 3 tokens
    tokens = torch.tensor([[2, 4, 5, 3], [2, 4, 6, 3]]).repeat(32, 1)
    state = torch.get_rng_state()
    model = LSTMLanguageModel(7, 16, dropout=0.0, num_epochs=40, batch_size=8, learning_rate=1e-2)
    model.fit(tokens)
    assert torch.equal(torch.get_rng_state(), state)
    log_prob = model.log_prob(tokens[:2])
    assert log_prob.tolist() == pytest.approx([-math.log(2)] * 2, abs=0.05)
    padded = nn.functional.pad(tokens[:2], (0, 3))
    torch.testing.assert_close(model.log_prob(padded), log_prob)
    again = LSTMLanguageModel(7, 16, dropout=0.0, num_epochs=40, batch_size=8, learning_rate=1e-2)
    again.fit(tokens)
    assert torch.equal(again.log_prob(tokens[:2]), log_prob)


def test_the_classifier_learns_sentiment_and_judges_control():
    examples = GrammarCorpus(600, 100, 100).read("train", Path())
    vocabulary = Vocabulary.from_counts([e.words for e in examples])
    tokens = framed([e.words for e in examples], vocabulary)
    label = torch.tensor([e.labels[1] for e in examples])
    judge = SentenceClassifier(len(vocabulary), 2, num_epochs=8, batch_size=32, learning_rate=1e-2)
    judge.fit(tokens[:500], label[:500])
    assert (judge(tokens[500:]).argmax(1) == label[500:]).double().mean() > 0.9

    class Certain(nn.Module):
        def forward(self, tokens):
            return nn.functional.one_hot(tokens[:, 1] - 4, 2).float()

    metric = ControlAccuracy(Certain(), 2)
    metric.update(torch.tensor([[2, 4], [2, 4], [2, 5], [2, 4]]), torch.tensor([0, 0, 1, 1]))
    figures = {name: float(value) for name, value in metric.compute().items()}
    assert figures == {"accuracy": 0.75, "accuracy_0": 1.0, "accuracy_1": 0.5}
