"""Models of text from the command line and under a Trainer: words in, words out."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from torch import nn

from eblvm import using
from eblvm.data import BagOfWordsDataModule, GrammarCorpus, TextDataModule, Vocabulary
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import CategoricalLikelihood, MultinomialLikelihood
from eblvm.metrics import LSTMLanguageModel, SentenceClassifier
from eblvm.models import LatentEBM
from eblvm.models.networks import (
    BagOfWordsDecoder,
    BagOfWordsEncoder,
    DialogueDecoder,
    DialogueEncoder,
    SentenceDecoder,
    SentenceEncoder,
)
from eblvm.pictures import latent_figure
from eblvm.posteriors import AmortizedPosterior
from eblvm.priors import GaussianPrior
from eblvm.text_evaluation import (
    Clusters,
    Control,
    LatentPicture,
    Responses,
    SentenceReconstructions,
    Sentences,
    Symbols,
    WordBackground,
    WrittenLanguage,
)

TINY = Path(__file__).with_name("tiny_text.yaml")
RATES = {"posterior": 1e-3, "likelihood": 1e-3}


def final(folder):
    return torch.load(Path(folder) / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder."""
    from eblvm.cli import main

    folder = tmp_path_factory.mktemp("text")
    main(["fit", "--config", str(TINY), f"--runs={folder}"])
    return folder / "tiny_text" / "version_0"


def test_a_checkpoint_alone_writes_words(run, eblvm):
    words = json.loads((run / "vocabulary.json").read_text())
    assert len(words) == 100 and final(run)["TextDataModule"] == {"vocabulary": words}
    done = eblvm("sample", "--ckpt", run / "checkpoints/last.ckpt", "--num", 5)
    assert done.status == 0 and "samples.txt" in done.out
    lines = Path("samples.txt").read_text().splitlines()
    assert len(lines) == 5 and {w for line in lines for w in line.split()} <= set(words[4:]) | {
        "<unk>"
    }
    for flags in (["--temperature", 1], ["--top-k", 3], ["--top-p", 0.5], ["--beam", 3]):
        done = eblvm("sample", "--ckpt", run / "checkpoints/last.ckpt", "--num", 5, *flags)
        assert done.status == 0, done.err
        assert Path("samples.txt").read_text().splitlines() != lines or flags[0] == "--beam"
    done = eblvm("sample", "--ckpt", run / "checkpoints/last.ckpt", "--num", 2, "--out", "z.pt")
    assert done.status == 0 and torch.load("z.pt").shape == (2, 16)


def test_what_sampling_cannot_do_is_said(run, eblvm, tiny):
    ckpt = run / "checkpoints/last.ckpt"
    wrong = eblvm("sample", "--ckpt", ckpt, "--symbol", 2)
    assert wrong.status == 2 and "--symbol 2: GaussianPrior has no symbols" in wrong.err
    wrong = eblvm("sample", "--ckpt", ckpt, "--beam", 2, "--temperature", 1)
    assert wrong.status == 2 and "a beam draws nothing" in wrong.err
    wrong = eblvm("sample", "--ckpt", ckpt, "--out", "words.png")
    assert wrong.status == 2 and "tokens to .txt" in wrong.err
    assert eblvm("fit", "--config", tiny, "--trainer.max_steps=1").status == 0
    images = "runs/tiny/version_0/checkpoints/last.ckpt"
    wrong = eblvm("sample", "--ckpt", images, "--temperature", 1)
    assert wrong.status == 2 and "GaussianLikelihood has no words to choose" in wrong.err


def test_many_sentences_are_drawn_some_at_a_time(run, eblvm, monkeypatch):
    ckpt = run / "checkpoints/last.ckpt"
    sizes = []
    plain = LatentVariableModel.sample

    def watched(self, num, *args, **kwargs):
        sizes.append(num)
        return plain(self, num, *args, **kwargs)

    monkeypatch.setattr(LatentVariableModel, "sample", watched)
    monkeypatch.setattr(using, "CHUNK", 4)
    for flags, expected in (
        ([], [4, 4, 2]),
        (["--temperature", 1], [4, 4, 2]),
        (["--beam", 2], [2, 2, 2, 2, 2]),
    ):
        assert eblvm("sample", "--ckpt", ckpt, "--num", 10, "--out", "z.pt", *flags).status == 0
        assert sizes == expected and torch.load("z.pt").shape == (10, 16)
        sizes.clear()
    # of one seed the first portion is the same, however many follow
    first = torch.load("z.pt")[:2]
    assert eblvm("sample", "--ckpt", ckpt, "--num", 2, "--out", "z.pt", "--beam", 2).status == 0
    assert torch.equal(torch.load("z.pt"), first)


def test_sentences_are_reconstructed_walked_between_and_scored(run, eblvm):
    """The first test sentences lie in two batches, one wider than the other."""
    ckpt = run / "checkpoints/last.ckpt"
    data = using.run_data(str(ckpt))
    batches = [x for x, _ in data.batches("test")]
    assert [len(x) for x in batches] == [16, 4] and batches[0].shape[1] != batches[1].shape[1]
    meant = [" ".join(words) for x in batches for words in data.vocabulary.sentences(x)]
    done = eblvm("reconstruct", "--ckpt", ckpt, "--num", 20)
    assert done.status == 0 and "20 sentences and what is decoded of them" in done.out, done.err
    lines = Path("reconstruct.txt").read_text().splitlines()
    assert lines[::3] == meant and len(lines) == 60 and set(lines[2::3]) == {""}
    assert sum(lines[1::3][i] == meant[i] for i in range(20)) == int(done.out.split()[8])
    model = using.load(str(ckpt), None)
    said = data.vocabulary.sentences(model.reconstruct(batches[1]))
    assert lines[1::3][16:] == [" ".join(words) for words in said]
    for more in ([], ["--data"]):
        flags = ("--ckpt", ckpt, "--num", 9, "--points", 3, *more)
        done = eblvm("interpolate", *flags)
        assert done.status == 0 and "9 paths of 3 points" in done.out, done.err
        paths = Path("interpolate.txt").read_text().splitlines()
        assert len(paths) == 36 and set(paths[3::4]) == {""}
        known = {*data.vocabulary.words, "<unk>"}
        assert {word for line in paths for word in line.split()} <= known
    assert paths[0] == lines[1]  # a path between data begins at what its latent says
    done = eblvm("interpolate", *flags, "--out", "i.pt")
    assert torch.load("i.pt").shape == (9, 3, 16)
    wrong = eblvm("reconstruct", "--ckpt", ckpt, "--out", "words.png")
    assert wrong.status == 2 and "tokens to .txt" in wrong.err
    done = eblvm("score", "--ckpt", ckpt)
    assert done.status == 0 and "20 rows of scores (bound" in done.out, done.err
    header, *rows = Path("scores.csv").read_text().splitlines()
    assert header.split(",")[-1] == "bound" and len(rows) == 20
    wrong = eblvm("score", "--ckpt", ckpt, "--data", "MNIST")
    assert wrong.status == 2 and "this model is of text" in wrong.err


def test_batches_of_unlike_shape_are_joined_with_padding():
    turns = [torch.full((2, 3, 4), 7), torch.full((1, 2, 5), 8)]
    joined = using.together(turns)
    assert joined.shape == (3, 3, 5) and int((joined == 7).sum()) == 24
    assert torch.equal(joined[2, :2], torch.full((2, 5), 8)) and not joined[2, 2].any()
    assert using.together([torch.arange(2), torch.arange(3)]).tolist() == [0, 1, 0, 1, 2]


def test_a_test_prints_figures_and_writes_texts(run, eblvm):
    done = eblvm("test", "--ckpt", run / "checkpoints/last.ckpt")
    assert done.status == 0, done.err
    figures = json.loads((run / "test.json").read_text())
    names = {"word_kl", "distinct", "novel", "mean_length", "grammatical", "reconstruction_bleu"}
    names |= {"exact", "reverse_perplexity", "real_perplexity", "log_likelihood", "prior"}
    assert {f"test/{name}" for name in names} <= figures.keys()
    assert all(f"test/{name}" in done.out for name in names)
    assert figures["protocol"]["WrittenLanguage"]["num_generated"] == 20
    assert all("dtype" in str(protocol) for protocol in figures["protocol"].values())
    texts = {path.name for path in (run / "texts").iterdir()}
    assert {f"{n}_test.txt" for n in ("sentences", "reconstructions", "interpolations")} <= texts
    assert "sentences_epoch_0001.txt" in texts and "interpolations_epoch_0001.txt" not in texts
    assert (run / "pictures" / "latents_test.png").stat().st_size > 1000
    lines = (run / "texts" / "interpolations_test.txt").read_text().splitlines()
    assert len(lines) == 2 * (1 + 3 + 1 + 1) and lines[0].startswith("from  ")


def test_another_vocabulary_is_refused(run, eblvm):
    ckpt = run / "checkpoints/last.ckpt"
    seed = "--data.corpus.init_args.num_train=120"
    wrong = eblvm("test", "--ckpt", ckpt, seed)
    assert wrong.status == 2 and "the checkpoint's vocabulary is not that of Grammar" in wrong.err
    right = eblvm("test", "--ckpt", ckpt, seed, f"--data.vocabulary_file={run}/vocabulary.json")
    assert right.status == 0, right.err


def test_words_are_not_read_with_another_vocabulary(run, eblvm, tmp_path):
    """Files that changed since: as many words, but others."""
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["data"]["init_args"]["corpus"]["init_args"]["num_train"] = 120
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    for command in (["reconstruct"], ["interpolate", "--data"]):
        wrong = eblvm(*command, "--ckpt", other / "checkpoints/last.ckpt", "--num", 2)
        assert wrong.status == 2 and "the checkpoint's vocabulary is not that of" in wrong.err
        right = eblvm(*command, "--ckpt", run / "checkpoints/last.ckpt", "--num", 2)
        assert right.status == 0, right.err


def test_resumed_equals_uninterrupted_with_bucketing(run, eblvm):
    for steps in (5, 9):  # within an epoch of nine batches, and at its end
        flags = ("--config", TINY, f"--trainer.max_steps={steps}", f"--runs=runs{steps}")
        assert eblvm("fit", *flags).status == 0
        other = Path(f"runs{steps}/tiny_text/version_0")
        ckpt = other / "checkpoints/last.ckpt"
        done = eblvm("fit", "--ckpt_path", ckpt, "--trainer.max_steps=-1")
        assert done.status == 0, done.err
        one, two = final(run), final(other)
        assert one["global_step"] == two["global_step"] == 18
        for name, weight in one["state_dict"].items():
            assert torch.equal(weight, two["state_dict"][name]), name


def trainer(folder, *callbacks, **settings):
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        inference_mode=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        **settings,
    )


def grammar(kind=TextDataModule, **kwargs):
    return kind(GrammarCorpus(2000, 40, 40), 308, 16, 20, **kwargs)


class Oracle(nn.Module):
    """Decodes the sentence that the first latent numbers."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, z, tokens):
        rows = self.tokens[z[:, 0].round().long() % len(self.tokens)]
        following = rows[:, 1 : tokens.shape[1] + 1]
        return 100 * nn.functional.one_hot(following, 308).float()


class Place(nn.Module):
    """Encodes a sentence as its number; any other as 0."""

    def __init__(self, tokens):
        super().__init__()
        self.number = {tuple(row[row != 0].tolist()): i for i, row in enumerate(tokens)}
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        mean = torch.tensor([[float(self.number.get(tuple(r[r != 0].tolist()), 0))] for r in x])
        return torch.cat([mean, torch.full_like(mean, -20)], 1) + 0 * self.unused


class Topics(GaussianPrior):
    """Ten symbols: the topic of the sentence that a latent numbers."""

    def __init__(self, topics, num_symbols=10):
        super().__init__(1)
        self.topics, self.num_symbols = topics, num_symbols

    def symbol_logits(self, z, generator=None, noise=False):
        topic = self.topics[z[:, 0].round().long() % len(self.topics)]
        return 50 * nn.functional.one_hot(topic, self.num_symbols).float()

    def sample(self, num, generator=None, label=None):
        z = torch.randint(len(self.topics), (num, 1), generator=generator).float()
        for i in range(num) if label is not None else ():
            z[i] = int((self.topics == label[i]).nonzero()[i % 3])
        return z


def oracle(data, wrong=0):
    """A model that knows the test sentences and their topics, but for some."""
    data.setup()
    tokens = data.dataset("test").columns[0]
    tokens = nn.functional.pad(tokens, (0, 16 - tokens.shape[1]))
    topics = torch.tensor([example.labels[0] for example in data.examples("test")])
    said = tokens.clone()
    said[:wrong] = tokens[-1]
    likelihood = CategoricalLikelihood(Oracle(said), 16)
    latent = LatentVariableModel(Topics(topics), AmortizedPosterior(Place(tokens)), likelihood)
    return LatentEBM(latent, {"posterior": 1e-3})


class TopicOf(nn.Module):
    """Encodes a sentence of the grammar as ten times the number of its topic."""

    def __init__(self, data):
        super().__init__()
        self.data = data
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        sentences = self.data.vocabulary.sentences(x)
        topics = [self.data.corpus.parse(words)[0] for words in sentences]
        mean = 10 * torch.tensor(topics, dtype=torch.float)[:, None]
        return torch.cat([mean, torch.full_like(mean, -20)], 1) + 0 * self.unused


def test_clusters_of_latents_that_are_topics(tmp_path):
    data = grammar()
    model = oracle(data)
    model.latent.posterior = AmortizedPosterior(TopicOf(data))
    run = trainer(tmp_path, Clusters(20, num_examples=2))
    run.test(model, data, verbose=False)
    figures = {name: float(value) for name, value in run.callback_metrics.items()}
    assert figures["test/cluster_homogeneity_topic"] == pytest.approx(1)
    assert figures["test/cluster_homogeneity_topic_chance"] < 0.8
    assert figures["test/cluster_homogeneity_sentiment"] < 0.8
    blocks = (tmp_path / "texts" / "clusters_test.txt").read_text().split("cluster ")[1:]
    for block in blocks:
        lines = block.splitlines()[1:]
        topics = {data.corpus.parse(line.split())[0] for line in filter(None, lines)}
        assert len(topics) == 1 and sum(map(bool, lines)) <= 2


def test_clusters_of_a_corpus_without_labels_are_written_without_figures(tmp_path, monkeypatch):
    data = grammar()
    model = oracle(data)
    model.latent.posterior = AmortizedPosterior(TopicOf(data))
    monkeypatch.setattr(TextDataModule, "label_values", property(lambda self: {}))
    run = trainer(tmp_path, Clusters(5, num_examples=2))
    run.test(model, data, verbose=False)
    assert not [name for name in run.callback_metrics if "cluster" in name]
    assert "cluster " in (tmp_path / "texts" / "clusters_test.txt").read_text()


def test_figures_of_a_model_that_knows_everything(tmp_path):
    data = grammar()
    run = trainer(tmp_path, Sentences(60), SentenceReconstructions(5), Symbols(3, per_batch=True))
    run.test(oracle(data), data, verbose=False)
    figures = {name: float(value) for name, value in run.callback_metrics.items()}
    assert figures["test/reconstruction_bleu"] == pytest.approx(100)
    assert figures["test/exact"] == figures["test/grammatical"] == 1
    assert figures["test/homogeneity_topic"] == pytest.approx(1)
    assert figures["test/accuracy_topic"] == 1
    assert figures["test/homogeneity_sentiment"] < 0.5
    topics = torch.tensor([example.labels[0] for example in data.examples("test")])
    share = torch.bincount(topics, minlength=10) / 40
    entropy = -torch.special.xlogy(share, share).sum()
    assert figures["test/mutual_information"] == pytest.approx(float(entropy), abs=1e-5)
    assert figures["test/homogeneity_topic_chance"] < 0.8
    assert figures["test/homogeneity_sentiment_per_batch_chance"] > 0.2
    lines = (tmp_path / "texts" / "symbols_test.txt").read_text().splitlines()
    symbol = None
    for line in filter(None, lines):
        if line.startswith("symbol"):
            symbol, count = int(line.split()[1]), 0
        else:
            count += 1
            assert data.corpus.parse(line.split())[0] == symbol and count <= 3


def test_a_model_that_repeats_the_training_text_in_its_own_words_has_no_divergence(tmp_path):
    data = TextDataModule(GrammarCorpus(2000, 40, 40), 60, 8, 20, too_long="cut")  # few words
    data.setup()
    tokens = data.encode([example.words for example in data.examples("train")])
    assert any("<unk>" in words for words in data.vocabulary.sentences(tokens))
    model = oracle(grammar())
    model.sample = lambda num, generator=None, noise=False: tokens
    run = trainer(tmp_path, Sentences())
    run.test(model, data, verbose=False)
    figures = {name: float(value) for name, value in run.callback_metrics.items()}
    assert figures["test/word_kl"] == pytest.approx(0, abs=1e-12)
    assert 0 < figures["test/real_word_kl"] < 2
    assert figures["test/novel"] == 0


def test_a_model_that_says_nothing_does_not_end_the_run(tmp_path):
    data = grammar()
    model = oracle(data)
    silence = data.encode([[]] * 30)
    model.sample = lambda num, generator=None, noise=False: silence
    small = partial(LSTMLanguageModel, hidden_dim=4, num_epochs=1)
    run = trainer(tmp_path, Sentences(), WrittenLanguage(30, small))
    run.test(model, data, verbose=False)
    assert torch.isnan(run.callback_metrics["test/word_kl"])
    assert run.callback_metrics["test/mean_length"] == 0
    assert float(run.callback_metrics["test/reverse_perplexity"]) > 1


class Unigrams:
    """A language model that counts words, one more each; no network."""

    def __init__(self, vocab_size):
        self.counts = torch.ones(vocab_size, dtype=torch.float64)

    def fit(self, tokens):
        self.counts.add_(
            torch.bincount(tokens[:, 1:][tokens[:, 1:] != 0], minlength=len(self.counts))
        )

    def log_prob(self, tokens):
        share = (self.counts / self.counts.sum()).log()
        return torch.where(tokens == 0, 0.0, share[tokens])[:, 1:].sum(1)


def test_another_language_model_can_judge(tmp_path):
    """By hand: each of two words and the end was generated twice, on top of one for every word."""
    data = grammar()
    model = oracle(data)
    words = data.examples("test")[0].words[:2]
    model.sample = lambda num, generator=None, noise=False: data.encode([words] * num)
    judged = WrittenLanguage(2, Unigrams, compare=False)
    run = trainer(tmp_path, judged)
    run.test(model, data, verbose=False)
    counts = torch.ones(len(data.vocabulary), dtype=torch.float64)
    for number in [*data.vocabulary.encode(words), data.vocabulary.encode(["</s>"])[0]]:
        counts[number] += 2
    real = [word for e in data.examples("test") for word in (*e.words, "</s>")]
    log_prob = (counts / counts.sum()).log()[data.vocabulary.encode(real)]
    expected = (-log_prob.mean()).exp()
    assert float(run.callback_metrics["test/reverse_perplexity"]) == pytest.approx(float(expected))
    assert judged.protocol["language_model"] == "Unigrams"
    assert "test/real_perplexity" not in run.callback_metrics


def test_figures_of_labels_that_no_sentence_has_are_left_out(tmp_path):
    data = grammar()
    model = oracle(data)
    data.dataset("test").columns[1][:, 1:] = -1  # topics only
    run = trainer(tmp_path, Symbols(3, per_batch=True), Clusters(3))
    run.test(model, data, verbose=False)
    names = {name.removeprefix("test/") for name in run.callback_metrics}
    assert {"mutual_information", "homogeneity_topic", "cluster_homogeneity_topic"} <= names
    assert {"accuracy_topic", "homogeneity_topic_per_batch_chance"} <= names
    assert not [name for name in names if "_sentiment" in name or "_form" in name]


def test_unlabeled_latents_are_in_the_picture():
    z, label = torch.randn(30, 3), torch.arange(30) % 3 - 1
    axes = latent_figure(z, z, label, ["a", "b"]).axes[0]
    assert [len(points.get_offsets()) for points in axes.collections] == [10, 10, 10]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_reconstructions_count_what_is_wrong(tmp_path):
    data = grammar()
    run = trainer(tmp_path, SentenceReconstructions(40))
    run.test(oracle(data, wrong=10), data, verbose=False)
    assert float(run.callback_metrics["test/exact"]) == pytest.approx(0.75)
    assert 60 < float(run.callback_metrics["test/reconstruction_bleu"]) < 90
    assert len((tmp_path / "texts" / "reconstructions_test.txt").read_text().splitlines()) == 120


def test_control_is_judged_by_a_classifier(tmp_path):
    data = TextDataModule(GrammarCorpus(2000, 40, 300), 308, 16, 20)
    control = Control("topic", num=6, classifier=partial(SentenceClassifier, num_epochs=4))
    run = trainer(tmp_path, control)
    run.test(oracle(data), data, verbose=False)
    assert control.protocol["classifier_epochs"] == 4
    figures = {name: float(value) for name, value in run.callback_metrics.items()}
    assert figures["test/classifier_accuracy"] > 0.85
    assert figures["test/control_accuracy"] > 0.8 and "test/control_food" in figures
    assert "topic: food" in (tmp_path / "texts" / "control_test.txt").read_text()


def test_callbacks_say_what_they_need(tmp_path):
    data = grammar()
    posterior = AmortizedPosterior(SentenceEncoder(308, 4, 8, 8))
    likelihood = CategoricalLikelihood(SentenceDecoder(308, 2, 8, 8), 16)
    vae = LatentEBM(LatentVariableModel(GaussianPrior(2), posterior, likelihood), RATES)
    with pytest.raises(TypeError, match="GaussianPrior has no symbols; use an EnergyPrior"):
        trainer(tmp_path, Symbols()).test(vae, data, verbose=False)
    with pytest.raises(ValueError, match=r"Control has label 'mood'; the corpus has \['topic'"):
        trainer(tmp_path, Control("mood")).test(vae, data, verbose=False)
    with pytest.raises(ValueError, match="'sentiment' of 2 values, and the prior has 10 symbols"):
        trainer(tmp_path, Control("sentiment")).test(oracle(data), data, verbose=False)
    with pytest.raises(TypeError, match="WordBackground needs a BagOfWordsDecoder"):
        trainer(tmp_path, WordBackground(), max_epochs=1).fit(vae, data)
    with pytest.raises(TypeError, match="GaussianPrior has no symbols; use an EnergyPrior"):
        vae.latent.sample(2, label=torch.zeros(2).long())
    loader = data.test_dataloader()
    with pytest.raises(TypeError, match="Sentences needs text with a vocabulary"):
        trainer(tmp_path, Sentences(2)).test(vae, loader, verbose=False)


def test_a_bag_of_words_learns_around_its_background(tmp_path):
    data = grammar(BagOfWordsDataModule, labels=["topic"])
    encoder = BagOfWordsEncoder(308, 8, [16], dropout=0.1)
    likelihood = MultinomialLikelihood(BagOfWordsDecoder(4, 308, [16]))
    latent = LatentVariableModel(GaussianPrior(4), AmortizedPosterior(encoder), likelihood)
    learner = LatentEBM(latent, RATES)
    run = trainer(tmp_path, WordBackground(), LatentPicture(20), max_epochs=2)
    run.fit(learner, data)
    torch.testing.assert_close(likelihood.decoder.background, data.log_frequency())
    run.test(learner, data, verbose=False)
    assert (tmp_path / "pictures" / "latents_test.png").exists()
    assert learner.sample(3, noise=True).sum(1).tolist() == [40, 40, 40]


class Bags(nn.Module):
    """Encodes a bag of words as its number among some."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        mean = torch.cdist(x, self.counts).argmin(1, keepdim=True).float()
        return torch.cat([mean, torch.full_like(mean, -20)], 1) + 0 * self.unused


def test_documents_stand_for_the_bags_of_a_symbol(tmp_path):
    corpus = GrammarCorpus(2000, 40, 40)
    data = BagOfWordsDataModule(corpus, 308, 11, 8, too_long="drop", labels=["topic"])
    items = data.items("test")
    assert 8 < len(items) < len(data.examples("test"))  # some batches, and some left out
    counts, topics = (torch.cat(part) for part in zip(*data.batches("test"), strict=True))
    likelihood = MultinomialLikelihood(BagOfWordsDecoder(1, 308, [4]))
    latent = LatentVariableModel(Topics(topics), AmortizedPosterior(Bags(counts)), likelihood)
    run = trainer(tmp_path, Symbols(40), Clusters(3, num_examples=40))
    run.test(LatentEBM(latent, RATES), data, verbose=False)
    said = sorted(" ".join(example.words) for example in items)
    for name, blocks in (("symbols", len(topics.unique())), ("clusters", 3)):
        lines = (tmp_path / "texts" / f"{name}_test.txt").read_text().splitlines()
        assert sorted(line.strip() for line in lines if line.startswith("    ")) == said
        assert sum(not line.startswith(" ") for line in filter(None, lines)) == blocks
        for line in lines if name == "symbols" else ():
            if line.startswith("symbol"):
                symbol = int(line.split()[1])
            elif line:
                assert corpus.parse(line.split())[0] == symbol


def test_dialogues_are_answered(tmp_path):
    from eblvm.data import DialogueDataModule, SchemaGuidedDialogue
    from eblvm.likelihoods import DialogueLikelihood

    folder = tmp_path / "sgd"
    folder.mkdir()
    turns = [["U", "Hi there you", []], ["S", "Hello you", []], ["U", "Bye you", []]]
    line = json.dumps({"services": ["Hotels_1"], "turns": turns})
    for name in ("train", "dev", "test"):
        (folder / f"{name}.jsonl").write_text(f"{line}\n" * 4)
    (tmp_path / "vectors.txt").write_text("you 1 0\nhi 0 1\nbye 1 1\nhello 0 2\nthere 1 0\n")
    corpus = SchemaGuidedDialogue(num_context=3)
    data = DialogueDataModule(corpus, 12, 8, 4, root=str(tmp_path))
    encoder = DialogueEncoder(12, 4, 16, 16, 8)
    likelihood = DialogueLikelihood(DialogueDecoder(12, 2, 16, 16, 8, dropout=0.0), 8)
    latent = LatentVariableModel(GaussianPrior(2), AmortizedPosterior(encoder), likelihood)
    learner = LatentEBM(latent, {"posterior": 1e-2, "likelihood": 1e-2})
    answers = Responses(3, str(tmp_path / "vectors.txt"))
    run = trainer(
        tmp_path, answers, SentenceReconstructions(), max_epochs=60, check_val_every_n_epoch=60
    )
    run.fit(learner, data)
    figures = {name: float(value) for name, value in run.callback_metrics.items()}
    # the turns before determine the answer, whatever the latent
    assert figures["val/average"] > 95 and figures["val/exact"] == 1
    texts = (tmp_path / "texts" / "responses_epoch_0059.txt").read_text()
    assert "  model <sys> hello you" in texts and "<usr> hi there you" in texts


def test_a_vocabulary_file_is_read_and_kept(tmp_path):
    Vocabulary.from_counts([["the", "was"]]).save(tmp_path / "v.json")
    data = TextDataModule(
        GrammarCorpus(50, 5, 5), 6, 16, 5, vocabulary_file=str(tmp_path / "v.json")
    )
    tokens, _ = next(data.batches("val"))
    assert int(tokens.max()) <= 5
    data.keep(tmp_path)
    assert Vocabulary.load(tmp_path / "vocabulary.json") == data.vocabulary
