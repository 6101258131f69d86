"""A one-dimensional BiDVL whose expectations are exact on four points; a small model of images."""

import torch
from torch import nn

from eblvm.energies import Energy
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import GaussianLikelihood
from eblvm.models import BiDVL
from eblvm.models.networks import StridedDecoder, StridedEncoder
from eblvm.posteriors import AmortizedPosterior
from eblvm.priors import GaussianPrior


class Number(nn.Module):
    def __init__(self, *values):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(values, dtype=torch.float64))


class Curvature(Number, Energy):
    """E(v) = k v²/2."""

    def forward(self, x):
        return 0.5 * self.value[0] * x[:, 0].square()


class Gain(Number):
    """G(h) = g h."""

    def forward(self, z):
        return self.value[0] * z


class LinearEncoder(Number):
    """q(h|v) = N(m v, t); the parameters are m and log t."""

    def forward(self, x):
        mean, log_variance = self.value
        return torch.cat([mean * x, log_variance.expand(len(x), 1)], 1)


def game(k=0.3, g=0.8, m=0.5, log_t=-0.4, scale=0.5**0.5, **settings):
    latent = LatentVariableModel(
        GaussianPrior(1).double(),
        AmortizedPosterior(LinearEncoder(m, log_t)),
        GaussianLikelihood(Gain(g), scale),
    )
    rates = {"energy": 1e-3, "posterior": 1e-3, "likelihood": 1e-3}
    return BiDVL(Curvature(k), latent, rates, **settings)


SIGNS = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64)
OTHER = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
"""Two independent variables of mean 0 and variance 1: all that quadratic losses ask for."""


def exact_noise(monkeypatch):
    """Latents become SIGNS, every other noise OTHER."""
    monkeypatch.setattr(GaussianPrior, "sample", lambda self, num, g=None, label=None: SIGNS)
    for module in ("likelihoods", "posteriors"):
        monkeypatch.setattr(f"eblvm.{module}.noise_like", lambda like, g=None: OTHER)


def strided():
    """The same small convolutional model of images 8×8 each time."""
    torch.manual_seed(0)
    return LatentVariableModel(
        GaussianPrior(4),
        AmortizedPosterior(StridedEncoder(3, 8, 4, 8)),
        GaussianLikelihood(StridedDecoder(4, 3, [8, 8])),
    )
