"""The learner of latent-variable models: VAE, latent-space EBM prior, and their relatives."""

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import GaussianLikelihood
from eblvm.metrics.grid import Bounds, grid_points, push_forward
from eblvm.samplers import ChainSetup

from .learner import Learner

__all__ = ["LatentEBM"]


class LatentEBM(Learner):
    """Trains a `LatentVariableModel` by ascending its evidence lower bound.

    Which method this is depends on the parts: a Gaussian prior and an encoder make a VAE; an energy
    prior and a Langevin posterior the latent-space EBM prior (LEBM).

    One optimizer with a group per component equals the papers' separate optimizers, because each
    parameter's gradient comes only from its own term.

    Arguments:
        latent: The model.
        optimizer: From parameter groups to an optimizer.
        learning_rates: A rate for each of `prior`, `posterior`, `likelihood` that has parameters.
        scheduler: From the optimizer to a schedule that steps once an epoch.
        kl_weight: Factor on the prior term; 1 is the evidence lower bound.
    """

    def __init__(
        self,
        latent: LatentVariableModel,
        learning_rates: dict[str, float],
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        kl_weight: float = 1.0,
    ) -> None:
        super().__init__(optimizer, learning_rates, scheduler)
        self.save_recipe()
        self.latent = latent
        self.kl_weight = kl_weight
        self.configure_optimizers()  # a missing learning rate is found before any data is read

    def components(self) -> dict[str, nn.Module]:
        return {name: getattr(self.latent, name) for name in ("prior", "posterior", "likelihood")}

    def terms(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return self.latent.loss(batch[0], generator)

    def step(self, batch: tuple[Tensor, Tensor], batch_idx: int, stage: str) -> Tensor:
        """The loss of a batch, logged by term."""
        terms = {n: t.mean() for n, t in self.terms(batch, self.generator(batch_idx)).items()}
        loss = terms["reconstruction"] + self.kl_weight * terms["prior"]
        self.require_finite(terms)
        log = {**terms, **self.latent.prior.diagnostics, "loss": loss}
        self.log_dict(
            {f"{stage}/{name}": value for name, value in log.items()},
            batch_size=len(batch[0]),
            sync_dist=stage != "train",
        )
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.step(batch, batch_idx, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(batch, batch_idx, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(batch, batch_idx, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The inferred latents, with shape `(B, D)`."""
        inference = self.latent.infer(batch[0], self.generator(batch_idx))
        return inference.z if inference.mean is None else inference.mean

    def sample(
        self, num: int, generator: torch.Generator | None = None, noise: bool = False
    ) -> Tensor:
        """Draw data, with shape `(num, *event)`; see `LatentVariableModel.sample`."""
        return self.latent.sample(num, generator, noise)

    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Infer and decode, with the shape of `x`."""
        return self.latent.reconstruct(x, generator)

    def log_likelihood(
        self, x: Tensor, num_samples: int = 100, generator: torch.Generator | None = None
    ) -> Tensor:
        """log p(x), estimated, with shape `(B,)`, in nats."""
        log_z = self.latent.prior.log_normalizer(generator=self.generator(0, 6))  # one for all
        return self.latent.log_likelihood(x, num_samples, log_z, generator)

    def chains(self, generator: torch.Generator | None = None) -> dict[str, ChainSetup]:
        """The chains of training: the prior's, and the posterior's for one datum of the model.

        Arguments:
            generator: Draws the datum.
        """
        prior, likelihood = self.latent.prior, self.latent.likelihood
        x = self.sample(1, generator, noise=True)
        found = {
            "prior": prior.chain(),
            "posterior": self.latent.posterior.chain(x, prior, likelihood),
        }
        return {name: chain for name, chain in found.items() if chain is not None}

    @torch.no_grad()
    def log_prob_on_grid(self, bounds: Bounds, resolution: int) -> Tensor:
        """log p(x) of points of the plane, by quadrature over latents.

        With two latents the nodes are a 1000² grid over [−6, 6]², weighted by the prior's density;
        with more they are 200,000 samples of the prior.

        Arguments:
            bounds: The box, `((x_low, x_high), (y_low, y_high))`.
            resolution: Cells per axis.

        Returns:
            Nats at the centers of the cells, with shape `(resolution²,)`, in float64.

        Raises:
            TypeError: If the likelihood is not Gaussian.
        """
        likelihood = self.latent.likelihood
        if not isinstance(likelihood, GaussianLikelihood):
            raise TypeError(f"{type(likelihood).__name__} has no density of the plane to draw.")
        prior = self.latent.prior
        if prior.latent_dim == 2:
            square = ((-6.0, 6.0), (-6.0, 6.0))
            nodes = grid_points(square, 1000, device=self.device, dtype=prior.origin.dtype)
            log_weights = -torch.cat([prior.energy(z) for z in nodes.split(50_000)]).double()
        else:
            nodes = prior.sample(200_000, self.generator(0, 5))
            log_weights = nodes.new_zeros(len(nodes), dtype=torch.float64)
        means = torch.cat([likelihood.mean(z) for z in nodes.split(50_000)])
        weights = log_weights.log_softmax(0)
        return push_forward(means, weights, likelihood.scale, bounds, resolution)
