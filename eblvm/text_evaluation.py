"""Evaluation of models of text, as callbacks: what they write, and figures of it.

They are used as those of `eblvm.evaluation`, and log as they do. Sentences go to `texts/` in the
run's folder, pictures to `pictures/`. The data module's vocabulary turns tokens into words.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from eblvm.clustering import kmeans
from eblvm.data.loader import seeded_generator
from eblvm.data.text import BagOfWordsDataModule, TextDataModule
from eblvm.data.vocabulary import Vocabulary
from eblvm.evaluation import (
    Evaluation,
    Reconstructing,
    Sampling,
    draw,
    gather,
    log,
    protocol_of,
    publish,
    require,
)
from eblvm.latent import LatentVariableModel
from eblvm.metrics import (
    Classifier,
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
    read_vectors,
)
from eblvm.pictures import latent_figure
from eblvm.posteriors import conditions

__all__ = [
    "Clusters",
    "Control",
    "Interpolations",
    "LatentPicture",
    "Responses",
    "SentenceReconstructions",
    "Sentences",
    "Symbols",
    "WordBackground",
    "WrittenLanguage",
]


@runtime_checkable
class Latent(Protocol):
    """A learner of a latent-variable model."""

    latent: LatentVariableModel

    def generator(self, batch_idx: int = 0, offset: int = 0) -> torch.Generator:
        """A seeded source of noise."""


def text_of(trainer: Trainer, what: str) -> tuple[Any, Vocabulary]:
    """The trainer's text and its vocabulary.

    Raises:
        TypeError: If its data are no text.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, TextDataModule):
        raise TypeError(
            f"{what} needs text with a vocabulary, and the data module is a "
            f"{type(data).__name__}. Use eblvm.data.TextDataModule, or drop the callback."
        )
    data.setup()
    assert data.vocabulary is not None
    return data, data.vocabulary


def publish_text(trainer: Trainer, name: str, lines: Sequence[str]) -> Path | None:
    """Write lines to `texts/`; to loggers that take text, too."""
    if not trainer.is_global_zero or trainer.sanity_checking:
        return None
    folder = Path(trainer.default_root_dir) / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    stage = "test" if trainer.testing else f"epoch_{trainer.current_epoch:04d}"
    path = folder / f"{name}_{stage}.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_text"):
            experiment.add_text(name, "  \n".join(lines[:50]), trainer.global_step)
    return path


def condition(model: Any, x: Tensor) -> dict[str, Tensor]:
    """What the prior of data is conditioned on, as a keyword; nothing for most models."""
    return conditions(model.latent.posterior.condition(x))


def some_words(data: TextDataModule, split: Any, num: int) -> list[list[str]]:
    """Words of `num` sentences of a split, or of all, by a fixed seed: corpora may be sorted."""
    examples = data.examples(split)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    return [examples[i].words for i in order[:num].tolist()]


def on_device(judge: Any, learner: LightningModule) -> Any:
    """A judge of sentences where the learner is; one that is no module computes where it likes."""
    return judge.to(learner.device) if isinstance(judge, nn.Module) else judge


def batch_sentences(trainer: Trainer, what: str, x: Tensor, index: int) -> list[list[str]]:
    """The words of an evaluated batch: of responses, and of the documents that bags count."""
    data, vocabulary = text_of(trainer, what)
    if isinstance(data, BagOfWordsDataModule):
        loader: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        items = data.items("test" if trainer.testing else "val")
        return [items[row].words for row in loader.rows(index)]
    return vocabulary.sentences(x[:, 0] if x.dim() == 3 else x)


def of_seen_labels(figures: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without figures of labels that no row has, which are NaN."""
    of_labels = ("homogeneity_", "cluster_homogeneity_", "accuracy_")
    return {n: v for n, v in figures.items() if not (n.startswith(of_labels) and v.isnan())}


def posterior_means(model: Any, x: Tensor, index: int) -> Tensor:
    """Latents of data, `(B, D)`: the mean of an encoder's Gaussian, or the end of a chain."""
    return model.latent.infer(x, model.generator(index, 8)).at_mean().z


class Sentences(Evaluation):
    """Generated sentences, in a file, and how they use words.

    Logs `word_kl` against the training text, `real_word_kl`, that of as many real sentences of the
    evaluated split (or of all, where there are fewer), which the best of models has; `distinct`,
    the share of sentences that occur once only; `novel`, the share that the training text does not
    have; and `mean_length` in words. Where the corpus is a grammar, also `grammatical`, the share
    of sentences that it can produce. The training text is what a model can say of it: in its
    vocabulary, cut at its length.

    A model that says nothing, as one whose posterior collapsed early may, has a `word_kl` of nan.

    Arguments:
        num: How many.
        num_shown: How many of them go into the file.
        every_n_epochs: Epochs between looks.
        num_tested: How many in a test; `num` if None. Published figures of words are of 40,000.
    """

    def __init__(
        self,
        num: int = 1000,
        num_shown: int = 100,
        every_n_epochs: int = 1,
        num_tested: int | None = None,
    ) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        self.num_shown = num_shown
        self.num_tested = num if num_tested is None else num_tested
        self._real: tuple[Any, list[list[str]]] = (None, [])

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        data, vocabulary = text_of(trainer, "Sentences")
        num = self.num_tested if stage == "test" else self.num
        tokens = gather(learner, draw(require(learner, Sampling, "Sentences"), trainer, num))
        written = vocabulary.sentences(tokens)
        if self._real[0] is not data:  # once a run: it is all of the text
            words = [example.words for example in data.examples("train")]
            self._real = data, vocabulary.sentences(data.encode(words))
        real = self._real[1]
        metric = WordKL(real)
        metric.update(vocabulary.sentences(data.encode(some_words(data, stage, len(written)))))
        floor = metric.compute()
        metric.reset()
        metric.update(written)
        silent = not any(written)
        lines = [" ".join(words) for words in written]
        known = {" ".join(words) for words in real}
        figures = {
            "word_kl": torch.nan if silent else metric.compute(),
            "real_word_kl": floor,
            "distinct": len(set(lines)) / len(lines),
            "novel": sum(line not in known for line in lines) / len(lines),
            "mean_length": sum(map(len, written)) / len(written),
        }
        if hasattr(data.corpus, "parse"):
            parsed = sum(data.corpus.parse(words) is not None for words in written)
            figures["grammatical"] = parsed / len(written)
        self.protocol = {
            "num_generated": len(lines),
            "num_real": len(real),
            "num_words": len(vocabulary),
            "decoding": "greedy",
            "dtype": "counts int64, shares float64",
        }
        log(learner, stage, {n: torch.as_tensor(v, device="cpu") for n, v in figures.items()})
        publish_text(trainer, "sentences", lines[: self.num_shown])


class SentenceReconstructions(Evaluation):
    """Sentences and what is decoded from their latents, greedily.

    Logs `reconstruction_bleu` in percent (corpus, no smoothing), and `exact`, the share of
    sentences that come back as they were. For dialogues the sentence is the response, decoded after
    the turns before it.

    Arguments:
        num: Pairs in the file.
        every_n_epochs: Epochs between looks.
    """

    def __init__(self, num: int = 50, every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        self.bleu = CorpusBLEU()
        self._exact = torch.zeros(2, dtype=torch.float64)
        self._lines: list[str] = []

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        model: Any = require(learner, Reconstructing, "SentenceReconstructions")
        _, vocabulary = text_of(trainer, "SentenceReconstructions")
        x = batch[0]
        meant = vocabulary.sentences(x[:, 0] if x.dim() == 3 else x)
        said = vocabulary.sentences(model.reconstruct(x, model.generator(index, 3)))
        self.bleu.to(learner.device).update(said, meant)
        same = sum(a == b for a, b in zip(said, meant, strict=True))
        self._exact += torch.tensor([same, len(meant)], dtype=torch.float64)
        for a, b in zip(meant, said, strict=True):
            if len(self._lines) < 3 * self.num:
                self._lines += [" ".join(a), " ".join(b), ""]

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        same, count = gather(learner, self._exact.to(learner.device)[None]).sum(0)
        log(learner, stage, {"reconstruction_bleu": self.bleu.compute(), "exact": same / count})
        self.protocol = protocol_of(self.bleu)
        publish_text(trainer, "reconstructions", self._lines)
        self.bleu.reset()
        self._exact.zero_()
        self._lines = []


class WrittenLanguage(Evaluation):
    """Reverse perplexity: of the evaluated split, under a language model of generated sentences.

    Logs `reverse_perplexity` and, with `compare`, `real_perplexity`: the same with as many real
    training sentences, drawn by a fixed seed, in place of generated ones. The model is trained each
    time.

    Arguments:
        num: Generated sentences.
        language_model: Makes an untrained one for so many words; in a recipe, a class and its
            other arguments.
        compare: Whether to train a second one on real sentences.
        every_n_epochs: Epochs between looks; 0 looks at tests only.
    """

    def __init__(
        self,
        num: int = 4000,
        language_model: Callable[[int], LanguageModel] = LSTMLanguageModel,
        compare: bool = True,
        every_n_epochs: int = 0,
    ) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        self.language_model = language_model
        self.compare = compare

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        data, vocabulary = text_of(trainer, "WrittenLanguage")
        written = draw(require(learner, Sampling, "WrittenLanguage"), trainer, self.num)
        real = data.encode([e.words for e in data.examples(stage)]).to(learner.device)

        def perplexity(tokens: Tensor) -> Tensor:
            judge = on_device(self.language_model(len(vocabulary)), learner)
            metric = ReversePerplexity(real, judge, sync_on_compute=False)  # gathered already
            metric.update(tokens)
            figure = metric.compute()
            self.protocol = metric.protocol
            return figure

        written = gather(learner, written)
        figures = {}
        if self.compare:
            some = some_words(data, "train", len(written))
            figures["real_perplexity"] = perplexity(data.encode(some).to(learner.device))
        figures["reverse_perplexity"] = perplexity(written)
        log(learner, stage, figures)


class Symbols(Evaluation):
    """What the symbols of a symbol-vector prior stand for.

    Logs `mutual_information` in nats over all data, and for each label of the data, under its name,
    the homogeneity over all data and its chance level; with `per_batch`, also those of batches,
    which published figures are presumably of. Symbols are read off the means of q(z|x).
    `accuracy_<label>` follows after matching symbols to values, or, without `match`, where there
    are as many values as symbols. A label that no sentence of the split has is left out. Sentences
    of each symbol go into a file.

    Arguments:
        num_examples: Sentences in the file for each symbol.
        per_batch: Whether to log the figures of batches, too, named `…_per_batch`.
        match: Whether symbols have no names, so that they are matched with labels.
        every_n_epochs: Epochs between looks.
    """

    def __init__(
        self,
        num_examples: int = 10,
        per_batch: bool = False,
        match: bool = True,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__(every_n_epochs)
        self.num_examples = num_examples
        self.per_batch = per_batch
        self.match = match
        self._metrics: dict[str, Any] = {}
        self._examples: dict[int, list[str]] = {}

    def _begin(self, labels: dict[str, Sequence[str]], num_symbols: int) -> None:
        kinds = {"": False, "_per_batch": True} if self.per_batch else {"": False}
        for suffix, per_batch in kinds.items():
            information = MutualInformation(num_symbols, per_batch)
            self._metrics[f"mutual_information{suffix}"] = information
            for name, values in labels.items():
                metric = Homogeneity(num_symbols, len(values), per_batch)
                self._metrics[f"homogeneity_{name}{suffix}"] = metric
        for name, values in labels.items():
            if self.match or len(values) == num_symbols:
                accuracy = SymbolAccuracy(num_symbols, len(values), self.match)
                self._metrics[f"accuracy_{name}"] = accuracy

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        model: Any = require(learner, Latent, "Symbols")
        data, _ = text_of(trainer, "Symbols")
        prior: Any = model.latent.prior
        x, label = batch
        logits = prior.symbol_logits(posterior_means(model, x, index), **condition(model, x))
        if not self._metrics:
            self._begin(data.label_values, logits.shape[1])
        symbol = logits.argmax(1)
        columns = dict(zip(data.label_values, label.view(len(x), -1).T, strict=False))
        for name, metric in self._metrics.items():
            metric.to(learner.device)
            if name.startswith("mutual_information"):
                metric.update(logits)
            else:
                what = name.partition("_")[2].removesuffix("_per_batch")
                metric.update(symbol, columns[what])
        self._keep(symbol, batch_sentences(trainer, "Symbols", x, index))

    def _keep(self, symbol: Tensor, sentences: list[list[str]]) -> None:
        for k, words in zip(symbol.tolist(), sentences, strict=True):
            kept = self._examples.setdefault(k, [])
            if len(kept) < self.num_examples:
                kept.append(" ".join(words))

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        figures: dict[str, Tensor] = {}
        for name, metric in self._metrics.items():
            value = metric.compute()
            if isinstance(value, dict):
                figures[name] = value["homogeneity"]
                figures[f"{name}_chance"] = value["chance"]
            else:
                figures[name] = value
            self.protocol[name] = protocol_of(metric)
        log(learner, stage, of_seen_labels(figures))
        lines = []
        for k in sorted(self._examples):
            lines += [f"symbol {k}", *(f"    {line}" for line in self._examples[k]), ""]
        publish_text(trainer, "symbols", lines)
        self._metrics, self._examples = {}, {}


class Clusters(Evaluation):
    """How much of the data's labels the nearest cluster of latents tells, for any prior.

    What :class:`Symbols` asks of symbols, asked of k-means: the posterior means of the training
    data are clustered, and data of the evaluated split belong to the nearest center. Logs
    `cluster_homogeneity_<label>` and its chance level. Of several starts, the one with the smallest
    sum of squares counts. Sentences of each cluster go into a file.

    Arguments:
        num_clusters: As many as the symbols that the figures are to stand beside.
        num_starts: Starts of k-means.
        num_iterations: Rounds of each.
        num_examples: Sentences in the file for each cluster.
        seed: Of the first centers.
        every_n_epochs: Epochs between looks.
    """

    def __init__(
        self,
        num_clusters: int,
        num_starts: int = 10,
        num_iterations: int = 50,
        num_examples: int = 10,
        seed: int = 0,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__(every_n_epochs)
        self.num_clusters = num_clusters
        self.num_starts = num_starts
        self.num_iterations = num_iterations
        self.num_examples = num_examples
        self.seed = seed
        self._seen: list[tuple[Tensor, Tensor, list[list[str]]]] = []

    def centers(self, points: Tensor) -> Tensor:
        """The best of several runs of k-means on points `(N, D)`, `(K, D)`."""
        found = []
        for start in range(self.num_starts):
            generator = seeded_generator(self.seed, start)
            centers, label = kmeans(points, self.num_clusters, self.num_iterations, generator)
            found.append((float((points - centers[label]).square().sum()), start, centers))
        return min(found)[2]

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        model = require(learner, Latent, "Clusters")
        x, label = batch
        words = batch_sentences(trainer, "Clusters", x, index)
        self._seen.append((posterior_means(model, x, index), label.view(len(x), -1), words))

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        data, _ = text_of(trainer, "Clusters")
        train = [
            posterior_means(learner, x.to(learner.device), index)
            for index, (x, _) in enumerate(data.batches("train", in_order=True))
        ]
        centers = self.centers(gather(learner, torch.cat(train)).double().cpu())
        metrics = {
            name: Homogeneity(self.num_clusters, len(values)).to(learner.device)
            for name, values in data.label_values.items()
        }
        examples: dict[int, list[str]] = {}
        for z, label, sentences in self._seen:
            nearest = torch.cdist(z.double().cpu(), centers).argmin(1)
            for metric, column in zip(metrics.values(), label.T, strict=bool(metrics)):
                metric.update(nearest.to(column.device), column)
            for k, words in zip(nearest.tolist(), sentences, strict=True):
                examples.setdefault(k, []).append(" ".join(words))
        self._seen = []
        figures = {}
        for name, metric in metrics.items():
            figure = metric.compute()
            figures[f"cluster_homogeneity_{name}"] = figure["homogeneity"]
            figures[f"cluster_homogeneity_{name}_chance"] = figure["chance"]
            self.protocol[name] = protocol_of(metric) | {
                "symbols": f"{self.num_clusters} clusters of posterior means, by k-means"
            }
        log(learner, stage, of_seen_labels(figures))
        lines = []
        for k in sorted(examples):
            kept = examples[k][: self.num_examples]
            lines += [f"cluster {k}", *(f"    {line}" for line in kept), ""]
        publish_text(trainer, "clusters", lines)


class Control(Evaluation):
    """Sentences generated given a symbol, judged by a classifier of real sentences.

    For models whose symbols are the values of a label. Logs `control_accuracy` and
    `control_<value>` for each value, and `classifier_accuracy` on the evaluated split, above which
    no model can be trusted. The classifier is trained on the training text each time.

    Arguments:
        label: Name of the label.
        num: Sentences for each value.
        classifier: Makes an untrained one for so many words and values; in a recipe, a class and
            its other arguments.
        every_n_epochs: Epochs between looks; 0 looks at tests only.
    """

    def __init__(
        self,
        label: str,
        num: int = 200,
        classifier: Callable[[int, int], Classifier] = SentenceClassifier,
        every_n_epochs: int = 0,
    ) -> None:
        super().__init__(every_n_epochs)
        self.label = label
        self.num = num
        self.classifier = classifier

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        model: Any = require(learner, Latent, "Control")
        data, vocabulary = text_of(trainer, "Control")
        if self.label not in data.corpus.labels:
            raise ValueError(
                f"Control has label {self.label!r}; the corpus has {list(data.corpus.labels)}."
            )
        column = list(data.corpus.labels).index(self.label)
        values = data.corpus.labels[self.label]

        def labeled(split: Any) -> tuple[Tensor, Tensor]:
            found = [e for e in data.examples(split) if e.labels[column] >= 0]
            tokens = data.encode([e.words for e in found]).to(learner.device)
            return tokens, torch.tensor([e.labels[column] for e in found]).to(learner.device)

        symbols = model.latent.prior.symbol_logits(model.latent.prior.origin[None]).shape[1]
        if symbols != len(values):
            raise ValueError(
                f"Control has label {self.label!r} of {len(values)} values, and the prior has "
                f"{symbols} symbols; it takes symbol k for value k. Set the tilt's out_dim to "
                f"{len(values)}, or drop the callback."
            )
        judge = on_device(self.classifier(len(vocabulary), len(values)), learner)
        judge.fit(*labeled("train"))
        if isinstance(judge, nn.Module):
            judge.eval()
        tokens, truth = labeled(stage)
        seen = torch.cat([judge(part).argmax(1) for part in tokens.split(500)])
        metric = ControlAccuracy(judge, len(values)).to(learner.device)
        lines: list[str] = []
        for k, value in enumerate(values):
            wanted = torch.full((self.num,), k, device=learner.device)
            noise = model.generator(k, 9)
            z = model.latent.prior.sample(self.num, noise, wanted)
            written = model.latent.likelihood.mean(z)
            metric.update(written, wanted)
            examples = [" ".join(words) for words in vocabulary.sentences(written[:10])]
            lines += [f"{self.label}: {value}", *(f"    {line}" for line in examples), ""]
        figures = metric.compute()
        named = {f"control_{v}": figures[f"accuracy_{k}"] for k, v in enumerate(values)}
        named |= {"control_accuracy": figures["accuracy"]}
        named |= {"classifier_accuracy": (seen == truth).double().mean()}
        log(learner, stage, named)
        self.protocol = {
            "label": self.label,
            "num_samples": self.num * len(values),
            "num_real": len(truth),
            "classifier": type(judge).__name__,
            "classifier_epochs": getattr(judge, "num_epochs", None),
            "dtype": "scores float32, counts int64",
        }
        publish_text(trainer, "control", lines)


class Interpolations(Evaluation):
    """Sentences on the straight line between the latents of two real ones, in a file.

    Arguments:
        num: Lines.
        num_steps: Sentences on each, both ends included.
        every_n_epochs: Epochs between looks; 0 looks at tests only.
    """

    def __init__(self, num: int = 5, num_steps: int = 7, every_n_epochs: int = 0) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        self.num_steps = num_steps
        self._ends: list[Tensor] = []
        self._real: list[str] = []

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        wanted = 2 * self.num - len(self._real)
        if wanted > 0 and batch[0].dim() == 2:
            x = batch[0][:wanted]
            _, vocabulary = text_of(trainer, "Interpolations")
            self._ends.append(posterior_means(require(learner, Latent, "Interpolations"), x, index))
            self._real += [" ".join(words) for words in vocabulary.sentences(x)]

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        ends, real = self._ends, self._real
        self._ends, self._real = [], []
        if len(real) < 2:
            return
        model: Any = learner
        _, vocabulary = text_of(trainer, "Interpolations")
        z = torch.cat(ends)[: len(real) // 2 * 2].unflatten(0, (-1, 2))  # (num, 2, D)
        share = torch.linspace(0, 1, self.num_steps, device=z.device)[:, None]
        path = z[:, None, 0] * (1 - share) + z[:, None, 1] * share  # (num, steps, D)
        written = vocabulary.sentences(model.latent.likelihood.mean(path.flatten(0, 1)))
        lines = []
        for i in range(len(z)):
            between = written[i * self.num_steps : (i + 1) * self.num_steps]
            lines += [f"from  {real[2 * i]}", *(f"      {' '.join(words)}" for words in between)]
            lines += [f"to    {real[2 * i + 1]}", ""]
        publish_text(trainer, "interpolations", lines)


class LatentPicture(Evaluation):
    """Latents of data and of the prior, in the plane of the data's two first principal axes.

    Arguments:
        num: Points of each.
        label: The label that colors the data's points; the first if None.
        every_n_epochs: Epochs between pictures; 0 draws at tests only.
    """

    def __init__(self, num: int = 1000, label: str | None = None, every_n_epochs: int = 0) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        self.label = label
        self._z: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._prior: list[Tensor] = []

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        if sum(map(len, self._z)) < self.num:
            model: Any = require(learner, Latent, "LatentPicture")
            self._z.append(posterior_means(model, batch[0], index))
            self._labels.append(batch[1].view(len(batch[0]), -1).cpu())
            noise = model.generator(index, 10)
            given = condition(model, batch[0])
            self._prior.append(model.latent.prior.sample(len(batch[0]), noise, **given))

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        data, _ = text_of(trainer, "LatentPicture")
        z, labels = torch.cat(self._z)[: self.num], torch.cat(self._labels)[: self.num]
        prior = torch.cat(self._prior)[: self.num]
        self._z, self._labels, self._prior = [], [], []
        names = list(data.label_values)
        column = names.index(self.label) if self.label in names else 0
        values = data.label_values[names[column]] if names else ()
        publish(trainer, "latents", latent_figure(z, prior, labels[:, column], values))


class Responses(Evaluation):
    """Answers to the turns before, from the prior, against the real responses.

    Logs `response_bleu` and, with vectors of words, `average`, `extrema` and `greedy` in percent;
    these are nan if no pair has known words.

    Arguments:
        num: Dialogues in the file.
        vectors_file: Vectors of words, a text file as GloVe is published.
        every_n_epochs: Epochs between looks.
    """

    def __init__(
        self, num: int = 20, vectors_file: str | None = None, every_n_epochs: int = 1
    ) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        self.vectors_file = vectors_file
        self.bleu = CorpusBLEU()
        self.similarity: EmbeddingSimilarity | None = None
        self._lines: list[str] = []

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        model: Any = require(learner, Latent, "Responses")
        _, vocabulary = text_of(trainer, "Responses")
        if self.vectors_file is not None and self.similarity is None:
            self.similarity = EmbeddingSimilarity(read_vectors(self.vectors_file, vocabulary.words))
        x = batch[0]
        z = model.latent.prior.sample(len(x), model.generator(index, 11), **condition(model, x))
        said = vocabulary.sentences(model.latent.likelihood.reconstruction(x, z))
        meant = vocabulary.sentences(x[:, 0])
        self.bleu.to(learner.device).update(said, meant)
        if self.similarity is not None:
            self.similarity.to(learner.device).update(said, meant)
        for row, answer in zip(x, said, strict=True):
            if self._lines.count("") < self.num:
                turns = [" ".join(w) for w in vocabulary.sentences(row) if w]
                self._lines += [
                    *turns[1:],
                    f"  real  {turns[0]}",
                    f"  model {' '.join(answer)}",
                    "",
                ]

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        figures = {"response_bleu": self.bleu.compute()}
        if self.similarity is not None:
            known = int(self.similarity.num) > 0  # a model may say nothing, early on
            names = "average", "extrema", "greedy"
            nothing = dict.fromkeys(names, torch.tensor(torch.nan, dtype=torch.float64))
            figures |= self.similarity.compute() if known else nothing
            self.similarity.reset()
        self.protocol = {**protocol_of(self.bleu), "latents": "one of the prior, decoded greedily"}
        if self.vectors_file is not None:
            self.protocol["vectors"] = Path(self.vectors_file).name
        log(learner, stage, figures)
        publish_text(trainer, "responses", self._lines)
        self.bleu.reset()
        self._lines = []


class WordBackground(Evaluation):
    """Gives a `BagOfWordsDecoder` the words' frequencies in the training text, before training.

    They are part of the weights, so a checkpoint has them.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = require(pl_module, Latent, "WordBackground")
        decoder = model.latent.likelihood.decoder
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(decoder, "set_background") or not hasattr(data, "log_frequency"):
            raise TypeError(
                "WordBackground needs a BagOfWordsDecoder and a BagOfWordsDataModule, not a "
                f"{type(decoder).__name__} and a {type(data).__name__}. Drop the callback."
            )
        decoder.set_background(data.log_frequency())
