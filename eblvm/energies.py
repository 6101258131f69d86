r"""Energies: p(x) ∝ exp(−E(x)). Low is likely, everywhere."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["Energy"]


class Energy(nn.Module, ABC):
    """An energy `(B, *event) -> (B,)`, in nats; defined up to a constant."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The energy of each row of `x`."""
