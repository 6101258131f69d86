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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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
    scaled_,
)
from .noise import normal
from .potential import PotentialFn

__all__ = ["Langevin", "langevin_step"]


@dataclass(frozen=True, eq=False)
class Langevin(Kernel):
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
        check_count("num_steps", self.num_steps)
        check_scale("step_size", self.step_size, self.num_steps)
        check_scale("noise_scale", self.noise_scale, self.num_steps, positive=False)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; expected a positive number, or None.")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds are {self.bounds}; expected (low, high) with low < high.")

    def start(self, potential: PotentialFn, x: Tensor, generator: torch.Generator | None) -> State:
        return (x,)

    def draw(self, n: int, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        return (normal(n, x, generator),)

    def coefficients(self, step: int, x: Tensor) -> tuple[Scale, ...]:
        s = per_row(at_step(self.step_size, step), x)
        nu = per_row(at_step(self.noise_scale, step), x)
        return -0.5 * s**2, nu * s

    @property
    def rule(self) -> Callable[..., State]:
        if self.clip is None and self.bounds is None:
            return langevin_step
        return partial(langevin_step, clip=self.clip, bounds=self.bounds)


def langevin_step(
    potential: PotentialFn,
    state: State,
    noise: tuple[Tensor, ...],
    coefficients: tuple[Scale, ...],
    clip: float | None = None,
    bounds: tuple[float, float] | None = None,
) -> State:
    """One step: x − (s²/2) ∇E(x) + ν s ε, with coefficients (−s²/2, ν s)."""
    (x,), (eps,), (drift, diffusion) = state, noise, coefficients
    g = potential.gradient(x)
    if clip is not None:
        g = g.clamp(-clip, clip)
    x = scaled_(scaled(x, g, drift), eps, diffusion)
    return (x if bounds is None else x.clamp(*bounds),)
