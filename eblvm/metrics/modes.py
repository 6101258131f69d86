r"""Samples against the known modes of a mixture: are they near one, and is every one visited?"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ModeCount", "count_modes"]


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
