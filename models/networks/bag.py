"""Networks for documents as counts of words."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["BagOfWordsDecoder", "BagOfWordsEncoder"]


class BagOfWordsEncoder(nn.Sequential):
    """Counts `(B, V)` through layers with ReLU and dropout to `(B, out)`.

    References:
        Latent Space Energy-Based Model of Symbol-Vector Coupling (Pang and Wu, 2021), AGNews: two
        layers of 2000, dropout 0.5.

    Arguments:
        num_words: V.
        out_dim: Numbers per document; 2 D for a mean and a log-variance.
        hidden_dims: Widths of the hidden layers.
        dropout: After each hidden layer.
    """

    def __init__(
        self,
        num_words: int,
        out_dim: int,
        hidden_dims: Sequence[int] = (2000, 2000),
        dropout: float = 0.5,
    ) -> None:
        layers: list[nn.Module] = []
        width = num_words
        for hidden in hidden_dims:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden
        super().__init__(*layers, nn.Linear(width, out_dim))


class BagOfWordsDecoder(nn.Module):
    """Latents `(B, D)` to logits `(B, V)` around the words' frequencies in the training text.

    The last layer is normalized over the batch with a fixed scale of 1 and a learned shift, and
    the log-frequency of each word is added. `set_background` gives the latter; until then it is 0.

    References:
        Latent Space Energy-Based Model of Symbol-Vector Coupling (Pang and Wu, 2021), AGNews: three
        layers of 2000 with LeakyReLU(0.2).

    Arguments:
        latent_dim: D.
        num_words: V.
        hidden_dims: Widths of the hidden layers.
    """

    background: Tensor

    def __init__(
        self, latent_dim: int, num_words: int, hidden_dims: Sequence[int] = (2000, 2000, 2000)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = latent_dim
        for hidden in hidden_dims:
            layers += [nn.Linear(width, hidden), nn.LeakyReLU(0.2)]
            width = hidden
        self.net = nn.Sequential(*layers, nn.Linear(width, num_words))
        self.normalization = nn.BatchNorm1d(num_words, eps=1e-3, momentum=1e-3, affine=False)
        self.shift = nn.Parameter(torch.zeros(num_words))
        self.register_buffer("background", torch.zeros(num_words))

    def set_background(self, log_frequency: Tensor) -> None:
        """Set the words' log-frequencies, `(V,)`.

        Raises:
            ValueError: If they are not as many as words.
        """
        if log_frequency.shape != self.background.shape:
            raise ValueError(
                f"log_frequency has shape {tuple(log_frequency.shape)}; expected "
                f"{tuple(self.background.shape)}: the data's vocabulary and num_words must agree."
            )
        self.background.copy_(log_frequency)

    def forward(self, z: Tensor) -> Tensor:
        return self.normalization(self.net(z)) + self.shift + self.background
