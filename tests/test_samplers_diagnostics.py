"""Diagnostics: equal to ArviZ on the same arrays, true on an AR(1), and able to fail."""

import math

import pytest
import torch
from targets import gaussian, sample_gaussian, seeded

from eblvm.samplers import HMC, MALA, Langevin, diagnostics
from eblvm.samplers.plots import plot_chain


def autoregressive(num, chains, rho, seed=0):
    """AR(1) with unit variance, started in its stationary law, `(num, chains)`."""
    e = torch.randn(num, chains, dtype=torch.float64, generator=seeded(seed))
    x = e.clone()
    for i in range(1, num):
        x[i] = rho * x[i - 1] + math.sqrt(1 - rho**2) * e[i]
    return x


CASES = {
    "independent": autoregressive(1000, 4, 0.0),
    "persistent": autoregressive(500, 4, 0.9),
    "antithetic": autoregressive(1000, 4, -0.5),
    "odd and shifted": autoregressive(501, 3, 0.5) + 0.3 * torch.arange(3),
    "not mixed": autoregressive(40, 2, 0.95) + torch.arange(2),
    "tiny": autoregressive(7, 2, 0.0),
    "ties": autoregressive(300, 4, 0.3).round(decimals=0),
    "heavy tails": autoregressive(300, 4, 0.3) ** 7,
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_arviz(name):
    stats = pytest.importorskip("arviz_stats.base").array_stats
    x = CASES[name]
    axes = {"chain_axis": 1, "draw_axis": 0}
    expected = {
        diagnostics.rhat: stats.rhat(x.numpy(), method="rank", **axes),
        diagnostics.ess_bulk: stats.ess(x.numpy(), method="bulk", **axes),
        diagnostics.ess_mean: stats.ess(x.numpy(), method="mean", **axes),
        diagnostics.ess_tail: stats.ess(x.numpy(), method="tail", prob=(0.05, 0.95), **axes),
    }
    for ours, theirs in expected.items():
        assert float(ours(x)) == pytest.approx(float(theirs), rel=1e-9), ours.__name__


def test_autocorrelation_equals_arviz():
    stats = pytest.importorskip("arviz_stats.base").array_stats
    for x in CASES.values():
        ours = diagnostics.autocorrelation(x)
        for i in range(x.shape[1]):
            assert abs(stats.autocorr(x[:, i].numpy()) - ours[:, i].numpy()).max() < 1e-12


@pytest.mark.parametrize("rho", [0.5, 0.9, -0.3])
def test_ess_of_an_autoregression(rho):
    # Truth (1 − ρ)/(1 + ρ) per draw; ten percent covers the noise of 80,000 draws (5 % seen).
    x = autoregressive(20_000, 4, rho, seed=3)
    assert float(diagnostics.ess_mean(x)) / 80_000 == pytest.approx((1 - rho) / (1 + rho), rel=0.1)
    lags = diagnostics.autocorrelation(x, 3)
    assert lags.shape == (4, 4) and torch.equal(lags[0], torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(lags[2].mean().item(), rho**2, atol=0.03, rtol=0)


def test_many_quantities_equal_one_at_a_time():
    x = torch.stack(
        [CASES["persistent"], CASES["persistent"] ** 3, -CASES["persistent"]], -1
    ).reshape(500, 4, 3, 1)
    for f in (diagnostics.rhat, diagnostics.ess_bulk, diagnostics.ess_tail, diagnostics.ess_mean):
        assert f(x).shape == (3, 1)
        torch.testing.assert_close(f(x)[1, 0], f(x[:, :, 1, 0]))


def test_rhat_fails_for_chains_trapped_in_two_modes():
    def wells(x):  # 10 apart: never crossed
        return -torch.logaddexp(-0.5 * (x[:, 0] - 5) ** 2, -0.5 * (x[:, 0] + 5) ** 2)

    start = torch.tensor([[5.0], [-5.0], [5.0], [-5.0]], dtype=torch.float64)
    trapped = MALA(400, 1.0).run(wells, start, seeded())
    assert diagnostics.report(trapped)["rhat_max"] > 1.1
    assert not diagnostics.report(trapped)["converged"]
    spread = torch.tensor([0.1, 3.0, 0.1, 3.0]) * CASES["independent"]  # same mean, other scale
    assert diagnostics.rhat(spread) > 1.1


def test_the_report_of_a_good_chain():
    start = sample_gaussian(8, seeded(1))
    chain = HMC(600, 0.5, num_leapfrog=4).run(gaussian, start, seeded(2))
    report = diagnostics.report(chain)
    assert report["converged"] and report["rhat_max"] < 1.01 and abs(report["energy_drift"]) < 0.3
    assert report["num_draws"] == 600 and report["num_chains"] == 8
    assert report["acceptance"] == pytest.approx(float(chain.acceptance.mean()))
    assert report["energy_mean"] == pytest.approx(1.0, abs=0.1)  # D/2
    assert report["energy_autocorrelation_time"] > 0
    assert "acceptance" not in diagnostics.report(Langevin(10, 0.1).run(gaussian, start))
    assert "energy_mean" not in diagnostics.report(chain.trajectory)


@pytest.mark.parametrize("kernel", [MALA(4000, 0.8), HMC(2000, 0.6, num_leapfrog=3)])
def test_the_acceptance_rate_of_a_trajectory_is_that_of_its_proposals(kernel):
    chain = kernel.run(gaussian, sample_gaussian(20, seeded(3)), seeded(4))
    rate = diagnostics.acceptance_rate(chain.trajectory)
    assert rate.shape == (20,) and 0.2 < rate.mean() < 0.9
    # Decisions are coins with the acceptance probabilities: mean difference zero, independent given
    # the proposals, at most ½ of spread each.
    se = 0.5 / (20 * len(chain.trajectory)) ** 0.5
    assert abs(rate.mean() - chain.acceptance.mean()) < 4.5 * se
    draws = torch.tensor([[[0.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]], [[2.0, 1.0]], [[2.0, 1.0]]])
    assert diagnostics.acceptance_rate(draws).tolist() == [0.5]


def test_squared_jump_by_hand():
    draws = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[3.0, 4.0]]])
    assert diagnostics.squared_jump(draws).tolist() == [12.5]


def test_a_constant_has_full_ess_and_no_rhat():
    x = torch.ones(50, 4)
    assert diagnostics.ess_mean(x) == 200 and diagnostics.rhat(x).isnan()


def test_plots_draw_every_quantity():
    chain = MALA(30, 0.5).run(gaussian, sample_gaussian(3, seeded()), seeded())
    assert [a.get_ylabel() for a in plot_chain(chain).axes] == [
        "energy",
        "autocorrelation, energy",
        "first coordinate",
        "autocorrelation, first coordinate",
    ]
    assert len(plot_chain(chain.trajectory).axes) == 2


def test_wrong_draws_are_named():
    with pytest.raises(ValueError, match=r"shape \(3, 2\); expected .* at least 4"):
        diagnostics.rhat(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="a chain has diverged"):
        diagnostics.ess_bulk(torch.full((9, 2), math.nan))
    with pytest.raises(ValueError, match=r"probability is 1\.0"):
        diagnostics.ess_tail(torch.zeros(9, 2), 1.0)
