"""The learner of energies by score matching."""

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from eblvm.energies import Energy
from eblvm.matching import DenoisingMatching, ScoreMatching
from eblvm.metrics.grid import Bounds, energy_log_prob
from eblvm.negatives import NoiseNegatives
from eblvm.rbm import GaussianBernoulliRBM
from eblvm.samplers import score

from .learner import Learner

__all__ = ["ScoreMatchingEBM"]


class ScoreMatchingEBM(Learner):
    """An energy E(x), or an RBM's free energy, that learns its slope; no chain runs in training.

    Arguments:
        energy: E, twice differentiable in x.
        matching: Which score matching.
        learning_rate: Of the energy.
        negatives: Chains that draw samples afterward; an RBM needs none.
        optimizer: From parameter groups to an optimizer.
        denoise: Whether a sample is x − σ²∇E(x), the mean of the data that the chain's noisy end x
            may have come from, by Tweedie's formula. Otherwise samples are as noisy as the density
            that denoising matching learns.

    Raises:
        TypeError: If what is to be denoised was not learned by denoising, or is an RBM.
    """

    exact_likelihood = True

    def __init__(
        self,
        energy: Energy,
        matching: ScoreMatching,
        learning_rate: float = 1e-3,
        negatives: NoiseNegatives | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        denoise: bool = False,
    ) -> None:
        super().__init__(optimizer, {"energy": learning_rate})
        if denoise and not isinstance(matching, DenoisingMatching):
            raise TypeError(
                f"{type(matching).__name__} adds no noise that could be taken away; set denoise to "
                "false, or take DenoisingMatching."
            )
        if denoise and isinstance(energy, GaussianBernoulliRBM):
            raise TypeError("an RBM is sampled exactly, as it is; set denoise to false.")
        self.save_recipe()
        self.energy = energy
        self.matching = matching
        self.negatives = negatives
        self.denoise = denoise

    @property
    def learns_energy(self) -> bool:
        return True

    def twice_differentiated(self) -> list[nn.Module]:
        return [self.energy]

    def components(self) -> dict[str, nn.Module]:
        return {"energy": self.energy}

    def terms(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return {"score_matching": self.matching(self.energy, batch[0], generator)}

    def step(self, batch: tuple[Tensor, Tensor], batch_idx: int, stage: str) -> Tensor:
        terms = self.terms(batch, self.generator(batch_idx))
        self.require_finite(terms)
        loss = terms["score_matching"].mean()
        if stage == "train" and self.noting:
            self.signs = {"score_matching": loss.detach()}
        self.log(f"{stage}/loss", loss.detach(), sync_dist=stage != "train")
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        loss = None
        with self.watched():
            loss = self.step(batch, batch_idx, "train")
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(batch, batch_idx, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(batch, batch_idx, "test")

    def sample(
        self, num: int, generator: torch.Generator | None = None, noise: bool = False
    ) -> Tensor:
        """Draw data, with shape `(num, *event)`: exactly of an RBM, else by `negatives`' chains.

        Arguments:
            num: How many.
            generator: Source of the noise.
            noise: Without effect.

        Raises:
            TypeError: If there are no chains.
        """
        if isinstance(self.energy, GaussianBernoulliRBM):
            return self.energy.sample(num, generator)
        if self.negatives is None:
            raise TypeError("score matching has no sampler of its own; give it `negatives`.")
        x = self.negatives(self.energy, num, generator).x
        if self.denoise and isinstance(self.matching, DenoisingMatching):
            x = x + self.matching.scale**2 * score(self.energy, x)
        return x

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, num_samples: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """log p(x), `(B,)`, in nats: exact, by enumeration of an RBM's hidden states.

        Raises:
            TypeError: If the energy's normalizer is not known.
        """
        if not isinstance(self.energy, GaussianBernoulliRBM):
            raise TypeError(f"the normalizer of {type(self.energy).__name__} is not known.")
        return self.energy.log_prob(x)

    @torch.no_grad()
    def scores(self, x: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """`energy`, −E, and `gradient_norm`, −‖∇E‖, `(B,)` each; high means in-distribution."""
        norm = score(self.energy, x).flatten(1).norm(dim=1)
        return {"energy": -self.energy(x), "gradient_norm": -norm}

    def log_prob_on_grid(self, bounds: Bounds, resolution: int) -> Tensor:
        """log p(x) ∝ −E(x) of points of the plane, `(resolution²,)`; see `energy_log_prob`."""
        dtype = next(self.energy.parameters()).dtype
        return energy_log_prob(self.energy, bounds, resolution, self.device, dtype)
