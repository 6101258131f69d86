"""The Jeffrey divergence and its bounds, against closed forms."""

import math

import pytest
import torch

from eblvm.objectives import gaussian_jeffrey, gaussian_nll
from eblvm.objectives.variational import gaussian_kl


def gaussians(*values):
    return [torch.tensor([[v]], dtype=torch.float64) for v in values]


def test_jeffrey_of_gaussians_is_known_symmetric_and_zero_at_equality():
    a, b = gaussians(0.0, 0.0), gaussians(1.0, math.log(4.0))
    # ½(¼ + 4 − 2 + 1·(1 + ¼)) = 0.443147 + 1.306853
    assert float(gaussian_jeffrey(*a, *b)) == pytest.approx(1.75, abs=1e-12)
    assert float(gaussian_jeffrey(*b, *a)) == pytest.approx(1.75, abs=1e-12)
    assert float(gaussian_jeffrey(*b, *b)) == 0.0
    mean, log_variance = torch.randn(7, 3).double(), torch.randn(7, 3).double()
    zero = torch.zeros_like(mean)
    # KL(p ‖ N(0, I)) in both directions, the other by the change of variables
    back = 0.5 * ((1 + mean**2) * torch.exp(-log_variance) - 1 + log_variance).sum(1)
    torch.testing.assert_close(
        gaussian_jeffrey(mean, log_variance, zero, zero), gaussian_kl(mean, log_variance) + back
    )


def test_the_entropy_bound_is_tight_at_the_exact_posterior_only():
    # v = h + ε/√2: H(v) = ½ log 2πe(3/2), posterior N(2v/3, 1/3); E log q = −0.8696324
    g = torch.Generator().manual_seed(0)
    h = torch.randn(400_000, 1, dtype=torch.float64, generator=g)
    v = h + math.sqrt(0.5) * torch.randn(h.shape, dtype=torch.float64, generator=g)
    exact = gaussian_nll(h, 2 * v / 3, torch.full_like(v, math.log(1 / 3)))
    # the standard deviation of a χ² half is 0.71: 0.0011 at 400,000
    assert float(exact.mean()) == pytest.approx(0.8696324, abs=4 * 0.0012)
    joint = 0.5 * math.log(2 * math.pi * math.e) + 0.5 * math.log(2 * math.pi * math.e * 0.5)
    assert joint == pytest.approx(2.4913035, abs=1e-6)
    assert joint - 0.8696324 == pytest.approx(1.6216711, abs=1e-6)
    for mean, variance in ((0.6 * v, 1 / 3), (2 * v / 3, 0.5), (2 * v / 3, 0.2)):
        other = gaussian_nll(h, mean, torch.full_like(v, math.log(variance)))
        assert float(other.mean()) > float(exact.mean()) + 0.005


def test_a_floor_bounds_what_a_confident_encoder_can_cost():
    z, mean = torch.ones(1, 2), torch.zeros(1, 2)
    sharp = torch.full((1, 2), -20.0)
    floored = gaussian_nll(z, mean, sharp, floor=-3.0)
    torch.testing.assert_close(floored, gaussian_nll(z, mean, torch.full((1, 2), -3.0)))
    assert float(gaussian_nll(z, mean, sharp)) > 1e8
