"""Convolutional encoders of a step of a diffusion, and the critic of denoising diffusion GANs.

References:
    Improving Adversarial Energy-Based Model via Diffusion Process (Geng et al., 2024), released
    code. Tackling the Generative Learning Trilemma with Denoising Diffusion GANs (Xiao et al.,
    2022), appendix B.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eblvm.energies import TimeEnergy

from .resample import Resample
from .unet import TINY, conv, level_embedding, linear, start

__all__ = ["DownNet", "StepCritic", "StepEncoder", "StridedStepEncoder"]

SLOPE = 0.2  # of every leaky ReLU


class LevelMap(nn.Module):
    """The embedding of levels after two layers, `(B,) -> (B, dim)`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.net = nn.Sequential(
            linear(dim, dim), nn.LeakyReLU(SLOPE), linear(dim, dim), nn.LeakyReLU(SLOPE)
        )

    def forward(self, t: Tensor, like: Tensor) -> Tensor:
        return self.net(level_embedding(t, self.dim).to(like.dtype))


class StridedStepEncoder(nn.Module):
    """Mean and log-variance of a step's latent by strided convolutions, `(B, 2 Z)`.

    Called as `(x, x_next, t)`; the level is added after each activation.

    Arguments:
        channels: C of images `(B, C, H, W)`.
        image_size: H = W.
        latent_dim: Z.
        width: Channels of the first layer, doubled by each of the others.
        num_halvings: Layers that halve the image.
        time_dim: Width of the level's embedding.

    Raises:
        ValueError: If the image cannot be halved that often.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        latent_dim: int,
        width: int = 64,
        num_halvings: int = 3,
        time_dim: int = 256,
    ) -> None:
        super().__init__()
        if image_size % 2**num_halvings:
            raise ValueError(
                f"image_size is {image_size}; expected a multiple of {2**num_halvings} to be "
                f"halved {num_halvings} times."
            )
        self.level = LevelMap(time_dim)
        widths = [width * 2**i for i in range(num_halvings + 1)]
        self.convs = nn.ModuleList([nn.Conv2d(2 * channels, width, 3, padding=1, bias=False)])
        for below, above in pairwise(widths):
            self.convs.append(nn.Conv2d(below, above, 4, stride=2, padding=1, bias=False))
        self.times = nn.ModuleList(linear(time_dim, w) for w in widths)
        size = image_size // 2**num_halvings
        self.heads = nn.ModuleList(nn.Conv2d(widths[-1], latent_dim, size) for _ in range(2))

    def forward(self, x: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
        level = self.level(t, x)
        h = torch.cat([x, x_next], dim=1)
        for layer, time in zip(self.convs, self.times, strict=True):
            h = F.leaky_relu(layer(h), SLOPE) + time(level)[:, :, None, None]
        return torch.cat([head(h).flatten(1) for head in self.heads], dim=1)


class DownBlock(nn.Module):
    """Two convolutions and a shortcut, told the level; may halve the image, smoothly."""

    def __init__(self, in_dim: int, out_dim: int, time_dim: int, halves: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(in_dim, out_dim), conv(out_dim, out_dim, scale=TINY)])
        self.time = linear(time_dim, out_dim)
        self.shortcut = start(nn.Conv2d(in_dim, out_dim, 1, bias=False))
        self.resample = Resample(False) if halves else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.convs[0](F.leaky_relu(x, SLOPE)) + self.time(level)[:, :, None, None]
        h = self.convs[1](self.resample(F.leaky_relu(h, SLOPE)))
        return (h + self.shortcut(self.resample(x))) / math.sqrt(2)


class DownNet(nn.Module):
    """Features of an image at a level, `(B, C, H, W), (B,) -> (B, F)`.

    Before the last convolution each image gets a channel with the spread of its group, as GANs have
    it: the standard deviation over the group, averaged over places and channels.

    Arguments:
        channels: C.
        widths: Channels after the first layer and after each block; F is the last.
        halves: Which blocks halve the image; all of them if None.
        time_dim: Width of the level's embedding.
        group_size: Images per group, or all where there are fewer or they do not come out even.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        halves: Sequence[bool] | None = None,
        time_dim: int = 256,
        group_size: int = 4,
    ) -> None:
        super().__init__()
        if halves is None:
            halves = [True] * (len(widths) - 1)
        if len(halves) != len(widths) - 1:
            raise ValueError(
                f"halves has {len(halves)} entries; expected {len(widths) - 1}, one per block."
            )
        self.level = LevelMap(time_dim)
        self.first = conv(channels, widths[0], 1)
        self.blocks = nn.ModuleList(
            DownBlock(below, above, time_dim, half)
            for below, above, half in zip(widths, widths[1:], halves, strict=False)
        )
        self.last = conv(widths[-1] + 1, widths[-1])
        self.group_size = group_size

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = self.level(t, x)
        h = self.first(x)
        for block in self.blocks:
            h = block(h, level)
        return F.leaky_relu(self.last(torch.cat([h, self.spread(h)], dim=1)), SLOPE).sum((2, 3))

    def spread(self, h: Tensor) -> Tensor:
        """The mean standard deviation within each image's group, `(B, 1, H, W)`."""
        num = min(len(h), self.group_size)
        num = num if len(h) % num == 0 else len(h)
        groups = h.view(num, -1, *h.shape[1:])  # (G, B/G, C, H, W)
        deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        return deviation.repeat(num)[:, None, None, None].expand(-1, 1, *h.shape[2:])


class StepEncoder(nn.Module):
    """Mean and log-variance of a step's latent by residual blocks, `(B, 2 Z)`.

    Called as `(x, x_next, t)`. The variance is at most 1: the log-variance is −softplus.

    Arguments:
        channels: C of images `(B, C, H, W)`.
        latent_dim: Z.
        widths: As in `DownNet`.
        time_dim: As in `DownNet`.
    """

    def __init__(
        self,
        channels: int,
        latent_dim: int,
        widths: Sequence[int] = (128, 256, 512, 512, 512, 512, 512),
        time_dim: int = 256,
    ) -> None:
        super().__init__()
        self.net = DownNet(2 * channels, widths, time_dim=time_dim)
        self.heads = nn.ModuleList(linear(widths[-1], latent_dim) for _ in range(2))

    def forward(self, x: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
        h = self.net(torch.cat([x, x_next], dim=1), t)
        return torch.cat([self.heads[0](h), -F.softplus(self.heads[1](h))], dim=1)


class StepCritic(TimeEnergy):
    """The critic of a denoising diffusion GAN, `(x, t, x_next) -> (B,)`, low on data.

    It sees how much the images of a group differ, four of a batch (`DownNet.spread`), so the score
    of an image depends on those that are scored with it.

    Arguments:
        channels: C of images `(B, C, H, W)`.
        widths: As in `DownNet`; these and `halves` are those for CIFAR-10.
        halves: As in `DownNet`.
        time_dim: As in `DownNet`.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = (128, 128, 256, 512, 512),
        halves: Sequence[bool] | None = (False, True, True, True),
        time_dim: int = 128,
    ) -> None:
        super().__init__()
        self.net = DownNet(2 * channels, widths, halves, time_dim)
        self.head = linear(widths[-1], 1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        if context is None:
            raise ValueError("the critic of a step needs x_next, its third argument.")
        return -self.head(self.net(torch.cat([x, context], dim=1), t)).squeeze(1)
