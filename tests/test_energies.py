"""Every energy: shape, independence of rows, sign, and a known normalizer where it claims one."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from eblvm.energies import GaussianEnergy, MixtureEnergy, TiltedEnergy
from eblvm.metrics.grid import log_normalizer
from eblvm.models.networks import MLPEnergy
from eblvm.samplers import score

COVARIANCE = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)


def energies(like):
    mean = torch.tensor([0.3, -1.0], **like)
    gaussian = GaussianEnergy(mean, COVARIANCE.to(**like))
    means = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0]], **like)
    mixture = MixtureEnergy(means, 0.5, torch.tensor([0.2, 0.3, 0.5], **like))
    network = MLPEnergy(2, [8]).to(**like)
    return [gaussian, mixture, network, TiltedEnergy(network, gaussian)]


@pytest.mark.parametrize("index", range(4))
def test_one_number_per_row_that_depends_on_that_row_only(index, like):
    energy = energies(like)[index]
    x = torch.randn(7, 2, **like)
    e = energy(x)
    assert e.shape == (7,)
    order = torch.randperm(7)
    torch.testing.assert_close(energy(x[order]), e[order])
    torch.testing.assert_close(torch.cat([energy(row[None]) for row in x]), e)


@pytest.mark.parametrize("index", [0, 1])
def test_low_is_likely(index, like):
    energy = energies(like)[index]
    mode = torch.tensor([[0.3, -1.0]] if index == 0 else [[0.0, 1.0]], **like)
    assert energy(mode) < energy(mode + 1)


def test_gaussian_is_torch_s_multivariate_normal(like):
    energy = energies(like)[0]
    x = torch.randn(5, 2, **like)
    truth = MultivariateNormal(energy.mean, COVARIANCE.to(**like)).log_prob(x)
    torch.testing.assert_close(-energy(x) - energy.log_normalizer, truth)


def test_correlated_gaussian_has_the_published_normalizer(like):
    # log Z = log 2π + ½ log det Σ = 1.007511 for correlation 0.9
    energy = GaussianEnergy(torch.zeros(2, **like), COVARIANCE.to(**like))
    assert float(energy.log_normalizer) == pytest.approx(1.007511, abs=1e-6)


@pytest.mark.parametrize("index", [0, 1])
def test_normalizer_agrees_with_quadrature(index):
    energy = energies({"dtype": torch.float64})[index]
    grid = log_normalizer(energy, ((-8, 8), (-8, 8)), 600, dtype=torch.float64)
    assert float(grid.log_z) == pytest.approx(float(energy.log_normalizer), abs=1e-8)


def test_tilting_a_gaussian_by_a_quadratic_gives_the_narrower_gaussian(like):
    eye = torch.eye(2, **like)
    tilt = GaussianEnergy(torch.zeros(2, **like), eye / 3)  # precision 3, so 4 in all
    tilted = TiltedEnergy(tilt, GaussianEnergy(torch.zeros(2, **like)))
    x = torch.randn(6, 2, **like)
    torch.testing.assert_close(tilted(x), 2 * x.square().sum(1))


def test_errors_name_what_was_expected():
    with pytest.raises(ValueError, match=r"shape \(3, 3\); expected \(2, 2\)"):
        GaussianEnergy(torch.zeros(2), torch.eye(3))
    with pytest.raises(ValueError, match="not positive definite"):
        GaussianEnergy(torch.zeros(2), -torch.eye(2))
    with pytest.raises(ValueError, match="sum 2; expected"):
        MixtureEnergy(torch.zeros(2, 2), 1.0, torch.ones(2))


def test_mixture_of_one_is_that_gaussian(like):
    energy = MixtureEnergy(torch.zeros(1, 3, **like), 2.0)
    x = torch.randn(4, 3, **like)
    truth = -(x.square().sum(1) / 8 + 1.5 * math.log(2 * math.pi * 4))
    torch.testing.assert_close(-energy(x), truth)


def test_an_energy_of_waves_alone_has_their_period(like):
    energy = MLPEnergy(2, [16], num_waves=3).to(**like)
    assert energy.net[1].in_features == 2 * (1 + 2 * 3)
    with torch.no_grad():
        energy.net[1].weight[:, :2] = 0  # the coordinates themselves; what is left has period 2π
    x = torch.randn(7, 2, **like)
    tolerance = 1e-4 if x.dtype == torch.float32 else 1e-10
    torch.testing.assert_close(energy(x), energy(x + 2 * torch.pi), rtol=0, atol=tolerance)
    assert (energy(x) - energy(x + 1.0)).abs().max() > 1e-3
    torch.testing.assert_close(
        score(energy, x), score(energy, x + 2 * torch.pi), rtol=0, atol=100 * tolerance
    )
