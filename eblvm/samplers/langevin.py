r"""Langevin dynamics.

.. math:: x \leftarrow x - \frac{s^2}{2} \nabla_x E(x) + \nu s \varepsilon,
    \qquad \varepsilon \sim N(0, I)

With `step_size` s and `noise_scale` ν: ν = 1 samples at temperature 1 up to an O(s²) bias (for
N(0, σ²) the stationary variance is σ² / (1 − s²/4σ²)), ν = 0 is gradient descent. A rule written as
x ← x − a∇E + bε has s = √(2a), ν = b/s, and targets exp(−E/τ) with temperature τ = b²/2a.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import noise_like
from .score import EnergyFn, score

__all__ = ["Langevin"]


@dataclass(frozen=True)
class Langevin:
    """Unadjusted Langevin dynamics.

    Arguments:
        num_steps: Steps per call; 0 returns the start.
        step_size: s, in units of x.
        noise_scale: ν, a factor on the noise.
    """

    num_steps: int
    step_size: float
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.num_steps < 0:
            raise ValueError(f"num_steps is {self.num_steps}; expected 0 or more.")
        if not self.step_size > 0:
            raise ValueError(f"step_size is {self.step_size}; expected a positive number.")
        if self.noise_scale < 0:
            raise ValueError(f"noise_scale is {self.noise_scale}; expected 0 or more.")

    def __call__(
        self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Run the chains.

        Arguments:
            energy: `(B, *event) -> (B,)`.
            x: Starts, with shape `(B, *event)`.
            generator: Source of the noise, on the device of `x`; the global one if None.

        Returns:
            The last states, detached, with the shape of `x`.
        """
        x = x.detach()
        for _ in range(self.num_steps):
            noise = noise_like(x, generator)
            x = x + 0.5 * self.step_size**2 * score(energy, x)
            x = x + self.noise_scale * self.step_size * noise
        return x
