"""AIS brackets known normalizers; tempering crosses barriers; underdamped and Gibbs are exact."""

import math

import pytest
import torch
from targets import (
    Counted,
    double_well,
    gaussian,
    grid,
    mixture,
    moments,
    sample_gaussian,
    sample_mixture,
    seeded,
    two_moons,
)

from eblvm.rbm import GaussianBernoulliRBM
from eblvm.samplers import (
    AIS,
    HMC,
    MALA,
    Gibbs,
    Langevin,
    ParallelTempering,
    Sampler,
    Underdamped,
    noise,
)
from eblvm.samplers.annealed import effective_sample_size


def golden_rbm():
    rbm = GaussianBernoulliRBM(2, 3).double()
    values = {
        "weight": [[1, -0.5, 0.3], [0.2, 0.8, -1]],
        "visible_bias": [0.1, -0.2],
        "hidden_bias": [0.3, -0.1, 0.2],
        "log_scale": [math.log(0.5), math.log(0.8)],
    }
    rbm.load_state_dict({k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()})
    return rbm


NORMALIZERS = {
    "gaussian": (gaussian, sample_gaussian, math.log(2 * math.pi) + 0.5 * math.log(0.19)),
    "mixture": (mixture, sample_mixture, 0.0),
    "rbm": (golden_rbm(), lambda n, g: golden_rbm().sample(n, g), 3.5203528212902078),
}


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("kernel", [MALA(2, 0.5), HMC(1, 0.3, num_leapfrog=4)], ids=["MALA", "HMC"])
def test_ais_brackets_a_known_normalizer(name, kernel):
    energy, sample, truth = NORMALIZERS[name]
    ais = AIS(60, kernel, base_scale=1.5)
    like = torch.empty(1500, 2, dtype=torch.float64)
    forward = ais.forward(energy, like, seeded(4))
    reverse = ais.reverse(energy, sample(1500, seeded(5)), seeded(6))
    for estimate in (forward, reverse):
        assert abs(estimate.value - truth) < 4 * estimate.error
        assert estimate.error < 0.05 and estimate.effective_sample_size > 300
    # Jensen's inequality, strict for the means of the logarithms: below and above.
    assert forward.log_weights.mean() < truth < -reverse.log_weights.mean()


def test_short_paths_bound_from_below_and_above_on_average():
    # Two temperatures and few chains: the bias shows, with the promised signs.
    ais = AIS((0.0, 0.3, 1.0), MALA(1, 0.3), base_scale=2.0)
    truth = NORMALIZERS["gaussian"][2]
    low, high = [], []
    for i in range(200):
        like = torch.empty(10, 2, dtype=torch.float64)
        low.append(ais.forward(gaussian, like, seeded(i)).value)
        high.append(ais.reverse(gaussian, sample_gaussian(10, seeded(i + 999)), seeded(i)).value)
    low, high = torch.tensor(low), torch.tensor(high)
    assert low.mean() + 2 * low.std() / 200**0.5 < truth < high.mean() - 2 * high.std() / 200**0.5


def test_the_effective_sample_size_exposes_a_short_path_in_many_dimensions():
    precision = torch.linspace(1, 10, 50, dtype=torch.float64)
    energy = lambda x: 0.5 * (precision * x.square()).sum(1)  # noqa: E731
    like = torch.empty(256, 50, dtype=torch.float64)
    short = AIS(10, MALA(1, 0.25)).forward(energy, like, seeded())
    long = AIS(300, MALA(1, 0.25)).forward(energy, like, seeded())
    truth = 25 * math.log(2 * math.pi) - 0.5 * precision.log().sum()
    assert short.effective_sample_size < 0.05 * 256 < long.effective_sample_size
    assert abs(long.value - truth) < abs(short.value - truth)


def test_ais_counts_one_gradient_per_move():
    energy = Counted(gaussian)
    AIS(20, MALA(1, 0.3)).forward(energy, torch.empty(3, 2))
    assert energy.count == 21


def test_ais_draws_noise_for_many_betas_at_once_in_bounded_blocks(monkeypatch):
    sizes = []
    draw = MALA.draw
    monkeypatch.setattr(MALA, "draw", lambda k, n, *a: sizes.append(n) or draw(k, n, *a))
    monkeypatch.setattr(noise, "NOISE_BLOCK", 3 * 2 * 30)
    AIS(40, MALA(2, 0.3)).forward(gaussian, torch.empty(3, 2))
    assert sizes == [30, 30, 20]


def test_effective_sample_size_of_known_weights():
    assert effective_sample_size(torch.zeros(7)) == pytest.approx(7)
    assert effective_sample_size(torch.tensor([1.0, 3.0]).double().log() + 900) == pytest.approx(
        16 / 10
    )


def test_ais_settings_are_checked():
    with pytest.raises(TypeError, match="kernel is a Langevin"):
        AIS(10, Langevin(1, 0.1))
    for kernel in (MALA(3, (0.3, 5.0, 5.0)), HMC(2, [0.3, 0.1])):
        with pytest.raises(ValueError, match=r"step size at every beta, got (tuple|list)"):
            AIS(10, kernel)
    with pytest.raises(ValueError, match="betas are"):
        AIS((0.0, 0.5), MALA(1, 0.1))
    with pytest.raises(ValueError, match="betas are 0"):
        AIS(0, MALA(1, 0.1))
    with pytest.raises(ValueError, match="base_scale is 0"):
        AIS(10, MALA(1, 0.1), base_scale=0.0)


# Parallel tempering


def wells(x):
    """Two wells 8 apart, barrier 32 nats: one chain never crosses; weights 1/4 and 3/4."""
    a = -0.5 * (x - torch.tensor([4.0, 0.0]).to(x)).square().sum(1)
    b = -0.5 * (x + torch.tensor([4.0, 0.0]).to(x)).square().sum(1) * 1.0
    return -torch.logaddexp(a + math.log(0.25), b + math.log(0.75))


def test_tempering_finds_the_weights_that_a_single_chain_misses():
    start = torch.tensor([[4.0, 0.0]], dtype=torch.float64).repeat(600, 1)
    stuck = MALA(400, 1.0)(wells, start, seeded())
    assert (stuck[:, 0] > 0).double().mean() > 0.95
    tempering = ParallelTempering(MALA(2, 1.0), (1.0, 2.0, 4.0, 9.0, 20.0), num_swaps=300)
    chain = tempering.run(wells, start, seeded())
    exchanged = chain.exchange
    share = (chain.x[:, 0] > 0).double().mean()
    assert abs(share - 0.25) < 4.5 * (0.25 * 0.75 / 600) ** 0.5
    assert exchanged.shape == (4,) and (exchanged > 0.15).all()
    assert torch.equal(chain.x, tempering(wells, start, seeded()))
    inside = chain.x - torch.tensor([4.0, 0.0]) * chain.x[:, :1].sign()
    assert (inside.var(0) - 1).abs().max() < 4.5 * (2 / 600) ** 0.5


def test_tempering_has_the_right_moments_at_temperature_one():
    tempering = ParallelTempering(HMC(1, 0.4, num_leapfrog=4), (1.0, 1.5, 2.5), num_swaps=40)
    num = 10_000
    x = tempering(mixture, sample_mixture(num, seeded(1)), seeded(2))
    after, truth = moments(x), moments(sample_mixture(num, seeded(3)))
    z = (after.mean(0) - truth.mean(0)) / ((after.var(0) + truth.var(0)) / num).sqrt()
    assert z.abs().max() < 4.5, z


def test_tempering_counts_one_gradient_per_move_of_all_temperatures():
    energy = Counted(gaussian)
    ParallelTempering(MALA(3, 0.3), (1.0, 2.0, 4.0), num_swaps=5)(energy, torch.zeros(4, 2))
    assert energy.count == 3 * 5 + 1
    energy = Counted(gaussian)
    ParallelTempering(HMC(1, 0.3, num_leapfrog=4), (1.0, 2.0), 5)(energy, torch.zeros(4, 2))
    assert energy.count == 4 * 5 + 1


def test_tempering_settings_are_checked():
    with pytest.raises(ValueError, match="expected 1 first, then rising"):
        ParallelTempering(MALA(1, 0.1), (2.0, 4.0), 3)
    with pytest.raises(ValueError, match="scales one step size"):
        ParallelTempering(MALA(1, (0.1,)), (1.0, 4.0), 3)


# Underdamped Langevin


@pytest.mark.parametrize(("s", "friction"), [(0.5, 0.5), (1.2, 2.0)])
def test_underdamped_is_exact_in_position_on_a_gaussian(s, friction):
    # BAOAB: Var x = σ² for every stable step; Langevin at the same step is off by 1/(1 − s²/4).
    num = 200_000
    x = torch.randn(num, 1, dtype=torch.float64, generator=seeded(1))
    kernel = Underdamped(60, s, friction=friction)
    state = kernel._run(lambda x: 0.5 * x.square().sum(1), x, seeded(2))
    se = (2 / num) ** 0.5
    assert abs(state[0].var() - 1) < 4.5 * se
    assert abs(state[1].var() / (1 - s**2 / 4) - 1) < 4.5 * se  # the velocity carries the bias
    assert torch.equal(state[0], kernel(lambda x: 0.5 * x.square().sum(1), x, seeded(2)))


def test_underdamped_schedules_counts_and_errors():
    x = torch.randn(4, 2, dtype=torch.float64)
    energy = Counted(gaussian)
    Underdamped(6, 0.2)(energy, x)
    assert energy.count == 7
    rows = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    together = Underdamped(4, rows)(gaussian, x, seeded())
    for i in range(4):
        one = Underdamped(4, float(rows[i]))(gaussian, x, seeded())
        torch.testing.assert_close(together[i], one[i])
    torch.testing.assert_close(
        Underdamped(2, (0.3, 0.3))(gaussian, x, seeded()),
        Underdamped(2, 0.3)(gaussian, x, seeded()),
    )
    with pytest.raises(ValueError, match="friction is 0"):
        Underdamped(2, 0.1, friction=0.0)


# The restricted Boltzmann machine and Gibbs


def test_the_rbm_has_its_golden_numbers():
    rbm = golden_rbm()
    v = torch.tensor([[0.4, -0.7], [-1.0, 0.5]], dtype=torch.float64)
    rbm.requires_grad_(False)
    log_z = rbm.log_normalizer()
    assert float(log_z) == pytest.approx(3.5203528212902078, abs=1e-12)
    expected = torch.tensor([-2.3173362019, 0.7567359331], dtype=torch.float64)
    torch.testing.assert_close(rbm(v), expected, atol=1e-9, rtol=0)
    posterior = torch.tensor([0.6364525403, 0.2973393457, 0.7349725995], dtype=torch.float64)
    torch.testing.assert_close(rbm.hidden_probability(v)[0], posterior, atol=1e-9, rtol=0)
    p_h = torch.softmax(rbm.hidden_logits(), 0)
    assert float(p_h[1]) == pytest.approx(0.1592123415, abs=1e-9)
    assert grid(rbm, 8, 800)[0] == pytest.approx(float(log_z), abs=1e-9)


def test_gibbs_and_exact_sampling_agree_with_the_rbms_moments():
    rbm = golden_rbm().requires_grad_(False)
    p, h = torch.softmax(rbm.hidden_logits(), 0), rbm.hidden_states()
    means = rbm.visible_mean(h)
    mean = p @ means
    second = p @ (means.square() + (2 * rbm.log_scale).exp())
    num = 100_000
    start = torch.full((num, 2), 3.0, dtype=torch.float64)
    for v in (Gibbs(40)(rbm, start, seeded()), rbm.sample(num, seeded(5))):
        assert not v.requires_grad
        assert ((v.mean(0) - mean) / (v.std(0) / num**0.5)).abs().max() < 4.5
        se = v.square().std(0) / num**0.5
        assert ((v.square().mean(0) - second) / se).abs().max() < 4.5


def test_gibbs_has_the_interface_of_the_kernels():
    rbm = golden_rbm()
    x = torch.zeros(5, 2, dtype=torch.float64)
    assert isinstance(Gibbs(6), Sampler)
    chain = Gibbs(6).run(rbm, x, seeded())
    assert torch.equal(chain.x, Gibbs(6)(rbm, x, seeded()))
    assert torch.equal(chain.x, chain.trajectory[-1]) and chain.acceptance is None
    assert torch.equal(Gibbs(6).run(rbm, x, seeded(), every=2).trajectory, chain.trajectory[1::2])
    torch.testing.assert_close(chain.energies[3], rbm(chain.trajectory[3]).detach())
    assert rbm.weight.requires_grad and not chain.energies.requires_grad
    with torch.inference_mode():
        again = Gibbs(6)(rbm, x.clone(), seeded())
    assert torch.equal(again, chain.x) and not again.is_inference()
    zero = Gibbs(0)(rbm, x)
    assert torch.equal(zero, x) and zero.data_ptr() != x.data_ptr()
    with pytest.raises(ValueError, match="every is 0"):
        Gibbs(6).run(rbm, x, every=0)


def test_tempering_keeps_one_exchange_in_every():
    tempering, x = ParallelTempering(MALA(2, 0.5), (1.0, 2.0), 7), torch.zeros(4, 2)
    whole = tempering.run(gaussian, x, seeded())
    part = tempering.run(gaussian, x, seeded(), every=3)
    assert torch.equal(part.trajectory, whole.trajectory[2::3]) and torch.equal(part.x, whole.x)
    torch.testing.assert_close(part.energies, whole.energies[2::3])
    assert torch.equal(part.exchange, whole.exchange) and part.exchange.shape == (1,)
    with pytest.raises(ValueError, match="every is 0"):
        tempering.run(gaussian, x, every=0)


def test_gibbs_and_enumeration_explain_themselves():
    with pytest.raises(TypeError, match="function has no `sample_hidden`"):
        Gibbs(1)(gaussian, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"2\^30 states; expected at most 20"):
        GaussianBernoulliRBM(2, 30).log_normalizer()


@pytest.mark.parametrize(
    ("energy", "log_z", "second"),
    [(double_well, 1.263177, (0.85214, 1.0)), (two_moons, 1.877502, (3.30350, 1.39528))],
)
def test_ais_agrees_with_quadrature_in_two_dimensions(energy, log_z, second):
    value, moment = grid(energy, 8, 800)
    assert value == pytest.approx(log_z, abs=1e-6)
    assert moment.diagonal().tolist() == pytest.approx(second, abs=1e-4)
    like = torch.empty(1000, 2, dtype=torch.float64)
    estimate = AIS(60, MALA(2, 0.4), base_scale=2.0).forward(energy, like, seeded())
    assert abs(estimate.value - value) < 4 * estimate.error < 0.3
