r"""Underdamped (kinetic) Langevin dynamics, in the BAOAB splitting.

.. math:: dx = v\,dt, \qquad dv = -\nabla E(x)\,dt - \gamma v\,dt + \sqrt{2\gamma}\,dW

One step of length s: half a kick (B), half a drift (A), the exact Ornstein–Uhlenbeck move of the
velocity (O), half a drift, half a kick. Of all such splittings this one has the smallest bias in x:
none at all on a Gaussian, where Var x is exact for every stable s (s < 2σ) while
Var v = 1 − s²/(4σ²).

References:
    Rational construction of stochastic numerical methods for molecular sampling (Leimkuhler &
    Matthews, 2013), Eq. 6 and Sec. 3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .kernel import (
    Kernel,
    Scale,
    State,
    StepSize,
    at_step,
    check_count,
    check_scale,
    per_row,
    scaled,
)
from .noise import noise_like, normal
from .potential import PotentialFn

__all__ = ["Underdamped", "underdamped_step"]


@dataclass(frozen=True, eq=False)
class Underdamped(Kernel):
    """Underdamped Langevin dynamics, unadjusted: n + 1 energy gradients for n steps.

    Each call draws fresh velocities from N(0, I).

    Arguments:
        num_steps: Steps per call.
        step_size: s: a number, a `(B,)` tensor or a sequence with one per step.
        friction: γ, per unit of time. Large: overdamped, like Langevin; small: like a Hamiltonian.
    """

    num_steps: int
    step_size: StepSize
    friction: float = 1.0

    def __post_init__(self) -> None:
        check_count("num_steps", self.num_steps)
        check_scale("step_size", self.step_size, self.num_steps)
        check_scale("friction", self.friction, self.num_steps)

    def start(self, potential: PotentialFn, x: Tensor, generator: torch.Generator | None) -> State:
        v = noise_like(x, generator)
        return x, v, potential.gradient(x)

    def draw(self, n: int, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        return (normal(n, x, generator),)

    def coefficients(self, step: int, x: Tensor) -> tuple[Scale, ...]:
        s = per_row(at_step(self.step_size, step), x)
        keep: Scale
        if isinstance(s, Tensor):
            keep = torch.exp(-self.friction * s)
            return 0.5 * s, -0.5 * s, keep, (1 - keep**2).sqrt()
        keep = math.exp(-self.friction * s)
        return 0.5 * s, -0.5 * s, keep, math.sqrt(1 - keep**2)

    @property
    def rule(self) -> Callable[..., State]:
        return underdamped_step


def underdamped_step(
    potential: PotentialFn,
    state: State,
    noise: tuple[Tensor, ...],
    coefficients: tuple[Scale, ...],
) -> State:
    """One BAOAB step on (x, v, ∇E(x)), with coefficients (s/2, −s/2, e^(−γs), √(1 − e^(−2γs)))."""
    (x, v, g), (eps,), (half, kick, keep, fresh) = state, noise, coefficients
    v = scaled(v, g, kick)
    x = scaled(x, v, half)
    v = scaled(keep * v, eps, fresh)
    x = scaled(x, v, half)
    g = potential.gradient(x)
    return x, scaled(v, g, kick), g
