"""Where a chain's noise comes from."""

import math

import torch
from torch import Tensor

__all__ = ["block_size", "chain_generator", "noise_like", "normal", "uniform"]

NOISE_BLOCK = 2**17  # elements drawn in one call: the block stays in a core's cache


def noise_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Unit Gaussian noise with the shape, dtype and device of `x`.

    `torch.randn_like`, with a generator; the global one if None.
    """
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


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


def block_size(x: Tensor) -> int:
    """How many steps' noise is drawn at once for a state like `x`; memory stays bounded.

    A multiple of ten where it can be, so that steps unrolled by ten leave no rest.
    """
    size = NOISE_BLOCK // max(1, math.prod(x.shape))
    return size // 10 * 10 if size >= 10 else max(1, size)


def normal(n: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Unit Gaussian noise for `n` steps of `x` `(B, *event)`, with shape `(n, B, *event)`."""
    return torch.randn((n, *x.shape), dtype=x.dtype, device=x.device, generator=generator)


def uniform(n: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers on [0, 1) for `n` steps, one per row of `x`, with shape `(n, B)`."""
    return torch.rand((n, len(x)), dtype=x.dtype, device=x.device, generator=generator)
