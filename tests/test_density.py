"""Normalizers and likelihoods of energies: Gaussians, whose answers are known."""

import csv
import math
from pathlib import Path

import pytest
import torch
import yaml
from test_denoising_ebm import learner
from torch import nn

from eblvm import recipes
from eblvm.density import BitsPerDimension, relative_error
from eblvm.divergences import ReverseKL
from eblvm.energies import Energy


class ExactEncoder(nn.Module):
    """q(z | x_t, x_{t+1}) of the linear-Gaussian generator `Exact`, by Bayes' rule."""

    def __init__(self, schedule, generator):
        super().__init__()
        self.schedule, self.generator = schedule, generator

    def forward(self, x, x_next, t):
        base = self.schedule.reverse(self.generator.p[t, None] * x_next, x_next, t)
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        slope = self.schedule.reverse(one, zero, t).mean * self.generator.q[t, None]  # of z
        precision = 1 + slope.square() / base.variance
        mean = slope * (x - base.mean) / base.variance / precision
        return torch.cat([mean, -precision.log()], 1)


def exact(encoder=None):
    """The learner at its goal for data N(0, 1): everything exact, in float64."""
    torch.manual_seed(0)
    model = learner(ReverseKL(nn.Linear(1, 1), log_variance_floor=None)).double().eval()
    model.divergence.encoder = encoder or ExactEncoder(model.schedule, model.net)
    return model


@pytest.mark.parametrize("t", range(4))
def test_step_normalizer_is_exact_at_the_exact_posterior(t):
    """Z(y) = sqrt(2πv) N(y; 0, a²v + β) with v = 1, and every proposal has the same weight."""
    model, y = exact(), torch.linspace(-3, 3, 7).double()[:, None]
    found = model.log_step_normalizer(y, t, 2, torch.Generator().manual_seed(0), floor=0.0)
    torch.testing.assert_close(found, -0.5 * y[:, 0] ** 2, rtol=1e-4, atol=1e-4)


class Standard(nn.Module):
    """Says N(0, 1), whatever it sees."""

    def forward(self, x, x_next, t):
        return torch.zeros(len(x), 2, dtype=x.dtype)


def test_step_normalizer_is_unbiased_with_another_posterior_and_a_bound_from_below():
    model, num = exact(Standard()), 20_000
    y = torch.tensor([[0.5]]).double().expand(num, 1)
    single = model.log_step_normalizer(y, 1, 1, torch.Generator().manual_seed(0))
    truth = -0.5 * 0.25
    error = float(single.exp().std()) / num**0.5
    assert float(single.exp().mean()) == pytest.approx(math.exp(truth), abs=4 * error)
    many = model.log_step_normalizer(y[:200], 1, 100, torch.Generator().manual_seed(0))
    assert float(single.mean()) < float(many.mean()) < truth + 0.01


def test_chain_of_exact_steps_has_the_likelihood_of_the_data():
    model, x = exact(), torch.linspace(-2, 2, 5).double()[:, None]
    seen = model.at_lowest_level(x, torch.Generator().manual_seed(3))
    found = model.log_likelihood(x, 1, torch.Generator().manual_seed(3), floor=0.0)
    expected = -0.5 * seen[:, 0] ** 2 - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Diagonal(Energy):
    """−log of N(0, diag s²) but for log Z."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return 0.5 * (x.flatten(1) / self.scale).square().sum(1)


def test_relative_error_is_that_of_the_mean():
    w = torch.rand(1000, dtype=torch.float64) + 0.5
    expected = w.std() / w.mean() / 1000**0.5
    torch.testing.assert_close(relative_error(w.log() + 5), expected)


class Pretender:
    """A learner that is a Gaussian: samples are exact."""

    def __init__(self, scale):
        self.energy, self.scale, self.device = Diagonal(scale), scale, torch.device("cpu")
        self.logged = {}

    def potential(self):
        return self.energy

    def sample(self, num, generator=None, noise=False):
        return self.scale * torch.randn(num, len(self.scale), generator=generator)

    def generator(self, batch_idx=0, offset=0):
        return torch.Generator().manual_seed(100 * offset + batch_idx)

    def all_gather(self, rows):
        return rows

    def log_dict(self, figures, sync_dist):
        self.logged |= {name: float(value) for name, value in figures.items()}


class OneDevice:
    world_size = 1


def test_brackets_hold_the_known_normalizer_and_the_known_cost():
    torch.manual_seed(0)
    scale = torch.tensor([0.3, 0.5, 1.0, 0.7])
    model = Pretender(scale)
    callback = BitsPerDimension(200, 60, 3, 0.1, burn_in=60, bin_width=1.0)
    x = scale * torch.randn(5000, 4)
    callback.see(OneDevice(), model, (x, None), 0)
    callback.look(OneDevice(), model, "test")
    found = {name.removeprefix("test/"): value for name, value in model.logged.items()}
    assert (callback.protocol["num_data"], callback.protocol["num_temperatures"]) == (5000, 60)
    log_z = float(scale.log().sum()) + 2 * math.log(2 * math.pi)
    entropy = (log_z + 2) / 4 / math.log(2)  # bits per dimension of the Gaussian itself
    for side in ("low", "high"):
        error = 4 * found[f"log_z_{side}_error"]
        assert 0 < error < 0.6 and found[f"log_z_{side}"] == pytest.approx(log_z, abs=error)
        error = 4 * found["bits_per_dim_error"] + error / 4 / math.log(2)
        assert found[f"bits_per_dim_{side}"] == pytest.approx(entropy, abs=error)
        assert found[f"ais_ess_{side}"] > 0.2
    # the data's own spread: the variance of ½χ² with four degrees of freedom is 2
    expected = (2 / 5000) ** 0.5 / 4 / math.log(2)
    assert found["bits_per_dim_error"] == pytest.approx(expected, rel=0.1)
    assert found["log_z_low"] < found["log_z_high"] + 0.1


def test_both_callbacks_go_with_a_recipe(eblvm, tmp_path):
    """The digits' DDAEBM in little: `eblvm test` gives bits and the likelihood of the chain."""
    digits = Path(recipes.__file__).parent / "image" / "ddaebm_digits.yaml"
    recipe = yaml.safe_load(digits.read_text(encoding="utf-8"))
    bits = {"num_chains": 4, "num_temperatures": 5, "burn_in": 5, "num_leapfrog": 1}
    recipe["trainer"] = {
        "max_epochs": 1,
        "callbacks": [
            {"class_path": "eblvm.density.BitsPerDimension", "init_args": bits},
            {"class_path": "eblvm.evaluation.Likelihood", "init_args": {"num_samples": 2}},
            {"class_path": "eblvm.outliers.OutOfDistribution", "init_args": {"num": 20}},
        ],
    }
    recipe["monitor"] = "val/loss"
    recipe["data"]["init_args"]["limit"] = 100
    path = tmp_path / "bits.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = eblvm("fit", "--config", path)
    assert done.status == 0, done.err
    (last,) = tmp_path.rglob("last.ckpt")
    done = eblvm("test", "--ckpt_path", last)
    assert done.status == 0, done.err
    for name in ("bits_per_dim_low", "bits_per_dim_high", "log_likelihood", "ood/uniform"):
        assert name in done.out
    done = eblvm("score", "--ckpt", last, "--num", 5, "--out", tmp_path / "s.csv")
    assert done.status == 0, done.err
    with open(tmp_path / "s.csv") as file:
        names = csv.DictReader(file).fieldnames
    assert {"energy", "energy_1", "energy_sum", "gradient_norm"} <= set(names)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="num_chains is 1"):
        BitsPerDimension(num_chains=1)
