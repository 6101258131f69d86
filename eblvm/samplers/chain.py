"""What a kernel is called with, and what it hands back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from .frozen import frozen
from .score import EnergyFn

if TYPE_CHECKING:
    from .kernel import Kernel
    from .tempering import ParallelTempering

__all__ = ["Chain", "ChainSetup", "Sampler", "energies_along", "kept_states", "room"]


@runtime_checkable
class Sampler(Protocol):
    """A transition rule, run for its number of steps: what every kernel, tempering and Gibbs are.

    Those also have `run`, with the same arguments and one more, `every`, for a :class:`Chain`.
    """

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
        exchange: Exchange rates `(K − 1,)` of neighboring temperatures; None without tempering.
    """

    x: Tensor
    trajectory: Tensor
    energies: Tensor
    acceptance: Tensor | None = None
    exchange: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ChainSetup:
    """A chain that a model runs in training, laid out so that others can run it too.

    Arguments:
        energy: What it samples, `(B, *event) -> (B,)`.
        sampler: Its rule, with its own number of steps and step size.
        start: Starts `(num, *event)`, from `(num, generator)`.
    """

    energy: EnergyFn
    sampler: "Kernel | ParallelTempering"
    start: Callable[[int, torch.Generator | None], Tensor]


def kept_states(num_steps: int, every: int) -> int:
    """How many of `num_steps` states are kept, one in `every`.

    Raises:
        ValueError: If `every` is not positive.
    """
    if every < 1:
        raise ValueError(f"every is {every}; expected 1 or more.")
    return num_steps // every


def room(num: int, x: Tensor) -> Tensor:
    """Where `num` states like `x` will be kept; writable also under `torch.inference_mode`."""
    with torch.inference_mode(False):
        return x.new_empty((num, *x.shape))


def energies_along(energy: EnergyFn, trajectory: Tensor) -> Tensor:
    """Energies `(N, B)` of the states `(N, B, *event)` of a trajectory, one batch at a time."""
    with frozen(energy), torch.no_grad():
        energies = trajectory.new_empty(trajectory.shape[:2])
        for i, x in enumerate(trajectory):
            energies[i] = energy(x)
    return energies
