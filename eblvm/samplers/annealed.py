r"""Annealed importance sampling: log Z, bracketed from both sides.

A path of densities leads from a Gaussian p₀ to p ∝ exp(−E),

.. math:: p_\beta(x) \propto p_0(x)^{1-\beta} \exp(-\beta E(x)),

and chains follow it in small steps of β, moved at each stop by a kernel that leaves p_β invariant.
Started at samples of p₀ and led forward, the weights

.. math:: \log w = \sum_i (\beta_i - \beta_{i-1}) \bigl(-E(x_{i-1}) - \log p_0(x_{i-1})\bigr)

average to Z: log of the mean is a lower bound of log Z on average. Started at *exact* samples of p
and led back, the inverse weights average to 1/Z, and give an upper bound on average. (End points of
forward runs are no substitute for exact samples.) Trust neither where the effective sample size
(Σw)²/Σw² is below some 5 % of the chains: a short path gives a confidently wrong number.

References:
    Annealed importance sampling (Neal, 2001), Eq. 9–11.
    Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse, Ghahramani & Adams,
    2015), Sec. 3.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import Tensor

from .frozen import frozen
from .hmc import HMC
from .kernel import row_sum
from .mala import MALA
from .noise import chain_generator, noise_like
from .potential import Potential
from .score import EnergyFn

__all__ = ["AIS", "LogNormalizer", "effective_sample_size"]


@dataclass(frozen=True, eq=False)
class LogNormalizer:
    """An estimate of log Z.

    Arguments:
        value: The estimate, in nats.
        error: Its standard error, from the spread of the weights (delta method); too small where
            the effective sample size is.
        effective_sample_size: (Σw)²/Σw², at most the number of chains.
        log_weights: log w of each chain, `(B,)` in float64, with mean(w) = Z (forward) or 1/Z
            (reverse).
        x: Last states, with shape `(B, *event)`.
        acceptance: Mean acceptance probability of the moves per chain, `(B,)`.
    """

    value: float
    error: float
    effective_sample_size: float
    log_weights: Tensor
    x: Tensor
    acceptance: Tensor


@dataclass(frozen=True, eq=False)
class AIS:
    """Annealed importance sampling from a Gaussian base N(m, τ² I).

    Arguments:
        betas: 0 = β₀ < … < β_K = 1, or a number K of equal steps.
        kernel: Moves `kernel.num_steps` times at each β; accept/reject keeps p_β invariant. All β
            have its one step size: a number, or a tensor with one per row.
        base_mean: m, a number for all coordinates.
        base_scale: τ; the base should cover the target.
    """

    betas: int | Sequence[float]
    kernel: MALA | HMC
    base_mean: float = 0.0
    base_scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, MALA | HMC):
            raise TypeError(
                f"kernel is a {type(self.kernel).__name__}; annealed importance sampling needs one "
                "that leaves each density invariant. Use MALA or HMC."
            )
        if isinstance(self.kernel.step_size, Sequence):
            raise ValueError(
                "annealed importance sampling moves with one step size at every beta, got "
                f"{type(self.kernel.step_size).__name__}; expected a number or a tensor with one "
                "per row."
            )
        b = self._schedule()
        if len(b) < 2 or b[0] != 0 or b[-1] != 1 or any(v <= u for u, v in pairwise(b)):
            raise ValueError(f"betas are {self.betas}; expected a rise from 0 to 1, or a number.")
        if not self.base_scale > 0:
            raise ValueError(f"base_scale is {self.base_scale}; expected a positive number.")

    def _schedule(self) -> list[float]:
        if isinstance(self.betas, int):
            return [i / self.betas for i in range(self.betas + 1)] if self.betas > 0 else []
        return list(self.betas)

    def forward(
        self, energy: EnergyFn, like: Tensor, generator: torch.Generator | None = None
    ) -> LogNormalizer:
        """Estimate log Z from below, along chains from the base to the target.

        Arguments:
            energy: `(B, *event) -> (B,)`.
            like: A tensor `(B, *event)` whose shape, dtype and device the chains take.
            generator: Source of the noise, on the device of `like`; the global one if None.
        """
        generator = chain_generator(generator, like)
        x = self.base_mean + self.base_scale * noise_like(like, generator)
        return self._run(energy, x, generator, 1)

    def reverse(
        self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None = None
    ) -> LogNormalizer:
        """Estimate log Z from above, along chains from exact samples of the target to the base.

        Arguments:
            energy: `(B, *event) -> (B,)`.
            x: *Exact* samples of the target, with shape `(B, *event)`; not modified.
            generator: Source of the noise, on the device of `x`; the global one if None.
        """
        return self._run(energy, x.detach(), chain_generator(generator, x), -1)

    def _run(
        self, energy: EnergyFn, x: Tensor, generator: torch.Generator | None, direction: int
    ) -> LogNormalizer:
        betas = self._schedule()
        n = self.kernel.num_steps
        with frozen(energy):
            x = x.clone() if x.is_inference() else x
            log_weights = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            ahead = n * (len(betas) - 1) * self.kernel.gradients_per_step
            potential = Potential(energy, x, ahead)
            state = self.kernel.start(potential, x, generator)
            coefficients = self.kernel.coefficients(0, x)
            noise = self.kernel.drawn(n * (len(betas) - 1), x, generator)  # in bounded blocks
            for i in range(1, len(betas)):
                low, high = betas[i - 1], betas[i]
                if direction > 0:
                    log_weights += (high - low) * self._contrast(state)
                    state = self._move(potential, state, high, coefficients, islice(noise, n))
                else:
                    low, high = betas[-i - 1], betas[-i]
                    state = self._move(potential, state, high, coefficients, islice(noise, n))
                    log_weights -= (high - low) * self._contrast(state)
        log_mean = torch.logsumexp(log_weights, 0) - math.log(len(x))
        w = (log_weights - log_mean).exp()  # mean 1
        return LogNormalizer(
            value=direction * float(log_mean),
            error=float(w.std() / len(x) ** 0.5),
            effective_sample_size=effective_sample_size(log_weights),
            log_weights=log_weights,
            x=state[0],
            acceptance=state[3] / max(1, n * (len(betas) - 1)),
        )

    def _base(self, x: Tensor) -> Tensor:
        """−log p₀(x), with shape `(B,)`."""
        z = (x - self.base_mean) / self.base_scale
        dim = math.prod(x.shape[1:])
        log_z = dim * (0.5 * math.log(2 * math.pi) + math.log(self.base_scale))
        return 0.5 * row_sum(z.square()) + log_z

    def _contrast(self, state: tuple[Tensor, ...]) -> Tensor:
        """−E(x) − log p₀(x) in float64, with shape `(B,)`."""
        x, e = state[:2]
        return self._base(x.double()) - e.double()

    def _move(
        self,
        potential: Potential,
        state: tuple[Tensor, ...],
        beta: float,
        coefficients: tuple[float | Tensor, ...],
        noise: Iterable[tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        """Steps that leave p_β invariant, one for each entry of the noise."""

        def temper(x: Tensor, e: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
            pull = (x - self.base_mean) * ((1 - beta) / self.base_scale**2)
            return beta * e + (1 - beta) * self._base(x), pull.add(g, alpha=beta)

        for drawn in noise:
            state = self.kernel.rule(potential, state, drawn, coefficients, temper=temper)
        return state


def effective_sample_size(log_weights: Tensor) -> float:
    """(Σw)²/Σw² of weights given by their logarithms `(B,)`: between 1 and B."""
    log_w = log_weights.double()
    return float((2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)).exp())
