"""Latent-variable models and their posteriors, on the linear-Gaussian model where all is known."""

import pytest
import torch
from bidvl_parts import strided
from linear_gaussian import KAPPA, ExactEncoder, LinearGaussian
from torch import nn

from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood
from eblvm.models import LatentEBM
from eblvm.models.networks import MLP, MLPEnergy
from eblvm.posteriors import AmortizedPosterior, LangevinPosterior
from eblvm.priors import EnergyPrior, GaussianPrior
from eblvm.samplers import Langevin

seeded = torch.Generator().manual_seed


def test_langevin_posterior_has_the_exact_mean_and_the_chain_s_covariance():
    s = 0.1
    truth = LinearGaussian(posterior=LangevinPosterior(Langevin(300, s)))
    x = truth.data(1).expand(20_000, -1)
    z = truth.model.infer(x, seeded(0)).z
    # unadjusted dynamics widen each eigen-direction of precision λ by 1/(1 − s²λ/4)
    eye = torch.eye(2, dtype=torch.float64)
    covariance = torch.linalg.inv(truth.precision @ (eye - s**2 / 4 * truth.precision))
    mean = truth.mean_matrix @ x[0]
    error = 4 * covariance.diagonal().sqrt() / 20_000**0.5
    assert ((z.mean(0) - mean).abs() < error).all()
    assert torch.allclose(z.T.cov(), covariance, rtol=0.05, atol=4 * 0.01 * covariance.max())
    assert not z.requires_grad


def test_langevin_posterior_after_k_steps_follows_the_linear_recursion():
    # without noise the mean after K steps is (1 − ρᴷ) m + ρᴷ z₀ along each eigen-direction
    s, num_steps = 0.2, 7
    sampler = Langevin(num_steps, s, noise_scale=0.0)
    truth = LinearGaussian(posterior=LangevinPosterior(sampler))
    x = truth.data(4)
    z = truth.model.infer(x, seeded(5)).z
    start = torch.randn(4, 2, dtype=torch.float64, generator=seeded(5))
    rho = torch.eye(2, dtype=torch.float64) - s**2 / 2 * truth.precision
    power = torch.linalg.matrix_power(rho, num_steps)
    mean = x @ truth.mean_matrix.T
    torch.testing.assert_close(z, mean + (start - mean) @ power.T)


def test_gradients_of_the_loss_are_the_exact_ones_given_the_samples():
    # ∂L/∂W = −(1/σ²) (x − Wz)zᵀ, ∂L/∂κ = ½(‖z⁺‖² − ‖z⁻‖²), with the chains' own z
    truth = LinearGaussian(posterior=LangevinPosterior(Langevin(50, 0.1)))
    model, x = truth.model, truth.data(64)
    terms = model.loss(x, seeded(2))
    sum(term.mean() for term in terms.values()).backward()
    z = model.infer(x, g := seeded(2)).z
    negative = model.prior.sample(64, g)
    weight = model.likelihood.decoder.weight
    residual = x - z @ weight.detach().T
    torch.testing.assert_close(weight.grad, -(residual.T @ z) / 64 / 0.25)
    exact = 0.5 * (z.square().sum(1).mean() - negative.square().sum(1).mean())
    torch.testing.assert_close(model.prior.tilt.kappa.grad, exact)


def test_terms_have_a_number_per_row_and_prior_gradients_stay_in_the_prior():
    truth = LinearGaussian(posterior=LangevinPosterior(Langevin(5, 0.1)))
    terms = truth.model.loss(truth.data(6))
    assert {n: t.shape for n, t in terms.items()} == {"reconstruction": (6,), "prior": (6,)}
    terms["prior"].sum().backward()
    assert truth.model.likelihood.decoder.weight.grad is None
    assert truth.model.prior.tilt.kappa.grad is not None


@pytest.mark.parametrize("kappa", [0.0, KAPPA])
def test_evidence_is_exact_with_one_latent_at_the_exact_posterior(kappa):
    # with one latent the exact posterior is the encoder's family: all importance weights are equal
    truth = LinearGaussian(kappa, data_dim=3, latent_dim=1)
    x = truth.data(8)
    log_z = torch.tensor(2 * torch.pi / (1 + kappa), dtype=torch.float64).log() / 2
    estimate = truth.model.log_likelihood(x, 1, log_z, seeded(0))
    torch.testing.assert_close(estimate, truth.evidence(x))


def test_evidence_bound_rises_with_the_number_of_samples_toward_the_truth():
    truth = LinearGaussian()
    broad = ExactEncoder(truth.mean_matrix, 4 * truth.covariance)
    truth.model.posterior = AmortizedPosterior(broad)
    x = truth.data(2000)
    log_z = torch.tensor(2 * torch.pi / (1 + KAPPA), dtype=torch.float64).log()
    bounds = [
        float(truth.model.log_likelihood(x, k, log_z, seeded(0)).mean()) for k in (1, 10, 500)
    ]
    exact = float(truth.evidence(x).mean())
    assert bounds[0] < bounds[1] - 0.1 < bounds[2] < exact + 0.01
    assert bounds[2] == pytest.approx(exact, abs=0.02)


def test_evidence_with_chains_as_proposal():
    truth = LinearGaussian(posterior=LangevinPosterior(Langevin(100, 0.1), num_chains=64))
    x = truth.data(50)
    log_z = torch.tensor(2 * torch.pi / (1 + KAPPA), dtype=torch.float64).log()
    estimate = truth.model.log_likelihood(x, 500, log_z, seeded(0))
    assert float((estimate - truth.evidence(x)).mean()) == pytest.approx(0, abs=0.05)


def test_the_evidence_bound_of_the_loss_is_tight_at_the_exact_posterior():
    # negative ELBO = −log p(x) when q is exact; Gaussian prior, so `prior` is the whole KL
    truth = LinearGaussian(0.0, latent_dim=1)
    x = truth.data(3).repeat_interleave(100_000, 0)
    loss = sum(truth.model.loss(x, seeded(0)).values()).unflatten(0, (3, -1))
    torch.testing.assert_close(loss.mean(1), -truth.evidence(x[::100_000]), atol=0.02, rtol=0)


def test_samples_with_noise_have_the_covariance_of_the_evidence():
    truth = LinearGaussian(sampler=Langevin(400, 0.1))
    x = truth.model.sample(40_000, seeded(0), noise=True)
    eye = torch.eye(3, dtype=torch.float64)
    exact = truth.weight @ truth.weight.T / (1 + KAPPA) + 0.25 * eye
    assert torch.allclose(x.T.cov(), exact, rtol=0.03, atol=0.02)


def test_reconstruction_is_the_posterior_mean_decoded():
    truth = LinearGaussian()
    x = truth.data(5)
    torch.testing.assert_close(truth.model.reconstruct(x), x @ truth.mean_matrix.T @ truth.weight.T)


class Autoregressive(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(6, 6), nn.Linear(2, 6)

    def forward(self, z, tokens):
        return self.table(tokens) + self.linear(z)[:, None]


class BagEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 4)

    def forward(self, tokens):
        return self.table(tokens).mean(1)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "categorical"])
@pytest.mark.parametrize("posterior", ["amortized", "langevin"])
@pytest.mark.parametrize("prior", ["gaussian", "energy"])
def test_every_triple_of_parts_trains(prior, posterior, likelihood):
    text = likelihood == "categorical"
    x = torch.randint(1, 6, (8, 5)) if text else torch.rand(8, 4) * 2 - 1
    parts = {
        "gaussian": lambda: GaussianLikelihood(MLP(2, [8], 4)),
        "bernoulli": lambda: BernoulliLikelihood(MLP(2, [8], 4)),
        "categorical": lambda: CategoricalLikelihood(Autoregressive(), max_length=5),
    }
    encoder = BagEncoder() if text else MLP(4, [8], 4)
    chain = Langevin(3, 0.1)
    model = LatentVariableModel(
        GaussianPrior(2) if prior == "gaussian" else EnergyPrior(2, MLPEnergy(2, [8]), chain),
        AmortizedPosterior(encoder) if posterior == "amortized" else LangevinPosterior(chain),
        parts[likelihood](),
    )
    sum(term.mean() for term in model.loss(x).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.sample(3).shape == (3, *x.shape[1:])
    assert model.reconstruct(x).shape == x.shape
    assert model.log_likelihood(x, 2).isfinite().all()


def test_an_encoder_of_the_wrong_width_is_refused():
    model = LatentVariableModel(
        GaussianPrior(3), AmortizedPosterior(MLP(4, [8], 4)), GaussianLikelihood(MLP(3, [8], 4))
    )
    with pytest.raises(ValueError, match=r"returned shape \(5, 4\); expected \(5, 6\)"):
        model.loss(torch.zeros(5, 4))


def test_released_estimate_is_self_normalized_and_optimistic():
    """Σ p(x|z) D / Σ D with D = exp(−E)/q; too high where q is narrower than the prior."""
    exact = LinearGaussian()
    narrow = ExactEncoder(exact.mean_matrix, 0.01 * exact.covariance)
    exact = LinearGaussian(posterior=AmortizedPosterior(narrow))
    x = exact.data(50)
    found = exact.model.log_likelihood(
        x, 200, generator=torch.Generator().manual_seed(0), released=True
    )
    assert float((found - exact.evidence(x)).mean()) > 0.3


def test_channels_last_agrees_to_rounding():
    def build(channels_last):
        latent = strided()
        rates = {"posterior": 1e-3, "likelihood": 1e-3}
        return LatentEBM(latent, rates, channels_last=channels_last)

    first, last = build(False), build(True)
    filters = last.latent.posterior.encoder.net[0].weight
    assert filters.is_contiguous(memory_format=torch.channels_last)
    batch = (torch.rand(6, 3, 8, 8), None)
    expected = first.terms(batch, seeded(0))
    for name, term in last.terms(batch, seeded(0)).items():
        torch.testing.assert_close(term, expected[name], rtol=1e-4, atol=1e-5)
