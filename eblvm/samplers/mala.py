r"""The Metropolis-adjusted Langevin algorithm: Langevin's proposal, made exact by a rejection.

.. math:: y = x - \frac{s^2}{2} \nabla E(x) + s \varepsilon, \qquad
    \log \alpha = E(x) - E(y) + v \cdot \varepsilon - \tfrac12 \|v\|^2, \qquad
    v = \frac{s}{2} (\nabla E(x) + \nabla E(y))

The last two terms are the ratio of the proposal densities: the reverse move needs the noise v − ε,
so log N(v − ε) − log N(ε) = v·ε − ½‖v‖², written without the difference of two large squares.

References:
    Optimal scaling of discrete approximations to Langevin diffusions (Roberts & Rosenthal, 1998):
    s ∝ D^(−1/6), acceptance 0.574.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
from .noise import normal, uniform
from .potential import PotentialFn
from .score import EnergyFn

__all__ = ["MALA", "Temper", "mala_step", "metropolis", "untempered"]

Temper = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""x, E(x), ∇E(x) to a tempered energy and its gradient, e.g. (βE, β∇E)."""


def untempered(x: Tensor, e: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The energy itself."""
    return e, g


@dataclass(frozen=True, eq=False)
class MALA(Kernel):
    """The Metropolis-adjusted Langevin algorithm: n + 1 energy gradients for n steps.

    A proposal of infinite or undefined energy is rejected. (A start of undefined energy stays.)

    Arguments:
        num_steps: Steps per call.
        step_size: s, in units of x: a number, a `(B,)` tensor or a sequence with one per step.
    """

    num_steps: int
    step_size: StepSize

    def __post_init__(self) -> None:
        check_count("num_steps", self.num_steps)
        check_scale("step_size", self.step_size, self.num_steps)

    def start(self, potential: PotentialFn, x: Tensor, generator: torch.Generator | None) -> State:
        return (x, *potential(x), x.new_zeros(len(x)))

    def draw(self, n: int, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        return normal(n, x, generator), uniform(n, x, generator)

    def coefficients(self, step: int, x: Tensor) -> tuple[Scale, ...]:
        s = per_row(at_step(self.step_size, step), x)
        return -0.5 * s**2, s, 0.5 * s

    @property
    def rule(self) -> Callable[..., State]:
        return mala_step

    def value(self, state: State) -> Tensor | None:
        return state[1]

    def acceptance(self, state: State) -> Tensor | None:
        return state[3] / max(1, self.num_steps)

    def adapt(
        self,
        energy: EnergyFn,
        x: Tensor,
        num_steps: int = 200,
        target: float = 0.574,
        generator: torch.Generator | None = None,
    ) -> tuple["MALA", Tensor]:
        """Find the step size of a mean acceptance probability; see :mod:`.adaptation`.

        Arguments:
            energy: `(B, *event) -> (B,)`.
            x: Starts, with shape `(B, *event)`.
            num_steps: Steps of adaptation.
            target: The acceptance probability to reach.
            generator: Source of the noise.

        Returns:
            This kernel with the step size found, and the chains' last states.
        """
        step_size, x = dual_averaging(self, energy, x, num_steps, target, generator)
        return replace(self, step_size=step_size), x


def mala_step(
    potential: PotentialFn,
    state: State,
    noise: tuple[Tensor, ...],
    coefficients: tuple[Scale, ...],
    temper: Temper = untempered,
) -> State:
    """One step on (x, E(x), ∇E(x), accepted), with coefficients (−s²/2, s, s/2).

    With `temper` the step is that of the tempered energy, while the state keeps E and ∇E.
    """
    (x, e, g, accepted), (eps, u01), (drift, s, half) = state, noise, coefficients
    u, du = temper(x, e, g)
    y = scaled(scaled(x, du, drift), eps, s)
    e_y, g_y = potential(y)
    u_y, du_y = temper(y, e_y, g_y)
    v = half * (du + du_y)
    forward_over_reverse = row_sum(v * torch.add(eps, v, alpha=-0.5))
    log_alpha = u - u_y + forward_over_reverse
    return metropolis((x, e, g), (y, e_y, g_y), log_alpha, u01, accepted)


def metropolis(
    current: State, proposal: State, log_alpha: Tensor, u01: Tensor, accepted: Tensor
) -> State:
    """Accept each row's proposal with probability min(1, α), and count the probabilities.

    Arguments:
        current: Tensors `(B, …)` to keep in rejected rows.
        proposal: Their successors.
        log_alpha: log α, with shape `(B,)`; undefined means rejected.
        u01: Uniform on [0, 1), with shape `(B,)`.
        accepted: Sum of acceptance probabilities so far, with shape `(B,)`.
    """
    alpha = log_alpha.clamp(max=0).exp().nan_to_num(nan=0.0)
    accept = u01 < alpha
    chosen = [
        torch.where(accept.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        for old, new in zip(current, proposal, strict=True)
    ]
    return (*chosen, accepted + alpha)
