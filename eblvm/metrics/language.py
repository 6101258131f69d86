"""Judges of sentences that we train ourselves: a language model and a classifier."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torchmetrics import Metric

__all__ = [
    "Classifier",
    "ControlAccuracy",
    "LSTMLanguageModel",
    "LanguageModel",
    "ReversePerplexity",
    "SentenceClassifier",
]

PAD = 0


@runtime_checkable
class LanguageModel(Protocol):
    """What `ReversePerplexity` asks of a language model; another may be plugged in."""

    def fit(self, tokens: Tensor) -> None:
        """Learn from sentences `(N, L)`, framed and right-padded."""

    def log_prob(self, tokens: Tensor) -> Tensor:
        """log p of each sentence given its first token, `(N,)`, in nats."""


@runtime_checkable
class Classifier(Protocol):
    """What judges labels of sentences; a module, which another may be plugged in for."""

    def fit(self, tokens: Tensor, labels: Tensor) -> None:
        """Learn from sentences `(N, L)`, framed and right-padded, and labels int64 `(N,)`."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits of the labels of each sentence, `(N, C)`."""


class LSTMLanguageModel(nn.Module):
    """A recurrent language model with dropout and tied weights, trained by Adam.

    The seed fixes its initialization, order and dropout, whatever the global generator's state.

    Arguments:
        vocab_size: V.
        hidden_dim: Width of embedding and LSTM.
        dropout: On both sides of the LSTM.
        num_epochs: Passes over the sentences.
        batch_size: Sentences a step.
        learning_rate: Adam's, falling linearly to a tenth.
        seed: Of everything random.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_dim: int = 200,
        dropout: float = 0.3,
        num_epochs: int = 10,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_epochs, self.batch_size = num_epochs, batch_size
        self.learning_rate, self.seed = learning_rate, seed
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocab_size, hidden_dim)
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
            self.rnn = nn.LSTM(hidden_dim, hidden_dim, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def token_losses(self, tokens: Tensor) -> Tensor:
        """−log p of each token but the first, zero where it is padding, `(N, L − 1)`."""
        hidden, _ = self.rnn(self.dropout(self.embedding(tokens[:, :-1])))
        scored = tokens[:, 1:] != PAD
        logits = F.linear(self.dropout(hidden[scored]), self.embedding.weight, self.bias)
        loss = F.cross_entropy(logits, tokens[:, 1:][scored], reduction="none")
        return loss.new_zeros(scored.shape).masked_scatter(scored, loss)

    @torch.enable_grad()
    def fit(self, tokens: Tensor) -> None:
        with torch.inference_mode(False), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            fit(self, tokens.clone(), lambda part: self.token_losses(part[0]).sum(1).mean())

    @torch.no_grad()
    def log_prob(self, tokens: Tensor) -> Tensor:
        self.eval()
        parts = [-self.token_losses(trim(part)).sum(1) for part in tokens.split(self.batch_size)]
        return torch.cat(parts)


def trim(tokens: Tensor) -> Tensor:
    """Without the columns at the end that are all padding."""
    return tokens[:, : max(2, int((tokens != PAD).any(0).sum()))]


def fit(model: Any, tokens: Tensor, loss: Any, labels: Tensor | None = None) -> None:
    """Adam on batches of sentences of about one length, clipped, with a falling rate."""
    columns = (tokens,) if labels is None else (tokens, labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=model.learning_rate)
    lengths = (tokens != PAD).sum(1)
    num_batches = -(-len(tokens) // model.batch_size)
    total = max(1, model.num_epochs * num_batches)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total)
    model.train()
    for _ in range(model.num_epochs):
        shuffled = torch.randperm(len(tokens), device=tokens.device)
        order = shuffled[lengths[shuffled].argsort(stable=True)]
        batches = order.split(model.batch_size)
        for i in torch.randperm(len(batches)).tolist():
            rows = [column[batches[i]] for column in columns]
            optimizer.zero_grad()
            loss([trim(rows[0]), *rows[1:]]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    model.eval()


class ReversePerplexity(Metric):
    r"""Perplexity of real sentences under a language model that learned from generated ones.

    .. math:: \exp\Big(-\frac{\sum_n \log p(x_n)}{\sum_n |x_n|}\Big)

    where |x| counts words and `</s>`. It is low where generated sentences are good *and* varied.
    Figures of different language models, vocabularies or numbers of sentences do not compare.

    References:
        Adversarially Regularized Autoencoders (Zhao et al., 2018).

    Arguments:
        real: Test sentences, `(N, L)`, framed and right-padded.
        language_model: Trained at each `compute`, from the state it is in now.
        settings: Of `torchmetrics.Metric`: `sync_on_compute=False` where ranks add all sentences.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    generated: list[Tensor]

    def __init__(self, real: Tensor, language_model: LanguageModel, **settings: Any) -> None:
        super().__init__(**settings)
        self.real = real
        self.language_model = language_model
        self.add_state("generated", [], dist_reduce_fx="cat")
        self.num = 0

    def update(self, tokens: Tensor) -> None:
        """Add generated sentences, `(N, L)`, framed and right-padded; L must not change."""
        self.generated.append(tokens)

    def compute(self) -> Tensor:
        """The perplexity, a float64 scalar.

        Raises:
            ValueError: If nothing was generated.
        """
        parts = self.generated if isinstance(self.generated, list) else [self.generated]
        if not parts:
            raise ValueError("no sentences were generated. Call `update(tokens)` first.")
        tokens = torch.cat(parts)
        self.num = len(tokens)
        self.language_model.fit(tokens)
        real = self.real.to(tokens.device)
        log_prob = self.language_model.log_prob(real).double().sum()
        return (-log_prob / (real[:, 1:] != PAD).sum()).exp()

    @property
    def protocol(self) -> dict[str, Any]:
        """How the figure was made."""
        return {
            "metric": "perplexity of real sentences, </s> counted",
            "language_model": type(self.language_model).__name__,
            "num_generated": self.num,
            "num_real": len(self.real),
            "num_epochs": getattr(self.language_model, "num_epochs", None),
            "dtype": "log-probabilities float32, sum float64",
        }


class SentenceClassifier(nn.Module):
    """Embedding, bidirectional GRU, and a small network on its final states.

    References:
        Latent Diffusion Energy-Based Model for Interpretable Text Modelling (Yu et al., 2022), code
        for Yelp: widths 512, head 40-200-200-2. Smaller here by default.

    Arguments:
        vocab_size: V.
        num_labels: C.
        hidden_dim: Width of embedding and GRU.
        head_dim: Width of the hidden layers of the head.
        num_epochs: Passes over the sentences.
        batch_size: Sentences a step.
        learning_rate: Adam's, falling linearly to a tenth.
        seed: Of everything random.
    """

    def __init__(
        self,
        vocab_size: int,
        num_labels: int,
        hidden_dim: int = 64,
        head_dim: int = 64,
        num_epochs: int = 4,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_epochs, self.batch_size = num_epochs, batch_size
        self.learning_rate, self.seed = learning_rate, seed
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocab_size, hidden_dim)
            self.rnn = nn.GRU(hidden_dim, hidden_dim, batch_first=True, bidirectional=True)
            self.head = nn.Sequential(
                *(nn.Linear(2 * hidden_dim, head_dim), nn.GELU()),
                nn.Linear(head_dim, num_labels),
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `(N, C)` of sentences `(N, L)`."""
        lengths = (tokens != PAD).sum(1).clamp_min(1).cpu()
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        _, state = self.rnn(packed)
        return self.head(state.transpose(0, 1).flatten(1))

    @torch.enable_grad()
    def fit(self, tokens: Tensor, labels: Tensor) -> None:
        """Learn labels, int64 `(N,)`, of sentences `(N, L)`."""
        with torch.inference_mode(False), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            loss = lambda rows: F.cross_entropy(self(rows[0]), rows[1])  # noqa: E731
            fit(self, tokens.clone(), loss, labels.clone())


class ControlAccuracy(Metric):
    """The share of sentences, generated to have a label, in which a classifier sees that label.

    Arguments:
        classifier: `(N, L) -> (N, C)`, trained on real sentences.
        num_labels: C.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    table: Tensor

    def __init__(self, classifier: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.classifier = classifier
        table = torch.zeros(num_labels, num_labels, dtype=torch.long)
        self.add_state("table", table, dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, tokens: Tensor, wanted: Tensor) -> None:
        """Add sentences `(N, L)` and the labels they were to have, int64 `(N,)`."""
        seen = self.classifier(tokens).argmax(1)
        place = wanted * len(self.table) + seen
        self.table += torch.bincount(place, minlength=self.table.numel()).view_as(self.table)

    def compute(self) -> dict[str, Tensor]:
        """`accuracy`, and `accuracy_0`, `accuracy_1`, … of each label, float64 scalars."""
        table = self.table.double()
        each = table.diagonal() / table.sum(1)
        figures = {"accuracy": table.diagonal().sum() / table.sum()}
        return figures | {f"accuracy_{i}": value for i, value in enumerate(each)}
