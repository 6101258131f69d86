"""Sines and cosines of coordinates, for densities whose features are small."""

import torch
from torch import Tensor

__all__ = ["waves"]


def waves(x: Tensor, num: int) -> Tensor:
    """x, and sin and cos of 2ʲ x for j = 0 … num − 1: `(B, D)` to `(B, D (1 + 2 num))`."""
    if not num:
        return x
    phase = torch.cat([2**j * x for j in range(num)], dim=1)
    return torch.cat([x, phase.sin(), phase.cos()], dim=1)
