r"""How likely an energy finds data once it is normalized, as a callback.

An energy of data is a density up to log Z. Annealed importance sampling brackets it
(:mod:`eblvm.samplers.annealed`): chains from a Gaussian to the energy give log Z from below, chains
back from samples of the energy give it from above. With :math:`\Delta = 2/255` between two bytes of
an image in [−1, 1] and D numbers each, a datum costs

.. math:: \frac{1}{\log 2} \Big(\frac{E(x) + \log Z}{D} - \log \Delta\Big)

bits per dimension. The estimate from below makes the model look better than it is, that from above
worse; where they are far apart, neither is a figure.
"""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from eblvm.evaluation import Evaluation, draw, gather, log, require
from eblvm.metrics import MeanLogLikelihood, bits_per_dim
from eblvm.samplers import AIS, HMC, EnergyFn
from eblvm.samplers.annealed import effective_sample_size

__all__ = ["BitsPerDimension"]


@runtime_checkable
class Normalizable(Protocol):
    """A learner with an energy of data, and samples near it."""

    def potential(self) -> EnergyFn:
        """E, `(B, *event) -> (B,)`."""

    def sample(
        self, num: int, generator: torch.Generator | None = None, noise: bool = False
    ) -> Tensor:
        """Draw `(num, *event)`."""

    def generator(self, batch_idx: int = 0, offset: int = 0) -> torch.Generator:
        """A seeded source of noise."""


class BitsPerDimension(Evaluation):
    """The cost of data under a normalized energy, from both sides.

    Logs `log_z_low` and `log_z_high` (nats) with `log_z_low_error` and `log_z_high_error`, the
    standard errors of either from the spread of its chains; `ais_ess_low` and `ais_ess_high`, their
    effective sample sizes as shares of the chains, below 0.05 not to be trusted;
    `bits_per_dim_low` and `bits_per_dim_high`, the mean cost of the data with one and the other;
    `bits_per_dim_error`, its standard error by the choice of data alone.

    The way back should start from exact samples. It starts from the learner's, moved by `burn_in`
    proposals that leave the energy's density invariant and find the step size on their way.

    A learner whose energy is of data with a little noise says so by a method
    `at_lowest_level(x, generator)`, and the figures are then those of noisy data.

    Arguments:
        num_chains: Chains of either direction, over all devices.
        num_temperatures: Steps from the Gaussian to the energy.
        num_leapfrog: Leapfrog steps of each move, one move per temperature.
        step_size: Of the leapfrog steps, the first guess.
        target_acceptance: Of the moves at the energy itself.
        burn_in: Moves of the learner's samples before the way back.
        base_scale: Standard deviation of the Gaussian; it should cover the data.
        bin_width: Δ; 1 for densities of real numbers, which then are differential entropies.
        every_n_epochs: Epochs between looks.
    """

    def __init__(
        self,
        num_chains: int = 64,
        num_temperatures: int = 1000,
        num_leapfrog: int = 5,
        step_size: float = 0.01,
        target_acceptance: float = 0.65,
        burn_in: int = 200,
        base_scale: float = 1.0,
        bin_width: float = 2 / 255,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__(every_n_epochs)
        if num_chains < 2:
            raise ValueError(f"num_chains is {num_chains}; expected two or more.")
        self.num_chains = num_chains
        self.num_temperatures = num_temperatures
        self.kernel = HMC(1, step_size, num_leapfrog)
        self.target_acceptance = target_acceptance
        self.burn_in = burn_in
        self.base_scale = base_scale
        self.bin_width = bin_width
        self.energies = MeanLogLikelihood("annealed importance sampling")
        self._num_dims = 0

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        model: Any = require(learner, Normalizable, "BitsPerDimension")
        x = batch[0]
        if hasattr(model, "at_lowest_level"):
            x = model.at_lowest_level(x, model.generator(index, 5))
        self._num_dims = x[0].numel()
        with torch.no_grad():
            energy = model.potential()(x)
        self.energies.to(learner.device).update(-energy)

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        model: Any = require(learner, Normalizable, "BitsPerDimension")
        energy, generator = model.potential(), model.generator(0, 6)
        x = draw(model, trainer, self.num_chains)
        kernel, x = self.kernel.adapt(energy, x, self.burn_in, self.target_acceptance, generator)
        ais = AIS(self.num_temperatures, kernel, base_scale=self.base_scale)
        both = {
            "low": ais.forward(energy, torch.empty_like(x), generator).log_weights,
            "high": -ais.reverse(energy, x, generator).log_weights,
        }
        seen = self.energies.compute()
        self.protocol = self.energies.protocol | {
            "num_chains": self.num_chains,
            "num_temperatures": self.num_temperatures,
            "num_leapfrog": self.kernel.num_leapfrog,
            "burn_in": self.burn_in,
            "base_scale": self.base_scale,
            "bin_width": self.bin_width,
        }
        self.energies.reset()
        scale = self._num_dims * math.log(2)
        figures = {"bits_per_dim_error": seen["standard_error"] / scale}
        for name, found in both.items():
            sign = 1 if name == "low" else -1
            w = sign * gather(learner, found)
            log_z = sign * (w.logsumexp(0) - math.log(len(w)))
            cost = bits_per_dim(seen["mean"].to(log_z) - log_z, self._num_dims, self.bin_width)
            figures |= {
                f"log_z_{name}": log_z,
                f"log_z_{name}_error": relative_error(w),
                f"ais_ess_{name}": torch.tensor(effective_sample_size(w) / len(w)),
                f"bits_per_dim_{name}": cost,
            }
        log(learner, stage, figures)


def relative_error(log_weights: Tensor) -> Tensor:
    """The standard error of log of the mean weight, by the delta method, a scalar."""
    w = (log_weights - log_weights.logsumexp(0)).exp() * len(log_weights)
    return w.std() / len(w) ** 0.5
