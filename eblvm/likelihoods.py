"""Likelihoods p(x|z): a decoder network and the noise around what it says."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .samplers import noise_like

__all__ = ["BernoulliLikelihood", "CategoricalLikelihood", "GaussianLikelihood", "Likelihood"]


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
    with `pad`, which is not scored.

    Arguments:
        decoder: `(z, tokens) -> logits`, `(B, D), (B, L) -> (B, L, V)`; the logits at position l
            may depend on tokens up to l and predict the token at l + 1.
        max_length: The longest sequence to draw, with `bos` and `eos`.
        pad: Index of the padding token.
        bos: Index of the first token.
        eos: Index of the last token.
    """

    def __init__(
        self, decoder: nn.Module, max_length: int, pad: int = 0, bos: int = 2, eos: int = 3
    ) -> None:
        super().__init__(decoder)
        self.max_length = max_length
        self.pad = pad
        self.bos = bos
        self.eos = eos

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        logits = self.decoder(z, x[:, :-1])
        loss = F.cross_entropy(
            logits.flatten(0, 1), x[:, 1:].flatten(), ignore_index=self.pad, reduction="none"
        )
        return -loss.unflatten(0, (len(x), -1)).sum(1)

    def _generate(self, z: Tensor, generator: torch.Generator | None, greedy: bool) -> Tensor:
        tokens = torch.full((len(z), 1), self.bos, dtype=torch.long, device=z.device)
        ended = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        while tokens.shape[1] < self.max_length and not ended.all():
            logits = self.decoder(z, tokens)[:, -1]
            if greedy:
                token = logits.argmax(-1)
            else:
                token = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
            token = token.masked_fill(ended, self.pad)
            tokens = torch.cat([tokens, token[:, None]], dim=1)
            ended = ended | (token == self.eos)
        return F.pad(tokens, (0, self.max_length - tokens.shape[1]), value=self.pad)

    def mean(self, z: Tensor) -> Tensor:
        """The greedy decoding, with shape `(B, max_length)`."""
        return self._generate(z, None, greedy=True)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Ancestral sampling, with shape `(B, max_length)`."""
        return self._generate(z, generator, greedy=False)
