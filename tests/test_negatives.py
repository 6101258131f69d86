"""Negatives and their learner, on models of one dimension where every number can be computed."""

import pytest
import torch
from torch import nn

from eblvm.energies import BoxReference, Energy, GaussianReference, TiltedEnergy
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import GaussianLikelihood
from eblvm.models import DataEBM
from eblvm.models.networks import MLP, MLPEnergy
from eblvm.negatives import (
    AmortizedNegatives,
    CooperativeNegatives,
    Draw,
    NoiseNegatives,
    PersistentNegatives,
    with_steps,
)
from eblvm.posteriors import AmortizedPosterior
from eblvm.priors import EnergyPrior, GaussianPrior
from eblvm.samplers import HMC, MALA, Langevin

F64 = torch.float64
seeded = torch.Generator().manual_seed


class Linear(Energy):
    """E(x) = −θ x: the paper's f(x) = θ x."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=F64))

    def forward(self, x):
        return -self.theta * x.squeeze(1)


class Quadratic(Energy):
    """E(x) = ½ κ x²."""

    def __init__(self, kappa):
        super().__init__()
        self.kappa = nn.Parameter(torch.tensor(kappa, dtype=F64))

    def forward(self, x):
        return 0.5 * self.kappa * x.square().sum(1)


class Times(nn.Module):
    """g(z) = α z."""

    def __init__(self, alpha):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha, dtype=F64))

    def forward(self, z):
        return self.alpha * z


class Encoder(nn.Module):
    """Mean β x and a constant log-standard-deviation ℓ."""

    def __init__(self, beta, ell):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(beta, dtype=F64))
        self.ell = nn.Parameter(torch.tensor(ell, dtype=F64))

    def forward(self, x):
        return torch.cat([self.beta * x, (2 * self.ell).expand(len(x), 1)], 1)


def amortized(sampler, alpha=0.7, beta=0.4, ell=-0.5, scale=1.0, **settings):
    vae = LatentVariableModel(
        GaussianPrior(1).to(F64),
        AmortizedPosterior(Encoder(beta, ell)),
        GaussianLikelihood(Times(alpha), scale),
    )
    return AmortizedNegatives(vae, sampler, **settings)


def learner(energy, negatives, **settings):
    rates = {"energy": 1e-2}
    if any(True for _ in negatives.parameters()):
        rates["negatives"] = 1e-2
    return DataEBM(energy, negatives, rates, **settings)


@pytest.mark.parametrize("num_steps", [0, 1, 7])
@pytest.mark.parametrize("kl_weight", [0.0, 1.5])
def test_one_step_is_the_one_computed_by_hand(num_steps, kl_weight):
    s, ref, theta, alpha, beta, ell, scale = 0.3, 0.8, 1.3, 0.7, 0.4, -0.5, 0.6
    negatives = amortized(
        Langevin(num_steps, s, noise_scale=0.0), alpha, beta, ell, scale, kl_weight=kl_weight
    )
    model = learner(Linear(theta), negatives, reference=GaussianReference(ref))
    x = torch.randn(50, 1, dtype=F64)
    terms = model.terms((x, torch.zeros(50)), seeded(3))
    sum(term.mean() for term in terms.values()).backward()

    noise = seeded(3)
    z0 = torch.randn(50, 1, dtype=F64, generator=noise)
    torch.randn(num_steps, 50, 1, dtype=F64, generator=noise)  # drawn by the chain, times 0
    eps = torch.randn(50, 1, dtype=F64, generator=noise)
    r = 1 - s**2 / (2 * ref**2)
    revised = r**num_steps * alpha * z0 + 0.5 * s**2 * theta * (1 - r**num_steps) / (1 - r)
    torch.testing.assert_close(model.draw(50, seeded(3)).x, revised)
    torch.testing.assert_close(model.energy.theta.grad, revised.mean() - x.mean())

    # ∂/∂(α, β, ℓ) of mean (x̃ − α(βx̃ + e^ℓ ε))² / 2σ² + λ ½(β²x̃² + e^{2ℓ} − 1 − 2ℓ)
    d = torch.tensor(ell, dtype=F64).exp()
    z = beta * revised + d * eps
    error = (revised - alpha * z) / scale**2
    vae = negatives.latent
    torch.testing.assert_close(vae.likelihood.decoder.alpha.grad, -(error * z).mean())
    by_beta = (-alpha * error * revised + kl_weight * beta * revised.square()).mean()
    torch.testing.assert_close(vae.posterior.encoder.beta.grad, by_beta)
    by_ell = (-alpha * error * d * eps).mean() + kl_weight * (d**2 - 1)
    torch.testing.assert_close(vae.posterior.encoder.ell.grad, by_ell)


def test_long_descent_ends_at_the_mode_and_noise_has_the_closed_form_variance():
    s, ref, theta = 0.3, 0.8, 1.3
    model = learner(
        Linear(theta),
        amortized(Langevin(400, s, noise_scale=0.0)),
        reference=GaussianReference(ref),
    )
    mode = torch.full((9, 1), ref**2 * theta, dtype=F64)
    torch.testing.assert_close(model.sample(9, seeded(0)), mode)

    num_steps = 5
    model = learner(
        Linear(theta), amortized(Langevin(num_steps, s)), reference=GaussianReference(ref)
    )
    x = model.sample(200_000, seeded(0)).squeeze(1)
    r = 1 - s**2 / (2 * ref**2)
    variance = (r**num_steps * 0.7) ** 2 + s**2 * (1 - r ** (2 * num_steps)) / (1 - r**2)
    mean = 0.5 * s**2 * theta * (1 - r**num_steps) / (1 - r)
    assert abs(x.mean() - mean) < 4 * (variance / 200_000) ** 0.5
    assert abs(x.var() - variance) < 4 * variance * (2 / 200_000) ** 0.5


def test_the_fixed_point_asks_for_no_change():
    # The kernel keeps N(0, v), v the variance of the unadjusted chain on precision κ. If the
    # decoder draws from N(0, v) and the data have it, too, no gradient has a direction to go.
    s, kappa, num = 0.5, 1.0, 400_000
    v = (1 / kappa) / (1 - s**2 * kappa / 4)
    sigma = 0.05
    alpha = (v - sigma**2) ** 0.5  # the VAE's marginal α² + σ² is v
    beta, ell = alpha / v, 0.5 * torch.tensor(sigma**2 / v).log().item()  # its exact posterior
    negatives = amortized(Langevin(3, s), alpha, beta, ell, sigma)
    model = learner(Quadratic(kappa), negatives)
    x = v**0.5 * torch.randn(num, 1, dtype=F64, generator=seeded(0))
    drawn = model.draw(num, seeded(1))
    assert abs(drawn.x.var() - v) < 4 * v * (2 / num) ** 0.5 + sigma**2
    terms = model.terms((x, torch.zeros(num)), seeded(1))
    sum(term.mean() for term in terms.values()).backward()
    # standard errors: of ½(x² − x̃²), and of the bound's gradients, which scale with 1/σ
    assert abs(model.energy.kappa.grad) < 4 * v * num**-0.5 + sigma**2
    decoder, encoder = negatives.latent.likelihood.decoder, negatives.latent.posterior.encoder
    assert abs(decoder.alpha.grad) < 4 / sigma * num**-0.5 + 0.01
    assert abs(encoder.beta.grad) < 4 / sigma * num**-0.5 + 0.01
    assert abs(encoder.ell.grad) < 4 * 2**0.5 * num**-0.5 + 0.01
    # away from it there is one: data of another width move the energy
    model.zero_grad()
    model.terms((2 * x, torch.zeros(num)), seeded(1))["contrast"].mean().backward()
    torch.testing.assert_close(
        model.energy.kappa.grad, torch.tensor(0.5 * (4 * v - v), dtype=F64), rtol=0.02, atol=0
    )


def test_gradients_do_not_pass_between_the_energy_and_the_starter():
    negatives = amortized(Langevin(4, 0.3))
    model = learner(Linear(1.0), negatives, reference=GaussianReference(1.0))
    x = torch.randn(8, 1, dtype=F64)
    terms = model.terms((x, torch.zeros(8)), seeded(0))
    (terms["reconstruction"].mean() + terms["prior"].mean()).backward(retain_graph=True)
    assert model.energy.theta.grad is None
    assert all(p.grad is not None and p.grad != 0 for p in negatives.parameters())
    model.zero_grad(set_to_none=True)
    terms["contrast"].mean().backward()
    assert model.energy.theta.grad != 0
    assert all(p.grad is None for p in negatives.parameters())


def test_zero_steps_are_the_decoder_alone():
    negatives = amortized(Langevin(10, 0.3))
    model = learner(Linear(1.0), negatives, reference=GaussianReference(1.0))
    drawn = model.draw(6, seeded(2), num_steps=0)
    torch.testing.assert_close(drawn.x, 0.7 * drawn.z, rtol=0, atol=0)
    assert torch.equal(model.sample(6, seeded(2), num_steps=0), drawn.x)
    assert not torch.equal(model.sample(6, seeded(2)), drawn.x)


def test_what_is_drawn_may_be_refined_longer_than_in_training():
    settings = {"reference": GaussianReference(1.0), "sampling_steps": 25}
    model = learner(Linear(1.0), amortized(Langevin(10, 0.3, noise_scale=0.0)), **settings)
    r, num = 1 - 0.3**2 / 2, 25  # the mode is 1, and each step comes closer to it by r
    start = model.sample(6, seeded(2), num_steps=0)
    torch.testing.assert_close(model.sample(6, seeded(2)), 1 + r**num * (start - 1))
    torch.testing.assert_close(model.refine(start, seeded(2)), 1 + r**num * (start - 1))
    assert torch.equal(model.film(6, 5, seeded(2))[-1], model.sample(6, seeded(2)))
    terms = model.terms((start, torch.zeros(6)), seeded(2))  # training's own steps stay
    trained = 1 + r**10 * (start - 1)
    torch.testing.assert_close(terms["contrast"].mean(), (trained - start).mean())
    with pytest.raises(ValueError, match="sampling_steps is -1; expected 0 or more"):
        learner(Linear(1.0), amortized(Langevin(1, 0.1)), sampling_steps=-1)


@pytest.mark.parametrize("num_steps", [0, 1, 7, 8, 15, 24, 50])
@pytest.mark.parametrize("frames", [1, 8, 9])
def test_a_film_has_the_frames_that_were_asked_for(frames, num_steps):
    settings = {"reference": GaussianReference(1.0)}
    model = learner(Linear(1.0), amortized(Langevin(4, 0.3, noise_scale=0.0)), **settings)
    film = model.film(3, frames, seeded(2), num_steps)
    shown = min(frames, num_steps)
    assert film.shape == (shown + 1, 3, 1)
    start = model.sample(3, seeded(2), num_steps=0)
    # the mode is 1, and each step comes closer to it by r: the distance tells which step it is
    r = 1 - 0.3**2 / 2
    steps = (((film - 1) / (start - 1)).log() / torch.tensor(r, dtype=F64).log())[:, 0, 0]
    torch.testing.assert_close(steps, steps.round())
    gaps = steps.round().diff()
    if shown:
        assert gaps.max() - gaps.min() <= 1 and steps[0] == 0
    assert torch.equal(film[-1], model.sample(3, seeded(2), num_steps=num_steps))
    with pytest.raises(ValueError, match="frames is 0; expected 1 or more"):
        model.film(3, 0)


def test_without_divergence_and_with_the_first_latent_it_is_cooperative_regression():
    class Remembered(nn.Module):
        """An encoder that knows the latent of the start, without doubt."""

        def forward(self, x):
            return torch.cat([self.z, torch.full_like(self.z, -80.0)], 1)

    encoder = Remembered()
    vae = LatentVariableModel(
        GaussianPrior(1).to(F64), AmortizedPosterior(encoder), GaussianLikelihood(Times(0.7), 0.5)
    )
    chain = Langevin(1, 0.3)
    ours = AmortizedNegatives(vae, chain, kl_weight=0.0)
    theirs = CooperativeNegatives(
        GaussianPrior(1).to(F64), GaussianLikelihood(Times(0.7), 0.5), chain
    )
    energy = TiltedEnergy(Linear(1.2), GaussianReference(1.0))
    drawn = ours(energy, 40, seeded(5))
    twin = theirs(energy, 40, seeded(5))
    assert torch.equal(drawn.x, twin.x) and torch.equal(drawn.z, twin.z)
    encoder.z = drawn.z
    loss = sum(term.mean() for term in ours.loss(drawn, seeded(6)).values())
    regression = theirs.loss(twin)["regression"].mean()
    torch.testing.assert_close(loss, regression)
    gradients = [
        torch.autograd.grad(value, negatives.parameters())[0]
        for value, negatives in ((loss, ours), (regression, theirs))
    ]
    torch.testing.assert_close(*gradients)
    by_hand = -((drawn.x - 0.7 * drawn.z) * drawn.z).mean() / 0.25
    torch.testing.assert_close(gradients[1], by_hand)


def test_the_released_weights_are_those_of_the_bound():
    # ‖x̃ − g‖² + w KL is 2σ² times the bound with σ² = w/2, up to a constant
    w = 3.0
    negatives = amortized(Langevin(2, 0.1), scale=(w / 2) ** 0.5)
    drawn = negatives(Linear(0.5), 30, seeded(0))
    terms = negatives.loss(drawn, seeded(1))
    eps = torch.randn(30, 1, dtype=F64, generator=seeded(1))
    mean, sd = 0.4 * drawn.x, torch.tensor(-0.5, dtype=F64).exp()
    squared = (drawn.x - 0.7 * (mean + sd * eps)).square().squeeze(1)
    kl = -0.5 * (1 - 1.0 - mean.square() - sd**2).squeeze(1)
    constant = terms["reconstruction"] * w - squared
    torch.testing.assert_close(constant, constant[:1].expand(30))
    torch.testing.assert_close(terms["prior"] * w, w * kl)


def test_a_vae_may_learn_data_beside_the_ends_of_chains():
    # 0 is the method as published, 1 an ordinary VAE of the data, between them their mixture
    x = torch.randn(30, 1, dtype=F64)
    negatives = amortized(Langevin(2, 0.1), num_chains=50)
    drawn, data = negatives(Linear(0.5), 50, seeded(0)), Draw(x, x)

    def gradients(weight, *draws):
        negatives.data_weight = weight
        loss = sum(term.mean() for term in negatives.loss(*draws).values())
        return torch.stack(torch.autograd.grad(loss, tuple(negatives.parameters())))

    def seeds():  # of the global generator, so that both orders see the same noise
        torch.manual_seed(7)

    seeds()
    published = gradients(0.0, drawn, None, data)
    seeds()
    torch.testing.assert_close(gradients(0.0, drawn), published, rtol=0, atol=0)
    seeds()
    ordinary = gradients(1.0, drawn, None, data)
    seeds()
    bound = sum(term.mean() for term in negatives.latent.loss(x).values())
    torch.testing.assert_close(
        torch.stack(torch.autograd.grad(bound, tuple(negatives.parameters()))), ordinary
    )
    seeds()
    ends = gradients(0.0, drawn)  # of the same noise as the first part of the mixture, and so on
    rest = gradients(0.0, data)
    seeds()
    torch.testing.assert_close(gradients(0.25, drawn, None, data), 0.75 * ends + 0.25 * rest)

    negatives.data_weight = 0.25
    model = learner(Linear(1.0), negatives, reference=GaussianReference(1.0))
    terms = model.terms((x, torch.zeros(30)), seeded(0))
    assert terms["data_reconstruction"].shape == (30,) and terms["reconstruction"].shape == (50,)
    kl = terms["prior"].mean() / (0.75 * negatives.kl_weight)  # that of ends, not of data
    torch.testing.assert_close(negatives.diagnostics["kl_per_unit"], kl.detach())
    with pytest.raises(ValueError, match=r"data_weight is 1.5; expected a number in \[0, 1\]"):
        amortized(Langevin(1, 0.1), data_weight=1.5)


def test_the_divergence_of_each_unit_tells_which_ones_hold_something():
    class Fixed(nn.Module):
        """q = N(m, diag v) whatever the image: units at the prior, a bit and far away from it."""

        def forward(self, x):
            mean, variance = x.new_tensor([0.0, 0.5, 3.0]), x.new_tensor([1.0, 0.7, 0.01])
            return torch.cat([mean, variance.log()]).expand(len(x), 6)

    def negatives(prior):
        posterior = AmortizedPosterior(Fixed())
        vae = LatentVariableModel(prior, posterior, GaussianLikelihood(nn.Linear(3, 2), 0.5))
        return AmortizedNegatives(vae.to(F64), Langevin(0, 0.1))

    x = torch.randn(5, 2, dtype=F64)
    gaussian = negatives(GaussianPrior(3))
    terms = gaussian.loss(Draw(x, x), seeded(0))
    unit = torch.distributions.Normal(torch.zeros(3, dtype=F64), 1.0)
    scale = torch.tensor([1.0, 0.7, 0.01], dtype=F64).sqrt()
    q = torch.distributions.Normal(torch.tensor([0.0, 0.5, 3.0], dtype=F64), scale)
    truth = torch.distributions.kl_divergence(q, unit)
    found = gaussian.diagnostics
    torch.testing.assert_close(found["kl_per_unit"], truth.mean())
    torch.testing.assert_close(found["kl_smallest_unit"], truth[0])
    torch.testing.assert_close(found["kl_largest_unit"], truth[2])
    torch.testing.assert_close(terms["prior"].mean(), truth.sum())

    # a tilt knows its energy up to a constant only: there is no such figure
    tilted = negatives(EnergyPrior(3, MLPEnergy(3, [4]), Langevin(2, 0.1)))
    tilted.loss(Draw(x, x), seeded(0))
    assert not any(name.startswith("kl") for name in tilted.diagnostics)


def test_chains_need_not_be_as_many_as_data():
    negatives = amortized(Langevin(2, 0.1), num_chains=90)
    model = learner(Linear(1.0), negatives, reference=GaussianReference(1.0))
    x = torch.randn(25, 1, dtype=F64)
    terms = model.terms((x, torch.zeros(25)), seeded(0))
    assert terms["contrast"].shape == (25,) and terms["reconstruction"].shape == (90,)
    terms["contrast"].mean().backward()
    drawn = model.draw(90, seeded(0))
    torch.testing.assert_close(model.energy.theta.grad, drawn.x.mean() - x.mean())


@pytest.mark.parametrize("sampler", [Langevin(3, 0.1), MALA(3, 0.1), HMC(2, 0.1, 3)], ids=repr)
@pytest.mark.parametrize("kind", ["noise", "persistent", "cooperative", "amortized"])
def test_every_kernel_goes_with_all_negatives(kind, sampler):
    prior = GaussianPrior(2)
    likelihood = GaussianLikelihood(MLP(2, [8], 2), 0.2)
    posterior = AmortizedPosterior(MLP(2, [8], 4))
    negatives = {
        "noise": lambda: NoiseNegatives([2], sampler),
        "persistent": lambda: PersistentNegatives([2], sampler, capacity=64),
        "cooperative": lambda: CooperativeNegatives(prior, likelihood, sampler),
        "amortized": lambda: AmortizedNegatives(
            LatentVariableModel(prior, posterior, likelihood), sampler
        ),
    }[kind]()
    model = learner(MLPEnergy(2, [8]), negatives, reference=GaussianReference(1.0))
    terms = model.terms((torch.randn(16, 2), torch.zeros(16)), seeded(0))
    sum(term.mean() for term in terms.values()).backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("energy.net.3.bias"):  # a constant of the energy drops out
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    drawn = model.draw(5, seeded(1))
    assert drawn.x.shape == (5, 2) and not drawn.x.requires_grad
    (setup,) = model.chains().values()
    assert setup.sampler(setup.energy, setup.start(4, seeded(2)), seeded(3)).shape == (4, 2)


def test_persistent_chains_go_on_where_they_ended():
    negatives = PersistentNegatives(
        [1], Langevin(1, 0.1, noise_scale=0.0), capacity=20, restart_probability=0.0
    ).to(F64)
    energy = Quadratic(1.0)
    first = negatives.buffer.states.clone()
    for i in range(30):
        drawn = negatives(energy, 20, seeded(i))
        negatives.keep(drawn)
    torch.testing.assert_close(negatives.buffer.states, first * (1 - 0.005) ** 30)
    assert (negatives.buffer.ages == 30).all()
    # restarts are fresh noise, and their age begins at one visit
    negatives.restart_probability = 1.0
    drawn = negatives(energy, 20, seeded(99))
    negatives.keep(drawn)
    assert drawn.restarted.all() and (negatives.buffer.ages == 1).all()
    assert not torch.isclose(drawn.start, first * (1 - 0.005) ** 30).any()
    with pytest.raises(ValueError, match="Raise capacity"):
        negatives(energy, 21)
    negatives.eval()
    assert negatives(energy, 50).x.shape == (50, 1)  # evaluation asks for any number
    assert (negatives.buffer.ages == 1).all()


def test_starts_of_noise_have_the_stated_scale():
    uniform = NoiseNegatives([3], Langevin(0, 0.1), scale=2.0).noise(50_000, seeded(0))
    assert uniform.abs().max() <= 2 and abs(uniform.var() - 4 / 3) < 0.02
    gaussian = NoiseNegatives([3], Langevin(0, 0.1), scale=2.0, gaussian=True)
    assert abs(gaussian.noise(50_000, seeded(0)).var() - 4) < 0.05


def test_references():
    x = torch.tensor([[0.5, -0.2], [1.5, 0.0]])
    torch.testing.assert_close(GaussianReference(0.5)(x), x.square().sum(1) / 0.5)
    assert BoxReference()(x).tolist() == [0.0, float("inf")]
    # a uniform density on the box: chains that reject stay inside and cover it evenly
    flat = TiltedEnergy(Quadratic(0.0), BoxReference())
    start = torch.zeros(4000, 2, dtype=F64)
    ends = MALA(60, 0.6)(flat, start, seeded(0))
    assert ends.abs().max() <= 1
    assert abs(ends.var() - 1 / 3) < 4 * (4 / 45 / 8000) ** 0.5
    walled = Langevin(40, 0.3, bounds=(-1.0, 1.0))(flat, start, seeded(0))
    assert walled.abs().max() <= 1


def test_the_penalty_is_on_the_magnitude_of_the_energy():
    negatives = NoiseNegatives([1], Langevin(1, 0.1)).to(F64)
    model = learner(Quadratic(2.0), negatives, energy_penalty=0.1)
    x = torch.randn(12, 1, dtype=F64)
    terms = model.terms((x, torch.zeros(12)), seeded(0))
    drawn = model.draw(12, seeded(0))
    squares = x.square().squeeze(1).square() + drawn.x.square().squeeze(1).square().mean()
    torch.testing.assert_close(terms["penalty"], 0.1 * squares)


def test_data_noise_is_added_to_the_data_only():
    negatives = NoiseNegatives([1], Langevin(0, 0.1)).to(F64)
    model = learner(Linear(1.0), negatives, data_noise=0.5)
    x = torch.zeros(20_000, 1, dtype=F64)
    model.terms((x, torch.zeros(20_000)), seeded(0))
    seen, drawn, *_ = model._step
    assert abs(seen.std() - 0.5) < 0.01
    assert drawn.x.abs().max() <= 1


def test_chains_stay_in_single_precision_under_mixed_precision():
    negatives = NoiseNegatives([2], Langevin(3, 1e-3))
    model = learner(MLPEnergy(2, [8]), negatives)
    plain = model.draw(8, seeded(0)).x
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.draw(8, seeded(0)).x
        terms = model.terms((torch.zeros(8, 2), torch.zeros(8)), seeded(0))
    assert mixed.dtype == torch.float32 and torch.equal(mixed, plain)
    assert terms["contrast"].dtype == torch.bfloat16  # the update is mixed as asked


def test_another_number_of_steps_keeps_the_last_of_a_schedule():
    annealed = Langevin(3, [0.3, 0.2, 0.1], noise_scale=[1.0, 0.5, 0.0])
    longer = with_steps(annealed, 9)
    assert (longer.num_steps, longer.step_size, longer.noise_scale) == (9, 0.1, 0.0)
    assert with_steps(annealed, 3) is annealed


def test_what_cannot_be_asked():
    negatives = NoiseNegatives([1], Langevin(1, 0.1))
    model = learner(MLPEnergy(1, [4]), negatives)
    with pytest.raises(TypeError, match="NoiseNegatives has no encoder"):
        model.reconstruct(torch.zeros(2, 1))
    with pytest.raises(TypeError, match="do not start from latents"):
        model.decode(torch.zeros(2, 1))
    persistent = PersistentNegatives([1], Langevin(1, 0.1), capacity=4)
    with pytest.raises(ValueError, match="not tied to a condition"):
        persistent(MLPEnergy(1, [4]), 2, condition=torch.zeros(2))
    with pytest.raises(ValueError, match="no entry for"):
        DataEBM(MLPEnergy(1, [4]), negatives, {})
