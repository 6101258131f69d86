"""Resampling of images by two: smooth, or by repetition and averaging; differentiable twice."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Resample", "StridedConv"]


def smooth_kernel() -> Tensor:
    """The outer product of [1, 3, 3, 1] with itself, summing to 1, with shape `(4, 4)`."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return taps[:, None] * taps


class Resample(nn.Module):
    """Halves or doubles height and width, `(B, C, H, W) -> (B, C, H/2, W/2)` or `(B, C, 2H, 2W)`.

    References:
        Analyzing and Improving the Image Quality of StyleGAN (Karras et al., 2020), appendix B, for
        the smooth filter and its padding; convolutions of PyTorch take the place of its kernels.

    Arguments:
        up: Whether to double.
        smooth: Whether to filter with [1, 3, 3, 1] along either axis, or to repeat and average.
    """

    kernel: Tensor

    def __init__(self, up: bool, smooth: bool = True) -> None:
        super().__init__()
        self.up = up
        self.smooth = smooth
        self.register_buffer("kernel", smooth_kernel() * (4 if up else 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.smooth:
            return F.interpolate(x, scale_factor=2.0) if self.up else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        weight = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        if self.up:
            return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=channels)
        return F.conv2d(x, weight, stride=2, padding=1, groups=channels)


class StridedConv(nn.Module):
    """A 3×3 convolution of the smoothed image at every second place, `(B, C, H, W)` to half of it.

    Arguments:
        in_dim: Channels going in.
        out_dim: Channels coming out.
    """

    kernel: Tensor

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.register_buffer("kernel", smooth_kernel(), persistent=False)
        self.conv = nn.Conv2d(in_dim, out_dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        return self.conv(F.conv2d(F.pad(x, (2, 2, 2, 2)), weight, groups=channels))
