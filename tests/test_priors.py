"""Priors: the tilted Gaussian is Gaussian for a quadratic tilt, so everything is known."""

import math

import pytest
import torch
from linear_gaussian import KAPPA, Quadratic

from eblvm.metrics.grid import log_normalizer
from eblvm.models.networks import MLPEnergy
from eblvm.priors import EnergyPrior, GaussianPrior, Prior
from eblvm.samplers import MALA, Langevin

RHO = 1 - 0.1**2 * (1 + KAPPA) / 2
VARIANCE = 0.1**2 * (1 - RHO**200) / (1 - RHO**2) + RHO**200
"""Of the unadjusted chain after 100 steps of s = 0.1 from N(0, 1), on precision 1 + κ."""


def quadratic(num_steps=100, step_size=0.1, dim=2):
    return EnergyPrior(dim, Quadratic(), Langevin(num_steps, step_size)).double()


def test_gradient_of_the_loss_is_exact_for_a_quadratic_tilt():
    # −∂/∂κ E log p(z) = ½(E_data‖z‖² − D/(1+κ)); and the chain's variance after K steps,
    # known in closed form, stands for 1/(1+κ).
    prior = quadratic()
    z = torch.randn(20_000, 2, dtype=torch.float64) * 0.3
    prior.loss(z, torch.Generator().manual_seed(0)).mean().backward()
    exact = 0.5 * (z.square().sum(1).mean() - 2 * VARIANCE)
    # standard error of ½‖z‖² over 20,000 negatives: ½·√(2·2)·0.25/√20000 ≈ 0.0018
    assert float(prior.tilt.kappa.grad) == pytest.approx(float(exact), abs=4 * 0.0018)


def test_gradient_in_the_latent_is_that_of_the_energy():
    prior = quadratic()
    z = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(prior.loss(z).sum(), z)
    torch.testing.assert_close(gradient, (1 + KAPPA) * z)


def test_samples_have_the_moments_of_the_chain():
    z = quadratic().sample(20_000, torch.Generator().manual_seed(0))
    assert z.mean(0).abs().max() < 4 * math.sqrt(VARIANCE / 20_000)
    # relative standard error of a variance: √(2/40000) = 0.007
    assert float(z.var()) == pytest.approx(VARIANCE, rel=4 * 0.0071)
    assert not z.requires_grad


def test_zero_tilt_is_the_gaussian_prior():
    tilted, plain = quadratic(), GaussianPrior(2).double()
    tilted.tilt.kappa.data.zero_()
    z = torch.randn(6, 2, dtype=torch.float64)
    torch.testing.assert_close(tilted.energy(z), plain.energy(z))
    torch.testing.assert_close(tilted.loss(z), plain.loss(z))
    mean, log_variance = torch.zeros(6, 2).double(), torch.ones(6, 2).double()
    torch.testing.assert_close(
        tilted.divergence(z, mean, log_variance), plain.divergence(z, mean, log_variance)
    )
    torch.testing.assert_close(tilted.log_normalizer(), plain.log_normalizer())


def test_no_steps_give_the_base():
    prior = quadratic(num_steps=0)
    seed = torch.Generator().manual_seed
    torch.testing.assert_close(prior.sample(4, seed(3)), GaussianPrior.sample(prior, 4, seed(3)))


def test_log_normalizer_of_a_quadratic_tilt():
    # Z = ∫ exp(−½(1+κ)‖z‖²) = (2π/(1+κ))^{D/2}; importance weights have relative variance
    # ((1+κ)²/(1+2κ))^{D/2} − 1 = 1.29, so 100,000 of them give 0.0036
    exact = math.log(2 * math.pi / (1 + KAPPA))
    estimate = quadratic().log_normalizer(100_000, torch.Generator().manual_seed(0))
    assert float(estimate) == pytest.approx(exact, abs=4 * 0.0036)


def test_log_normalizer_of_a_network_agrees_with_quadrature():
    prior = EnergyPrior(2, MLPEnergy(2, [16]), Langevin(1, 0.1)).double()
    grid = log_normalizer(prior.energy, ((-8, 8), (-8, 8)), 300, dtype=torch.float64)
    estimate = prior.log_normalizer(50_000, torch.Generator().manual_seed(0))
    assert float(estimate) == pytest.approx(float(grid.log_z), abs=0.01)


def test_default_divergence_agrees_with_the_closed_form_in_the_mean():
    # The closed form of the Gaussian prior against the one-sample estimate all priors inherit.
    prior = GaussianPrior(2).double()
    mean, log_variance = torch.tensor([[0.5, -1.0]]).double(), torch.tensor([[-0.7, 0.3]]).double()
    eps = torch.randn(200_000, 2, dtype=torch.float64)
    z = mean + (0.5 * log_variance).exp() * eps
    estimate = Prior.divergence(prior, z, mean, log_variance)
    closed = prior.divergence(z, mean, log_variance)
    error = 4 * float(estimate.std()) / math.sqrt(len(z))
    assert float(estimate.mean()) == pytest.approx(float(closed), abs=error)


def test_chains_leave_parameters_without_gradient():
    prior = quadratic()
    prior.sample(3)
    assert prior.tilt.kappa.grad is None
    assert prior.tilt.kappa.requires_grad


def test_diagnostics_show_what_the_chain_did():
    prior = quadratic()
    prior.loss(torch.zeros(50, 2, dtype=torch.float64))
    assert prior.diagnostics["tilt_positive"] == 0
    assert prior.diagnostics["tilt_negative"] > 0
    assert prior.diagnostics["displacement"] > 0


def test_vital_signs_are_those_of_the_last_loss():
    assert GaussianPrior(2).vital_signs() == {}
    prior = quadratic()
    assert prior.vital_signs() == {}
    z = torch.tensor([[3.0, 0.0], [0.0, 5.0]], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    prior.loss(z, torch.Generator().manual_seed(0))
    signs = prior.vital_signs()
    start, negative = prior._negatives(2, torch.Generator().manual_seed(0))
    gap = prior.tilt(z).mean() - prior.tilt(negative).mean()
    spread = (prior.tilt(z).var(correction=0) + prior.tilt(negative).var(correction=0)) / 2
    moved = (negative - start).square().mean().sqrt()
    assert float(signs["energy_gap"]) == pytest.approx(float(gap.detach()))
    assert float(signs["energy_spread"]) == pytest.approx(float(spread.detach().sqrt()))
    assert float(signs["displacement"]) == pytest.approx(float(moved))
    assert float(signs["data_scale"]) == pytest.approx(math.sqrt(34 / 4))
    prior.loss(1e-3 * z.detach())
    assert prior.vital_signs()["data_scale"] == 1  # that of N(0, I), where chains come from


def test_latent_dim_is_checked():
    with pytest.raises(ValueError, match="latent_dim is 0; expected 1 or more"):
        GaussianPrior(0)


def persistent(num, restart_probability, num_steps=2, step_size=0.5):
    kernel = MALA(num_steps, step_size)
    prior = EnergyPrior(
        2, Quadratic(), kernel, num_persistent=num, restart_probability=restart_probability
    )
    return prior.double()


def test_persistent_chains_reach_the_prior_where_short_ones_do_not():
    # two MALA steps of s = 0.5 are too few from N(0, I); two steps a call, 100 calls, are not
    generator = torch.Generator().manual_seed(0)
    prior = persistent(5000, 0.0)
    z = torch.zeros(5000, 2, dtype=torch.float64)
    first = prior.start(20_000, generator).var()
    for _ in range(100):
        prior.loss(z, generator)
    # relative standard error of a variance of 10,000 numbers: √(2/10000) = 0.014
    assert float(first) == pytest.approx(1, rel=0.06)
    assert float(prior.buffer.states.var()) == pytest.approx(1 / (1 + KAPPA), rel=4 * 0.0142)
    short = EnergyPrior(2, Quadratic(), MALA(2, 0.5)).double().sample(5000, generator)
    assert float(short.var()) > 1.15 / (1 + KAPPA)


def test_chains_that_always_restart_are_short_ones():
    prior, z = persistent(50, 1.0), torch.zeros(50, 2, dtype=torch.float64)
    prior.buffer.states.fill_(100.0)
    prior.loss(z, torch.Generator().manual_seed(0))
    assert prior.buffer.states.abs().max() < 10
    assert torch.equal(prior.buffer.ages, torch.ones(50, dtype=torch.long))


def test_evaluation_leaves_persistent_chains_alone_and_checkpoints_hold_them():
    prior, z = persistent(20, 0.1), torch.zeros(10, 2, dtype=torch.float64)
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    prior.eval().loss(z)
    prior.sample(30)
    assert all(torch.equal(v, before[k]) for k, v in prior.state_dict().items())
    prior.train().loss(z)
    assert (prior.buffer.states != before["buffer.states"]).any(1).sum() <= 10
    assert (prior.buffer.ages == 1).sum() == 10


def test_more_rows_than_persistent_chains_are_refused():
    with pytest.raises(ValueError, match="10 chains are asked of a replay buffer with 5 states"):
        persistent(5, 0.1).loss(torch.zeros(10, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"restart_probability is 1\.5; expected 0 to 1"):
        persistent(5, 1.5)
