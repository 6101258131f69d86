"""Recurrent networks for sentences: one that reads them, one that writes them.

Sentences are int64 tokens `(B, L)`, padded on the right. Padding never changes what is read: the
encoder's sequences are packed.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .recurrent import quick, run_packed

__all__ = ["Cell", "SentenceDecoder", "SentenceEncoder"]

Cell = Literal["gru", "lstm"]
RNNS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


def recurrent(cell: Cell, in_dim: int, hidden_dim: int, bidirectional: bool = False) -> nn.RNNBase:
    """One recurrent layer, batch first.

    Raises:
        ValueError: If there is no such cell.
    """
    if cell not in RNNS:
        raise ValueError(f"cell is {cell!r}; expected one of {list(RNNS)}.")
    return RNNS[cell](in_dim, hidden_dim, batch_first=True, bidirectional=bidirectional)


def final_states(rnn: nn.RNNBase, embedded: Tensor, lengths: Tensor) -> Tensor:
    """The last state of each direction side by side, `(B, directions · H)`.

    Arguments:
        rnn: One layer, batch first.
        embedded: `(B, L, E)`, of which each row counts as far as its length.
        lengths: `(B,)`; 0 counts as 1.
    """
    packed = pack_padded_sequence(
        embedded, lengths.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False
    )
    _, state = run_packed(rnn, packed)
    hidden = state[0] if isinstance(state, tuple) else state  # (directions, B, H)
    return hidden.transpose(0, 1).flatten(1)


class SentenceEncoder(nn.Module):
    """Embedding, recurrent layer, and one linear map of its final states; `(B, L) -> (B, out)`.

    References:
        Dispersed Exponential Family Mixture VAEs (Shi et al., 2020), whose networks SVEBM and LDEBM
        use: bidirectional GRU of 512 on embeddings of 512. Their code also reads the padding.

    Arguments:
        vocab_size: V.
        out_dim: Numbers per sentence; 2 D for a mean and a log-variance.
        embedding_dim: Width of the embedding.
        hidden_dim: Width of the recurrent layer, in each direction.
        cell: `gru` or `lstm`.
        bidirectional: Whether to read backward, too.
        leaky: Whether the final states pass a LeakyReLU(0.01), as in LDEBM on Penn Treebank.
        pad: Index of the padding token.
    """

    def __init__(
        self,
        vocab_size: int,
        out_dim: int,
        embedding_dim: int = 512,
        hidden_dim: int = 512,
        cell: Cell = "gru",
        bidirectional: bool = True,
        leaky: bool = False,
        pad: int = 0,
    ) -> None:
        super().__init__()
        self.pad = pad
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.rnn = recurrent(cell, embedding_dim, hidden_dim, bidirectional)
        self.activation = nn.LeakyReLU(0.01) if leaky else nn.Identity()
        self.heads = nn.Linear(hidden_dim * (1 + bidirectional), out_dim)

    def forward(self, x: Tensor) -> Tensor:
        states = final_states(self.rnn, self.embedding(x), (x != self.pad).sum(1))
        return self.heads(self.activation(states))


class SentenceDecoder(nn.Module):
    """A recurrent language model that sees the latent at every step; `(z, tokens) -> logits`.

    The first state is a linear map of z, each input is the embedded word beside z. With `tied`, the
    projection onto the vocabulary is the embedding itself, without a bias.

    References:
        Generating Sentences from a Continuous Space (Bowman et al., 2016) for word dropout; the
        code of SVEBM and LDEBM for the rest.

    Arguments:
        vocab_size: V.
        latent_dim: D.
        embedding_dim: Width of the embedding.
        hidden_dim: Width of the recurrent layer; that of the embedding if tied.
        cell: `gru` or `lstm`.
        dropout: On embedded words and on what the projection sees.
        word_dropout: Probability with which an input word becomes `<unk>` in training.
        tied: Whether embedding and projection share weights.
        unk: Index of the unknown word; lower ones and `eos`, `bos` are never dropped.
        num_special: Tokens below this are never dropped.
        pad: Index of the padding token.

    Raises:
        ValueError: If widths do not agree or a probability is out of range.
    """

    def __init__(
        self,
        vocab_size: int,
        latent_dim: int,
        embedding_dim: int = 512,
        hidden_dim: int = 512,
        cell: Cell = "gru",
        dropout: float = 0.0,
        word_dropout: float = 0.0,
        tied: bool = True,
        unk: int = 1,
        num_special: int = 4,
        pad: int = 0,
    ) -> None:
        super().__init__()
        if tied and embedding_dim != hidden_dim:
            raise ValueError(
                f"embedding_dim is {embedding_dim} and hidden_dim {hidden_dim}; a tied projection "
                "needs them equal. Set `tied: false` or make them so."
            )
        for name, value in (("dropout", dropout), ("word_dropout", word_dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; expected 0 or more and less than 1.")
        self.word_dropout = word_dropout
        self.unk, self.num_special, self.pad = unk, num_special, pad
        self.cell = cell
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.rnn = recurrent(cell, embedding_dim + latent_dim, hidden_dim)
        self.first = nn.Linear(latent_dim, hidden_dim, bias=cell == "lstm")
        self.first_cell = nn.Linear(latent_dim, hidden_dim) if cell == "lstm" else None
        self.output = None if tied else nn.Linear(hidden_dim, vocab_size)

    def projection(self) -> tuple[Tensor, Tensor | None]:
        """Weight `(V, H)` and bias of the map from states to logits."""
        if self.output is None:
            return self.embedding.weight, None
        return self.output.weight, self.output.bias

    def inputs(self, z: Tensor, tokens: Tensor) -> Tensor:
        """What the recurrent layer reads, `(B, L, E + D)`."""
        if self.training and self.word_dropout > 0:
            drop = torch.rand(tokens.shape, device=tokens.device) < self.word_dropout
            tokens = tokens.masked_fill(drop & (tokens >= self.num_special), self.unk)
        embedded = self.dropout(self.embedding(tokens))
        return torch.cat([embedded, z[:, None].expand(-1, tokens.shape[1], -1)], dim=-1)

    def first_state(self, z: Tensor) -> tuple[Tensor, ...]:
        """The recurrent layer's first state, `(B, H)` for each of its parts."""
        hidden = self.first(z)
        return (hidden,) if self.first_cell is None else (hidden, self.first_cell(z))

    def run(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """States at all steps, `(B, L, H)`, and the last one, `(B, H)` for each of its parts."""
        parts = tuple(part[None].contiguous() for part in state)
        # cuDNN has no gradient of a recurrent layer in evaluation mode, which chains on z need
        native = inputs.is_cuda and not self.training and torch.is_grad_enabled()
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not native):
            hidden, last = self.rnn(inputs, parts[0] if self.cell == "gru" else parts)
        last = last if isinstance(last, tuple) else (last,)
        return hidden, tuple(part[0] for part in last)

    def states(self, inputs: Tensor, z: Tensor, tokens: Tensor) -> Tensor:
        """States at all steps, `(B, L, H)`; 0, perhaps, after the last word."""
        first = self.first_state(z)
        if not quick(self.rnn, inputs):
            return self.run(inputs, first)[0]
        places = torch.arange(1, tokens.shape[1] + 1)
        lengths = ((tokens != self.pad) * places).amax(1).clamp_min(1)
        packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        found, _ = run_packed(self.rnn, packed, first[0][None])
        return pad_packed_sequence(found, batch_first=True, total_length=tokens.shape[1])[0]

    def hidden(self, z: Tensor, tokens: Tensor) -> Tensor:
        """What the projection maps to the logits of each next word, `(B, L, H)`."""
        return self.dropout(self.states(self.inputs(z, tokens), z, tokens))

    def forward(self, z: Tensor, tokens: Tensor) -> Tensor:
        """Logits `(B, L, V)` of each next word, for latents `(B, D)` and tokens `(B, L)`.

        They mean nothing after the last word of `tokens`, `</s>` being one.
        """
        return F.linear(self.hidden(z, tokens), *self.projection())

    def start(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """z and the first state: see `eblvm.decoding.StepDecoder`."""
        return (z, *self.first_state(z))

    def step(self, token: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits `(B, V)` of the word after `token`, and the state then."""
        z, *memory = state
        hidden, last = self.run(self.inputs(z, token[:, None]), tuple(memory))
        return F.linear(self.dropout(hidden[:, 0]), *self.projection()), (z, *last)
