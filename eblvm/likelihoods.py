"""Likelihoods p(x|z): a decoder network and the noise around what it says."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .decoding import Decoding, decode
from .objectives.sequences import linear_cross_entropy
from .samplers import noise_like

__all__ = [
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "DialogueLikelihood",
    "GaussianLikelihood",
    "Likelihood",
    "MultinomialLikelihood",
]


class Likelihood(nn.Module, ABC):
    """A conditional density of data `(B, *event)` given latents `(B, D)`.

    Arguments:
        decoder: The network.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    @abstractmethod
    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), normalized, in nats, with shape `(B,)`."""

    @abstractmethod
    def mean(self, z: Tensor) -> Tensor:
        """What the decoder says: the mean, or the most likely sequence; `(B, *event)`."""

    @abstractmethod
    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x, with shape `(B, *event)`."""

    def reconstruction(self, x: Tensor, z: Tensor) -> Tensor:
        """What the decoder says of data that have the latent `z`; `mean(z)` by default.

        Arguments:
            x: The data, `(B, *event)`, of which a conditional likelihood uses the condition.
            z: Their latents, `(B, D)`.
        """
        return self.mean(z)

    def _check(self, x: Tensor, mean: Tensor) -> None:
        if x.shape != mean.shape:
            raise ValueError(
                f"the decoder returned shape {tuple(mean.shape)} for data of shape "
                f"{tuple(x.shape)}; they must agree. Change the decoder's output size or the "
                "data's (image_size, channels)."
            )


class GaussianLikelihood(Likelihood):
    r"""p(x|z) = N(x; g(z), σ² I).

    Arguments:
        decoder: g, `(B, D) -> (B, *event)`.
        scale: σ, in units of x.
    """

    def __init__(self, decoder: nn.Module, scale: float = 0.3) -> None:
        super().__init__(decoder)
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a positive number.")
        self.scale = scale

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        mean = self.decoder(z)
        self._check(x, mean)
        squared = (x - mean).square().flatten(1)
        log_norm = 0.5 * math.log(2 * math.pi * self.scale**2)
        return -squared.sum(1) / (2 * self.scale**2) - squared.shape[1] * log_norm

    def mean(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = self.decoder(z)
        return mean + self.scale * noise_like(mean, generator)


class BernoulliLikelihood(Likelihood):
    """Independent binary pixels; −1 and 1 in the data stand for 0 and 1.

    Values in between are read as probabilities (the usual treatment of grey images), and then
    `log_prob` is a cross-entropy, not a normalized density.

    Arguments:
        decoder: Logits, `(B, D) -> (B, *event)`.
    """

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        logits = self.decoder(z)
        self._check(x, logits)
        target = (x + 1) / 2
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return -loss.flatten(1).sum(1)

    def mean(self, z: Tensor) -> Tensor:
        return 2 * torch.sigmoid(self.decoder(z)) - 1

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probability = torch.sigmoid(self.decoder(z))
        return 2 * torch.bernoulli(probability, generator=generator) - 1


class CategoricalLikelihood(Likelihood):
    r"""Sequences of tokens, :math:`p(x|z) = \prod_l p(x_l \mid x_{<l}, z)`.

    Sequences start with `bos`, whose probability is 1, end with `eos`, and are padded on the right
    with `pad`, which is not scored. Draws never have `pad` or `bos` inside; scores leave them their
    probability, which training drives to 0.

    A decoder that offers `hidden(z, tokens) -> (B, L, H)` and `projection() -> (weight, bias)` is
    not asked for logits: padded positions are left out before the projection onto the vocabulary,
    and the logits of a large batch are never all in memory.

    Arguments:
        decoder: `(z, tokens) -> logits`, `(B, D), (B, L) -> (B, L, V)`; the logits at position l
            may depend on tokens up to l and predict the token at l + 1.
        max_length: The longest sequence to draw, with `bos` and `eos`.
        pad: Index of the padding token.
        bos: Index of the first token.
        eos: Index of the last token.

    Raises:
        ValueError: If the decoder takes another token for padding.
    """

    def __init__(
        self, decoder: nn.Module, max_length: int, pad: int = 0, bos: int = 2, eos: int = 3
    ) -> None:
        super().__init__(decoder)
        if getattr(decoder, "pad", pad) != pad:
            raise ValueError(
                f"the decoder takes token {decoder.pad} for padding, and the likelihood {pad}; "
                "give both the same `pad`."
            )
        self.max_length = max_length
        self.pad = pad
        self.bos = bos
        self.eos = eos

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        return self._log_prob(x, z)

    def _log_prob(self, x: Tensor, z: Tensor, **context: Tensor) -> Tensor:
        decoder: Any = self.decoder
        target = x[:, 1:]
        if not (hasattr(decoder, "hidden") and hasattr(decoder, "projection")):
            logits = decoder(z, x[:, :-1], **context)
            loss = F.cross_entropy(
                logits.flatten(0, 1), target.flatten(), ignore_index=self.pad, reduction="none"
            )
            return -loss.unflatten(0, (len(x), -1)).sum(1)
        scored = target != self.pad
        hidden = decoder.hidden(z, x[:, :-1], **context)[scored]
        weight, bias = decoder.projection()
        loss = linear_cross_entropy(hidden, weight, bias, target[scored])
        placed = loss.new_zeros(target.shape).masked_scatter(scored, loss)
        return -placed.sum(1)

    def decode(
        self,
        z: Tensor,
        how: Decoding | None = None,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Sequences `(B, max_length)` for latents `(B, D)`; the greedy ones if `how` is None."""
        special = {"pad": self.pad, "bos": self.bos, "eos": self.eos}
        return decode(self.decoder, z, self.max_length, how, generator, context=context, **special)

    def mean(self, z: Tensor) -> Tensor:
        """The greedy decoding, with shape `(B, max_length)`."""
        return self.decode(z)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Ancestral sampling, with shape `(B, max_length)`."""
        return self.decode(z, Decoding(temperature=1.0), generator)


class DialogueLikelihood(CategoricalLikelihood):
    """Responses given a latent and the turns before, p(x₀|z, x₁ … x_T).

    Data `(B, 1 + T, L)` hold the response in row 0 and the turns before it in the others. Only the
    response is scored.

    Arguments:
        decoder: As for `CategoricalLikelihood`, with a third argument, `context=` the turns before,
            `(B, T, L)`.
        max_length: The longest response, with `bos` and `eos`.
    """

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        return self._log_prob(x[:, 0], z, context=x[:, 1:])

    def mean(self, z: Tensor) -> Tensor:
        """Refused: there is no response without the turns before.

        Raises:
            ValueError: Always.
        """
        raise self.unheard()

    @staticmethod
    def unheard() -> ValueError:
        """The error of asking for a response without the turns before."""
        return ValueError(
            "a response needs the turns before it: `likelihood.decode(z, context=x[:, 1:])`. "
            "`eblvm test` with eblvm.text_evaluation.Responses answers the test dialogues."
        )

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.mean(z)

    def reconstruction(self, x: Tensor, z: Tensor) -> Tensor:
        """The greedy response to the turns before, `(B, max_length)`."""
        return self.decode(z, context=x[:, 1:])


class MultinomialLikelihood(Likelihood):
    r"""Bags of words, :math:`\log p(x|z) = \sum_w x_w \log \mathrm{softmax}(g(z))_w`.

    The multinomial coefficient, which does not depend on the model, is left out.

    References:
        Latent Space Energy-Based Model of Symbol-Vector Coupling (Pang and Wu, 2021), AGNews.

    Arguments:
        decoder: Logits g, `(B, D) -> (B, V)`.
        num_words: Words in a bag that is drawn.
    """

    def __init__(self, decoder: nn.Module, num_words: int = 40) -> None:
        super().__init__(decoder)
        if num_words < 1:
            raise ValueError(f"num_words is {num_words}; expected 1 or more.")
        self.num_words = num_words

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        logits = self.decoder(z)
        self._check(x, logits)
        return (x * logits.log_softmax(-1)).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        """Expected counts in a bag of `num_words`, `(B, V)`."""
        return self.num_words * self.decoder(z).softmax(-1)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        share = self.decoder(z).softmax(-1)
        words = torch.multinomial(share, self.num_words, replacement=True, generator=generator)
        return torch.zeros_like(share).scatter_add_(
            1, words, torch.ones_like(share)[:, :1].expand_as(words)
        )
