"""Convolutions with the padding of TensorFlow, on which published networks of pixels are built.

A convolution with stride s has ⌈n/s⌉ outputs for n inputs; what padding that takes is shared
between the two sides, the odd pixel at the end. Transposed convolutions are their exact adjoints.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SameConv2d", "SameConvTranspose2d", "SameDecoder", "SameEncoder", "ShiftNorm2d"]

LEAKY: Callable[[], nn.Module] = partial(nn.LeakyReLU, 0.2)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after a row of `size` that give it ⌈size/stride⌉ outputs."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def initialize(net: nn.Module, scale: float | None) -> None:
    """Convolutions N(0, scale²), dense layers Glorot-uniform, biases 0; None leaves PyTorch's."""
    if scale is None:
        return
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, scale)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class SameConv2d(nn.Conv2d):
    """A convolution of square images of a known size, `(B, C, H, H) -> (B, C', ⌈H/s⌉, ⌈H/s⌉)`.

    Arguments:
        channels: C.
        width: C'.
        kernel: Side of the filters.
        stride: s.
        size: H.
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int, size: int) -> None:
        low, high = same_padding(size, kernel, stride)
        super().__init__(channels, width, kernel, stride, padding=low)
        self.extra = high - low

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, self.extra, 0, self.extra)) if self.extra else x)


class SameConvTranspose2d(nn.ConvTranspose2d):
    """The adjoint of a `SameConv2d` from `size` pixels, `(B, C, h, h) -> (B, C', size, size)`.

    Arguments:
        channels: C.
        width: C'.
        kernel: Side of the filters.
        stride: s.
        size: Side of the images that come out; h = ⌈size/s⌉ go in.
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int, size: int) -> None:
        super().__init__(channels, width, kernel, stride)
        self.low = same_padding(size, kernel, stride)[0]
        self.size = size

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        full = super().forward(x)
        last = self.low + self.size
        return full[:, :, self.low : last, self.low : last]


class ShiftNorm2d(nn.BatchNorm2d):
    """Batch normalization with a learned shift and no learned scale.

    Arguments:
        width: Channels.
        batch_statistics: Normalize by the batch's own statistics in evaluation, too. The released
            code does; an image then depends on the others of its batch. If not, running averages
            serve, as usual.
    """

    def __init__(self, width: int, batch_statistics: bool = False) -> None:
        super().__init__(width, eps=1e-3, affine=False, track_running_stats=not batch_statistics)
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift[:, None, None]


def check_lists(widths: Sequence[int], kernels: Sequence[int], strides: Sequence[int]) -> None:
    """Raise unless there are as many of each, at least one."""
    if not len(widths) == len(kernels) == len(strides) > 0:
        raise ValueError(
            f"there are {len(widths)} widths, {len(kernels)} kernels and {len(strides)} strides; "
            "expected as many of each: one per layer."
        )


def downward(
    channels: int,
    image_size: int,
    widths: Sequence[int],
    kernels: Sequence[int],
    strides: Sequence[int],
    activation: Callable[[], nn.Module],
    dropout: float = 0.0,
) -> tuple[list[nn.Module], int]:
    """Convolutions with activations, and the side of the last map."""
    check_lists(widths, kernels, strides)
    layers: list[nn.Module] = []
    for width, kernel, stride in zip(widths, kernels, strides, strict=True):
        layers += [SameConv2d(channels, width, kernel, stride, image_size), activation()]
        layers += [nn.Dropout(dropout)] if dropout else []
        channels, image_size = width, -(-image_size // stride)
    return layers, image_size


class SameEncoder(nn.Module):
    """Convolutions and a dense layer, `(B, C, H, H) -> (B, out_dim)`.

    References:
        Learning Energy-Based Model with Variational Auto-Encoder as Amortized Sampler (Xie, Zheng
        and Li, 2021), released code. CIFAR-10: `widths=[64, 128, 256, 512], kernels=[3, 4, 4, 4],
        strides=[1, 2, 2, 2]`; MNIST: `widths=[64, 64, 64], kernels=[4, 4, 4], strides=[2, 2, 1],
        dropout=0.2`.

    Arguments:
        channels: C.
        image_size: H.
        widths: Channels of the maps.
        kernels: Sides of the filters.
        strides: Their strides.
        out_dim: Numbers coming out; twice the latent dimension for a Gaussian posterior.
        dropout: After each map, in training only; the released code drops at test, too.
        activation: Class of the activation, built without arguments; LeakyReLU 0.2 if None.
        init_scale: Standard deviation of the first filters; PyTorch's choice if None.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        widths: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        out_dim: int,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] | None = None,
        init_scale: float | None = None,
    ) -> None:
        super().__init__()
        layers, side = downward(
            channels, image_size, widths, kernels, strides, activation or LEAKY, dropout
        )
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side**2, out_dim))
        initialize(self, init_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SameDecoder(nn.Module):
    """Transposed convolutions from a vector to an image, `(B, D) -> (B, C, H, H)` in (−1, 1).

    The first makes a map of `sizes[0]` pixels of the vector, each further one a map of the next
    size, a last one the image; tanh at the end.

    References:
        As `SameEncoder`. CIFAR-10: `sizes=[4, 8, 16, 32, 32], widths=[256, 128, 64, 64],
        kernels=[4, 4, 4, 3, 3], num_normalized=3`; MNIST: `sizes=[4, 7, 14, 28], widths=[256, 128,
        64], kernels=[4, 3, 3, 3], num_normalized=3`, with ReLU.

    Arguments:
        latent_dim: D.
        channels: C.
        sizes: Sides of the maps, the image last; each equals the one before or nearly doubles it.
        widths: Channels of the maps, without the image.
        kernels: Sides of the filters, one per size.
        num_normalized: How many maps are normalized (`ShiftNorm2d`), from the first on.
        batch_statistics: As in `ShiftNorm2d`.
        activation: Class of the activation, built without arguments; LeakyReLU 0.2 if None.
        init_scale: Standard deviation of the first filters; PyTorch's choice if None.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int,
        sizes: Sequence[int],
        widths: Sequence[int],
        kernels: Sequence[int],
        num_normalized: int = 0,
        batch_statistics: bool = False,
        activation: Callable[[], nn.Module] | None = None,
        init_scale: float | None = None,
    ) -> None:
        super().__init__()
        if not len(sizes) == len(kernels) == len(widths) + 1 > 1:
            raise ValueError(
                f"there are {len(sizes)} sizes, {len(kernels)} kernels and {len(widths)} widths; "
                "expected as many sizes as kernels, and one width less, as the image has channels."
            )
        activation = activation or LEAKY
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_dim, widths[0], sizes[0])]
        if kernels[0] != sizes[0]:
            raise ValueError(f"the first kernel is {kernels[0]}, its map {sizes[0]}; make it so.")
        outputs = [*widths, channels]
        for i, width in enumerate(outputs):
            if i:
                stride = 1 if sizes[i] == sizes[i - 1] else 2
                if -(-sizes[i] // stride) != sizes[i - 1]:
                    raise ValueError(
                        f"a map of {sizes[i]} pixels does not come of one of {sizes[i - 1]} with a "
                        f"stride of {stride}; expected {sizes[i - 1]}, {2 * sizes[i - 1] - 1} or "
                        f"{2 * sizes[i - 1]}."
                    )
                layers.append(
                    SameConvTranspose2d(outputs[i - 1], width, kernels[i], stride, sizes[i])
                )
            if i < len(widths):
                layers += [ShiftNorm2d(width, batch_statistics)] * (i < num_normalized)
                layers.append(activation())
        self.net = nn.Sequential(*layers, nn.Tanh())
        initialize(self, init_scale)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z[:, :, None, None])
