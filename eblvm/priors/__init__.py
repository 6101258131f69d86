r"""Priors p(z) over the latent variable.

A prior can say how likely a latent is (`energy`), draw one (`sample`), and learn from posterior
samples (`loss`). `loss` hides the negative phase: it may run a Markov chain, and then `diagnostics`
shows what that chain did.
"""

from .diffusion import DiffusionEnergyPrior
from .prior import EnergyPrior, GaussianPrior, Prior

__all__ = ["DiffusionEnergyPrior", "EnergyPrior", "GaussianPrior", "Prior"]
