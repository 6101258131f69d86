r"""Noise schedules: how data turn into noise in T steps, and the Gaussian way back.

Level 0 is (almost) clean, level T is noise. With step coefficients a and σ,

.. math:: x_0 = a_0 x + \sigma_0 \varepsilon, \qquad
    x_{t+1} = a_{t+1} x_t + \sigma_{t+1} \varepsilon, \qquad a_t^2 + \sigma_t^2 = 1,

and hence :math:`x_t = \bar a_t x + \bar\sigma_t \varepsilon` with :math:`\bar a_t =
\prod_{j \le t} a_j` and :math:`\bar\sigma_t^2 = 1 - \bar a_t^2`. All arrays have T + 1 entries.
Where a schedule has a_0 < 1, level 0 is not the data but the data with a little noise, which makes
every level a density.

Coefficients are computed in float64 and kept in PyTorch's default type.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from .samplers import noise_like

__all__ = [
    "CosineSchedule",
    "LinearSchedule",
    "NoiseSchedule",
    "RecoverySchedule",
    "VariancePreservingSchedule",
]


class NoiseSchedule(nn.Module):
    r"""A schedule given by its step coefficients.

    Arguments:
        a: a_0 … a_T, each in [0, 1].

    Attributes:
        a: Step coefficients a, with shape `(T + 1,)`.
        sigma: Step noise σ, with shape `(T + 1,)`.
        a_bar: Cumulative coefficients ā, with shape `(T + 1,)`.
        sigma_bar: Cumulative noise σ̄, with shape `(T + 1,)`.

    Raises:
        ValueError: If there are fewer than two coefficients, or one is not in [0, 1].
    """

    a: Tensor
    sigma: Tensor
    a_bar: Tensor
    sigma_bar: Tensor

    def __init__(self, a: Sequence[float]) -> None:
        super().__init__()
        steps = torch.as_tensor(a, dtype=torch.float64)
        if len(steps) < 2 or not bool(((steps >= 0) & (steps <= 1)).all()):
            raise ValueError(
                f"a is {steps.tolist()}; expected a_0 … a_T, two numbers or more, each in [0, 1]."
            )
        bar = steps.cumprod(0)
        for name, value in {
            "a": steps,
            "sigma": (1 - steps.square()).sqrt(),
            "a_bar": bar,
            "sigma_bar": (1 - bar.square()).sqrt(),
        }.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.a) - 1

    @property
    def num_timesteps(self) -> int:
        """T, the number of steps."""
        return len(self)

    def diffuse(
        self, x: Tensor, t: Tensor | int, generator: torch.Generator | None = None
    ) -> Tensor:
        """x_t of data `x`, with the shape of `x`; gradients pass through.

        Arguments:
            x: Data, with shape `(B, *event)`.
            t: Levels in 0 … T: one number, or int64 `(B,)`.
            generator: Source of the noise.
        """
        return at(self.a_bar, t, x) * x + at(self.sigma_bar, t, x) * noise_like(x, generator)

    def step(
        self, x_t: Tensor, t: Tensor | int, generator: torch.Generator | None = None
    ) -> Tensor:
        """x_{t+1} given x_t, with the shape of `x_t`, for t in 0 … T − 1."""
        a, sigma = at(self.a, t + 1, x_t), at(self.sigma, t + 1, x_t)
        return a * x_t + sigma * noise_like(x_t, generator)

    def sample_pair(
        self, x: Tensor, t: Tensor | int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x_t and, from it, x_{t+1} of data `x`, each with the shape of `x`.

        Arguments:
            x: Data, with shape `(B, *event)`.
            t: Levels of the cleaner state, in 0 … T − 1: one number, or int64 `(B,)`.
            generator: Source of the noise.
        """
        x_t = self.diffuse(x, t, generator)
        return x_t, self.step(x_t, t, generator)

    def reverse(self, x: Tensor, x_next: Tensor, t: Tensor | int) -> Normal:
        r"""q(x_t | x_{t+1}, x), the Gaussian that Bayes' rule gives.

        .. math:: m = \frac{\sigma_{t+1}^2 \bar a_t}{\bar\sigma_{t+1}^2} x
            + \frac{\bar\sigma_t^2 a_{t+1}}{\bar\sigma_{t+1}^2} x_{t+1}, \qquad
            s^2 = \frac{\sigma_{t+1}^2 \bar\sigma_t^2}{\bar\sigma_{t+1}^2}

        Arguments:
            x: Data, with shape `(B, *event)`.
            x_next: x_{t+1}, with shape `(B, *event)`.
            t: Levels in 0 … T − 1: one number, or int64 `(B,)`.

        Returns:
            The distribution of x_t; its scale is 0 where level t is the data themselves.
        """
        total = at(self.sigma_bar, t + 1, x).square()
        own = at(self.sigma_bar, t, x).square()
        step = at(self.sigma, t + 1, x).square()
        mean = (step * at(self.a_bar, t, x) / total) * x
        mean = mean + (own * at(self.a, t + 1, x) / total) * x_next
        return Normal(mean, (step * own / total).sqrt().expand_as(mean), validate_args=False)


def at(values: Tensor, t: Tensor | int, like: Tensor) -> Tensor:
    """Entries of `(T + 1,)` for levels `(B,)`, with shape `(B, 1, …)` to go with `like`."""
    chosen = values[t]
    return chosen.reshape(-1, *[1] * (like.ndim - 1)) if chosen.ndim else chosen


def _check_range(num_timesteps: int, **betas: float) -> None:
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps is {num_timesteps}; expected 1 or more.")
    for name, beta in betas.items():
        if not 0 < beta < 1:
            raise ValueError(f"{name} is {beta}; expected a number between 0 and 1.")


class RecoverySchedule(NoiseSchedule):
    r"""The schedule of diffusion recovery likelihood.

    A grid of 1000 variances, linear from `beta_start` to `beta_end`, is cut into few steps: the
    first half into T − 1 equal ones, the second half is the last. Level 0 keeps the noise of the
    grid's first step, σ_0 = √beta_start.

    References:
        Learning Energy-Based Models by Diffusion Recovery Likelihood (Gao et al., 2021), T = 6.
        Latent Diffusion Energy-Based Model for Interpretable Text Modelling (Yu et al., 2022). One
        step, for which the papers have no schedule, is the whole grid here.

    Arguments:
        num_timesteps: T.
        beta_start: Variance of the grid's first step.
        beta_end: Variance of the grid's last step.
    """

    def __init__(
        self, num_timesteps: int = 6, beta_start: float = 1e-4, beta_end: float = 2e-2
    ) -> None:
        _check_range(num_timesteps, beta_start=beta_start, beta_end=beta_end)
        if num_timesteps > 501:
            raise ValueError(f"num_timesteps is {num_timesteps}; the grid allows 501 at most.")
        grid = torch.linspace(beta_start, beta_end, 1000, dtype=torch.float64)
        width = 1000 // (2 * (num_timesteps - 1)) if num_timesteps > 1 else 0
        kept = [i * width for i in range(num_timesteps)] + [999]
        logs = 0.5 * torch.log1p(-grid).cumsum(0)[kept]
        first = logs[:1]
        super().__init__(torch.cat([first, logs.diff()]).exp().tolist())


class VariancePreservingSchedule(NoiseSchedule):
    r"""The variance-preserving diffusion at few times τ.

    .. math:: \bar a(\tau)^2 = \exp\!\left(-\tfrac12 \tau^2 (\beta_{max} - \beta_{min})
        - \tau \beta_{min}\right)

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Song et al.,
        2021). Tackling the Generative Learning Trilemma with Denoising Diffusion GANs (Xiao et al.,
        2022), whose times τ_j = ε + (1 − ε) j/T are the default.

    Arguments:
        num_timesteps: T.
        beta_min: Rate of noise at τ = 0.
        beta_max: Rate of noise at τ = 1.
        eps: τ_0.
        times: τ_0 … τ_T, rising in [0, 1], in place of the default.
        beta_bound: The most variance that one step adds.
    """

    def __init__(
        self,
        num_timesteps: int = 4,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        eps: float = 1e-3,
        times: Sequence[float] | None = None,
        beta_bound: float = 0.999,
    ) -> None:
        _check_range(num_timesteps)
        if times is None:
            times = [eps + (1 - eps) * j / num_timesteps for j in range(num_timesteps + 1)]
        tau = torch.tensor(list(times), dtype=torch.float64)
        if len(tau) != num_timesteps + 1 or tau[0] < 0 or tau[-1] > 1 or (tau.diff() <= 0).any():
            raise ValueError(
                f"times are {tau.tolist()}; expected {num_timesteps + 1} numbers rising in [0, 1]."
            )
        log_square = -0.5 * tau.square() * (beta_max - beta_min) - tau * beta_min
        beta = -torch.expm1(torch.cat([log_square[:1], log_square.diff()]))
        super().__init__((1 - beta.clamp(max=beta_bound)).sqrt().tolist())


class LinearSchedule(NoiseSchedule):
    """Step variances that rise linearly, from clean data at level 0.

    References:
        Denoising Diffusion Probabilistic Models (Ho et al., 2020), Sec. 4: 1e-4 to 0.02, T = 1000.

    Arguments:
        num_timesteps: T.
        beta_start: Variance of the first step.
        beta_end: Variance of the last step.
    """

    def __init__(
        self, num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> None:
        _check_range(num_timesteps, beta_start=beta_start, beta_end=beta_end)
        beta = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
        super().__init__([1.0, *(1 - beta).sqrt().tolist()])


class CosineSchedule(NoiseSchedule):
    r"""A squared cosine, from clean data at level 0.

    .. math:: \bar a_t = \cos\!\left(\frac{t/T + s}{1 + s} \frac\pi2\right) \Big/
        \cos\!\left(\frac{s}{1 + s} \frac\pi2\right)

    References:
        Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021), Eq. 17.

    Arguments:
        num_timesteps: T.
        offset: s.
        beta_bound: The most variance that one step adds.
    """

    def __init__(
        self, num_timesteps: int = 1000, offset: float = 0.008, beta_bound: float = 0.999
    ) -> None:
        _check_range(num_timesteps)
        t = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
        bar = ((t + offset) / (1 + offset) * math.pi / 2).cos()
        beta = 1 - (bar[1:] / bar[:-1]).square()
        super().__init__([1.0, *(1 - beta.clamp(max=beta_bound)).sqrt().tolist()])
