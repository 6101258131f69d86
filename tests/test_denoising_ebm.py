"""The learner of few-step diffusions: exact generators, running averages, what it refuses."""

import pytest
import torch
from torch import nn

from eblvm.divergences import NonSaturating, ReverseKL, step_variance
from eblvm.energies import TimeEnergy
from eblvm.models import DenoisingEBM
from eblvm.schedules import VariancePreservingSchedule


class Quadratic(TimeEnergy):
    def __init__(self):
        super().__init__()
        self.c = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, t, context=None):
        return 0.5 * self.c * x.square().sum(1)


class Exact(nn.Module):
    """x̂ of data N(0, 1), linear, such that x_t given x_{t+1} has its mean and variance."""

    def __init__(self, schedule):
        super().__init__()
        a, beta = schedule.a[1:], schedule.sigma[1:].square()
        like, t = torch.zeros(len(schedule), 1), torch.arange(len(schedule))
        one, zero = torch.ones_like(like), torch.zeros_like(like)
        c1 = schedule.reverse(one, zero, t).mean[:, 0]
        c2 = schedule.reverse(zero, one, t).mean[:, 0]
        own = step_variance(schedule, t, like)[:, 0]
        self.p = nn.Parameter((a - c2) / c1)  # E[x_t | x_{t+1}] = a x_{t+1}, with variance β
        self.q = nn.Parameter((beta - own).clamp(min=0).sqrt() / c1)

    def forward(self, x_next, t, z):
        return self.p[t, None] * x_next + self.q[t, None] * z


def learner(divergence=None, **settings):
    schedule = VariancePreservingSchedule(4)
    divergence = divergence or ReverseKL(nn.Linear(1, 1))
    rates = {"energy": 1e-3, "generator": 1e-3}
    if list(divergence.parameters()):
        rates["divergence"] = 1e-3
    parts = (Quadratic(), Exact(schedule), schedule, divergence)
    return DenoisingEBM(*parts, 1, [1], rates, **settings)


def test_exact_steps_sample_the_data():
    model = learner(fake_noise_at_zero=True).eval()
    x = model.sample(100_000, torch.Generator().manual_seed(0))
    assert x.shape == (100_000, 1)
    assert abs(float(x.mean())) < 4 / 100_000**0.5
    assert float(x.var()) == pytest.approx(1, abs=4 * (2 / 100_000) ** 0.5)
    assert model.sample(3, trajectory=True).shape == (5, 3, 1)


def test_data_and_fakes_of_exact_steps_are_alike():
    model = learner(fake_noise_at_zero=True)
    jump = model.jump(torch.randn(100_000, 1), torch.Generator().manual_seed(0))
    for t in range(4):
        rows = jump.t == t
        both = [torch.cat([x, jump.x_next], 1)[rows].T.cov() for x in (jump.x, jump.fake.detach())]
        torch.testing.assert_close(*both, rtol=0, atol=0.06)


def test_no_noise_is_added_at_the_last_step():
    model, x, t = learner(), torch.zeros(4, 1), torch.arange(4)
    own = step_variance(model.schedule, t, x).sqrt()
    torch.testing.assert_close(model.noise_scale(x, t), own * (t > 0)[:, None])


def test_running_averages_score_and_sample_in_evaluation_only():
    model = learner(ema_decay=0.9)
    average = model.averaged["energy"]
    for value in (2.0, 4.0):
        model.energy.c.data.fill_(value)
        average.update_parameters(model.energy)
    x = torch.ones(1, 1)
    assert float(model.potential()(x).detach()) == pytest.approx(0.5 * 4.0)
    model.eval()  # begun at the first value: 0.9 · 2 + 0.1 · 4
    assert float(model.potential()(x)) == pytest.approx(0.5 * 2.2)
    assert any(name.startswith("averaged.energy") for name in model.state_dict())


def test_a_discriminator_is_no_density():
    with pytest.raises(TypeError, match="is no density of data"):
        learner(NonSaturating()).potential()
    with pytest.raises(ValueError, match="ema_decay is 2"):
        learner(ema_decay=2)


def test_scores_are_log_densities_of_every_level():
    model = learner().eval()
    model.energy.c.data.fill_(3.0)
    x = torch.tensor([[0.0], [2.0], [-1.0]])
    scores = model.scores(x, torch.Generator().manual_seed(0), num_draws=4000)
    a, rest = model.schedule.a_bar, model.schedule.sigma_bar.square()
    torch.testing.assert_close(scores["energy"], -1.5 * (a[0] * x[:, 0]) ** 2)
    torch.testing.assert_close(scores["gradient_norm"], -3 * (a[0] * x[:, 0]).abs())
    for t in (1, 2, 3):  # E x_t² = ā² x² + σ̄²
        expected = -1.5 * ((a[t] * x[:, 0]) ** 2 + rest[t])
        torch.testing.assert_close(scores[f"energy_{t}"], expected, rtol=0, atol=0.3)
    total = scores["energy"] + sum(scores[f"energy_{t}"] for t in (1, 2, 3))
    torch.testing.assert_close(scores["energy_sum"], total)


def test_a_critic_scores_pairs():
    scores = learner(NonSaturating()).eval().scores(torch.tensor([[0.0], [5.0]]))
    assert list(scores) == ["critic"] and scores["critic"][0] > scores["critic"][1]
