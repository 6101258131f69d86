"""The diffusion prior: linear-Gaussian where its energies are constant or quadratic."""

import math

import pytest
import torch
from torch import nn

from eblvm.energies import RecoveryEnergy, SymbolVectorTimeEnergy, TimeEnergy
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import DialogueLikelihood, GaussianLikelihood
from eblvm.metrics.grid import log_normalizer
from eblvm.models.networks import (
    DialogueDecoder,
    DialogueEncoder,
    ResidualTimeNet,
    settle_spectral_norms,
)
from eblvm.posteriors import AmortizedPosterior, DialoguePosterior
from eblvm.priors import DiffusionEnergyPrior, EnergyPrior
from eblvm.samplers import AIS, MALA, Langevin
from eblvm.schedules import LinearSchedule, RecoverySchedule

STEPS = 50


class QuadraticTime(TimeEnergy):
    """E(x, t) = ½ κ_t ‖x‖² + 0 · x, so that κ = 0 has a gradient, too."""

    def __init__(self, kappa):
        super().__init__()
        self.kappa = nn.Parameter(torch.tensor(kappa, dtype=torch.float64))

    def forward(self, x, t, context=None):
        return 0.5 * self.kappa[t] * x.square().sum(-1)


def quadratic(kappa=(0.0,) * 6, dim=2, **settings):
    """A prior of quadratic energies in float64; κ_t is in units of the energy, not of E/τ."""
    torch.set_default_dtype(torch.float64)
    try:
        prior = DiffusionEnergyPrior(
            dim, QuadraticTime(list(kappa)), RecoverySchedule(len(kappa)), **settings
        )
    finally:
        torch.set_default_dtype(torch.float32)
    return prior


def network(dim=2, symbols=3, num_timesteps=6, **settings):
    torch.set_default_dtype(torch.float64)
    try:
        net = ResidualTimeNet(dim, symbols, num_timesteps, width=8, num_blocks=2)
        tilt = SymbolVectorTimeEnergy(net)
        prior = DiffusionEnergyPrior(dim, tilt, RecoverySchedule(num_timesteps), **settings)
    finally:
        torch.set_default_dtype(torch.float32)
    return prior.eval()


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def test_constants_of_the_levels():
    prior = quadratic()
    variance = [2.0953777e-4, 1.7276842e-2, 4.6861291e-2, 7.9202030e-2, 1.0742030e-1, 1.9196320e-1]
    weight = [1.0, 0.62668571, 0.51198126, 0.45381534, 0.41853269, 0.32376421]
    like = {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(prior.temperature, torch.tensor(variance).double(), **like)
    torch.testing.assert_close(prior.step_size**2, torch.tensor(variance).double(), **like)
    torch.testing.assert_close(prior.weight, torch.tensor(weight).double(), **like)
    torch.testing.assert_close(prior.scale[:5], prior.schedule.a[1:6])
    assert prior.scale[5] == 1
    plain = quadratic(temperature=1.0, weighted=False)
    assert plain.temperature.eq(1).all() and plain.weight.eq(1).all()
    torch.testing.assert_close(plain.step_size, prior.step_size)
    with pytest.raises(ValueError, match="temperature is 0"):
        quadratic(temperature=0.0)


@pytest.mark.parametrize("level", range(6))
def test_chain_of_a_flat_energy_is_linear_gaussian(level):
    """Published deviations after 50 steps; contraction ρ = 1 − s²/2σ² toward the tie's center."""
    prior = quadratic()
    num = 20_000
    u = torch.full((num, 2), 1.5).double()
    y = prior._run(u, torch.full((num,), level), seeded())
    deviation = [0.0999, 0.5110, 0.6409, 0.7274, 0.7913, 1.0246][level]
    mean = 1.5 if level < 5 else 0.0064 * 1.5
    assert not y.requires_grad
    # rounding of the table, and four standard errors
    assert float(y.std()) == pytest.approx(deviation, rel=4 / math.sqrt(4 * num) + 1e-3)
    assert float(y.mean()) == pytest.approx(mean, abs=4 * deviation / math.sqrt(2 * num) + 1e-4)


@pytest.mark.parametrize("level", range(6))
def test_chain_of_a_flat_energy_has_its_published_stationary_deviation(level):
    """s / √(1 − ρ²), by a chain that starts at its center and is run until it stays."""
    prior = quadratic(num_steps=2000 if level == 0 else 100)
    num = 4_000
    y = prior._run(torch.zeros(num, 2).double(), torch.full((num,), level), seeded())
    deviation = [0.3238, 0.5207, 0.6417, 0.7275, 0.7913, 1.0246][level]
    assert float(y.std()) == pytest.approx(deviation, rel=4 / math.sqrt(4 * num) + 1e-3)


def test_generation_with_a_flat_energy_inflates():
    states = quadratic().trajectory(10_000, seeded())
    published = [1.0, 1.0246, 2.0421, 3.0928, 4.0766, 4.7981, 5.0721]
    assert len(states) == 7
    for z, deviation in zip(states, published, strict=True):
        assert float(z.std()) == pytest.approx(deviation, rel=4 / math.sqrt(40_000))


def test_a_stationary_prior_without_a_tilt_is_the_standard_normal():
    prior = quadratic(stationary=True, num_normalizer=2)
    z = torch.randn(6, 2, dtype=torch.float64)
    exact = -0.5 * z.square().sum(1) - math.log(2 * math.pi)
    # but for the last level's base, N(0, σ_T²), and σ_T = 0.9997
    torch.testing.assert_close(prior.log_prob(z, generator=seeded()), exact, rtol=0, atol=5e-3)
    torch.testing.assert_close(prior.loss(z, seeded()), 0.5 * z.square().sum(1))
    # a step is the product of its Gaussians: base and tie
    t = torch.tensor([0, 3])
    y, z_next = torch.randn(2, 2, 2, dtype=torch.float64)
    a, sigma = prior.schedule.a[t + 1], prior.schedule.sigma[t + 1]

    def product(y):
        tie = (y - z_next).square().sum(1) / sigma**2
        return 0.5 * (y.square().sum(1) / a**2 + tie)

    step, other = prior.conditional(z_next, t), torch.randn_like(y)
    torch.testing.assert_close(step(y) - step(other), product(y) - product(other))


@pytest.mark.parametrize(("num_steps", "step_variance"), [(50, 2e-3), (10, 8e-3)])
def test_generation_of_a_stationary_prior_does_not_inflate(num_steps, step_variance):
    """Chains start at the center c = a² z_{t+1}, so that x ~ N(c, s² (1 − ρ^2n)/(1 − ρ²))."""
    prior = quadratic(stationary=True, num_steps=num_steps, step_variance=step_variance)
    assert (prior.step_size < 1.2 * prior.width).all()  # each step contracts, ρ > 0.28
    states = prior.trajectory(10_000, seeded())
    variance = float(states[1].var())
    for level, z in zip(reversed(range(5)), states[2:], strict=True):
        s2, width2 = float(prior.step_size[level] ** 2), float(prior.width[level] ** 2)
        rho = 1 - s2 / (2 * width2)
        drawn = s2 * (1 - rho ** (2 * num_steps)) / (1 - rho**2)
        a2 = float(prior.schedule.a[level + 1] ** 2)
        variance = drawn / a2 + a2 * variance
        assert float(z.var()) == pytest.approx(variance, rel=8 / math.sqrt(40_000))
    assert 0.85 < variance < 1.2  # 25.7 without the base


@pytest.mark.parametrize("level", [2, 5])
def test_chain_of_a_quadratic_energy_has_its_stationary_moments(level):
    """The chain x ← ρx + … on precision Λ = κ/τ + 1/σ², with the bias of its step."""
    kappa = [0.0] * 6
    kappa[level] = 0.3
    prior = quadratic(kappa, num_steps=300)
    u = torch.full((20_000, 2), 2.0).double()
    y = prior._run(u, torch.full((20_000,), level), seeded())
    s2, sigma2 = float(prior.step_size[level] ** 2), float(prior.schedule.sigma[level + 1] ** 2)
    precision = 0.3 / s2 + 1 / sigma2
    mean = 2.0 / sigma2 / precision if level < 5 else 0.0
    rho = 1 - s2 * precision / 2
    deviation = math.sqrt(s2 / (1 - rho**2))
    assert float(y.mean()) == pytest.approx(mean, abs=4 * deviation / 200)
    assert float(y.std()) == pytest.approx(deviation, rel=4 / math.sqrt(80_000))


def test_energy_of_a_step_has_one_definition():
    prior = network()
    t = torch.tensor([0, 3, 5])
    z_next, y = torch.randn(2, 3, 2, dtype=torch.float64)
    step = prior.conditional(z_next, t)
    assert isinstance(step, RecoveryEnergy)
    sigma = prior.schedule.sigma[t + 1]
    center = z_next.clone()
    center[2] = 0  # the last level stands alone
    tie = (y - center).square().sum(1) / (2 * sigma**2)
    torch.testing.assert_close(step(y), prior.tilt(y, t) / prior.temperature[t] + tie)


def test_loss_is_the_published_one_with_its_stops():
    """Terms pos, base and cd written out, each with the parts through which it may pass."""
    prior = network(num_steps=3)
    z = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    prior.loss(z, seeded()).mean().backward()
    ours = {name: p.grad.clone() for name, p in prior.named_parameters()}
    in_z = z.grad.clone()
    prior.zero_grad()
    z.grad = None

    generator, last = seeded(), 5
    top = prior.schedule.sample_pair(z, torch.full((5,), last), generator)
    t = torch.randint(last, (5,), generator=generator)
    low = prior.schedule.sample_pair(z, t, generator)
    levels = torch.cat([t, torch.full((5,), last)])
    z_t, z_next = torch.cat([low[0], top[0]]), torch.cat([low[1], top[1]])
    negative = prior._run(z_next.detach(), levels, generator)
    w = prior.weight[levels]

    def f(x, frozen):
        for p in prior.parameters():
            p.requires_grad_(not frozen)
        value = -prior.tilt(x, levels)
        for p in prior.parameters():
            p.requires_grad_(True)
        return value

    scaled = prior.scale[levels, None] * z_t
    pos = -(w * f(scaled, frozen=True)).view(2, 5).sum(0)
    base = prior.weight[last] * 0.5 * top[0].square().sum(1)
    contrast = w * (f(negative, frozen=False) - f(scaled.detach(), frozen=False))
    (pos + base + contrast.view(2, 5).sum(0)).mean().backward()
    torch.testing.assert_close(in_z, z.grad)
    for name, p in prior.named_parameters():
        torch.testing.assert_close(ours[name], p.grad)
    assert any(g.abs().max() > 1e-6 for g in ours.values())


def test_contrast_in_the_parameters_is_its_finite_difference():
    prior = network(num_steps=3)
    z = torch.randn(4, 2, dtype=torch.float64)
    weight = prior.tilt.net.head.bias
    samples = {}

    def frozen_run(z_next, t, *rest):
        if "negative" not in samples:
            samples["negative"] = run(z_next, t, *rest)
        return samples["negative"]

    run, prior._run = prior._run, frozen_run
    prior.loss(z, seeded()).sum().backward()
    gradient, h = float(weight.grad[1]), 1e-6
    values = []
    for step in (h, -h):
        with torch.no_grad():
            weight[1] += step
            values.append(float(prior.loss(z, seeded()).sum()))
            weight[1] -= step
    assert gradient == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)
    assert abs(gradient) > 1e-6


def test_divergence_adds_the_entropy_and_its_mask():
    prior = network(num_steps=2, free_bits=1.0)
    mean = torch.zeros(2, 2, dtype=torch.float64)
    log_variance = torch.tensor([[-2.9, -3.1], [0.0, -4.0]], dtype=torch.float64)
    log_variance.requires_grad_()
    z = mean.clone()
    entropy = prior.divergence(z, mean, log_variance, seeded()) - prior.loss(z, seeded())
    torch.testing.assert_close(entropy, torch.tensor([1.05, 1.5]).double())
    (gradient,) = torch.autograd.grad(entropy.sum(), log_variance)
    assert gradient.tolist() == [[0.0, -0.5], [0.0, -0.5]]
    assert all(p.grad is None for p in prior.parameters())


@pytest.mark.parametrize("stationary", [False, True])
def test_neglected_gradient_of_the_normalizers(stationary):
    """Quadratic: log Z(u) = −½ Σ u² κ/(τ + κσ²) + const, whose gradient the chain estimates.

    It comes times τ, for energies come undivided by it.
    """
    kappa, num = 0.02, 10_000
    settings = {"num_steps": 200, "step_variance": 2e-2, "stationary": stationary}
    prior = quadratic((kappa, 0.0), **settings)
    z = torch.full((num, 2), 1.0, dtype=torch.float64, requires_grad=True)
    gradients = []
    for prior.normalizer_gradient in (False, True):
        (g,) = torch.autograd.grad(prior.loss(z, seeded()).sum(), z)
        gradients.append(g)
    found = (gradients[1] - gradients[0]).mean(0)
    tau, sigma = float(prior.temperature[0]), float(prior.schedule.sigma[1])
    # E(v) = ½κv²: over v ~ N(u, σ²), ∇ log E exp(−E/τ) = −u κ/(τ + κσ²), and E u = ā_1 z
    bar = float(prior.schedule.a_bar[1])
    if stationary:  # v ~ N(a² u, a² σ²)
        a = float(prior.schedule.a[1])
        sigma, bar = a * sigma, a**2 * bar
    exact = -bar * kappa / (tau + kappa * sigma**2) * bar  # u depends on z through ā_1, twice
    assert (found / tau).tolist() == pytest.approx([exact, exact], abs=0.012)


def test_one_level_is_a_tilted_gaussian():
    """Without temperature and noise before the energy this is EnergyPrior's own loss."""
    prior = quadratic((0.7,), num_steps=0, temperature=1.0)
    z = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    loss = prior.loss(z, seeded())
    z_0, z_1 = prior.schedule.sample_pair(z, torch.zeros(6, dtype=torch.long), seeded())
    tilted = EnergyPrior(2, Fixed(prior.tilt), Langevin(0, 0.1))
    tilted._noise = lambda num, generator: z_1.detach()  # no steps: its chains end where ours do
    expected = tilted.loss(z_0) - math.log(2 * math.pi)
    torch.testing.assert_close(loss.mean(), expected.mean())
    assert prior.weight.tolist() == [1.0]


class Fixed(nn.Module):
    """A time energy at level 0."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x):
        return self.energy(x, torch.zeros(len(x), dtype=torch.long))


def test_class_conditional_sampling_departs_at_the_last_level_only():
    prior = network(num_steps=4)
    marginal = prior.trajectory(30, seeded())
    label = torch.arange(30) % 3
    given = prior.trajectory(30, seeded(), label)
    for one, other in zip(marginal[:-1], given[:-1], strict=True):
        torch.testing.assert_close(one, other)
    assert (marginal[-1] - given[-1]).abs().max() > 1e-8
    # one symbol leaves no choice
    single = network(symbols=1, num_steps=4)
    z = single.sample(5, seeded(), torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(z, single.sample(5, seeded()))


class Sides(torch.nn.Module):
    """Logits ∓g x₁ of two symbols, at every level."""

    def __init__(self, g):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2, bias=False).double()
        self.linear.weight.data = torch.tensor([[-g, 0.0], [g, 0.0]]).double()

    def forward(self, x, t):
        return self.linear(x)


@pytest.mark.parametrize("kappa", [1.0, 0.1])
def test_samples_lie_on_the_side_of_their_symbol(kappa):
    """Given y, level 0 is a Gaussian of width w, shifted by ∓g w²/τ; above it is as for all."""
    g, tau, num = 0.3, 0.1, 20_000
    tilt = SymbolVectorTimeEnergy(Sides(g), kappa)
    settings = {"num_steps": 100, "step_variance": 0.1, "temperature": tau, "stationary": True}
    torch.set_default_dtype(torch.float64)
    try:
        prior = DiffusionEnergyPrior(2, tilt, RecoverySchedule(), **settings)
    finally:
        torch.set_default_dtype(torch.float32)
    label = torch.arange(num) % 2
    z = prior.sample(num, seeded(), label)[:, 0]
    apart = float(z[label == 1].mean() - z[label == 0].mean())
    shift = g * float(prior.width[0]) ** 2 / tau / float(prior.scale[0])
    assert apart == pytest.approx(2 * shift, abs=5 * 2 * float(z.std()) / num**0.5)
    assert 2 * shift > 0.3


def test_conditional_chain_samples_the_chosen_logit():
    """At level 0 the chain given y has the energy −f_y, not −logsumexp f."""
    prior = network(num_steps=1)
    u = torch.randn(4, 2, dtype=torch.float64)
    y = torch.tensor([2, 0, 1, 2])
    given = prior.tilt.given(u, torch.zeros(4, dtype=torch.long), y)
    logits = prior.tilt.logits(u, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(given, -logits[torch.arange(4), y])


@pytest.mark.parametrize("kappa", [1.0, 0.1])
def test_symbols_have_a_temperature(kappa):
    """E = −κ log Σ exp(f/κ); at κ = τ the density of a step is that of state and symbol, summed."""
    tau = 0.1
    net = network(temperature=tau).tilt.net
    energy = SymbolVectorTimeEnergy(net, symbol_temperature=kappa)
    u, t = torch.randn(5, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 5])
    f = net(u, t)
    torch.testing.assert_close(energy(u, t), -kappa * torch.logsumexp(f / kappa, 1))
    torch.testing.assert_close(energy.logits(u, t).softmax(1), (f / kappa).softmax(1))
    given = torch.stack([energy.given(u, t, torch.full((5,), y)) for y in range(3)], 1)
    torch.testing.assert_close(given, -f)
    summed, marginal = (-given / tau).exp().sum(1), (-energy(u, t) / tau).exp()
    consistent = torch.allclose(summed, marginal, rtol=1e-9)
    assert consistent == (kappa == tau)


def test_symbols_are_read_off_the_scaled_state():
    prior = network()
    z = torch.randn(4, 2, dtype=torch.float64)
    t = torch.zeros(4, dtype=torch.long)
    a = prior.schedule.a[1]
    torch.testing.assert_close(prior.symbol_logits(z), prior.tilt.logits(a * z, t))
    z_0 = prior.schedule.diffuse(z, 0, seeded())
    noised = prior.symbol_logits(z, seeded(), noise=True)
    torch.testing.assert_close(noised, prior.tilt.logits(a * z_0, t))


def test_normalized_weights_are_computed_once_per_chain():
    """A chain in training mode leaves the power iterations where they were, and equals eval's."""
    prior = network(num_steps=STEPS)
    t = torch.arange(6).repeat(5)
    u = torch.randn(30, 2, dtype=torch.float64)
    quiet = prior._run(u, t, seeded())
    before = {n: b.clone() for n, b in prior.named_buffers()}
    prior.train()
    torch.testing.assert_close(prior._run(u, t, seeded()), quiet)
    assert all(torch.equal(b, before[n]) for n, b in prior.named_buffers())


def test_spectral_norms_after_weights_are_overwritten():
    net = ResidualTimeNet(3, 2, width=8, num_blocks=1)
    with torch.no_grad():
        for p in net.parameters():
            p.uniform_(-0.1, 0.1)
    net.eval()
    assert max(abs(norm - 1) for norm in spectral_norms(net)) > 0.1  # stale vectors
    settle_spectral_norms(net)
    assert spectral_norms(net) == pytest.approx([1.0] * 7, abs=1e-3)
    assert not net.training


@torch.no_grad()
def spectral_norms(net):
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    return [float(torch.linalg.matrix_norm(layer.weight, 2)) for layer in layers]


def exact_moments(prior, kappa):
    """Variance of z_0 for quadratic energies, down the chain of exact conditionals."""
    schedule, last = prior.schedule, len(kappa) - 1
    variance = 1 / (kappa[last] / prior.temperature[last] + 1 / schedule.sigma[-1] ** 2)
    for t in reversed(range(last)):
        base = 1 / schedule.a[t + 1] ** 2 if prior.stationary else 0.0
        sigma2 = schedule.sigma[t + 1] ** 2
        precision = kappa[t] / prior.temperature[t] + 1 / sigma2 + base
        gain = 1 / (sigma2 * precision)
        variance = (1 / precision + gain**2 * variance) / schedule.a[t + 1] ** 2
    return float(variance)


KAPPA = (0.002, 0.02, 0.05)


@pytest.mark.parametrize("stationary", [False, True])
def test_log_prob_of_quadratic_energies_is_that_of_a_gaussian(stationary):
    """E p̂(z_0) = p(z_0) over noising chains; all conditionals Gaussian, hence p(z_0) too.

    The energies vary by less than a nat over a tie, so 2,000 draws tell Z to 2 %.
    """
    kappa = (3e-4, 0.02, 0.05)
    prior = quadratic(kappa, num_normalizer=2000, stationary=stationary)
    variance = exact_moments(prior, kappa)
    z = torch.tensor([[0.0, 0.0], [1.5, -1.0]], dtype=torch.float64)
    rows = z.repeat_interleave(400, 0)
    log_z = prior.log_normalizer(200_000, seeded(1))
    log_p = prior.log_prob(rows, log_z, seeded(2)).view(2, 400)
    estimate = log_p.logsumexp(1) - math.log(400)
    exact = -0.5 * z.square().sum(1) / variance - math.log(2 * math.pi * variance)
    spread = (log_p - estimate[:, None]).exp().std(1) / 20
    assert ((estimate - exact).abs() < 4 * spread + 0.02).all()


class Conditioned(QuadraticTime):
    """A quadratic energy whose curvature the context multiplies."""

    def forward(self, x, t, context=None):
        return context[:, 0] * super().forward(x, t)


@pytest.mark.parametrize("annealing", [None, AIS(5, MALA(num_steps=1, step_size=0.5))])
def test_log_prob_given_a_context_is_that_of_the_energy_it_makes(annealing):
    settings = {"num_normalizer": 200, "annealing": annealing}
    conditioned = quadratic(KAPPA, **settings)
    conditioned.tilt = Conditioned(KAPPA)
    z = torch.randn(1000, 2, dtype=torch.float64, generator=seeded(5))
    factor = torch.tensor([[1.0], [3.0]], dtype=torch.float64).repeat(500, 1)
    log_z = conditioned.log_normalizer(500, seeded(1), factor)
    assert log_z.shape == (1000,)
    found = conditioned.log_prob(z, log_z, seeded(2), factor)
    for row, c in enumerate((1.0, 3.0)):
        plain = quadratic([c * k for k in KAPPA], **settings)
        alone = plain.log_prob(z, log_z, seeded(2))  # the same noise
        torch.testing.assert_close(found[row::2], alone[row::2])
        exact = plain.log_normalizer(200_000, seeded(3))
        torch.testing.assert_close(log_z[row::2].mean(), exact, rtol=0, atol=0.01)


def test_annealed_normalizers_agree_with_the_closed_form():
    kernel = MALA(num_steps=1, step_size=0.5)
    prior = quadratic(KAPPA, num_normalizer=1000, annealing=AIS(40, kernel))
    center = torch.tensor([[0.0, 0.0], [2.0, -1.0]], dtype=torch.float64)
    found = prior._log_normalizer(center, 0, seeded())
    tau, sigma2 = float(prior.temperature[0]), float(prior.schedule.sigma[1]) ** 2
    ratio = KAPPA[0] / tau
    exact = -0.5 * center.square().sum(1) * ratio / (1 + ratio * sigma2)
    exact = exact - math.log(1 + ratio * sigma2)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)


@pytest.mark.parametrize("stationary", [False, True])
def test_quadrature_of_the_plane_agrees_with_the_gaussian(stationary):
    prior = quadratic(KAPPA, stationary=stationary)
    variance = exact_moments(prior, KAPPA)
    half = 6 * math.sqrt(variance)
    half = max(half, 6.0) if stationary else half  # z_T is wider than z_0 there
    axis = half * ((torch.arange(120).double() + 0.5) / 60 - 1)
    log_p = prior.log_prob_on_axis(axis)
    squared = axis[:, None] ** 2 + axis**2
    exact = -0.5 * squared / variance - math.log(2 * math.pi * variance)
    inside = squared < 9 * variance  # tails reach beyond the grid of later states
    torch.testing.assert_close(log_p[inside], exact[inside], rtol=0, atol=1e-3)


def test_quadrature_survives_energies_of_thousands_of_nats():
    prior = quadratic((4.0, 0.0))  # κ/τ = 19,000 per unit of z̃²
    axis = 6 * ((torch.arange(400).double() + 0.5) / 200 - 1)
    log_p = prior.log_prob_on_axis(axis)
    assert log_p.isfinite().all()
    squared = (log_p.exp() * (axis[:, None] ** 2)).sum() * (axis[1] - axis[0]) ** 2
    assert float(squared) < 0.01


def test_default_quadrature_is_the_energy_normalized():
    prior = EnergyPrior(2, Fixed(QuadraticTime([3.0])), Langevin(1, 0.1)).double()
    z, log_weight = prior.nodes()
    width = float(z[1, 1] - z[0, 1])
    grid = log_normalizer(prior.energy, ((-6, 6), (-6, 6)), 1000, dtype=torch.float64)
    expected = -prior.energy(z[:5]) - grid.log_z + 2 * math.log(width)
    torch.testing.assert_close(log_weight[:5], expected, rtol=1e-5, atol=1e-5)
    assert float(log_weight.exp().sum()) == pytest.approx(1)


def test_nodes_of_the_diffusion_prior_are_what_its_chains_draw():
    prior = network(num_steps=1)
    z, log_weight = prior.nodes(seeded())
    assert z.shape == (10_000, 2) and float(log_weight.exp().sum()) == pytest.approx(1)
    torch.testing.assert_close(z[:1000], prior.sample(1000, seeded()))


def test_chains_are_those_of_each_level():
    prior = network(num_steps=7)
    chains = prior.chains(seeded())
    assert list(chains) == [f"prior_level_{t}" for t in reversed(range(6))]
    for t, setup in zip(reversed(range(6)), chains.values(), strict=True):
        start = setup.start(4, seeded())
        assert (start - start[:1]).abs().max() == 0  # all given the same noisier state
        assert setup.sampler.step_size == pytest.approx(float(prior.step_size[t]))
        assert setup.sampler(setup.energy, start, seeded()).shape == (4, 2)


def test_context_reaches_the_energy_and_no_gradient_comes_back():
    torch.set_default_dtype(torch.float64)
    try:
        net = ResidualTimeNet(2, 3, width=8, num_blocks=1, context_dim=4)
        prior = DiffusionEnergyPrior(
            2, SymbolVectorTimeEnergy(net), RecoverySchedule(), num_steps=3
        )
    finally:
        torch.set_default_dtype(torch.float32)
    prior.eval()
    z, context = torch.randn(5, 2).double(), torch.randn(5, 4).double()
    context.requires_grad_()
    z.requires_grad_()
    prior.loss(z, seeded(), context).sum().backward()
    assert context.grad is None and z.grad.abs().max() > 0
    one = prior.sample(5, seeded(), context=context)
    other = prior.sample(5, seeded(), context=-context)
    assert (one - other).abs().max() > 1e-6
    label = torch.zeros(5, dtype=torch.long)
    assert prior.sample(5, seeded(), label, context).shape == (5, 2)
    assert prior.symbol_logits(z, context=context).shape == (5, 3)
    with pytest.raises(ValueError, match=r"a context branch .* but was given none"):
        prior.sample(5, seeded())


def test_what_cannot_be_is_explained():
    with pytest.raises(TypeError, match=r"no tractable energy.*EnergyPrior.*AmortizedPosterior"):
        network().energy(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="level 0 of the schedule carries no noise"):
        DiffusionEnergyPrior(2, QuadraticTime([0.0]), LinearSchedule(6))
    with pytest.raises(TypeError, match="QuadraticTime, which has no symbols"):
        quadratic().symbol_logits(torch.zeros(1, 2).double())
    with pytest.raises(ValueError, match="symbol_temperature is 0"):
        SymbolVectorTimeEnergy(torch.nn.Linear(2, 3), symbol_temperature=0.0)
    with pytest.raises(ValueError, match="latent_dim is 3; expected 2"):
        quadratic(dim=3).log_prob_on_axis(torch.linspace(-1, 1, 5))
    with pytest.raises(ValueError, match=r"no context branch .* but was given one"):
        ResidualTimeNet(2, 3, width=4)(
            torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), torch.zeros(1, 4)
        )
    with pytest.raises(ValueError, match="step_variance is 0"):
        quadratic(step_variance=0)


def test_parameter_count_is_the_published_one():
    net = ResidualTimeNet(40, 20, width=200, num_blocks=12)
    assert sum(p.numel() for p in net.parameters()) == 695_420


def test_time_table_is_sines_and_cosines():
    from eblvm.models.networks.residual import sinusoidal_table

    table = sinusoidal_table(6, 8)
    for t in range(6):
        for k in range(4):
            angle = t * 10000 ** (-2 * k / 8)
            assert float(table[t, 2 * k]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[t, 2 * k + 1]) == pytest.approx(math.cos(angle), abs=1e-6)
    with pytest.raises(ValueError, match="dim is 3; expected an even number"):
        sinusoidal_table(6, 3)


def test_likelihood_of_a_linear_gaussian_model():
    """z_0 ~ N(0, v) by quadratic energies, x = w z_0 + noise: the evidence is known.

    The encoder is given the posterior of z under that prior; what is left is the Monte Carlo error
    of the noising chains, some 0.05 nats with 3,000 of them.
    """
    kappa = (3e-4, 0.02, 0.05)
    prior = quadratic(kappa, num_normalizer=500)
    variance, noise = exact_moments(prior, kappa), 0.5
    decoder = nn.Linear(2, 2, bias=False).double()
    encoder = nn.Linear(2, 4).double()
    gain = variance / (variance + noise**2)
    with torch.no_grad():
        decoder.weight.copy_(torch.eye(2))
        encoder.weight.copy_(torch.cat([gain * torch.eye(2), torch.zeros(2, 2)]))
        encoder.bias.copy_(torch.tensor([0, 0, 1, 1]) * math.log(gain * noise**2))
    model = LatentVariableModel(
        prior, AmortizedPosterior(encoder), GaussianLikelihood(decoder, noise)
    )
    x = torch.tensor([[0.3, -0.5], [2.0, 1.0]], dtype=torch.float64)
    log_z = prior.log_normalizer(200_000, seeded(1))
    rows = x.repeat_interleave(100, 0)
    found = model.log_likelihood(rows, 30, log_z, seeded(2)).view(2, 100)
    estimate = found.logsumexp(1) - math.log(100)
    total = variance + noise**2
    exact = -0.5 * x.square().sum(1) / total - math.log(2 * math.pi * total)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.2)

    released = model.log_likelihood(rows, 30, generator=seeded(2), released=True)
    assert released.isfinite().all()


def test_released_estimate_is_the_published_formula():
    """Written out for one level, with energies at temperature 1."""
    prior = quadratic((0.3,))
    z = torch.randn(4, 3, 2, dtype=torch.float64)
    log_q = torch.randn(4, 3, dtype=torch.float64)
    found = prior.released_log_prob(z, log_q, seeded())

    s, generator, flat = prior.schedule, seeded(), z.view(12, 2)
    z_0, z_1 = s.diffuse(flat, 0, generator), s.diffuse(flat, 1, generator)
    v = s.diffuse(flat, 0, generator)

    def log_normal(x, mean, sigma):
        return torch.distributions.Normal(mean, sigma).log_prob(x).sum(1)

    def log_p(y):
        return -(0.15 + 0.5 / s.sigma[1] ** 2) * y.square().sum(1)

    weights = (log_p(v) - log_normal(v, s.a_bar[0] * flat, s.sigma_bar[0])).view(4, 3)
    log_z = weights.logsumexp(0) - math.log(4)
    forward = log_normal(z_1, s.a[1] * z_0, s.sigma[1])
    last = log_normal(z_1, torch.zeros_like(z_1), torch.ones(()).double())
    exact = (log_p(z_0) - forward + last).view(4, 3) - log_z
    torch.testing.assert_close(found, exact)


def test_likelihood_of_a_response_depends_on_the_turns_before():
    encoder = DialogueEncoder(12, 4, 16, 16, 8)
    likelihood = DialogueLikelihood(DialogueDecoder(12, 2, 16, 16, 8, dropout=0.0), 8)
    tilt = SymbolVectorTimeEnergy(ResidualTimeNet(2, 3, width=8, num_blocks=1, context_dim=16))
    prior = DiffusionEnergyPrior(
        2, tilt, RecoverySchedule(), num_steps=3, num_normalizer=50, temperature=1.0
    )
    model = LatentVariableModel(prior, DialoguePosterior(encoder), likelihood).eval()
    for weight in tilt.parameters():
        weight.data.mul_(3)
    response, before = torch.tensor([2, 5, 6, 3]), torch.tensor([[2, 7, 3, 0], [2, 8, 3, 0]])
    x = torch.stack([torch.stack([response, turn]) for turn in before])  # (2, 2, 4)
    found = model.log_likelihood(x, 20, generator=seeded())
    assert found.shape == (2,) and found.isfinite().all() and (found < 0).all()
    ignored = torch.zeros(())  # each row has its own normalizer
    torch.testing.assert_close(model.log_likelihood(x, 20, ignored, seeded()), found)
    other = model.log_likelihood(x.flip(0), 20, generator=seeded())
    assert (other - found).abs().min() > 1e-3
    with pytest.raises(TypeError, match="this one depends on the turns before"):
        model.log_likelihood(x, 20, released=True)
