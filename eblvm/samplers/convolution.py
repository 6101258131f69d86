"""Convolutions and their input gradients, for chains that hold the filters still.

A convolution is linear, so its derivative needs the incoming gradient alone. Where few channels go
in, as in the first layer of an energy of images, the gradient is a matrix product whose columns are
added up where the filters overlap: vector units have nothing to hold on to in one or three output
channels, and the general routine was measured to be five times slower there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["convolution", "padding"]

FEW = 4
"""Channels up to which the gradient is a product and a sum of columns, on processors."""

Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    pad: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Pair:
    """x ↦ conv(x), and g ↦ its gradient for x.

    Arguments:
        x: An example of the input, `(B, C, H, W)`, for shape, dtype, device and layout.
        weight: Filters, with shape `(O, C / groups, k, l)`.
        bias: With shape `(O,)`, or None.
        stride: One number, or one per axis; so are the next two.
        pad: Zeros on either side.
        dilation: Of the filters.
        groups: Blocks of channels.

    Raises:
        TypeError: If the padding is named instead of counted.
    """
    if isinstance(pad, str):
        raise TypeError(f"padding is {pad!r}; expected numbers.")
    stride, pad, dilation = _two(stride), _two(pad), _two(dilation)

    def forward(h: Tensor) -> Tensor:
        return F.conv2d(h, weight, bias, stride, pad, dilation, groups)

    if x.device.type == "cpu" and x.shape[1] <= FEW and groups == 1:
        rows = weight.flatten(1).T.contiguous()  # (C k l, O)
        sides, kernel = (x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])

        def gather(g: Tensor) -> Tensor:
            return F.fold(rows @ g.flatten(2), sides, kernel, dilation, pad, stride)

        return forward, gather

    like = x[:1].expand_as(x) if x.is_contiguous() else x

    def backward(g: Tensor) -> Tensor:
        return torch.ops.aten.convolution_backward(
            g,
            like,
            weight,
            None,
            stride,
            pad,
            dilation,
            False,
            (0, 0),
            groups,
            (True, False, False),
        )[0]

    return forward, backward


def padding(x: Tensor, pad: tuple[int, ...]) -> Pair:
    """Zeros around x `(B, C, H, W)` as in `torch.nn.functional.pad`, and the gradient for x."""
    left, _, top, _ = (*pad, 0, 0)[:4]
    height, width = x.shape[2:]

    def crop(g: Tensor) -> Tensor:
        return g[:, :, top : top + height, left : left + width]

    return lambda h: F.pad(h, pad), crop


def _two(value: Any) -> tuple[int, int]:
    """A number for both axes, or one per axis."""
    first, last = value if isinstance(value, tuple | list) else (value, value)
    return int(first), int(last)
