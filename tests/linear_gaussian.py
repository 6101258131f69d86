r"""The latent-variable model in which everything is known.

Prior p(z) ∝ exp(−½κ‖z‖²) N(z; 0, I) = N(0, I/(1+κ)), likelihood N(x; Wz, σ²I). Hence the evidence
is N(0, WWᵀ/(1+κ) + σ²I), the posterior has precision Λ = WᵀW/σ² + (1+κ)I and mean Λ⁻¹Wᵀx/σ².
"""

import torch
from torch import nn
from torch.distributions import MultivariateNormal

from eblvm.energies import Energy
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import GaussianLikelihood
from eblvm.posteriors import AmortizedPosterior
from eblvm.priors import EnergyPrior, GaussianPrior
from eblvm.samplers import Langevin

KAPPA = 3.0
SCALE = 0.5


class Quadratic(Energy):
    """E(z) = ½κ‖z‖²."""

    def __init__(self, kappa=KAPPA):
        super().__init__()
        self.kappa = nn.Parameter(torch.tensor(kappa, dtype=torch.float64))

    def forward(self, x):
        return 0.5 * self.kappa * x.square().sum(-1)


class LinearGaussian:
    """The model, and its exact answers."""

    def __init__(self, kappa=KAPPA, data_dim=3, latent_dim=2, posterior=None, sampler=None):
        generator = torch.Generator().manual_seed(1)
        like = {"dtype": torch.float64, "generator": generator}
        self.weight = torch.randn(data_dim, latent_dim, **like)
        self.kappa = kappa
        decoder = nn.Linear(latent_dim, data_dim, bias=False).double()
        decoder.weight.data.copy_(self.weight)
        if kappa:
            sampler = sampler or Langevin(100, 0.1)
            prior = EnergyPrior(latent_dim, Quadratic(kappa), sampler).double()
        else:
            prior = GaussianPrior(latent_dim).double()
        self.exact_encoder = ExactEncoder(self.mean_matrix, self.covariance)
        posterior = posterior or AmortizedPosterior(self.exact_encoder)
        self.model = LatentVariableModel(prior, posterior, GaussianLikelihood(decoder, SCALE))

    @property
    def precision(self):
        dim = self.weight.shape[1]
        eye = torch.eye(dim, dtype=torch.float64)
        return self.weight.T @ self.weight / SCALE**2 + (1 + self.kappa) * eye

    @property
    def covariance(self):
        return torch.linalg.inv(self.precision)

    @property
    def mean_matrix(self):
        return self.covariance @ self.weight.T / SCALE**2

    def evidence(self, x):
        eye = torch.eye(len(self.weight), dtype=torch.float64)
        covariance = self.weight @ self.weight.T / (1 + self.kappa) + SCALE**2 * eye
        return MultivariateNormal(torch.zeros_like(x[0]), covariance).log_prob(x)

    def data(self, num, seed=0):
        generator = torch.Generator().manual_seed(seed)
        like = {"dtype": torch.float64, "generator": generator}
        z = torch.randn(num, self.weight.shape[1], **like) / (1 + self.kappa) ** 0.5
        return z @ self.weight.T + SCALE * torch.randn(num, len(self.weight), **like)


class ExactEncoder(nn.Module):
    """The posterior's mean, and its variances: exact where the latents are independent."""

    def __init__(self, mean_matrix, covariance):
        super().__init__()
        self.mean_matrix = mean_matrix
        self.covariance = covariance

    def forward(self, x):
        mean = x @ self.mean_matrix.T
        return torch.cat([mean, self.covariance.diagonal().log().expand_as(mean)], dim=1)
