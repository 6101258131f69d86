r"""Hamiltonian Monte Carlo: fly along the energy's level sets, then accept or reject.

Position x and momentum p ~ N(0, I) move under H(x, p) = E(x) + ½‖p‖² by L leapfrog steps

.. math:: p \leftarrow p - \tfrac{s}{2} \nabla E(x), \quad x \leftarrow x + s p, \quad
    p \leftarrow p - \tfrac{s}{2} \nabla E(x),

which are reversible, preserve volume and err by O(s²) in H; the end point is accepted with
probability min(1, exp(−ΔH)).

References:
    MCMC using Hamiltonian dynamics (Neal, 2011), Sec. 2.3 and 3.2.
    On the optimal tuning of HMC (Beskos et al., 2013): acceptance 0.651; 0.8 is the safer habit of
    The No-U-Turn Sampler (Hoffman & Gelman, 2014), Sec. 3.2.1, whose adaptation is used here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from .adaptation import dual_averaging
from .kernel import (
    Kernel,
    Scale,
    State,
    StepSize,
    at_step,
    check_count,
    check_scale,
    per_row,
    row_sum,
    scaled,
)
from .mala import Temper, metropolis, untempered
from .noise import normal, uniform
from .potential import PotentialFn
from .score import EnergyFn

__all__ = ["HMC", "hmc_step", "leapfrog"]


@dataclass(frozen=True, eq=False)
class HMC(Kernel):
    """Hamiltonian Monte Carlo: n·L + 1 energy gradients for n steps of L leapfrog steps.

    A proposal of infinite or undefined energy is rejected. (A start of undefined energy stays.)

    Arguments:
        num_steps: Proposals per call.
        step_size: s, in units of x: a number, a `(B,)` tensor or a sequence with one per proposal.
        num_leapfrog: L, leapfrog steps per proposal.
    """

    num_steps: int
    step_size: StepSize
    num_leapfrog: int = 10

    def __post_init__(self) -> None:
        check_count("num_steps", self.num_steps)
        check_count("num_leapfrog", self.num_leapfrog, least=1)
        check_scale("step_size", self.step_size, self.num_steps)

    @property
    def gradients_per_step(self) -> int:
        return self.num_leapfrog

    def start(self, potential: PotentialFn, x: Tensor, generator: torch.Generator | None) -> State:
        return (x, *potential(x), x.new_zeros(len(x)))

    def draw(self, n: int, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        return normal(n, x, generator), uniform(n, x, generator)

    def coefficients(self, step: int, x: Tensor) -> tuple[Scale, ...]:
        s = per_row(at_step(self.step_size, step), x)
        return -0.5 * s, s, -s

    @property
    def rule(self) -> Callable[..., State]:
        return _rule(self.num_leapfrog)

    def value(self, state: State) -> Tensor | None:
        return state[1]

    def acceptance(self, state: State) -> Tensor | None:
        return state[3] / max(1, self.num_steps)

    def adapt(
        self,
        energy: EnergyFn,
        x: Tensor,
        num_steps: int = 200,
        target: float = 0.8,
        generator: torch.Generator | None = None,
    ) -> tuple["HMC", Tensor]:
        """Find the step size of a mean acceptance probability; see :mod:`.adaptation`.

        Arguments:
            energy: `(B, *event) -> (B,)`.
            x: Starts, with shape `(B, *event)`.
            num_steps: Proposals of adaptation.
            target: The acceptance probability to reach.
            generator: Source of the noise.

        Returns:
            This kernel with the step size found, and the chains' last states.
        """
        step_size, x = dual_averaging(self, energy, x, num_steps, target, generator)
        return replace(self, step_size=step_size), x


@cache
def _rule(num_leapfrog: int) -> Callable[..., State]:
    """One object per L, so that compiled steps are recognized as the same."""
    return partial(hmc_step, num_leapfrog=num_leapfrog)


def leapfrog(
    potential: PotentialFn,
    x: Tensor,
    p: Tensor,
    e: Tensor,
    g: Tensor,
    coefficients: tuple[Scale, ...],
    num_leapfrog: int,
    temper: Temper = untempered,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L leapfrog steps from (x, p), with coefficients (−s/2, s, −s); inner half kicks are merged.

    Arguments:
        potential: E and ∇E.
        x: Position, with shape `(B, *event)`.
        p: Momentum, shaped like `x`.
        e: E(x), with shape `(B,)`.
        g: ∇E(x).
        coefficients: (−s/2, s, −s).
        num_leapfrog: L.
        temper: The flight follows this energy; E and ∇E are returned as they are.

    Returns:
        Position, momentum, energy `(B,)` and gradient at the end.
    """
    half, s, kick = coefficients
    p = scaled(p, temper(x, e, g)[1], half)
    for _ in range(num_leapfrog - 1):
        x = scaled(x, p, s)
        p = scaled(p, temper(x, e, potential.gradient(x))[1], kick)  # no temper reads E here
    x = scaled(x, p, s)
    e, g = potential(x)
    return x, scaled(p, temper(x, e, g)[1], half), e, g


def hmc_step(
    potential: PotentialFn,
    state: State,
    noise: tuple[Tensor, ...],
    coefficients: tuple[Scale, ...],
    num_leapfrog: int,
    temper: Temper = untempered,
) -> State:
    """One proposal on (x, E(x), ∇E(x), accepted)."""
    (x, e, g, accepted), (p, u01) = state, noise
    y, q, e_y, g_y = leapfrog(potential, x, p, e, g, coefficients, num_leapfrog, temper)
    kinetic = 0.5 * row_sum((p - q) * (p + q))
    log_alpha = temper(x, e, g)[0] - temper(y, e_y, g_y)[0] + kinetic
    return metropolis((x, e, g), (y, e_y, g_y), log_alpha, u01, accepted)
