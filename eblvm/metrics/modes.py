r"""Samples against the known modes of a mixture: are they near one, and is every one visited?"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ClassCount", "ModeCount", "count_classes", "count_modes"]


class ModeCount(NamedTuple):
    """What samples make of the modes.

    Attributes:
        near: Share of samples within the radius of a center.
        hit: Centers that have enough near samples of their own.
        least: The smallest count of near samples of a center, over its fair share.
        most: The greatest.
    """

    near: float
    hit: int
    least: float
    most: float


def count_modes(
    samples: Tensor, centers: Tensor, std: float, radius: float = 3.0, share: float = 0.16
) -> ModeCount:
    """Count samples near the modes of a mixture of equal weights.

    Arguments:
        samples: With shape `(N, D)`.
        centers: With shape `(K, D)`.
        std: Standard deviation of a mode.
        radius: What is near, in standard deviations. A perfect sample of the plane is within 3 with
            probability 1 − e^{−9/2} = 0.989.
        share: A mode is hit with this part of its fair share N/K; 0.16 is 200 of 10,000 samples of
            eight modes.

    Raises:
        ValueError: If samples and centers do not live in one space.
    """
    if samples.ndim != 2 or centers.ndim != 2 or samples.shape[1] != centers.shape[1]:
        raise ValueError(
            f"samples have shape {tuple(samples.shape)} and centers {tuple(centers.shape)}; "
            "expected (N, D) and (K, D)."
        )
    distance, owner = torch.cdist(samples.double(), centers.double()).min(1)
    near = distance <= radius * std
    counts = torch.bincount(owner[near], minlength=len(centers)).double()
    fair = counts / (len(samples) / len(centers))
    return ModeCount(
        float(near.double().mean()),
        int((fair >= share).sum()),
        float(fair.min()),
        float(fair.max()),
    )


class ClassCount(NamedTuple):
    """What samples make of classes that data visit equally often.

    Attributes:
        hit: Classes with a sample.
        kl: KL(samples‖uniform) of the classes, in nats. n samples of the uniform distribution over
            K classes give about (K − 1) / 2n instead of 0.
    """

    hit: int
    kl: float


def count_classes(labels: Tensor, num_classes: int) -> ClassCount:
    """Count the classes of samples.

    Arguments:
        labels: int64, with shape `(N,)`, in 0 … num_classes − 1.
        num_classes: K.

    Raises:
        ValueError: If there is no sample.
    """
    if not len(labels):
        raise ValueError("there are no samples whose classes could be counted.")
    counts = torch.bincount(labels, minlength=num_classes).double()
    p = counts / len(labels)
    kl = torch.where(p > 0, p * (p * num_classes).log(), 0.0).sum()
    return ClassCount(int((counts > 0).sum()), float(kl))
