"""What a kernel is called with, and what it hands back."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .frozen import frozen
from .score import EnergyFn

__all__ = ["Chain", "Sampler", "energies_along"]


@runtime_checkable
class Sampler(Protocol):
    """A transition rule, run for its number of steps."""

    def __call__(
        self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The last states of chains started at `x` `(B, *event)`, detached, shaped like `x`."""
        ...


@dataclass(frozen=True, eq=False)
class Chain:
    """All there is to know about a run, for diagnostics.

    Arguments:
        x: Last states, with shape `(B, *event)`.
        trajectory: Kept states, the start excluded, with shape `(N, B, *event)`.
        energies: Their energies, with shape `(N, B)`.
        acceptance: Mean acceptance probability per chain, with shape `(B,)`; None for kernels that
            accept everything.
    """

    x: Tensor
    trajectory: Tensor
    energies: Tensor
    acceptance: Tensor | None = None


def energies_along(energy: EnergyFn, trajectory: Tensor) -> Tensor:
    """Energies `(N, B)` of the states `(N, B, *event)` of a trajectory, one batch at a time."""
    energies = trajectory.new_empty(trajectory.shape[:2])
    with frozen(energy), torch.no_grad():
        for i, x in enumerate(trajectory):
            energies[i] = energy(x)
    return energies
