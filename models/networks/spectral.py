"""Spectrally normalized layers, and keeping their normalization true."""

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

__all__ = ["settle_spectral_norms", "spectral_linear"]


def spectral_linear(in_dim: int, out_dim: int) -> nn.Linear:
    """A linear layer whose weight has spectral norm 1, up to the power iteration's error."""
    layer = nn.Linear(in_dim, out_dim)
    parametrizations.spectral_norm(layer)
    return layer


@torch.no_grad()
def settle_spectral_norms(module: nn.Module, num_iterations: int = 100) -> None:
    """Run power iterations until the stored vectors fit the weights.

    Needed after weights were overwritten: evaluation runs no iteration, and with vectors that fit
    other weights it divides by an arbitrary number.

    Arguments:
        module: Whatever holds spectrally normalized layers; others are left alone.
        num_iterations: Power iterations of each.
    """
    for layer in module.modules():
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        mode = layer.training
        layer.train()
        for _ in range(num_iterations):
            layer.weight  # noqa: B018 (reading it in training mode is one iteration)
        layer.train(mode)
