"""MALA and HMC: exact invariance, detailed balance, the integrator, minimal gradient counts."""

import math

import pytest
import torch
from targets import (
    MEANS,
    TARGETS,
    WEIGHTS,
    Counted,
    banana,
    double_well,
    gaussian,
    grid,
    moments,
    seeded,
)

from eblvm.samplers import (
    AIS,
    HMC,
    MALA,
    Langevin,
    ParallelTempering,
    Underdamped,
    analytic,
    potential,
)
from eblvm.samplers.hmc import leapfrog
from eblvm.samplers.mala import mala_step
from eblvm.samplers.potential import Potential
from eblvm.samplers.score import value_and_gradient

KERNELS = {"MALA": MALA(3, 0.6), "HMC": HMC(2, 0.35, num_leapfrog=4)}


@pytest.mark.parametrize("target", TARGETS, ids=TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_exact_samples_stay_exact(target, name):
    # 100,000 chains started at exact samples: every moment must equal that of a second exact set
    # within 4.5 standard errors of the difference. An inverted mask or a wrong ratio fails by 10s.
    energy, sample = TARGETS[target]
    num = 100_000
    chain = KERNELS[name].run(energy, sample(num, seeded(1)), seeded(2), every=1)
    assert 0.3 < chain.acceptance.mean() < 0.999  # rejections happen, or the test is empty
    after, truth = moments(chain.x), moments(sample(num, seeded(3)))
    z = (after.mean(0) - truth.mean(0)) / ((after.var(0) + truth.var(0)) / num).sqrt()
    assert z.abs().max() < 4.5, z


def test_the_unadjusted_chain_fails_the_same_test():
    energy, sample = TARGETS["banana"]
    after = moments(Langevin(3, 0.6)(energy, sample(100_000, seeded(1)), seeded(2)))
    truth = moments(sample(100_000, seeded(3)))
    z = (after.mean(0) - truth.mean(0)) / ((after.var(0) + truth.var(0)) / 100_000).sqrt()
    assert z.abs().max() > 10


@pytest.mark.parametrize(
    "kernel", [MALA(2500, 0.35), HMC(400, 0.2, num_leapfrog=8)], ids=["MALA", "HMC"]
)
@pytest.mark.parametrize("target", TARGETS, ids=TARGETS)
def test_long_chains_from_a_bad_start_find_the_moments(target, kernel):
    # Tolerance from the spread between 64 independent chains: mean ± 4.5 standard errors.
    energy, sample = TARGETS[target]
    start = torch.randn(64, 2, dtype=torch.float64, generator=seeded(7))
    trajectory = kernel.run(energy, start, seeded(8)).trajectory
    trajectory = trajectory[len(trajectory) // 5 :]
    per_chain = moments(trajectory.reshape(-1, 2)).reshape(len(trajectory), 64, -1).mean(0)
    truth = moments(sample(1_000_000, seeded(9))).mean(0)
    z = (per_chain.mean(0) - truth) / (per_chain.std(0) / 8)
    assert z.abs().max() < 4.5, z


def test_mixture_weights_are_found():
    energy, _ = TARGETS["mixture"]
    start = torch.zeros(256, 2, dtype=torch.float64)
    x = HMC(600, 0.4, num_leapfrog=6).run(energy, start, seeded(), every=3).trajectory[40:]
    nearest = (x[..., None, :] - MEANS).square().sum(-1).argmin(-1)  # (N, B)
    shares = torch.nn.functional.one_hot(nearest, 3).double().mean(0)  # per chain
    _, sample = TARGETS["mixture"]
    exact = (sample(1_000_000, seeded(4))[:, None] - MEANS).square().sum(-1).argmin(-1)
    truth = torch.bincount(exact, minlength=3) / len(exact)
    assert (truth - WEIGHTS).abs().max() < 0.05  # the cells carry about the weights
    assert ((shares.mean(0) - truth) / (shares.std(0) / 16)).abs().max() < 4.5


@pytest.mark.parametrize("kernel", [MALA(400, 0.5), HMC(80, 0.3, num_leapfrog=5)])
def test_the_double_well_agrees_with_its_grid(kernel):
    log_z, truth = grid(double_well, 6, 600)
    assert abs(log_z - 1.263177) < 1e-6
    start = torch.randn(2000, 2, dtype=torch.float64, generator=seeded(3)).sign()
    x = kernel(double_well, start, seeded(4))
    for i in range(2):
        se = x[:, i].square().std() / 2000**0.5
        assert abs(x[:, i].square().mean() - truth[i, i]) < 4.5 * se


def test_detailed_balance_of_mala_by_its_densities():
    # π(x) q(y|x) α(x→y) = π(y) q(x|y) α(y→x), from the definition, not from the formula used.
    s = 0.8
    x = torch.randn(500, 2, dtype=torch.float64)
    eps = torch.randn(500, 2, dtype=torch.float64)
    e, g = value_and_gradient(banana, x)
    y = x - s**2 / 2 * g + s * eps
    e_y, g_y = value_and_gradient(banana, y)

    def log_q(to, start, gradient):
        return -0.5 * ((to - start + s**2 / 2 * gradient) / s).square().sum(1)

    log_ratio = (-e_y + log_q(x, y, g_y)) - (-e + log_q(y, x, g))
    zero = torch.zeros(500, dtype=torch.float64)
    potential = Potential(banana, x, 0)
    numbers = (-0.5 * s**2, s, 0.5 * s)
    *_, forward = mala_step(potential, (x, e, g, zero), (eps, zero), numbers)
    back = (x - y + s**2 / 2 * g_y) / s  # the noise of the reverse move
    reached, *_, backward = mala_step(potential, (y, e_y, g_y, zero), (back, zero - 1), numbers)
    torch.testing.assert_close(reached, x, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(forward, log_ratio.clamp(max=0).exp(), atol=1e-10, rtol=1e-8)
    flow = forward.log() - e + log_q(y, x, g)
    reverse = backward.log() - e_y + log_q(x, y, g_y)
    finite = (forward > 0) & (backward > 0)
    assert finite.sum() > 300
    torch.testing.assert_close(flow[finite], reverse[finite], atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", KERNELS)
def test_detailed_balance_of_the_chain(name):
    # At stationarity pairs (x, x') and (x', x) have one law: odd functions of the swap average 0.
    energy, sample = TARGETS["banana"]
    num = 100_000
    x = sample(num, seeded(1))
    y = type(KERNELS[name])(**{**vars(KERNELS[name]), "num_steps": 1})(energy, x, seeded(2))
    odd = [x[:, 0] * y[:, 1] - y[:, 0] * x[:, 1], x[:, 0] ** 2 * y[:, 1] - y[:, 0] ** 2 * x[:, 1]]
    odd.append((x[:, 0] > 0.5) * 1.0 * (y[:, 0] <= 0.5) - (y[:, 0] > 0.5) * 1.0 * (x[:, 0] <= 0.5))
    for f in odd:
        assert abs(f.mean()) < 4.5 * f.std() / num**0.5


def fly(x, p, s, num_leapfrog):
    potential = Potential(banana, x, 0)
    y, q, *_ = leapfrog(potential, x, p, *potential(x), (-s / 2, s, -s), num_leapfrog)
    return y, q


def test_leapfrog_is_reversible():
    x, p = torch.randn(2, 50, 2, dtype=torch.float64)
    y, q = fly(x, p, 0.1, 12)
    back, momentum = fly(y, -q, 0.1, 12)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)
    torch.testing.assert_close(-momentum, p, atol=1e-10, rtol=0)
    assert (y - x).abs().max() > 0.5  # it went somewhere


def test_leapfrog_preserves_volume():
    # A numerical Jacobian, so that no second derivative of the code itself is trusted.
    z = torch.randn(4, dtype=torch.float64)
    h = 1e-5
    shifts = torch.cat([h * torch.eye(4), -h * torch.eye(4)]).double()
    points = z + shifts
    y, q = fly(points[:, :2], points[:, 2:], 0.15, 7)
    flown = torch.cat([y, q], 1)
    jacobian = (flown[:4] - flown[4:]).T / (2 * h)
    assert abs(torch.linalg.det(jacobian).abs() - 1) < 1e-6  # O(h²) of the differences


def test_leapfrog_errs_by_the_square_of_its_step():
    x, p = 0.5 * torch.randn(2, 200, 2, dtype=torch.float64)
    errors = []
    for s in (0.02, 0.01):
        y, q = fly(x, p, s, round(1 / s))
        h = banana(y) - banana(x) + 0.5 * (q.square() - p.square()).sum(1)
        errors.append(h.abs().mean())
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.1


@pytest.mark.parametrize("num_steps", [0, 1, 7])
def test_gradient_counts_are_minimal(num_steps):
    x = torch.randn(5, 2)
    for kernel, expected in [
        (Langevin(num_steps, 0.1), num_steps),
        (MALA(num_steps, 0.1), num_steps + 1),
        (HMC(num_steps, 0.1, num_leapfrog=4), 4 * num_steps + 1),
    ]:
        energy = Counted(gaussian)
        kernel(energy, x)
        assert energy.count == expected, kernel


def unreadable(x):
    return gaussian(x) + 0 * torch.special.erf(x).sum(1)


@pytest.fixture
def autograd(monkeypatch):
    """How often autograd was asked for a gradient."""
    asked = []
    for module, name in [
        (analytic, "value_and_gradient"),
        (potential, "value_and_gradient"),
        (potential, "checked_gradient"),
    ]:
        ask = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, ask=ask: asked.append(1) or ask(*a))
    return asked


LONG = {
    "Langevin": (Langevin(40, 0.1), 40),
    "MALA": (MALA(40, 0.1), 41),
    "HMC": (HMC(4, 0.1, num_leapfrog=10), 41),
    "underdamped": (Underdamped(40, 0.1), 41),
    "tempering": (ParallelTempering(MALA(8, 0.1), (1.0, 2.0), 5), 41),
    "tempering with HMC": (ParallelTempering(HMC(1, 0.1, num_leapfrog=10), (1.0, 2.0), 5), 51),
    "AIS": (AIS(20, MALA(2, 0.1)).forward, 41),
    "AIS with HMC": (AIS(5, HMC(1, 0.1, num_leapfrog=10)).forward, 51),
    "adaptation": (lambda e, x: MALA(1, 0.1).adapt(e, x, 40), 41),
    "adaptation of HMC": (lambda e, x: HMC(1, 0.1, num_leapfrog=10).adapt(e, x, 5), 51),
}


@pytest.mark.parametrize("name", LONG)
def test_autograd_is_asked_once_or_once_per_gradient(name, autograd):
    run, gradients = LONG[name]
    run(gaussian, torch.randn(5, 2))
    assert len(autograd) == 1  # the comparison, which is the first gradient as well
    autograd.clear()
    run(unreadable, torch.randn(5, 2))
    assert len(autograd) == gradients


def test_recording_and_adapting_cost_no_more_evaluations():
    x = torch.randn(5, 2)
    for run, expected in [
        (MALA(20, 0.1).run, 21),
        (HMC(5, 0.1, num_leapfrog=4).run, 21),
        (ParallelTempering(MALA(4, 0.1), (1.0, 2.0), 5).run, 21),
        (Langevin(12, 0.1).run, 24),  # its state holds no energy
        (lambda e, x: MALA(1, 0.1).adapt(e, x, 20), 21),
        (lambda e, x: HMC(1, 0.1, num_leapfrog=4).adapt(e, x, 5), 21),
    ]:
        energy = Counted(gaussian)
        run(energy, x)
        assert energy.count == expected
    for kernel in (*KERNELS.values(), ParallelTempering(MALA(2, 0.3), (1.0, 2.0), 4)):
        chain = kernel.run(banana, x.double(), seeded())
        for states, energies in zip(chain.trajectory, chain.energies, strict=True):
            torch.testing.assert_close(energies, banana(states))


def test_a_null_move_is_always_accepted():
    x = torch.randn(200, 2, dtype=torch.float64)
    flat = lambda x: 0 * x.sum(1)  # noqa: E731
    assert MALA(5, 0.5).run(flat, x).acceptance.min() == 1
    assert HMC(5, 0.5).run(flat, x).acceptance.min() > 1 - 1e-12


def test_walls_and_undefined_energies_are_never_entered():
    def walled(x):  # below 0 infinite, above 1 undefined
        outside = torch.where(x.amin(1) < 0, math.inf, math.nan)
        return torch.where((x - 0.5).abs().amax(1) < 0.5, x.sum(1), outside)

    x = torch.full((300, 2), 0.5, dtype=torch.float64)
    for kernel in (MALA(200, 0.4), HMC(100, 0.2, num_leapfrog=3)):
        chain = kernel.run(walled, x)
        assert chain.x.min() >= 0 and chain.x.max() <= 1 and chain.acceptance.isfinite().all()
        mean, se = chain.x.mean(), 0.2816 / 600**0.5
        assert abs(mean - 0.41802) < 4.5 * se  # exp(−x) on [0, 1]: mean 1 − 1/(e − 1)


def test_rows_do_not_depend_on_each_other_or_on_the_batch():
    # The step is per row: the gradient is summed over the batch, never averaged.
    x = torch.randn(8, 2, dtype=torch.float64)
    rows = torch.linspace(0.1, 0.8, 8, dtype=torch.float64)
    for make in (lambda s: MALA(6, s), lambda s: HMC(3, s, num_leapfrog=2)):
        together = make(rows)(banana, x, seeded())
        for i in range(8):
            one = make(float(rows[i]))(banana, x, seeded())
            torch.testing.assert_close(together[i], one[i])


@pytest.mark.parametrize(("kernel", "target"), [(MALA(1, 5.0), 0.574), (HMC(1, 0.01), 0.8)])
def test_dual_averaging_reaches_its_acceptance(kernel, target):
    start = torch.randn(200, 2, dtype=torch.float64, generator=seeded())
    adapted, x = kernel.adapt(gaussian, start, num_steps=300, generator=seeded())
    acceptance = type(kernel)(200, adapted.step_size).run(gaussian, x, seeded()).acceptance.mean()
    assert abs(acceptance - target) < 0.08  # the average of noisy iterates, not a root


def test_a_generator_decides_everything():
    x = torch.randn(5, 2)
    for kernel in KERNELS.values():
        state = torch.get_rng_state()
        a, b = kernel(banana, x, seeded()), kernel(banana, x, seeded())
        assert torch.equal(a, b) and not a.requires_grad
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(kernel.run(banana, x, seeded()).x, a)
        assert not torch.equal(a, kernel(banana, x, seeded(2)))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3, 3), (0, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_event_shape_and_dtype(shape, dtype):
    energy = lambda x: x.square() if x.ndim == 1 else x.square().flatten(1).sum(1)  # noqa: E731
    for kernel in KERNELS.values():
        out = kernel(energy, torch.randn(shape).to(dtype))
        assert out.shape == shape and out.dtype == dtype


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="num_leapfrog is 0; expected 1 or more"):
        HMC(1, 0.1, num_leapfrog=0)
    with pytest.raises(ValueError, match="step_size is -1"):
        MALA(1, -1)
    with pytest.raises(ValueError, match=r"target is 1\.5"):
        MALA(1, 0.1).adapt(gaussian, torch.zeros(1, 2), target=1.5)
    with pytest.raises(ValueError, match="num_steps is 0; expected 1"):
        MALA(1, 0.1).adapt(gaussian, torch.zeros(1, 2), num_steps=0)
    with pytest.raises(ValueError, match="first guess of the step size, got tuple"):
        MALA(1, (0.1,)).adapt(gaussian, torch.zeros(1, 2))
