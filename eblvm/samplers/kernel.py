"""A kernel is a pure step; everything around the step is here, once.

A kernel says how a chain starts from the energy and its gradient, what noise a number of steps
needs, and how one step turns a state into the next. :class:`Kernel` runs it: the energy frozen, the
noise in blocks, the trajectory kept on request, and the fastest gradient that applies
(:mod:`eblvm.samplers.potential`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .chain import Chain, energies_along, kept_states, room
from .compiled import Unrolled
from .frozen import frozen
from .noise import block_size, chain_generator
from .potential import ANALYZE_FROM, Potential, PotentialFn
from .score import EnergyFn

__all__ = [
    "Kernel",
    "Scale",
    "State",
    "StepSize",
    "at_step",
    "check_count",
    "check_scale",
    "per_row",
    "row_sum",
    "scaled",
    "scaled_",
]

State = tuple[Tensor, ...]
"""What a step maps to its successor; the first entry is x `(B, *event)`."""

Scale = float | Tensor
StepSize = float | Tensor | Sequence[float] | Sequence[Tensor]
"""A number; a `(B,)` tensor with one per row; or a sequence with one of these per step."""


class Kernel(ABC):
    """A transition rule with frozen settings, run for `num_steps` steps."""

    num_steps: int

    @property
    def gradients_per_step(self) -> int:
        """How many energy gradients one step takes."""
        return 1

    @abstractmethod
    def start(self, potential: PotentialFn, x: Tensor, generator: torch.Generator | None) -> State:
        """The first state of a chain at `x` `(B, *event)`."""

    @abstractmethod
    def draw(self, n: int, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """The noise of `n` steps: tensors `(n, B, …)`."""

    def drawn(
        self, n: int, x: Tensor, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, ...]]:
        """The noise of `n` steps, one step's `(B, …)` after the other, drawn in bounded blocks."""
        size = block_size(x)
        for first in range(0, n, size):
            yield from zip(*self.draw(min(size, n - first), x, generator), strict=True)

    @abstractmethod
    def coefficients(self, step: int, x: Tensor) -> tuple[Scale, ...]:
        """The step's numbers (or `(B, 1, …)` tensors), e.g. its step size."""

    @property
    @abstractmethod
    def rule(self) -> Callable[..., State]:
        """The pure step `(potential, state, noise, coefficients) -> state`."""

    def acceptance(self, state: State) -> Tensor | None:
        """The share of accepted proposals per chain, from the last state; None if all are."""
        return None

    def value(self, state: State) -> Tensor | None:
        """E(x) `(B,)` of a state, where it is part of it; None otherwise."""
        return None

    def __call__(
        self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Run the chains.

        The energy's flags, modes and buffers are as found afterwards, parameters get no gradient,
        and it works under `torch.no_grad` and `torch.inference_mode`
        (:mod:`eblvm.samplers.frozen`). Memory does not depend on the number of steps.

        Arguments:
            energy: `(B, *event) -> (B,)`.
            x: Starts, with shape `(B, *event)`; not modified.
            generator: Source of the noise, on the device of `x`; the global one if None, made
                distinct on each rank.

        Returns:
            The last states, detached, with the shape of `x`.
        """
        return self._run(energy, x, generator)[0]

    def run(
        self,
        energy: EnergyFn,
        x: Tensor,
        generator: torch.Generator | None = None,
        every: int = 1,
    ) -> Chain:
        """Run the chains, same noise and same states as a plain call, and keep what they did.

        Arguments:
            energy: As in a call.
            x: As in a call.
            generator: As in a call.
            every: Keep one state in `every`.

        Returns:
            The trajectory, its energies and acceptance rates. Kernels that accept everything
            evaluate each kept state once more for its energy.
        """
        num = kept_states(self.num_steps, every)
        kept, energies = room(num, x), room(num, x.new_empty(len(x)))
        state = self._run(energy, x, generator, (kept, energies), every)
        if self.value(state) is None:
            energies = energies_along(energy, kept)
        return Chain(state[0], kept, energies, self.acceptance(state))

    def _run(
        self,
        energy: EnergyFn,
        x: Tensor,
        generator: torch.Generator | None,
        kept: tuple[Tensor, Tensor] | None = None,
        every: int = 1,
    ) -> State:
        generator = chain_generator(generator, x)
        with frozen(energy):
            x = x.clone() if x.is_inference() else x.detach()
            rule, constant = self.rule, self._constant(x) if self.num_steps else None
            gradients = self.gradients_per_step
            unrolled = None
            if constant is not None and kept is None:
                unrolled = Unrolled(rule, energy, x, constant, gradients, self.num_steps)
            ahead = self.num_steps * gradients
            if unrolled is not None and unrolled.proven:  # eager steps will be few
                ahead = ANALYZE_FROM if unrolled.reads_program else 0
            potential = Potential(energy, x, ahead)
            if unrolled is not None:
                unrolled.program = potential.analytic
            state = self.start(potential, x, generator)
            if self.num_steps == 0:
                return (x.clone(), *state[1:])

            def eager(state: State, noise: tuple[Tensor, ...], first: int = 0) -> State:
                drawn = zip(*(e.unbind() for e in noise), strict=True)
                if constant is not None and kept is None:
                    for eps in drawn:
                        state = rule(potential, state, eps, constant)
                    return state
                for i, eps in enumerate(drawn, first):
                    state = rule(potential, state, eps, constant or self.coefficients(i, x))
                    if kept is not None and (i + 1) % every == 0:
                        states, energies = kept
                        states[(i + 1) // every - 1] = state[0]
                        value = self.value(state)
                        if value is not None:
                            energies[(i + 1) // every - 1] = value
                return state

            size = block_size(x)
            for first in range(0, self.num_steps, size):
                noise = self.draw(min(size, self.num_steps - first), x, generator)
                i, n = 0, len(noise[0])
                while unrolled is not None and unrolled.ready and n - i >= unrolled.length:
                    several = tuple(e[i : i + unrolled.length] for e in noise)
                    after = unrolled(state, several, eager)
                    if after is None:
                        break
                    state, i = after, i + unrolled.length
                if i < n:
                    rest = noise if i == 0 else tuple(e[i:] for e in noise)
                    state = eager(state, rest, first + i)
            if unrolled is not None:
                unrolled.finish()
        return state

    def _constant(self, x: Tensor) -> tuple[Scale, ...] | None:
        """The coefficients, if no setting is a sequence with one entry per step."""
        settings: dict[str, Any] = vars(self)
        varying = any(isinstance(settings.get(k), Sequence) for k in ("step_size", "noise_scale"))
        return None if varying else self.coefficients(0, x)


def at_step(scale: StepSize, step: int) -> Scale:
    """The scale of one step: entry `step` of a sequence, or the constant."""
    return scale[step] if isinstance(scale, Sequence) else scale


def per_row(scale: Scale, x: Tensor) -> Scale:
    """A `(B,)` scale as `(B, 1, …)`, on the device and in the dtype of `x` `(B, *event)`.

    Raises:
        ValueError: If a tensor has neither shape `(B,)` nor shape `()`.
    """
    if not isinstance(scale, Tensor):
        return scale
    if scale.ndim and scale.shape != x.shape[:1]:
        raise ValueError(
            f"a step size or noise scale has shape {tuple(scale.shape)} for a batch of {len(x)}; "
            f"expected ({len(x)},), one per row. For one per step use a tuple of numbers, e.g. "
            "`tuple(scale.tolist())`."
        )
    scale = scale.detach().to(x)
    return scale.reshape(-1, *[1] * (x.ndim - 1)) if scale.ndim else scale


def scaled(x: Tensor, y: Tensor, scale: Scale) -> Tensor:
    """x + scale · y, in one operation."""
    return torch.addcmul(x, scale, y) if isinstance(scale, Tensor) else x.add(y, alpha=scale)


def scaled_(x: Tensor, y: Tensor, scale: Scale) -> Tensor:
    """x + scale · y, written to x: for values that nobody else holds."""
    return x.addcmul_(scale, y) if isinstance(scale, Tensor) else x.add_(y, alpha=scale)


def row_sum(x: Tensor) -> Tensor:
    """The sum over the event: `(B, *event)` to `(B,)`."""
    return x.sum(dim=tuple(range(1, x.ndim))) if x.ndim > 1 else x


def check_scale(name: str, scale: StepSize, num_steps: int, positive: bool = True) -> None:
    """Check a scale at construction; tensors only on the CPU, to stay off the device's queue.

    Raises:
        ValueError: If an entry is negative (or zero, where it must be positive), or a sequence does
            not have one entry per step.
    """
    if isinstance(scale, Tensor):
        if scale.device.type == "cpu" and not bool((scale > 0 if positive else scale >= 0).all()):
            _refuse(name, f"{scale}", positive)
    elif isinstance(scale, Sequence):
        if len(scale) != num_steps:
            raise ValueError(
                f"{name} has {len(scale)} entries for {num_steps} steps; expected one per step. "
                "One per row is a tensor, not a sequence."
            )
        for s in scale:
            check_scale(name, s, num_steps, positive)
    elif not (scale > 0 if positive else scale >= 0):
        _refuse(name, f"{scale}", positive)


def check_count(name: str, value: int, least: int = 0) -> None:
    """Check a number of steps.

    Raises:
        ValueError: If it is below `least`.
    """
    if value < least:
        raise ValueError(f"{name} is {value}; expected {least} or more.")


def _refuse(name: str, value: str, positive: bool) -> None:
    expected = "a positive number" if positive else "0 or more"
    raise ValueError(f"{name} is {value}; expected {expected}.")
