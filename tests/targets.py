"""Densities with known moments and log Z: the truth that samplers are measured against."""

import math

import torch


def gaussian(x):
    """Covariance [[1, 0.9], [0.9, 1]]; log Z = log 2π + ½ log 0.19."""
    return 0.5 * (x[:, 0] ** 2 - 1.8 * x[:, 0] * x[:, 1] + x[:, 1] ** 2) / 0.19


def sample_gaussian(num, generator):
    e = torch.randn(num, 2, dtype=torch.float64, generator=generator)
    return torch.stack([e[:, 0], 0.9 * e[:, 0] + math.sqrt(0.19) * e[:, 1]], 1)


def banana(x):
    """x₁ ~ N(0, 1), x₂ | x₁ ~ N(x₁², ¼); E x₂² = 3.25, log Z = log π."""
    return 0.5 * x[:, 0] ** 2 + 2 * (x[:, 1] - x[:, 0] ** 2) ** 2


def sample_banana(num, generator):
    e = torch.randn(num, 2, dtype=torch.float64, generator=generator)
    return torch.stack([e[:, 0], e[:, 0] ** 2 + 0.5 * e[:, 1]], 1)


def funnel(x):
    """Neal's funnel, softened: v ~ N(0, 1), x | v ~ N(0, e^v).

    Neal's v ~ N(0, 9) tests more than the code: a step that is stable in the neck (scale e^−4.5 at
    three standard deviations) needs some 10⁴ to cross the mouth (e^4.5), so that correct chains of
    a test's length fail it, too; and x² has mean e^4.5 but variance 3 e^18, so that no standard
    error can be estimated from samples.
    """
    return 0.5 * x[:, 0] ** 2 + 0.5 * x[:, 1] ** 2 * (-x[:, 0]).exp() + 0.5 * x[:, 0]


def sample_funnel(num, generator):
    e = torch.randn(num, 2, dtype=torch.float64, generator=generator)
    return torch.stack([e[:, 0], e[:, 1] * (e[:, 0] / 2).exp()], 1)


WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
MEANS = torch.tensor([[-2.0, 0.0], [0.0, 1.5], [2.0, -0.5]], dtype=torch.float64)


def mixture(x):
    """Three Gaussians of scale 0.7, normalized."""
    squared = (x[:, None] - MEANS.to(x)).square().sum(-1) / 0.49
    return math.log(2 * math.pi * 0.49) - torch.logsumexp(WEIGHTS.to(x).log() - squared / 2, 1)


def sample_mixture(num, generator):
    k = torch.multinomial(WEIGHTS, num, replacement=True, generator=generator)
    return MEANS[k] + 0.7 * torch.randn(num, 2, dtype=torch.float64, generator=generator)


def double_well(x):
    """2(x₁² − 1)² + ½x₂²; log Z = 1.263177, E x₁² = 0.85214 (by quadrature)."""
    return 2 * (x[:, 0] ** 2 - 1) ** 2 + 0.5 * x[:, 1] ** 2


def two_moons(x):
    """log Z = 1.877502; second moments 3.30350 and 1.39528 (by quadrature)."""
    arms = torch.logaddexp(
        -0.5 * ((x[:, 0] - 2) / 0.6).square(), -0.5 * ((x[:, 0] + 2) / 0.6).square()
    )
    return 0.5 * ((x.norm(dim=1) - 2) / 0.4).square() - arms


TARGETS = {
    "gaussian": (gaussian, sample_gaussian),
    "banana": (banana, sample_banana),
    "funnel": (funnel, sample_funnel),
    "mixture": (mixture, sample_mixture),
}


def grid(energy, half_width, num):
    """log Z and E[x xᵀ] of a 2-D energy by the midpoint rule on [−L, L]²."""
    step = 2 * half_width / num
    axis = torch.arange(num, dtype=torch.float64) * step - half_width + step / 2
    x = torch.cartesian_prod(axis, axis)
    log_p = -energy(x)
    log_z = torch.logsumexp(log_p, 0)
    moments = (x * (log_p - log_z).exp()[:, None]).T @ x
    return float(log_z) + 2 * math.log(step), moments


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def moments(x):
    """First and second moments and |x|, one column each: `(B, 2) -> (B, 7)`."""
    a, b = x[:, 0], x[:, 1]
    return torch.stack([a, b, a**2, b**2, a * b, a.abs(), b.tanh()], 1)


class Counted:
    """An energy that counts its evaluations."""

    def __init__(self, energy):
        self.energy, self.count = energy, 0

    def __call__(self, x):
        self.count += 1
        return self.energy(x)
