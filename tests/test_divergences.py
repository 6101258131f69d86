"""One step of a diffusion, against a linear-Gaussian model where everything has a closed form."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from eblvm import divergences
from eblvm.divergences import (
    GaussianReconstruction,
    GradientPenalty,
    Jeffrey,
    Jump,
    NonSaturating,
    ReverseKL,
    SquaredReconstruction,
    step_variance,
)
from eblvm.energies import TimeEnergy
from eblvm.schedules import NoiseSchedule, VariancePreservingSchedule


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Quadratic(TimeEnergy):
    """E = c x²/2 at all levels; a context is added to x."""

    def __init__(self, c):
        super().__init__()
        self.c = nn.Parameter(torch.tensor(float(c)))

    def forward(self, x, t, context=None):
        x = x if context is None else x + context
        return 0.5 * self.c * x.square().sum(1)


class Linear(nn.Module):
    """x̂ = p y + q z."""

    def __init__(self):
        super().__init__()
        self.p, self.q = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.5))

    def forward(self, x_next, t, z):
        return self.p * x_next + self.q * z


class LinearEncoder(nn.Module):
    """N(e x + f y, exp s)."""

    def __init__(self):
        super().__init__()
        self.e, self.f, self.s = (nn.Parameter(torch.tensor(v)) for v in (0.3, -0.1, -0.2))

    def forward(self, x, x_next, t):
        mean = self.e * x + self.f * x_next
        return torch.cat([mean, self.s.expand_as(mean)], dim=1)


SIGNS = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6))).double()
"""Independent variables of mean 0 and variance 1: means of quadratics are those of Gaussians."""


class Game:
    """All quantities of level t of the diffusion of N(0, 1), with exact expectations."""

    def __init__(self, t, divergence, monkeypatch):
        self.schedule = VariancePreservingSchedule(4)
        self.generator, self.divergence = Linear(), divergence
        x, n1, n2, self.z, self.n3, noise = SIGNS.split(1, dim=1)
        monkeypatch.setattr(divergences, "noise_like", lambda like, generator=None: noise)
        s = self.schedule
        self.t = torch.full((len(x),), t)
        self.x = s.a_bar[t] * x + s.sigma_bar[t] * n1
        self.y = s.a[t + 1] * self.x + s.sigma[t + 1] * n2

    def mean(self, z):
        return self.schedule.reverse(self.generator(self.y, self.t, z), self.y, self.t).mean

    def jump(self):
        mean = self.mean(self.z)
        noise = step_variance(self.schedule, self.t, mean).sqrt() * self.n3 * (self.t > 0)[:, None]
        return Jump(self.t, self.x, self.y, self.z, mean + noise, mean)

    def best_response(self, c):
        """Generator and encoder at their optimum for an energy; the moment E x² of samples."""
        energy = Quadratic(c)
        parameters = [*self.generator.parameters(), *self.divergence.parameters()]
        search = torch.optim.LBFGS(
            parameters, 1.0, 400, tolerance_grad=1e-10, tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure():
            search.zero_grad()
            terms = self.divergence.player_terms(energy, self.schedule, self.jump(), self.mean)
            loss = sum(term.mean() for term in terms.values())
            loss.backward()
            return loss

        search.step(closure)
        return float(self.jump().fake.detach().square().mean())

    def response_to(self, curvature):
        """E x² of samples over that of data, slope and variance of x_t given x_{t+1}."""
        target = float(self.x.square().mean())
        moment = self.best_response(curvature / target)
        slope = float(torch.linalg.lstsq(self.y, self.mean(self.z * 0).detach()).solution)
        variance = float((self.jump().fake.detach() - slope * self.y).square().mean())
        return moment / target, slope, variance


def jeffrey(weight, reconstruction=None):
    return Jeffrey(LinearEncoder(), reconstruction, weight, log_variance_floor=None)


PRIOR = SquaredReconstruction(posterior=False)
SADDLES = [
    (0, 1.0, None, 0.995, 0.721, 0.477),
    (1, 1.0, None, 1.000, 0.388, 0.849),
    (1, 0.1, None, 0.282, 0.538, 0.711),
    (1, 0.1, PRIOR, -0.527, 0.748, 0.441),
    (2, 1.0, None, 1.000, 0.209, 0.956),
    (2, 0.1, None, 0.176, 0.336, 0.887),
    (2, 0.1, PRIOR, -0.177, 0.340, 0.884),
    (3, 1.0, None, 1.000, 0.112, 0.987),
    (3, 0.1, None, 0.775, 0.126, 0.984),
    (3, 0.1, PRIOR, 0.666, 0.126, 0.984),
]
"""Level, λ, reconstruction; curvature (of data: 1), slope and variance of x_t given x_{t+1}."""


@pytest.mark.parametrize(
    ("t", "weight", "reconstruction", "curvature", "slope", "variance"), SADDLES
)
def test_saddle_point(t, weight, reconstruction, curvature, slope, variance, monkeypatch):
    """λ = 1 and the evidence bound recover the truth; the released weights do not.

    The critic stands still where samples have the second moment of data, and the player at its best
    response. Curvatures have three digits, and so have the figures.
    """
    found = Game(t, jeffrey(weight, reconstruction), monkeypatch).response_to(curvature)
    tolerance = 1.5e-3 if t else 2.5e-3  # without noise of its own the response is more sensitive
    assert found == pytest.approx((1.0, slope, variance), abs=tolerance)
    if weight == 1 and t:  # the table, from the closed form of the diffusion
        s = VariancePreservingSchedule(4)
        a, beta = float(s.a[t + 1]), float(s.sigma[t + 1] ** 2)
        exact = 1.0, a / (a**2 + beta), beta / (a**2 + beta)
        assert found == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("t", range(4))
def test_the_ties_part_of_the_penalty_is_a_constant(t, monkeypatch):
    game = Game(t, jeffrey(1.0), monkeypatch)
    energy, s, jump = Quadratic(0.7), game.schedule, game.jump()
    means = []
    for total in (True, False):
        game.divergence.penalty = GradientPenalty(2.0, total)
        terms = game.divergence.critic_terms(energy, s, jump, 0)
        means.append(terms["penalty"].mean())
        (gradient,) = torch.autograd.grad(terms["penalty"].mean(), energy.c)
        assert float(gradient) == pytest.approx(2 * 0.7 * float(game.x.square().mean()), rel=1e-9)
    constant = s.a[t + 1] ** 2 / s.sigma[t + 1] ** 2
    torch.testing.assert_close(means[0] - means[1], constant)
    torch.testing.assert_close(means[1], 0.7**2 * game.x.square().mean())


def test_critic_raises_fakes_and_never_moves_the_player(monkeypatch):
    game = Game(1, ReverseKL(LinearEncoder(), penalty=GradientPenalty(0.1)), monkeypatch)
    energy, jump = Quadratic(0.7), game.jump()
    terms = game.divergence.critic_terms(energy, game.schedule, jump, 0)
    expected = 0.35 * (game.x.square().mean() - jump.fake.square().mean())
    torch.testing.assert_close(terms["contrast"].mean(), expected)
    sum(term.mean() for term in terms.values()).backward()
    assert game.generator.p.grad is None


def test_one_step_to_pure_noise_is_an_adversarial_energy_based_model():
    """Nothing of x is left in x_1: the tie is constant, and the generator is free."""
    torch.manual_seed(0)
    schedule = NoiseSchedule([1.0, 0.0])
    x, z, x_next = torch.randn(7, 3), torch.randn(7, 3), torch.randn(7, 3)
    t = torch.zeros(7, dtype=torch.long)
    made = schedule.reverse(2 * z, x_next, t)
    torch.testing.assert_close(made.mean, 2 * z)  # nothing of x_1
    assert made.stddev.eq(0).all()
    energy, encoder = Quadratic(0.7), LinearEncoder()
    encoder.f.data.zero_()
    jump = Jump(t, x, x_next, z, made.mean, made.mean)
    divergence = ReverseKL(encoder, entropy_weight=1.0)
    terms = divergence.player_terms(energy, schedule, jump, lambda z: 2 * z)
    nll = -Normal(0.3 * 2 * z, math.exp(-0.1)).log_prob(z).sum(1)
    constant = 0.5 * x_next.square().sum(1)  # −log N(x_1; 0, I) up to its own constant
    torch.testing.assert_close(terms["adversarial"], energy(2 * z, t) + constant)
    torch.testing.assert_close(terms["entropy"], nll)
    critic = divergence.critic_terms(energy, schedule, jump, 0)["contrast"]
    torch.testing.assert_close(critic.mean(), (energy(x, t) - energy(2 * z, t)).mean())


def test_gaussian_reconstruction_is_a_normal_density_with_floored_variance(monkeypatch):
    for t in range(4):
        game = Game(t, jeffrey(1.0), monkeypatch)
        jump, s = game.jump(), game.schedule
        own, floor = float(step_variance(s, t, game.x)), float(step_variance(s, 1, game.x))
        cases = [(GaussianReconstruction(), max(own, 1e-2), 1.0)]
        cases += [(GaussianReconstruction(floor_level=1), max(own, floor), 1.0)]
        cases += [(GaussianReconstruction(weights=[1, 2, 3, 4]), max(own, 1e-2), t + 1.0)]
        z = torch.randn(len(game.x), 1)
        for reconstruction, variance, factor in cases:
            density = Normal(game.mean(z), math.sqrt(variance)).log_prob(game.x).sum(1)
            expected = factor * (-density - 0.5 * math.log(2 * math.pi))
            torch.testing.assert_close(reconstruction(jump, s, game.mean, z), expected)
        squared = SquaredReconstruction()(jump, s, game.mean, z)
        torch.testing.assert_close(squared, (game.x - game.mean(z)).square().sum(1))
        other = SquaredReconstruction(posterior=False)(jump, s, game.mean, z)
        torch.testing.assert_close(other, (game.x - jump.fake_mean).square().sum(1))


def test_weights_for_other_levels_are_refused(monkeypatch):
    game = Game(1, jeffrey(1.0), monkeypatch)
    with pytest.raises(ValueError, match="weights has 2 entries; expected 4"):
        GaussianReconstruction(weights=[1, 1])(game.jump(), game.schedule, game.mean, game.z)


def test_non_saturating_losses_are_those_of_a_classifier(monkeypatch):
    game = Game(1, NonSaturating(GradientPenalty(0.2)), monkeypatch)
    energy, jump = Quadratic(0.7), game.jump()
    real, fake = energy(jump.x, jump.t, jump.x_next), energy(jump.fake, jump.t, jump.x_next)
    terms = game.divergence.critic_terms(energy, game.schedule, jump, 0)
    torch.testing.assert_close(terms["real"], -F.logsigmoid(-real))  # D = −E is high on data
    torch.testing.assert_close(terms["fake"], -torch.log1p(-torch.sigmoid(-fake)))
    gradient = 0.7 * (jump.x + jump.x_next)
    torch.testing.assert_close(terms["penalty"], 0.1 * gradient.square().sum(1))
    terms = game.divergence.player_terms(energy, game.schedule, jump, game.mean)
    torch.testing.assert_close(terms["adversarial"], -F.logsigmoid(-fake))


def test_penalty_is_lazy_and_annealed():
    lazy = GradientPenalty(0.1, every=4)
    assert [lazy.at(i) for i in range(5)] == [0.4, 0, 0, 0, 0.4]
    annealed = GradientPenalty(0.1, final_weight=0.001, num_steps=10)
    weights = [annealed.at(i) for i in (0, 5, 10, 99)]
    assert weights == pytest.approx([0.1, 0.01, 0.001, 0.001])
    assert annealed.at(-1) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientPenalty(0.0), "Without a penalty pass None"),
        (lambda: GradientPenalty(0.1, final_weight=-1), "final_weight is -1"),
        (lambda: ReverseKL(LinearEncoder(), -1.0), "entropy_weight is -1.0"),
        (lambda: Jeffrey(LinearEncoder(), forward_weight=-1.0), "forward_weight is -1.0"),
        (lambda: NonSaturating(GradientPenalty(0.1, total=True)), "there is no tie"),
    ],
)
def test_wrong_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
