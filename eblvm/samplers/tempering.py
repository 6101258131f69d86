r"""Parallel tempering: hot chains wander between modes, cold ones describe them.

Copies at temperatures 1 = T₁ < … < T_K sample exp(−E/T_k); every few steps neighbors propose to
exchange their states, accepted with probability

.. math:: \min\bigl(1, \exp[(1/T_i - 1/T_j)(E(x_i) - E(x_j))]\bigr).

References:
    Replica Monte Carlo simulation of spin glasses (Swendsen & Wang, 1986).
    Parallel tempering: theory, applications, and new perspectives (Earl & Deem, 2005): neighbors
    should exchange in 20–40 % of the attempts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from .chain import Chain, kept_states, room
from .frozen import frozen
from .hmc import HMC
from .kernel import check_count
from .mala import MALA
from .noise import chain_generator, uniform
from .potential import Potential
from .score import EnergyFn

__all__ = ["ParallelTempering"]


@dataclass(frozen=True, eq=False)
class ParallelTempering:
    """Parallel tempering over a ladder of temperatures, all of them in one batch.

    Arguments:
        kernel: What moves the copies, `kernel.num_steps` times between exchanges; its step size (a
            number) is that of temperature 1 and grows with √T.
        temperatures: T₁ = 1 < T₂ < … < T_K.
        num_swaps: Rounds of `kernel.num_steps` moves and one exchange (even and odd neighbors take
            turns).
    """

    kernel: MALA | HMC
    temperatures: Sequence[float]
    num_swaps: int

    def __post_init__(self) -> None:
        t = list(self.temperatures)
        if not t or t[0] != 1 or any(b <= a for a, b in pairwise(t)):
            raise ValueError(
                f"temperatures are {t}; expected 1 first, then rising, e.g. (1, 2, 4)."
            )
        if not isinstance(self.kernel.step_size, float | int):
            raise ValueError(
                "parallel tempering scales one step size over its temperatures, got "
                f"{type(self.kernel.step_size).__name__}; expected a number."
            )
        check_count("num_swaps", self.num_swaps)

    def __call__(
        self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Run the ladder, every temperature started at `x`.

        Arguments:
            energy: `(B, *event) -> (B,)`; it is called on K·B rows.
            x: Starts, with shape `(B, *event)`; not modified.
            generator: Source of the noise, on the device of `x`; the global one if None.

        Returns:
            The last states at temperature 1, detached, with the shape of `x`.
        """
        return self._run(energy, x, generator)[0]

    def run(
        self,
        energy: EnergyFn,
        x: Tensor,
        generator: torch.Generator | None = None,
        every: int = 1,
    ) -> Chain:
        """As a call, keeping the states at temperature 1 after exchanges.

        Arguments:
            energy: As in a call.
            x: As in a call.
            generator: As in a call.
            every: Keep one state in `every` rounds.

        Returns:
            The chain at temperature 1 (its acceptance is that of the moves), with the exchange
            rates of neighboring temperatures.
        """
        num = kept_states(self.num_swaps, every)
        kept, energies = room(num, x), room(num, x.new_empty(len(x)))
        x, accepted, exchange = self._run(energy, x, generator, (kept, energies), every)
        return Chain(x, kept, energies, accepted, exchange)

    def _run(
        self,
        energy: EnergyFn,
        x: Tensor,
        generator: torch.Generator | None,
        kept: tuple[Tensor, Tensor] | None = None,
        every: int = 1,
    ) -> tuple[Tensor, Tensor, Tensor]:
        generator = chain_generator(generator, x)
        num, batch = len(self.temperatures), len(x)
        n = self.kernel.num_steps
        with frozen(energy):
            rows = x.detach().repeat(num, *[1] * (x.ndim - 1))
            t = torch.tensor(list(self.temperatures), dtype=x.dtype, device=x.device)
            beta = (1 / t).repeat_interleave(batch)  # (K·B,)
            beta_event = beta.reshape(-1, *[1] * (x.ndim - 1))
            step_size = torch.as_tensor(self.kernel.step_size) * beta**-0.5
            kernel = replace(self.kernel, step_size=step_size)
            ahead = n * self.num_swaps * kernel.gradients_per_step
            potential = Potential(energy, rows, ahead)
            state = kernel.start(potential, rows, generator)
            coefficients = kernel.coefficients(0, rows)
            exchanged = x.new_zeros(num - 1)

            def temper(x: Tensor, e: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
                return beta * e, beta_event * g

            for swap in range(self.num_swaps):
                for noise in kernel.drawn(n, rows, generator):
                    state = kernel.rule(potential, state, noise, coefficients, temper=temper)
                u01 = uniform(num, x, generator)[: num - 1]
                state, rate = _exchange(state, 1 / t, u01, swap % 2)
                exchanged = exchanged + rate
                if kept is not None and (swap + 1) % every == 0:
                    for place, part in zip(kept, state[:2], strict=True):
                        place[(swap + 1) // every - 1] = part[:batch]
            moves, tries = max(1, n * self.num_swaps), self.num_swaps
            even = (torch.arange(num - 1, device=x.device) % 2) == 0
            attempts = torch.where(even, (tries + 1) // 2, tries // 2).clamp(min=1)
            return state[0][:batch].clone(), state[3][:batch] / moves, exchanged / attempts


def _exchange(
    state: tuple[Tensor, ...], beta: Tensor, u01: Tensor, parity: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Exchange neighbors (i, i + 1), i of the given parity, in states stacked by temperature.

    Arguments:
        state: x, E, ∇E and acceptance, each `(K·B, …)`; x, E and ∇E are exchanged.
        beta: Inverse temperatures `(K,)`.
        u01: Uniform numbers `(K − 1, B)`.
        parity: 0 or 1.

    Returns:
        The state, and the mean acceptance of each exchange `(K − 1,)`, 0 where none was tried.
    """
    num = len(beta)
    e = state[1].reshape(num, -1)  # (K, B)
    log_alpha = (beta[:-1] - beta[1:])[:, None] * (e[:-1] - e[1:])
    alpha = log_alpha.clamp(max=0).exp().nan_to_num(nan=0.0)
    tried = (torch.arange(num - 1, device=beta.device) % 2 == parity)[:, None]
    accept = (u01 < alpha) & tried  # (K − 1, B)
    index = torch.arange(num, device=beta.device)[:, None].repeat(1, e.shape[1])
    index[:-1] += accept.long()
    index[1:] -= accept.long()
    rows = (index * e.shape[1] + torch.arange(e.shape[1], device=beta.device)).reshape(-1)
    exchanged = tuple(part[rows] for part in state[:3])
    return (*exchanged, state[3]), (alpha * tried).mean(1)
