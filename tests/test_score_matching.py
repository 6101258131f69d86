"""Score matching finds densities whose parameters are known, and its losses are what they say."""

import pytest
import torch
from torch import nn

from eblvm.energies import Energy
from eblvm.matching import DenoisingMatching, SlicedMatching
from eblvm.models import ScoreMatchingEBM
from eblvm.negatives import NoiseNegatives
from eblvm.rbm import GaussianBernoulliRBM
from eblvm.samplers import MALA
from eblvm.samplers.score import live_curvature, live_gradient, score


class Quadratic(Energy):
    """E(x) = ½ (x − m)ᵀ A (x − m) of symmetric A."""

    def __init__(self, matrix, mean):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor(matrix, dtype=torch.float64))
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))

    def forward(self, x):
        centered = x - self.mean
        return 0.5 * (centered @ (self.matrix + self.matrix.T) / 2 * centered).sum(1)


COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)


def data(num=4000):
    """Points whose first two moments are exactly MEAN and COVARIANCE."""
    g = torch.Generator().manual_seed(0)
    eps = torch.randn(num, 2, generator=g, dtype=torch.float64)
    eps = eps - eps.mean(0)
    white = eps @ torch.linalg.inv(torch.linalg.cholesky(eps.T @ eps / num)).T
    return MEAN + white @ torch.linalg.cholesky(COVARIANCE).T


def fit(matching, num_steps=600):
    energy, x = Quadratic([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]), data()
    g = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(energy.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.993)
    for _ in range(num_steps):
        optimizer.zero_grad()
        matching(energy, x, g).mean().backward()
        optimizer.step()
        schedule.step()
    return ((energy.matrix + energy.matrix.T) / 2).detach(), energy.mean.detach()


def test_live_derivatives_are_those_of_a_quadratic_with_a_graph_and_nothing_for_x():
    energy = Quadratic([[2.0, 0.5], [0.5, 1.0]], [0.3, -0.2])
    x = torch.randn(5, 2).double().requires_grad_()
    u = torch.randn(5, 2).double()
    with torch.no_grad():  # as in validation
        gradient = live_gradient(energy, x)
        again, bend = live_curvature(energy, x, u)
    expected = (x - energy.mean) @ energy.matrix
    for found in (gradient, again):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient.detach(), -score(energy, x))
    torch.testing.assert_close(bend, (u @ energy.matrix * u).sum(1))
    gradient.sum().backward()
    assert x.grad is None
    torch.testing.assert_close(energy.mean.grad, -5 * energy.matrix.sum(0).detach())


def test_sliced_matching_finds_the_gaussian():
    matrix, mean = fit(SlicedMatching())
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.01)
    # signs leave noise in the entry off the diagonal only: 2/√4,000 a step, averaged over many
    torch.testing.assert_close(matrix, torch.linalg.inv(COVARIANCE), rtol=0, atol=0.02)


def test_denoising_matching_finds_the_gaussian_with_its_noise():
    matrix, mean = fit(DenoisingMatching(0.5))
    noisy = COVARIANCE + 0.25 * torch.eye(2).double()
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.02)
    torch.testing.assert_close(matrix, torch.linalg.inv(noisy), rtol=0, atol=0.02)


def test_sliced_matching_is_fisher_s_divergence_up_to_a_constant():
    """E[loss] = ½ tr(A Σ A) − tr A at equal means, on average over signs."""
    energy = Quadratic([[2.0, 0.5], [0.5, 1.0]], MEAN.tolist())
    matrix = energy.matrix.detach()
    expected = 0.5 * torch.trace(matrix @ COVARIANCE @ matrix) - torch.trace(matrix)
    g = torch.Generator().manual_seed(0)
    found = torch.stack([SlicedMatching()(energy, data(), g).mean() for _ in range(20)]).mean()
    assert float(found.detach()) == pytest.approx(float(expected), abs=0.01)


def test_the_learner_draws_knows_the_likelihood_of_an_rbm_and_says_what_it_cannot(tmp_path):
    chains = NoiseNegatives([2], MALA(300, 0.5), scale=3.0)
    energy = Quadratic(torch.linalg.inv(COVARIANCE).tolist(), MEAN.tolist())
    learner = ScoreMatchingEBM(energy, SlicedMatching(), negatives=chains).double()
    samples = learner.sample(4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples.mean(0), MEAN, rtol=0, atol=0.08)  # 4 errors of 1/√4000
    torch.testing.assert_close(torch.cov(samples.T), COVARIANCE, rtol=0, atol=0.1)
    grid = learner.log_prob_on_grid(((-4.0, 5.0), (-5.0, 3.0)), 100)
    assert float(grid.exp().sum()) * 0.09 * 0.08 == pytest.approx(1, abs=1e-3)
    with pytest.raises(TypeError, match="the normalizer of Quadratic is not known"):
        learner.log_likelihood(data())
    rbm = GaussianBernoulliRBM(2, 3)
    learner = ScoreMatchingEBM(rbm, DenoisingMatching(0.1))
    x = torch.randn(4, 2)
    expected = -rbm(x) - rbm.log_normalizer()
    torch.testing.assert_close(learner.log_likelihood(x), expected.detach())
    assert learner.sample(3).shape == (3, 2)
    with pytest.raises(TypeError, match="give it `negatives`"):
        ScoreMatchingEBM(energy, SlicedMatching()).sample(3)


def test_denoised_samples_are_means_of_the_data_given_their_noisy_ends():
    """Of data N(m, Σ) and noise of σ² the means have covariance Σ (Σ + σ²)⁻¹ Σ."""
    noisy = COVARIANCE + 0.25 * torch.eye(2).double()
    chains = NoiseNegatives([2], MALA(300, 0.5), scale=3.0)
    energy = Quadratic(torch.linalg.inv(noisy).tolist(), MEAN.tolist())

    def sample(**options):
        learner = ScoreMatchingEBM(energy, DenoisingMatching(0.5), negatives=chains, **options)
        return learner.double().sample(4000, torch.Generator().manual_seed(0))

    ends, means = sample(), sample(denoise=True)
    posterior = MEAN + (ends - MEAN) @ torch.linalg.solve(noisy, COVARIANCE)
    torch.testing.assert_close(means, posterior)
    expected = COVARIANCE @ torch.linalg.solve(noisy, COVARIANCE)
    torch.testing.assert_close(torch.cov(means.T), expected, rtol=0, atol=0.1)
    assert torch.trace(torch.cov(means.T)) < 0.8 * torch.trace(torch.cov(ends.T))
    with pytest.raises(TypeError, match="SlicedMatching adds no noise that could be taken away"):
        ScoreMatchingEBM(energy, SlicedMatching(), denoise=True)
    with pytest.raises(TypeError, match="an RBM is sampled exactly"):
        ScoreMatchingEBM(GaussianBernoulliRBM(2, 3), DenoisingMatching(0.1), denoise=True)


def test_a_scale_that_is_no_scale_is_refused():
    with pytest.raises(ValueError, match="scale is 0; expected a positive number"):
        DenoisingMatching(0)
