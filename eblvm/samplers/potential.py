"""The energy and its input gradient, prepared once per chain."""

from collections.abc import Callable

from torch import Tensor

from .score import EnergyFn, value_and_gradient

__all__ = ["Potential", "PotentialFn"]

PotentialFn = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x `(B, *event)` to E(x) `(B,)` and ∇E(x) `(B, *event)`."""


class Potential:
    """E and ∇E of an energy that is frozen for the length of a chain.

    Arguments:
        energy: `(B, *event) -> (B,)`.
        x: The start, for its shape.
        num_steps: How long the chain will be.
    """

    def __init__(self, energy: EnergyFn, x: Tensor, num_steps: int) -> None:
        self.energy = energy

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x) and ∇E(x)."""
        return value_and_gradient(self.energy, x)
