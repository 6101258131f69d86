"""Noise schedules: published tables, Bayes' rule, and composing steps."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from eblvm.schedules import (
    CosineSchedule,
    LinearSchedule,
    NoiseSchedule,
    RecoverySchedule,
    VariancePreservingSchedule,
)

SIX = """
0.99995 0.0100000 0.99995 0.0100000
0.94616654 0.32368022 0.94611923 0.32381848
0.85629003 0.51649529 0.81015246 0.58621924
0.77479621 0.63221107 0.62770305 0.77845287
0.70091772 0.71324214 0.43996819 0.89801336
0.63395611 0.77336903 0.27892052 0.96031419
0.022776445 0.99974058 0.0063528181 0.99997982
"""
"""a, σ, ā, σ̄ of the recovery schedule with six steps."""

FEWER = {
    1: [0.99995, 0.0063531358],
    2: [0.99995, 0.27893447, 0.022776445],
    3: [0.99995, 0.72213238, 0.38626501, 0.022776445],
    4: [0.99995, 0.86370661, 0.65578634, 0.49746246, 0.022547542],
}

SCHEDULES = {
    "recovery": RecoverySchedule,
    "recovery, one step": lambda: RecoverySchedule(1),
    "variance preserving": VariancePreservingSchedule,
    "linear": lambda: LinearSchedule(20, 1e-3, 0.3),
    "cosine": lambda: CosineSchedule(8),
}


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_recovery_schedule_has_the_published_numbers():
    # nine digits after the point in the table at most
    table = torch.tensor([[float(v) for v in row.split()] for row in SIX.strip().splitlines()])
    s = RecoverySchedule()
    columns = torch.stack([s.a, s.sigma, s.a_bar, s.sigma_bar], 1)
    torch.testing.assert_close(columns, table, rtol=0, atol=1e-7)
    for num, a in FEWER.items():
        found = RecoverySchedule(num).a
        torch.testing.assert_close(found, torch.tensor(a), rtol=0, atol=1e-7)


def test_one_step_is_the_whole_grid():
    s = RecoverySchedule(1)
    grid = torch.linspace(1e-4, 2e-2, 1000)
    torch.testing.assert_close(s.a_bar[1], (1 - grid).prod().sqrt())
    assert s.sigma[0] == pytest.approx(0.01)


def test_variance_preserving_schedule_has_the_published_numbers():
    # of the released code of denoising diffusion GANs: β_j, ᾱ_j = ā_j², and the posterior's factors
    s = VariancePreservingSchedule(4)
    beta = torch.tensor([1.09944e-4, 0.4782553, 0.8492060, 0.9564177, 0.9874039])
    alpha_bar = torch.tensor([0.99989006, 0.5216873, 0.07866732, 0.003428502, 4.318575e-5])
    torch.testing.assert_close(s.sigma.square(), beta, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(s.a_bar.square(), alpha_bar, rtol=2e-6, atol=1e-8)
    c1 = torch.tensor([0.999825, 0.665736, 0.269176, 0.057818])
    c2 = torch.tensor([1.66031e-4, 0.201599, 0.193003, 0.111852])
    variance = torch.tensor([1.09931e-4, 0.440868, 0.884210, 0.984061])
    t = torch.arange(4)
    one, zero = torch.ones(4, 1), torch.zeros(4, 1)
    torch.testing.assert_close(s.reverse(one, zero, t).mean[:, 0], c1, rtol=0, atol=1e-6)
    torch.testing.assert_close(s.reverse(zero, one, t).mean[:, 0], c2, rtol=0, atol=1e-6)
    torch.testing.assert_close(s.reverse(one, one, t).variance[:, 0], variance, rtol=0, atol=1e-6)


def test_variance_preserving_schedule_at_given_times():
    # the grid of the same code for LSUN: level 0 is the data, the last variance is bounded
    times = [j / 999 for j in (0, 166, 332, 498, 999)]
    s = VariancePreservingSchedule(4, times=times)
    beta = torch.tensor([0, 0.252744, 0.568639, 0.750993, 0.999])
    torch.testing.assert_close(s.sigma.square(), beta, rtol=0, atol=1e-6)
    q = s.reverse(torch.ones(1, 2), torch.zeros(1, 2), 0)
    assert q.stddev.eq(0).all() and q.mean.eq(1).all()
    t, one, zero = torch.arange(4), torch.ones(4, 1), torch.zeros(4, 1)
    for (x, x_next), expected in {
        (one, zero): (1, 0.725367, 0.463583, 0.283049),
        (zero, one): (0, 0.244956, 0.367669, 0.029087),
    }.items():
        mean = s.reverse(x, x_next, t).mean[:, 0]
        torch.testing.assert_close(mean, torch.tensor(expected), rtol=0, atol=1e-6)
    variance = torch.tensor([0, 0.212082, 0.553333, 0.918890])
    torch.testing.assert_close(s.reverse(one, one, t).variance[:, 0], variance, rtol=0, atol=1e-6)


def test_linear_and_cosine_schedules():
    s = LinearSchedule(3, 0.1, 0.3)
    torch.testing.assert_close(s.sigma.square(), torch.tensor([0, 0.1, 0.2, 0.3]))
    s = CosineSchedule(4, beta_bound=1.0)
    exact = [math.cos((t / 4 + 0.008) / 1.008 * math.pi / 2) for t in range(5)]
    torch.testing.assert_close(s.a_bar, torch.tensor(exact) / exact[0])
    assert CosineSchedule(4).sigma[-1] ** 2 == pytest.approx(0.999)


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_variance_is_kept_and_steps_compose(make):
    s = make()
    torch.testing.assert_close(s.a**2 + s.sigma**2, torch.ones(len(s) + 1))
    torch.testing.assert_close(s.a_bar**2 + s.sigma_bar**2, torch.ones(len(s) + 1))
    variance = s.sigma_bar[0] ** 2  # of x_t given x, one step after the other
    for t in range(len(s)):
        variance = s.a[t + 1] ** 2 * variance + s.sigma[t + 1] ** 2
        torch.testing.assert_close(variance, s.sigma_bar[t + 1] ** 2)


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_reverse_kernel_is_that_of_bayes_rule(make):
    """Against conditioning the joint Gaussian of (x_t, x_{t+1}) given x."""
    s = make()
    x, x_next = torch.randn(3, 2), torch.randn(3, 2)
    for t in range(len(s)):
        own = s.sigma_bar[t] ** 2
        joint = torch.tensor([[own, s.a[t + 1] * own], [s.a[t + 1] * own, s.sigma_bar[t + 1] ** 2]])
        gain = joint[0, 1] / joint[1, 1]
        q = s.reverse(x, x_next, t)
        mean = s.a_bar[t] * x + gain * (x_next - s.a_bar[t + 1] * x)
        torch.testing.assert_close(q.mean, mean)
        torch.testing.assert_close(q.variance, (own - gain * joint[0, 1]).expand(3, 2))


def test_pairs_have_the_moments_of_the_chain():
    s = RecoverySchedule()
    num, t = 200_000, torch.tensor([0, 3]).repeat(100_000)
    x = torch.full((num, 1), 2.0)
    x_t, x_next = s.sample_pair(x, t, torch.Generator().manual_seed(0))
    for level in (0, 3):
        pair = torch.cat([x_t, x_next], 1)[t == level]
        own, total = s.sigma_bar[level] ** 2, s.sigma_bar[level + 1] ** 2
        covariance = torch.stack([own, s.a[level + 1] * own, s.a[level + 1] * own, total])
        exact = MultivariateNormal(2 * s.a_bar[level : level + 2], covariance.view(2, 2))
        error = 4 / math.sqrt(len(pair))  # in units of the standard deviations
        scale = exact.stddev
        assert ((pair.mean(0) - exact.mean).abs() < error * scale).all()
        outer = scale[:, None] * scale
        assert ((pair.T.cov() - exact.covariance_matrix).abs() < 1.5 * error * outer).all()


def test_gradients_reach_the_data_through_both_states():
    s = RecoverySchedule()
    x = torch.randn(4, 3, requires_grad=True)
    for state, bar in zip(s.sample_pair(x, 2), s.a_bar[2:4], strict=True):
        (gradient,) = torch.autograd.grad(state.sum(), x, retain_graph=True)
        torch.testing.assert_close(gradient, bar.expand_as(x))


def test_levels_may_differ_by_row_and_events_be_images():
    s = RecoverySchedule()
    x = torch.ones(3, 1, 2, 2)
    t = torch.tensor([0, 2, 6])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    expected = s.a_bar[t].view(3, 1, 1, 1) + s.sigma_bar[t].view(3, 1, 1, 1) * noise
    torch.testing.assert_close(s.diffuse(x, t, torch.Generator().manual_seed(1)), expected)


def test_buffers_are_of_the_default_type_and_move_with_the_module():
    torch.set_default_dtype(torch.float32)
    s = RecoverySchedule()
    assert s.a.dtype == torch.float32 and s.a.tolist()[1] == pytest.approx(0.94616654, abs=1e-7)
    assert not s.state_dict()  # they follow from the arguments
    assert s.double().sigma.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseSchedule([1.0]), "two numbers or more"),
        (lambda: NoiseSchedule([1.0, 1.5]), "each in"),
        (lambda: RecoverySchedule(0), "num_timesteps is 0; expected 1 or more"),
        (lambda: RecoverySchedule(600), "allows 501 at most"),
        (lambda: RecoverySchedule(6, beta_end=2), "beta_end is 2; expected a number between"),
        (lambda: VariancePreservingSchedule(2, times=[0, 1]), "expected 3 numbers rising"),
    ],
)
def test_wrong_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
