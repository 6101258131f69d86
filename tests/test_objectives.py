"""Objectives against closed forms."""

import math

import torch
from torch.distributions import Normal, kl_divergence

from eblvm.objectives import contrastive_divergence, gaussian_kl, importance_bound


def test_gaussian_kl_is_torch_s(like):
    mean, log_variance = torch.randn(5, 3, **like), torch.randn(5, 3, **like)
    q = Normal(mean, (0.5 * log_variance).exp())
    truth = kl_divergence(q, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), truth)


def test_contrast_has_the_gradient_of_the_likelihood(like):
    # p = N(0, 1/κ), E = κx²/2: −∂ log p/∂κ averaged over data is ½(E_data x² − 1/κ).
    # Negatives whose second moment is exactly 1/κ stand for exact samples.
    kappa = torch.tensor(2.0, requires_grad=True, **like)
    x = torch.tensor([0.5, -1.0, 2.0], **like)
    negative = torch.tensor([1.0, -1.0], **like) / math.sqrt(2.0)
    loss = contrastive_divergence(kappa * x**2 / 2, kappa * negative**2 / 2).mean()
    (gradient,) = torch.autograd.grad(loss, kappa)
    torch.testing.assert_close(gradient, 0.5 * (x.square().mean() - 0.5))


def test_importance_bound_is_exact_for_constant_weights_and_averages_others(like):
    constant = torch.full((7, 2), 1.5, **like)
    torch.testing.assert_close(importance_bound(constant), torch.full((2,), 1.5, **like))
    weights = torch.tensor([[1.0], [3.0]], **like)
    torch.testing.assert_close(importance_bound(weights.log()), torch.full((1,), 2.0, **like).log())
