"""Networks that answer: they read the turns of a dialogue one by one, and then all together.

Dialogues are int64 tokens `(B, 1 + T, L)`: the response in row 0, then the turns before it, the
oldest first; turns that are not there are all padding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recurrent import run_packed
from .text import SentenceDecoder, final_states

__all__ = ["ContextEncoder", "DialogueDecoder", "DialogueEncoder"]


class ContextEncoder(nn.Module):
    """Turns `(B, T, L)` to one vector `(B, C)`: words to turns by attention, turns by a GRU.

    A turn is the average of its bidirectional states, weighted by softmax(v · tanh(W h)).

    References:
        Latent Diffusion Energy-Based Model for Interpretable Text Modelling (Yu et al., 2022), its
        code.

    Arguments:
        vocab_size: V.
        context_dim: C.
        embedding_dim: Width of the embedding.
        hidden_dim: Width of the words' GRU, in each direction.
        pad: Index of the padding token.
    """

    def __init__(
        self,
        vocab_size: int,
        context_dim: int = 512,
        embedding_dim: int = 200,
        hidden_dim: int = 256,
        pad: int = 0,
    ) -> None:
        super().__init__()
        self.pad = pad
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.words = nn.GRU(embedding_dim, hidden_dim, batch_first=True, bidirectional=True)
        self.attention = nn.Sequential(
            nn.Linear(2 * hidden_dim, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, 1)
        )
        self.turns = nn.GRU(2 * hidden_dim, context_dim, batch_first=True)
        self.context_dim = context_dim

    def read_turns(self, x: Tensor) -> Tensor:
        """One vector for each turn of words `(N, L)`, `(N, 2 H)`."""
        full = x != self.pad
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(x),
            full.sum(1).clamp_min(1).cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(
            run_packed(self.words, packed)[0], batch_first=True, total_length=x.shape[1]
        )
        scores = self.attention(states).squeeze(-1).masked_fill(~full, -torch.inf)
        return (scores.softmax(1)[..., None] * states).sum(1)

    def forward(self, context: Tensor) -> Tensor:
        if context.shape[1] == 0:
            return self.embedding.weight.new_zeros(len(context), self.context_dim)
        there = (context != self.pad).any(-1)  # (B, T)
        turns = context.new_zeros(*there.shape, self.turns.input_size, dtype=torch.float)
        read = self.read_turns(context[there]) if there.any() else turns[:0, 0]
        turns = turns.to(read.dtype).masked_scatter(there[..., None], read)
        whole = final_states(self.turns, turns, there.sum(1))
        return whole * there.any(1, keepdim=True)  # no turns, no context


class DialogueEncoder(nn.Module):
    """q(z | response, turns before): `(B, 1 + T, L) -> (B, out)`.

    Arguments:
        vocab_size: V.
        out_dim: Numbers per dialogue; 2 D for a mean and a log-variance.
        embedding_dim: Width of the embeddings.
        hidden_dim: Width of the response's LSTM and of the context.
        turn_dim: Width of the turns' GRU, in each direction.
        pad: Index of the padding token.
    """

    def __init__(
        self,
        vocab_size: int,
        out_dim: int,
        embedding_dim: int = 200,
        hidden_dim: int = 512,
        turn_dim: int = 256,
        pad: int = 0,
    ) -> None:
        super().__init__()
        self.pad = pad
        self.context = ContextEncoder(vocab_size, hidden_dim, embedding_dim, turn_dim, pad)
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.response = nn.LSTM(embedding_dim, hidden_dim, batch_first=True)
        self.heads = nn.Sequential(
            nn.Linear(2 * hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out_dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.heads_of(x[:, 0], self.context(x[:, 1:]))

    def heads_of(self, response: Tensor, context: Tensor) -> Tensor:
        """The same, of responses `(B, L)` after turns that were read to `(B, C)` before."""
        lengths = (response != self.pad).sum(1)
        said = final_states(self.response, self.embedding(response), lengths)
        return self.heads(torch.cat([said, context], dim=1))


class DialogueDecoder(SentenceDecoder):
    """p(response | z, turns before): an LSTM whose inputs are shifted by the context.

    Each input is [embedded word; z] + W c, where c is what a `ContextEncoder` of its own read.

    Arguments:
        vocab_size: V.
        latent_dim: D.
        embedding_dim: Width of the embeddings.
        hidden_dim: Width of the LSTM and of the context.
        turn_dim: Width of the turns' GRU, in each direction.
        dropout: On embedded words and on what the projection sees.
        word_dropout: Probability with which an input word becomes `<unk>` in training.
        pad: Index of the padding token.
    """

    def __init__(
        self,
        vocab_size: int,
        latent_dim: int,
        embedding_dim: int = 200,
        hidden_dim: int = 512,
        turn_dim: int = 256,
        dropout: float = 0.2,
        word_dropout: float = 0.0,
        pad: int = 0,
    ) -> None:
        super().__init__(
            vocab_size,
            latent_dim,
            embedding_dim,
            hidden_dim,
            cell="lstm",
            dropout=dropout,
            word_dropout=word_dropout,
            tied=False,
            pad=pad,
        )
        self.context = ContextEncoder(vocab_size, hidden_dim, embedding_dim, turn_dim, pad)
        self.shift = nn.Linear(hidden_dim, embedding_dim + latent_dim)

    def hidden(self, z: Tensor, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """As `SentenceDecoder.hidden`, after the turns `(B, T, L)`."""
        if context is None:
            raise ValueError("a response needs `context`, the turns before it, (B, T, L).")
        shift = self.shift(self.context(context))[:, None]
        return self.dropout(self.states(self.inputs(z, tokens) + shift, z, tokens))

    def forward(self, z: Tensor, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        return F.linear(self.hidden(z, tokens, context), *self.projection())

    def start(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        if context is None:
            raise ValueError("a response needs `context`, the turns before it, (B, T, L).")
        return (z, self.shift(self.context(context)), *self.first_state(z))

    def step(self, token: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        z, shift, *memory = state
        inputs = self.inputs(z, token[:, None]) + shift[:, None]
        hidden, last = self.run(inputs, tuple(memory))
        logits = F.linear(self.dropout(hidden[:, 0]), *self.projection())
        return logits, (z, shift, *last)
