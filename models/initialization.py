"""How parameters start, where a method does not take PyTorch's way."""

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn.utils import parametrize

from .networks.spectral import settle_spectral_norms

__all__ = ["Initialization", "UniformInitialization"]


class Initialization(ABC):
    """Overwrites the parameters of a model, in place."""

    @abstractmethod
    def __call__(self, module: nn.Module) -> None:
        """Overwrite the parameters of `module`."""


class UniformInitialization(Initialization):
    """Every parameter uniform on (−bound, bound): weights, biases, embeddings, padding rows.

    Of spectrally normalized weights only the direction is set thereby, and their normalization is
    brought up to date.

    References:
        Released code of Shi et al. (ICML 2020), of Pang and Wu (ICML 2021) and of Yu et al. (ICML
        2022), for text: 0.1.

    Arguments:
        bound: The largest value.
    """

    def __init__(self, bound: float = 0.1) -> None:
        if not bound > 0:
            raise ValueError(f"bound is {bound}; expected a positive number.")
        self.bound = bound

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.uniform_(-self.bound, self.bound)
        if any(parametrize.is_parametrized(m) for m in module.modules()):
            settle_spectral_norms(module)
