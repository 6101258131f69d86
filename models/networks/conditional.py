"""Networks that are told a condition c, their last argument: a class, or an image."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eblvm.energies import Energy

from .same import SameConvTranspose2d, initialize

__all__ = [
    "ClassEnergy",
    "ConditionalDecoder",
    "ConditionalEncoder",
    "ConditionalEnergy",
    "LabelMap",
    "TranslationDecoder",
]


class LabelMap(nn.Module):
    """A class as a map beside the image, `(B,) -> (B, channels, H, H)` in (−1, 1).

    A stack of transposed convolutions, normalized, with ReLU between and tanh at the end.

    References:
        The conditional cooperative networks of Xie et al. (2021), released code, on 28×28:
        `sizes=[4, 7, 14, 28], widths=[256, 128, 64]`.

    Arguments:
        num_classes: K.
        sizes: Sides of the maps, the last that of the image.
        widths: Channels of the maps, without the last.
        channels: Channels of the last.
        init_scale: Standard deviation of the first filters; PyTorch's choice if None.
    """

    def __init__(
        self,
        num_classes: int,
        sizes: Sequence[int],
        widths: Sequence[int],
        channels: int = 1,
        init_scale: float | None = None,
    ) -> None:
        super().__init__()
        if len(sizes) != len(widths) + 1:
            raise ValueError(
                f"there are {len(sizes)} sizes and {len(widths)} widths; expected one width less, "
                "as the last map has `channels`."
            )
        self.num_classes = num_classes
        outputs = [*widths, channels]
        layers: list[nn.Module] = [nn.ConvTranspose2d(num_classes, outputs[0], sizes[0])]
        for i in range(1, len(outputs)):
            layers += [nn.GroupNorm(1, outputs[i - 1]), nn.ReLU()]
            layers.append(SameConvTranspose2d(outputs[i - 1], outputs[i], 3, 2, sizes[i]))
        self.net = nn.Sequential(*layers, nn.Tanh())
        initialize(self, init_scale)

    def forward(self, label: Tensor) -> Tensor:
        every = torch.eye(
            self.num_classes, device=label.device, dtype=next(self.parameters()).dtype
        )
        return self.net(every[:, :, None, None])[label]  # K maps, however many rows


class ConditionalEnergy(Energy):
    """An energy of the image with the condition as further channels, `(B, C, H, H), c -> (B,)`.

    Arguments:
        energy: Of images with C and the condition's channels.
        embedding: From c to `(B, channels, H, H)`; c itself if None.
    """

    def __init__(self, energy: Energy, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.energy = energy
        self.embedding = nn.Identity() if embedding is None else embedding

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None:
            raise ValueError(
                "a ConditionalEnergy was called without its condition. Give DataEBM a `condition`."
            )
        return self.energy(torch.cat([x, self.embedding(condition).to(x.dtype)], 1))


class ClassEnergy(Energy):
    r"""An energy with an output of its own for each class, `(B, *event), (B,) -> (B,)`.

    .. math:: E(x, c) = e_c(x)

    All classes share what comes before the last layer. Where a label beside the image moves hidden
    units, a label that chooses the output says directly how the energies of two classes differ.

    References:
        Your Classifier is Secretly an Energy Based Model and You Should Treat it Like One
        (Grathwohl et al., 2020), Sec. 3, where the outputs are logits, :math:`-E`.

    Arguments:
        network: From the image to K numbers, `(B, *event) -> (B, K)`.
        num_classes: K.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None:
            raise ValueError(
                "a ClassEnergy was called without its condition. Give DataEBM a `condition`."
            )
        return (self.network(x) * F.one_hot(condition, self.num_classes).to(x.dtype)).sum(1)


class ConditionalEncoder(nn.Module):
    """An encoder of the image with the condition as further channels.

    Arguments:
        encoder: Of images with C and the condition's channels.
        embedding: From c to `(B, channels, H, H)`; c itself if None.
    """

    def __init__(self, encoder: nn.Module, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.embedding = nn.Identity() if embedding is None else embedding

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.encoder(torch.cat([x, self.embedding(condition).to(x.dtype)], 1))


class ConditionalDecoder(nn.Module):
    """A decoder of the latent with a one-hot class beside it, `(B, D), (B,) -> (B, C, H, H)`.

    Arguments:
        decoder: Of D + K numbers.
        num_classes: K.
    """

    def __init__(self, decoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.num_classes = num_classes

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        return self.decoder(torch.cat([z, F.one_hot(condition, self.num_classes).to(z.dtype)], 1))


class _Block(nn.Module):
    """Two 3×3 convolutions with instance normalization, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class TranslationDecoder(nn.Module):
    """An encoder–decoder of the condition image, `(B, D), (B, C', H, H) -> (B, C, H, H)`.

    A 7×7 convolution, one with stride 2 for each further width, residual blocks, and the way back;
    instance normalization, ReLU, tanh at the end. The latent is added to the map in the middle, the
    same at every pixel, after a linear layer where its length is another than the map's width.

    References:
        The conditional cooperative networks of Xie et al. (2021), released code: `widths=[32, 64,
        128], num_blocks=6, latent_dim=128`; 9 blocks for 256 × 256 pixels.

    Arguments:
        latent_dim: D.
        condition_channels: C'.
        channels: C.
        widths: Channels, from full size down.
        num_blocks: Residual blocks in the middle.
    """

    def __init__(
        self,
        latent_dim: int,
        condition_channels: int,
        channels: int,
        widths: Sequence[int],
        num_blocks: int = 6,
    ) -> None:
        super().__init__()
        down: list[nn.Module] = [
            nn.Conv2d(condition_channels, widths[0], 7, padding=3, padding_mode="reflect"),
            nn.InstanceNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for wide, wider in pairwise(widths):
            down += [nn.Conv2d(wide, wider, 3, 2, 1), nn.InstanceNorm2d(wider), nn.ReLU()]
        self.down = nn.Sequential(*down)
        same = latent_dim == widths[-1]
        self.mix = nn.Identity() if same else nn.Linear(latent_dim, widths[-1])
        up: list[nn.Module] = [_Block(widths[-1]) for _ in range(num_blocks)]
        for wider, wide in zip(widths[::-1], widths[-2::-1], strict=False):
            up += [nn.ConvTranspose2d(wider, wide, 4, 2, 1), nn.InstanceNorm2d(wide), nn.ReLU()]
        last = nn.Conv2d(widths[0], channels, 7, padding=3, padding_mode="reflect")
        self.up = nn.Sequential(*up, last, nn.Tanh())

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        return self.up(self.down(condition) + self.mix(z)[:, :, None, None])
