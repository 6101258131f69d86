"""Residual networks of adversarially trained images, after Miyato et al. (ICLR 2018).

Spectral normalization of all of an energy and of an encoder, none of a generator. The first
activation of a block acts in place in the released code, so the shortcut sees rectified input, too.
Filters start Xavier-uniform with gain √2 in the 3×3 convolutions of blocks, 1 elsewhere.

References:
    Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018); Bi-level
    Doubly Variational Learning for Energy-based Latent Variable Models (Kan et al., 2022), released
    code.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from eblvm.energies import Energy

__all__ = ["ResnetDecoder", "ResnetEncoder", "ResnetEnergy"]


def conv(channels: int, width: int, kernel: int, gain: float, normalized: bool) -> nn.Module:
    """A convolution that keeps the side."""
    layer = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return spectral_norm(layer) if normalized else layer


def dense(units: int, out_dim: int, bias: bool = True, normalized: bool = True) -> nn.Module:
    """A dense layer."""
    layer = nn.Linear(units, out_dim, bias)
    nn.init.xavier_uniform_(layer.weight)
    return spectral_norm(layer) if normalized else layer


class DownBlock(nn.Module):
    """ReLU, 3×3, ReLU, 3×3 beside a shortcut; `(B, C, H, H) -> (B, C', H, H)`, or half the side.

    Arguments:
        channels: C.
        width: C'.
        halve: Whether a mean over 2×2 pixels ends it.
        first: Whether images go in, which are not rectified; the shortcut then pools before it
            convolves.
    """

    def __init__(self, channels: int, width: int, halve: bool, first: bool = False) -> None:
        super().__init__()
        hidden = width if first else channels
        self.inner = conv(channels, hidden, 3, math.sqrt(2), True)
        self.outer = conv(hidden, width, 3, math.sqrt(2), True)
        learned = first or halve or channels != width
        self.shortcut = conv(channels, width, 1, 1.0, True) if learned else nn.Identity()
        self.halve = halve
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else F.relu(x)
        branch = self.outer(F.relu(self.inner(x)))
        if self.first and self.halve:
            return F.avg_pool2d(branch, 2) + self.shortcut(F.avg_pool2d(x, 2))
        both = branch + self.shortcut(x)
        return F.avg_pool2d(both, 2) if self.halve else both


class UpBlock(nn.Module):
    """BN, ReLU, 2× bilinear, 3×3, BN, ReLU, 3×3 beside an upsampled 1×1; doubles the side.

    Arguments:
        channels: Of the input.
        width: Of the output.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(width)])
        self.inner = conv(channels, width, 3, math.sqrt(2), False)
        self.outer = conv(width, width, 3, math.sqrt(2), False)
        self.shortcut = conv(channels, width, 1, 1.0, False)

    @staticmethod
    def upsample(x: Tensor) -> Tensor:
        """Twice the side, corners not aligned."""
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](x))
        branch = self.outer(F.relu(self.norms[1](self.inner(self.upsample(x)))))
        return branch + self.shortcut(self.upsample(x))


def trunk(channels: int, widths: Sequence[int], num_halvings: int) -> nn.Sequential:
    """Blocks of these widths, of which the first `num_halvings` halve the side."""
    if not 0 < num_halvings <= len(widths):
        raise ValueError(
            f"num_halvings is {num_halvings}; expected 1 to {len(widths)}, one for each width at "
            "most."
        )
    blocks = [
        DownBlock(before, width, i < num_halvings, first=i == 0)
        for i, (before, width) in enumerate(zip([channels, *widths], widths, strict=False))
    ]
    return nn.Sequential(*blocks, nn.ReLU())


class ResnetEnergy(Energy):
    """Residual blocks, a sum over pixels and a dense layer; `(B, C, H, H) -> (B,)`.

    Arguments:
        channels: C.
        widths: Channels of the blocks. Released: [128] * 4 with two halvings for 32×32; [64, 128,
            256, 512, 1024], all halving, for 64×64; that and a sixth of 1024 for 128×128.
        num_halvings: How many blocks, from the first on, halve the side; all if None.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], num_halvings: int | None = None
    ) -> None:
        super().__init__()
        self.net = trunk(channels, widths, num_halvings or len(widths))
        self.head = dense(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x).sum((2, 3))).squeeze(1)


class ResnetEncoder(nn.Module):
    """The energy's blocks with two heads; `(B, C, H, H) -> (B, 2 D)`, mean and log-variance ≤ 0.

    Arguments:
        channels: C.
        widths: As in `ResnetEnergy`.
        latent_dim: D.
        num_halvings: As in `ResnetEnergy`.
        bias: Whether heads have one; they have for 32×32, not for 128×128.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        latent_dim: int,
        num_halvings: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.net = trunk(channels, widths, num_halvings or len(widths))
        self.mean = dense(widths[-1], latent_dim, bias)
        self.log_variance = dense(widths[-1], latent_dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        features = self.net(x).sum((2, 3))
        return torch.cat([self.mean(features), -F.softplus(self.log_variance(features))], 1)


class ResnetDecoder(nn.Module):
    """A dense layer to 4×4 maps, blocks that double the side; `(B, D) -> (B, C, H, H)` in (−1, 1).

    Arguments:
        latent_dim: D.
        channels: C.
        widths: Channels of the 4×4 maps and of what each block makes. Released: [256] * 4 for
            32×32; [1024, 1024, 512, 256, 128, 64] for 128×128.
    """

    def __init__(self, latent_dim: int, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.width = widths[0]
        self.dense = dense(latent_dim, 16 * widths[0], normalized=False)
        pairs = pairwise(widths)
        self.blocks = nn.Sequential(*(UpBlock(before, after) for before, after in pairs))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.last = conv(widths[-1], channels, 3, 1.0, False)

    def forward(self, z: Tensor) -> Tensor:
        maps = self.dense(z).view(len(z), self.width, 4, 4)
        return torch.tanh(self.last(F.relu(self.norm(self.blocks(maps)))))
