"""The energy and its input gradient, prepared once per chain."""

from typing import Protocol

import torch
from torch import Tensor

from .analytic import analyze
from .score import EnergyFn, checked_gradient, value_and_gradient

__all__ = ["Potential", "PotentialFn"]


class PotentialFn(Protocol):
    """E and ∇E."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x) `(B,)` and ∇E(x), for x `(B, *event)`."""
        ...

    def gradient(self, x: Tensor) -> Tensor:
        """∇E(x) alone."""
        ...


ANALYZE_FROM = 30
"""Gradients from which reading an energy (a millisecond or two) pays."""


class Potential:
    """E and ∇E of an energy that is frozen for the length of a chain.

    Arguments:
        energy: `(B, *event) -> (B,)`.
        x: The start, for its shape.
        num_gradients: How many gradients the chain will ask for.
    """

    def __init__(self, energy: EnergyFn, x: Tensor, num_gradients: int) -> None:
        self.energy = energy
        self.analytic = analyze(energy, x, num_gradients) if num_gradients >= ANALYZE_FROM else None
        self.ones: Tensor | None = None  # known, and all else checked, after the first value

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x) and ∇E(x)."""
        if self.analytic is not None:
            return self.analytic(x)
        e, gradient = value_and_gradient(self.energy, x, self.ones)
        if self.ones is None:
            self.ones = torch.ones_like(e)
        return e, gradient

    def gradient(self, x: Tensor) -> Tensor:
        """∇E(x) alone."""
        if self.analytic is not None:
            return self.analytic.gradient(x)
        if self.ones is None:
            return self(x)[1]
        leaf = x.detach().requires_grad_()  # what the first call checked needs no second look
        return checked_gradient(self.energy(leaf), leaf, self.ones)
