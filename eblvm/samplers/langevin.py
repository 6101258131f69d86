r"""Langevin dynamics.

.. math:: x \leftarrow x - \frac{s^2}{2} \nabla_x E(x) + \nu s \varepsilon,
    \qquad \varepsilon \sim N(0, I)

With `step_size` s and `noise_scale` ν: ν = 1 samples at temperature 1 up to an O(s²) bias (for
N(0, σ²) the stationary variance is σ² / (1 − s²/4σ²)), ν = 0 is gradient descent. A rule written as
x ← x − a∇E + bε has s = √(2a), ν = b/s, and targets exp(−E/τ) with temperature τ = b²/2a.

References:
    Bayesian Learning via Stochastic Gradient Langevin Dynamics (Welling & Teh, 2011).
    Exponential convergence of Langevin distributions and their discrete approximations
    (Roberts & Tweedie, 1996), Sec. 1.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .chain import Chain, energies_along
from .frozen import frozen
from .noise import chain_generator, noise_blocks
from .score import EnergyFn, value_and_gradient

__all__ = ["Langevin", "StepSize", "add_scaled_", "at_step", "check_scale", "per_row"]

StepSize = float | Tensor | Sequence[float] | Sequence[Tensor]
"""A number; a `(B,)` tensor with one per row; or a sequence with one of these per step."""


@dataclass(frozen=True, eq=False)
class Langevin:
    """Unadjusted Langevin dynamics.

    Arguments:
        num_steps: Steps per call; 0 returns the start.
        step_size: s, in units of x: a number, a `(B,)` tensor (one per row), or a sequence of
            `num_steps` of these (annealed).
        noise_scale: ν, a factor on the noise; as `step_size`, and 0 is allowed.
        clip: Bound on the absolute value of each entry of the gradient. A clipped chain does not
            sample exp(−E), but the density of an energy whose gradient is the clipped one, where
            such an energy exists; use it to tame early training.
        bounds: Clamp the state into `[low, high]` after each step. This too changes the target:
            mass that would leave the box collects on its faces.
    """

    num_steps: int
    step_size: StepSize
    noise_scale: StepSize = 1.0
    clip: float | None = None
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 0:
            raise ValueError(f"num_steps is {self.num_steps}; expected 0 or more.")
        check_scale("step_size", self.step_size, self.num_steps)
        check_scale("noise_scale", self.noise_scale, self.num_steps, positive=False)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; expected a positive number, or None.")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds are {self.bounds}; expected (low, high) with low < high.")

    def __call__(
        self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Run the chains.

        The energy's flags, modes and buffers are as found afterwards, parameters get no gradient,
        and it works under `torch.no_grad` and `torch.inference_mode`
        (:mod:`eblvm.samplers.frozen`). Memory does not depend on the number of steps.

        Arguments:
            energy: `(B, *event) -> (B,)`. It must not keep its argument: the state moves in place.
            x: Starts, with shape `(B, *event)`; not modified.
            generator: Source of the noise, on the device of `x`; the global one if None, made
                distinct on each rank.

        Returns:
            The last states, detached, with the shape of `x`.
        """
        return self._run(energy, x, generator)

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
            The trajectory and its energies; one more energy evaluation per kept state.
        """
        if every < 1:
            raise ValueError(f"every is {every}; expected 1 or more.")
        kept = x.new_empty((self.num_steps // every, *x.shape))
        x = self._run(energy, x, generator, kept, every)
        return Chain(x, kept, energies_along(energy, kept))

    def _run(
        self,
        energy: EnergyFn,
        x: Tensor,
        generator: torch.Generator | None,
        kept: Tensor | None = None,
        every: int = 1,
    ) -> Tensor:
        generator = chain_generator(generator, x)
        with frozen(energy):
            x = x.detach().clone()
            move = _Move(self.step_size, self.noise_scale, x)
            step = 0
            for block in noise_blocks(self.num_steps, x, generator):
                for noise in block:
                    gradient = value_and_gradient(energy, x)[1]
                    if self.clip is not None:
                        gradient = gradient.clamp(-self.clip, self.clip)
                    move(step, x, gradient, noise)
                    if self.bounds is not None:
                        x.clamp_(*self.bounds)
                    step += 1
                    if kept is not None and step % every == 0:
                        kept[step // every - 1] = x
        return x


class _Move:
    """x ← x − (s²/2) g + ν s ε in place, with coefficients prepared where they are constant."""

    def __init__(self, step_size: StepSize, noise_scale: StepSize, x: Tensor) -> None:
        self.step_size, self.noise_scale, self.x = step_size, noise_scale, x
        constant = not (isinstance(step_size, Sequence) or isinstance(noise_scale, Sequence))
        self.constant = self.coefficients(0) if constant and x.numel() else None

    def coefficients(self, step: int) -> tuple[float | Tensor, float | Tensor]:
        s = per_row(at_step(self.step_size, step), self.x)
        nu = per_row(at_step(self.noise_scale, step), self.x)
        return -0.5 * s**2, nu * s

    def __call__(self, step: int, x: Tensor, gradient: Tensor, noise: Tensor) -> None:
        drift, diffusion = self.constant or self.coefficients(step)
        add_scaled_(x, gradient, drift)
        add_scaled_(x, noise, diffusion)


def at_step(scale: StepSize, step: int) -> float | Tensor:
    """The scale of one step: entry `step` of a sequence, or the constant."""
    return scale[step] if isinstance(scale, Sequence) else scale


def per_row(scale: float | Tensor, x: Tensor) -> float | Tensor:
    """A `(B,)` scale as `(B, 1, …)`, on the device and in the dtype of `x` `(B, *event)`."""
    if not isinstance(scale, Tensor):
        return scale
    if scale.ndim == 0 or scale.shape != x.shape[:1]:
        raise ValueError(
            f"a step size or noise scale has shape {tuple(scale.shape)} for a batch of {len(x)}; "
            f"expected ({len(x)},), one per row. For one per step use a tuple of numbers, e.g. "
            "`tuple(scale.tolist())`."
        )
    return scale.detach().to(x).reshape(-1, *[1] * (x.ndim - 1))


def add_scaled_(x: Tensor, y: Tensor, scale: float | Tensor) -> None:
    """x ← x + scale · y in place."""
    if isinstance(scale, Tensor):
        x.addcmul_(scale, y)
    else:
        x.add_(y, alpha=scale)


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


def _refuse(name: str, value: str, positive: bool) -> None:
    expected = "a positive number" if positive else "0 or more"
    raise ValueError(f"{name} is {value}; expected {expected}.")
