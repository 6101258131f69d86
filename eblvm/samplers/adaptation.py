r"""Step sizes found by dual averaging.

With α_t the mean acceptance probability over the chains at step t, and ᾱ the target,

.. math:: \log s_{t+1} = \mu - \frac{\sqrt t}{\gamma} \frac{1}{t + t_0}
    \sum_{i \le t} (\bar\alpha - \alpha_i), \qquad
    \log \bar s_{t+1} = t^{-\kappa} \log s_{t+1} + (1 - t^{-\kappa}) \log \bar s_t

and the averaged step size is the answer. Samples drawn while adapting are not samples of the
target; start the real chains from the last states.

References:
    The No-U-Turn Sampler (Hoffman & Gelman, 2014), Sec. 3.2.1 and Algorithm 5: γ = 0.05, t₀ = 10,
    κ = 0.75, μ = log(10 s₁).
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .frozen import frozen
from .noise import chain_generator
from .potential import Potential
from .score import EnergyFn

__all__ = ["dual_averaging"]


def dual_averaging(
    kernel: Any,
    energy: EnergyFn,
    x: Tensor,
    num_steps: int,
    target: float,
    generator: torch.Generator | None = None,
) -> tuple[float, Tensor]:
    """Adapt one step size for all chains.

    Arguments:
        kernel: A kernel with acceptance and a number as step size: the first guess s₁.
        energy: `(B, *event) -> (B,)`.
        x: Starts, with shape `(B, *event)`.
        num_steps: Steps of adaptation.
        target: ᾱ.
        generator: Source of the noise.

    Returns:
        The averaged step size, and the chains' last states.

    Raises:
        ValueError: If the target is not a probability, or the kernel's step size is not a number.
    """
    if not 0 < target < 1:
        raise ValueError(f"target is {target}; expected an acceptance probability in (0, 1).")
    if not isinstance(kernel.step_size, float | int):
        raise ValueError(
            "adaptation needs one number as the first guess of the step size, got "
            f"{type(kernel.step_size).__name__}. Adapt with a number, then scale it per row."
        )
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; expected 1 or more.")
    generator = chain_generator(generator, x)
    mu = math.log(10 * kernel.step_size)
    with frozen(energy):
        x = x.clone() if x.is_inference() else x.detach()
        potential = Potential(energy, x, num_steps * kernel.gradients_per_step)
        *state, none = kernel.start(potential, x, generator)
        log_s = torch.tensor(math.log(kernel.step_size), device=x.device)  # no step waits for it
        total, log_mean = torch.zeros_like(log_s), torch.zeros_like(log_s)
        for t, noise in enumerate(kernel.drawn(num_steps, x, generator), 1):
            scale = replace(kernel, step_size=log_s.exp()).coefficients(0, x)
            *state, accepted = kernel.rule(potential, (*state, none), noise, scale)
            total = total + (target - accepted.mean())
            log_s = mu - math.sqrt(t) / 0.05 * total / (t + 10)
            weight = t**-0.75
            log_mean = weight * log_s + (1 - weight) * log_mean
    return math.exp(float(log_mean)), state[0]
