"""A U-Net for images at a level of noise: as a generator with a latent, and as an energy.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    the network NCSN++. Tackling the Generative Learning Trilemma with Denoising Diffusion GANs
    (Xiao et al., 2022), appendix B, for the latent in its normalizations. Improving Adversarial
    Energy-Based Model via Diffusion Process (Geng et al., 2024), released code, for the energy.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eblvm.energies import TimeEnergy

from .resample import Resample, StridedConv

__all__ = ["UNet", "UNetEnergy", "UNetGenerator", "level_embedding"]

TINY = 1e-10
"""The scale at which the last layer of a branch starts: it is as good as absent."""


def level_embedding(t: Tensor, dim: int) -> Tensor:
    r"""Sines, then cosines of :math:`t \omega_i`, :math:`\omega_i = 10000^{-i/(d/2 - 1)}`.

    Arguments:
        t: Levels, int64 `(B,)`.
        dim: d, even and at least 4.

    Returns:
        With shape `(B, d)`.
    """
    half = dim // 2
    steps = torch.arange(half, device=t.device, dtype=torch.get_default_dtype())
    angle = t[:, None] * torch.exp(steps * (-math.log(10000) / (half - 1)))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def start(layer: nn.Conv2d | nn.Linear, scale: float = 1.0) -> nn.Conv2d | nn.Linear:
    """Weights uniform with variance `scale` over the mean of fan-in and fan-out; biases 0."""
    receptive = math.prod(layer.weight.shape[2:])
    fans = sum(layer.weight.shape[:2]) * receptive
    bound = math.sqrt(3 * scale / (fans / 2))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(in_dim: int, out_dim: int, size: int = 3, scale: float = 1.0) -> nn.Module:
    return start(nn.Conv2d(in_dim, out_dim, size, padding=size // 2), scale)


def linear(in_dim: int, out_dim: int) -> nn.Module:
    return start(nn.Linear(in_dim, out_dim))


def group_norm(dim: int, affine: bool = True) -> nn.GroupNorm:
    """Groups of four channels, 32 of them at most."""
    return nn.GroupNorm(min(dim // 4, 32), dim, eps=1e-6, affine=affine)


class LatentNorm(nn.Module):
    """A group normalization whose scale and shift depend on a latent, where there is one.

    Arguments:
        dim: Channels.
        style_dim: Width of the mapped latent; 0 for a plain normalization.
    """

    def __init__(self, dim: int, style_dim: int) -> None:
        super().__init__()
        self.norm = group_norm(dim, affine=not style_dim)
        self.style: nn.Linear | None = None
        if style_dim:
            layer = nn.Linear(style_dim, 2 * dim)
            start(layer)
            nn.init.ones_(layer.bias[:dim])
            self.style = layer

    def forward(self, x: Tensor, style: Tensor | None) -> Tensor:
        x = self.norm(x)
        if self.style is None:
            return x
        scale, shift = self.style(style)[:, :, None, None].chunk(2, dim=1)
        return scale * x + shift


class Block(nn.Module):
    """Two convolutions and a shortcut, told the level and the latent; may change the resolution.

    Arguments:
        in_dim: Channels going in.
        out_dim: Channels coming out.
        time_dim: Width of the level's embedding.
        style_dim: Width of the mapped latent; 0 for none.
        dropout: Share of numbers that are dropped before the second convolution.
        resample: What changes the resolution, of both branches; None keeps it.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        time_dim: int,
        style_dim: int,
        dropout: float,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList([LatentNorm(in_dim, style_dim), LatentNorm(out_dim, style_dim)])
        self.convs = nn.ModuleList([conv(in_dim, out_dim), conv(out_dim, out_dim, scale=TINY)])
        self.time = linear(time_dim, out_dim)
        self.dropout = nn.Dropout(dropout)
        self.resample = resample or nn.Identity()
        changes = in_dim != out_dim or resample is not None
        self.shortcut = conv(in_dim, out_dim, 1) if changes else nn.Identity()

    def forward(self, x: Tensor, time: Tensor, style: Tensor | None) -> Tensor:
        h = self.resample(F.silu(self.norms[0](x, style)))
        h = self.convs[0](h) + self.time(F.silu(time))[:, :, None, None]
        h = self.convs[1](self.dropout(F.silu(self.norms[1](h, style))))
        return (self.shortcut(self.resample(x)) + h) / math.sqrt(2)


class Attention(nn.Module):
    """One head over all positions, written out: fused kernels have no second derivative.

    Arguments:
        dim: Channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = group_norm(dim)
        self.inward = nn.ModuleList(conv(dim, dim, 1) for _ in range(3))
        self.outward = conv(dim, dim, 1, scale=TINY)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in self.inward)  # (B, C, HW)
        weight = (q.transpose(1, 2) @ k / math.sqrt(x.shape[1])).softmax(dim=2)
        h = (v @ weight.transpose(1, 2)).view_as(x)
        return (x + self.outward(h)) / math.sqrt(2)


class Level(nn.Module):
    """A block, and attention after it where there is any."""

    def __init__(self, block: Block, attention: Attention | None = None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, time: Tensor, style: Tensor | None) -> Tensor:
        x = self.block(x, time, style)
        return x if self.attention is None else self.attention(x)


class UNet(nn.Module):
    """From images and their levels to images, `(B, C, H, W), (B,) -> (B, C, H, W)`.

    Arguments:
        channels: C.
        image_size: H = W; halved once less than there are `multipliers`.
        width: Channels of the first resolution.
        multipliers: Channels of each resolution over `width`.
        num_blocks: Residual blocks per resolution on the way down; one more on the way up.
        attention_sizes: Resolutions with attention.
        dropout: Share of numbers that are dropped in each block.
        smooth: Whether resampling is smooth, and the image itself, resampled, is added to the
            features on the way down; otherwise by repetition and averaging, and it is not.
        style_dim: Width of a mapped latent that scales and shifts normalized features; 0: none.

    Raises:
        ValueError: If the image cannot be halved that often.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention_sizes: Sequence[int] = (16,),
        dropout: float = 0.0,
        smooth: bool = True,
        style_dim: int = 0,
    ) -> None:
        super().__init__()
        halvings = len(multipliers) - 1
        if image_size % 2**halvings:
            raise ValueError(
                f"image_size is {image_size}; expected a multiple of {2**halvings} to be halved "
                f"{halvings} times. Pad the images, or take fewer multipliers."
            )
        self.width = width
        time_dim = 4 * width
        self.time = nn.Sequential(linear(width, time_dim), nn.SiLU(), linear(time_dim, time_dim))
        sizes = [image_size // 2**i for i in range(len(multipliers))]
        common = (time_dim, style_dim, dropout)

        def level(in_dim: int, out_dim: int, attends: bool) -> Level:
            block = Block(in_dim, out_dim, *common)
            return Level(block, Attention(out_dim) if attends else None)

        self.first = conv(channels, width)
        kept, dim = [width], width
        self.down, self.shrink, self.pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        below = channels
        for i, multiplier in enumerate(multipliers):
            blocks = nn.ModuleList()
            for _ in range(num_blocks):
                blocks.append(level(dim, width * multiplier, sizes[i] in attention_sizes))
                dim = width * multiplier
                kept.append(dim)
            self.down.append(blocks)
            if i < halvings:
                self.shrink.append(Block(dim, dim, *common, Resample(False, smooth)))
                if smooth:
                    self.pyramid.append(StridedConv(below, dim))
                    start(self.pyramid[-1].conv)  # type: ignore[arg-type]
                    below = dim
                kept.append(dim)
        self.middle = nn.ModuleList([level(dim, dim, True), level(dim, dim, False)])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(multipliers))):
            blocks = nn.ModuleList()
            for j in range(num_blocks + 1):
                attends = sizes[i] in attention_sizes and j == num_blocks
                blocks.append(level(dim + kept.pop(), width * multipliers[i], attends))
                dim = width * multipliers[i]
            self.up.append(blocks)
            if i:
                self.grow.append(Block(dim, dim, *common, Resample(True, smooth)))
        self.last_norm = group_norm(dim)
        self.last = conv(dim, channels, scale=TINY)

    def forward(self, x: Tensor, t: Tensor, style: Tensor | None = None) -> Tensor:
        """The image made of `x`; `style` is a mapped latent `(B, S)`."""
        time = self.time(level_embedding(t, self.width).to(x.dtype))
        h, image = self.first(x), x
        kept = [h]
        for i, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, time, style)
                kept.append(h)
            if i < len(self.shrink):
                h = self.shrink[i](h, time, style)
                if self.pyramid:
                    h = image = (self.pyramid[i](image) + h) / math.sqrt(2)
                kept.append(h)
        for block in self.middle:
            h = block(h, time, style)
        for i, blocks in enumerate(self.up):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(torch.cat([h, kept.pop()], dim=1), time, style)
            if i < len(self.grow):
                h = self.grow[i](h, time, style)
        return self.last(F.silu(self.last_norm(h)))


class UNetEnergy(TimeEnergy):
    r"""How far a U-Net moves an image, :math:`E(x, t) = \tfrac12 \|x - U(x, t)\|^2`.

    It starts as the energy of N(0, I) at every level. The paper writes f = −E.

    Arguments:
        net: U, `(x, t) -> (B, *event)`.
    """

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        error = x - self.net(x, t)
        if error.dtype in (torch.float16, torch.bfloat16):  # thousands of squares are summed
            error = error.float()
        return 0.5 * error.square().flatten(1).sum(1)


class UNetGenerator(nn.Module):
    """The clean image from its noisy state and a latent, `(x_next, t, z) -> (B, C, H, W)`.

    Arguments:
        net: The U-Net, with `style_dim`.
        latent_dim: Width of z.
        style_dim: Width of the mapped latent, that of the net.
        num_layers: Layers of the mapping after the first.
    """

    def __init__(
        self, net: UNet, latent_dim: int = 100, style_dim: int = 256, num_layers: int = 4
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [linear(latent_dim, style_dim), nn.SiLU()]
        for _ in range(num_layers):
            layers += [linear(style_dim, style_dim), nn.SiLU()]
        self.mapping = nn.Sequential(*layers)
        self.net = net

    def forward(self, x_next: Tensor, t: Tensor, z: Tensor) -> Tensor:
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        return torch.tanh(self.net(x_next, t, self.mapping(z)))
