"""What a conditional model is told: a label, or an image made from the image itself.

A condition turns a batch `(x, label)` into c. Image conditions are made on the fly, so any image
data set serves colorization, super-resolution and edges to image.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Condition",
    "EdgeCondition",
    "GrayCondition",
    "ImageCondition",
    "LabelCondition",
    "LowResolutionCondition",
]

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601), as in the usual image libraries."""


class Condition(nn.Module, ABC):
    """From a batch to the condition c of its rows."""

    @abstractmethod
    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """c, with shape `(B, *c)`.

        Arguments:
            x: Images in [−1, 1], with shape `(B, C, H, W)`.
            label: Their labels, with shape `(B,)`.
        """

    @abstractmethod
    def examples(self, num: int) -> Tensor:
        """Conditions to sample with where none are given, `(num, *c)`."""

    def remember(self, condition: Tensor) -> None:
        """Take note of conditions of training, if `examples` are among these."""


class LabelCondition(Condition):
    """The class label.

    Arguments:
        num_classes: K; labels are 0 … K − 1.
    """

    origin: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected 1 or more.")
        self.num_classes = num_classes
        self.register_buffer("origin", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        if label.dim() != 1:
            raise ValueError(
                f"labels have shape {tuple(label.shape)}; LabelCondition expects one class per "
                "image, `(B,)`."
            )
        if label.device.type == "cpu" and bool((label < 0).any()):  # a GPU would have to wait
            raise ValueError(
                f"a label is {int(label.min())}, which is none; LabelCondition expects classes 0 "
                f"to {self.num_classes - 1}. Choose data that are labeled throughout."
            )
        return label

    def examples(self, num: int) -> Tensor:
        """The classes in turn: 0, 1, …, K − 1, 0, 1, …"""
        return torch.arange(num, device=self.origin.device) % self.num_classes


class ImageCondition(Condition):
    """An image made from the image; examples are those of the last remembered batch.

    Arguments:
        image_size: H and W.
        channels: Channels of the condition.
        num_examples: How many are remembered, in the checkpoint too.
    """

    seen: Tensor

    def __init__(self, image_size: int, channels: int, num_examples: int = 64) -> None:
        super().__init__()
        shape = (num_examples, channels, image_size, image_size)
        self.register_buffer("seen", torch.zeros(shape))

    def examples(self, num: int) -> Tensor:
        return self.seen[torch.arange(num, device=self.seen.device) % len(self.seen)]

    @torch.no_grad()
    def remember(self, condition: Tensor) -> None:
        num = min(len(condition), len(self.seen))
        self.seen[:num] = condition[:num].to(self.seen.dtype)


def gray(x: Tensor) -> Tensor:
    """The luminance of images, `(B, C, H, W) -> (B, 1, H, W)`."""
    if x.shape[1] == 1:
        return x
    weights: Sequence[float] = LUMINANCE
    return (x * x.new_tensor(weights)[:, None, None]).sum(1, keepdim=True)


class GrayCondition(ImageCondition):
    """The gray image, for colorization; `(B, 1, H, W)`.

    Arguments:
        image_size: H and W.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size, 1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return gray(x)


class LowResolutionCondition(ImageCondition):
    """Means of `factor` × `factor` blocks, at full size, for super-resolution; `(B, C, H, W)`.

    Arguments:
        image_size: H and W.
        channels: C.
        factor: Side of a block in pixels; divides the size.
    """

    def __init__(self, image_size: int, channels: int, factor: int = 4) -> None:
        super().__init__(image_size, channels)
        if factor < 2 or image_size % factor:
            raise ValueError(
                f"factor is {factor} for images of {image_size} pixels; expected a divisor of at "
                "least 2."
            )
        self.factor = factor

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(x, self.factor), scale_factor=self.factor)


class EdgeCondition(ImageCondition):
    """The magnitude of the gradient of the gray image, for edges to image; `(B, 1, H, W)`.

    Sobel's filter on [−1, 1] pixels, a step of full contrast having magnitude 1; mapped to [−1, 1].

    Arguments:
        image_size: H and W.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size, 1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        smooth, difference = x.new_tensor([1.0, 2.0, 1.0]), x.new_tensor([-1.0, 0.0, 1.0])
        across = smooth[:, None] * difference
        filters = torch.stack([across, across.T])[:, None] / 8  # a full step: 8 before division
        padded = F.pad(gray(x), (1, 1, 1, 1), mode="replicate")
        magnitude = F.conv2d(padded, filters).square().sum(1, keepdim=True).sqrt()
        return 2 * magnitude.clamp(max=1) - 1
