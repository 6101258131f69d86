"""The learner of restricted Boltzmann machines by the exact gradient, or by Gibbs sampling."""

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from eblvm.objectives import contrastive_divergence
from eblvm.rbm import GaussianBernoulliRBM
from eblvm.samplers import Gibbs
from eblvm.signs import vital_signs

from .learner import Learner

__all__ = ["BoltzmannMachine"]


class BoltzmannMachine(Learner):
    """Maximum likelihood of an RBM, exact where hidden states can be enumerated, or sampled.

    References:
        Training Products of Experts by Minimizing Contrastive Divergence (Hinton, 2002);
        Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient
        (Tieleman, 2008).

    Arguments:
        energy: The machine.
        learning_rate: Of all its parameters.
        sampler: Contrastive divergence with so many sweeps; the exact gradient if None.
        num_chains: Persistent chains, which go on where they ended; 0 starts from the data.
        optimizer: From parameter groups to an optimizer.
    """

    persistent: Tensor
    exact_likelihood = True

    def __init__(
        self,
        energy: GaussianBernoulliRBM,
        learning_rate: float = 1e-3,
        sampler: Gibbs | None = None,
        num_chains: int = 0,
        optimizer: OptimizerCallable = torch.optim.Adam,
    ) -> None:
        super().__init__(optimizer, {"energy": learning_rate})
        if num_chains and sampler is None:
            raise ValueError("num_chains needs a sampler; the exact gradient has no chains.")
        self.save_recipe()
        self.energy = energy
        self.sampler = sampler
        start = torch.zeros(num_chains, len(energy.visible_bias))
        self.register_buffer("persistent", start.normal_())

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._ddp_params_and_buffers_to_ignore.append("persistent")

    @property
    def learns_energy(self) -> bool:
        return True

    def components(self) -> dict[str, nn.Module]:
        return {"energy": self.energy}

    def terms(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        x = batch[0]
        if self.sampler is None:
            return {"nll": self.energy(x) + self.energy.log_normalizer()}
        start = self.persistent if len(self.persistent) else x
        negative = self.sampler(self.energy, start, generator)
        if len(self.persistent) and self.training:
            self.persistent = negative
        energy, negative_energy = self.energy(x), self.energy(negative)
        if self.noting:
            self.signs = vital_signs(x, negative, energy.detach(), negative_energy.detach(), start)
        return {"contrast": contrastive_divergence(energy, negative_energy)}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        with self.watched():
            terms = self.terms(batch, self.generator(batch_idx))
            self.require_finite(terms)
            figures = {name: term.mean() for name, term in terms.items()}
            if self.noting and self.sampler is None:
                self.signs = {"nll": figures["nll"].detach()}
            loss = torch.stack(list(figures.values())).sum()
            logged = {**self.signs, **figures, "loss": loss}
            self.log_dict({f"train/{n}": f.detach() for n, f in logged.items()})
            return loss
        return None

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", -self.log_likelihood(batch[0]).mean(), sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test/loss", -self.log_likelihood(batch[0]).mean(), sync_dist=True)

    def sample(
        self, num: int, generator: torch.Generator | None = None, noise: bool = False
    ) -> Tensor:
        """Draw v exactly, with shape `(num, N)`; `noise` is without effect."""
        return self.energy.sample(num, generator)

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, num_samples: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """log p(v), exact, with shape `(B,)`, in nats."""
        return self.energy.log_prob(x)
