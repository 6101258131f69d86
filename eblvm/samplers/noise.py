"""Noise from a handed-in generator."""

import torch
from torch import Tensor

__all__ = ["noise_like"]


def noise_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Unit Gaussian noise with the shape, dtype and device of `x`.

    `torch.randn_like`, with a generator; the global one if None.
    """
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
