"""From a decoder of sequences to sequences: the likeliest word, a draw, or a beam.

A sequence starts with `bos`, ends with `eos` and is then padded; decoding stops when all have
ended. No word is `bos` or `pad`: their logits count as −∞, whatever a decoder says.

A decoder that offers `start` and `step` is asked one word at a time; of any other, the whole prefix
is computed again for each word.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Decoding", "StepDecoder", "decode"]

State = tuple[Tensor, ...]


@runtime_checkable
class StepDecoder(Protocol):
    """A decoder that remembers; every tensor of its state has the batch as its first axis."""

    def start(self, z: Tensor, context: Any = None) -> State:
        """The state before the first word, for latents `(B, D)`."""

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits `(B, V)` of the word after `token`, `(B,)`, and the state then."""


@dataclass(frozen=True)
class Decoding:
    """How to choose words.

    Arguments:
        temperature: 0 takes the likeliest word; else logits are divided by it and one is drawn.
        top_k: Draw among so many of the likeliest words; 0 for all.
        top_p: Draw among the fewest words with this much probability.
        beam: Follow so many prefixes and return the likeliest sequence; 1 follows one. Without
            draws: the temperature must be 0.
        length_penalty: With a beam, log-probabilities are divided by length to this power.

    Raises:
        ValueError: If a number is out of range, or beam and temperature are both given.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beam: int = 1
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 or more.")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 (all words) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected more than 0 and at most 1.")
        if self.beam < 1:
            raise ValueError(f"beam is {self.beam}; expected 1 or more.")
        if self.beam > 1 and self.temperature > 0:
            raise ValueError(
                f"beam is {self.beam} and temperature {self.temperature}; a beam draws nothing. "
                "Leave out one of them."
            )
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError("top_k and top_p are about draws; set a temperature, such as 1.")

    def choose(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Words `(B,)` of logits `(B, V)`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial(self.probabilities(logits), 1, generator=generator)[:, 0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """What words are drawn from, `(B, V)`."""
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        share = logits.softmax(-1)
        if self.top_p < 1:
            ordered, place = share.sort(dim=-1, descending=True)
            surplus = ordered.cumsum(-1) - ordered >= self.top_p  # enough before this one
            share = share.masked_fill(surplus.scatter(-1, place, surplus), 0.0)
        return share / share.sum(-1, keepdim=True)


@torch.no_grad()
def decode(
    decoder: Any,
    z: Tensor,
    max_length: int,
    how: Decoding | None = None,
    generator: torch.Generator | None = None,
    *,
    pad: int = 0,
    bos: int = 2,
    eos: int = 3,
    context: Any = None,
) -> Tensor:
    """Sequences for latents, int64, `(B, max_length)`.

    Arguments:
        decoder: A `StepDecoder`, or `(z, tokens) -> logits`.
        z: Latents, `(B, D)`.
        max_length: The longest sequence, with `bos` and `eos`.
        how: How to choose words; the likeliest if None.
        generator: Source of draws.
        pad: Index of the padding token.
        bos: Index of the first token.
        eos: Index of the last token.
        context: What else the decoder starts from.
    """
    how = how or Decoding()
    stepper: Any = decoder if isinstance(decoder, StepDecoder) else _Prefixes(decoder)
    state = stepper.start(z) if context is None else stepper.start(z, context)
    never = torch.tensor(sorted({pad, bos} - {eos}), dtype=torch.long, device=z.device)
    if how.beam > 1:
        return _beam(stepper, state, len(z), max_length, how, (pad, bos, eos), never)
    token = torch.full((len(z),), bos, dtype=torch.long, device=z.device)
    ended = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    tokens = [token]
    while len(tokens) < max_length and not ended.all():
        logits, state = stepper.step(token, state)
        logits = logits.index_fill(-1, never, -torch.inf)
        token = how.choose(logits, generator).masked_fill(ended, pad)
        tokens.append(token)
        ended = ended | (token == eos)
    found = torch.stack(tokens, dim=1)
    return F.pad(found, (0, max_length - found.shape[1]), value=pad)


class _Prefixes:
    """Any decoder as a `StepDecoder`: its state is the latent and the prefix."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder

    def start(self, z: Tensor, context: Any = None) -> State:
        return z, torch.zeros(len(z), 0, dtype=torch.long, device=z.device)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        z, tokens = state
        tokens = torch.cat([tokens, token[:, None]], dim=1)
        return self.decoder(z, tokens)[:, -1], (z, tokens)


def _beam(
    stepper: Any,
    state: State,
    num: int,
    max_length: int,
    how: Decoding,
    special: tuple[int, int, int],
    never: Tensor,
) -> Tensor:
    """The best of `how.beam` prefixes; ended ones stay in the beam and compete."""
    pad, bos, eos = special
    width, device = how.beam, never.device
    state = tuple(part.repeat_interleave(width, dim=0) for part in state)
    tokens = torch.full((num, width, 1), bos, dtype=torch.long, device=device)
    score = torch.full((num, width), -torch.inf, device=device)
    score[:, 0] = 0.0  # all prefixes are one at the start
    length = torch.zeros(num, width, device=device)
    ended = torch.zeros(num, width, dtype=torch.bool, device=device)
    while tokens.shape[2] < max_length and not ended.all():
        logits, state = stepper.step(tokens[:, :, -1].flatten(), state)
        logits = logits.float().index_fill(-1, never, -torch.inf)
        log_prob = logits.log_softmax(-1).unflatten(0, (num, width))
        stay = torch.full_like(log_prob, -torch.inf)
        stay[..., pad] = 0.0  # an ended sequence goes on with padding, at no cost
        log_prob = torch.where(ended[..., None], stay, log_prob)
        total = score[..., None] + log_prob
        longer = length + (~ended).float()
        ranked = total / longer.clamp_min(1)[..., None] ** how.length_penalty
        place = ranked.flatten(1).topk(width, dim=1).indices  # (B, width)
        source, token = place // total.shape[-1], place % total.shape[-1]
        score = total.flatten(1).gather(1, place)
        length = longer.gather(1, source)
        ended = ended.gather(1, source) | (token == eos)
        tokens = torch.cat(
            [tokens.gather(1, source[..., None].expand_as(tokens)), token[..., None]], dim=2
        )
        rows = (source + width * torch.arange(num, device=device)[:, None]).flatten()
        state = tuple(part.index_select(0, rows) for part in state)
    best = (score / length.clamp_min(1) ** how.length_penalty).argmax(1)
    found = tokens[torch.arange(num, device=device), best]
    return F.pad(found, (0, max_length - found.shape[1]), value=pad)
