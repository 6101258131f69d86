"""What a kernel is called with and what it hands back; and where its noise comes from."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .frozen import frozen
from .score import EnergyFn

__all__ = ["Chain", "Sampler", "chain_generator", "energies_along", "noise_blocks"]

NOISE_BLOCK = 2**17  # elements drawn in one call: the block stays in a core's cache


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


def chain_generator(generator: torch.Generator | None, x: Tensor) -> torch.Generator | None:
    """The source of a chain's noise: `generator`, else the global one, distinct on each rank.

    After `seed_everything` the global generators of all ranks agree, and so would their chains.
    With a process group of several ranks the noise therefore comes from a generator seeded by one
    draw of the global (CPU) generator and the rank; ranks stay in step and draw differently.

    Arguments:
        generator: What the caller handed in, on the device of `x`.
        x: The start, for its device.

    Raises:
        ValueError: If the generator lives on another kind of device than `x`.
        TypeError: If `x` is not a floating-point tensor.
    """
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}; expected a floating-point dtype. Use `x.float()`.")
    if generator is not None:
        if generator.device.type != x.device.type:
            raise ValueError(
                f"generator lives on {generator.device}, x on {x.device}; expected the same "
                f"device. Use `torch.Generator({str(x.device)!r})`."
            )
        return generator
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if torch.distributed.get_world_size() > 1:
            seed = int(torch.randint(2**62, ()))  # on the CPU: no synchronization
            rank = torch.distributed.get_rank()
            mixed = (seed + rank * 0x9E3779B97F4A7C15) % 2**63  # the golden ratio keeps seeds apart
            return torch.Generator(x.device).manual_seed(mixed)
    return None


def noise_blocks(num_steps: int, x: Tensor, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Unit Gaussian noise for `num_steps` steps, in blocks `(n, B, *event)` of bounded memory.

    Arguments:
        num_steps: Steps in all.
        x: The state, for shape, dtype and device.
        generator: The chain's generator.
    """
    size = max(1, NOISE_BLOCK // max(1, math.prod(x.shape)))
    for start in range(0, num_steps, size):
        n = min(size, num_steps - start)
        yield torch.randn((n, *x.shape), dtype=x.dtype, device=x.device, generator=generator)


def energies_along(energy: EnergyFn, trajectory: Tensor) -> Tensor:
    """Energies `(N, B)` of the states `(N, B, *event)` of a trajectory, one batch at a time."""
    energies = trajectory.new_empty(trajectory.shape[:2])
    with frozen(energy), torch.no_grad():
        for i, x in enumerate(trajectory):
            energies[i] = energy(x)
    return energies
