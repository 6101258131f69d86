"""The learner of latent-variable models: VAE, latent-space EBM prior, and their relatives."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from eblvm.data.loader import TensorRows
from eblvm.data.module import DataModule
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import GaussianLikelihood
from eblvm.metrics.grid import Bounds, push_forward
from eblvm.regularizers import Regularizer, check_labels
from eblvm.samplers import ChainSetup

from .initialization import Initialization
from .kl_weight import ConstantWeight, KLWeight
from .learner import Learner

__all__ = ["LatentEBM"]


def total(module: nn.Module) -> Tensor:
    """The sum of a module's parameters: times 0, it gives each of them a gradient."""
    return sum((p.sum() for p in module.parameters()), start=torch.zeros(()))


class LatentEBM(Learner):
    """Trains a `LatentVariableModel` by ascending its evidence lower bound.

    Which method this is depends on the parts: a Gaussian prior and an encoder make a VAE; an energy
    prior and a Langevin posterior the latent-space EBM prior (LEBM); a symbol-vector tilt and an
    information bottleneck SVEBM; a diffusion prior LDEBM.

    One optimizer with a group per component equals the papers' separate optimizers, because each
    parameter's gradient comes only from its own term.

    While the weight of the prior's term is 0 the model is an autoencoder: latents are the means of
    q(z|x), no chain runs, and the prior's parameters rest.

    Arguments:
        latent: The model.
        learning_rates: A rate for each of `prior`, `posterior`, `likelihood` that has parameters.
        optimizer: From parameter groups to an optimizer.
        scheduler: From the optimizer to a schedule that steps once an epoch.
        kl_weight: Factor on the prior term, a number or one for each step; 1 is the evidence lower
            bound. Validation and test take its full value.
        regularizers: Further terms of the loss.
        clip_norms: Largest gradient norm by component; `a+b` clips two jointly. Components that are
            not named follow `--trainer.gradient_clip_val`.
        weight_decays: Weight decay by component, in place of the optimizer's.
        initialization: Overwrites the parameters; PyTorch's defaults if None.
        prior_weight: Factor on the prior term in the prior's own parameters, beside which the
            regularizers stand; that of `kl_weight` if None, as published. Where that is small the
            regularizers rule an energy, and what it draws is not the latents.
        channels_last: Whether filters, and with them all maps, lie in memory with channels last,
            which is faster for most convolutions and changes no figure but by rounding.
    """

    levers: Mapping[str, str] = {
        "separation": "the data's latents far below the negatives: the prior's energy grows faster "
        "than its chains can follow. Raise the sampler's num_steps or step_size, or lower the "
        "learning rate of the prior",
        "scale": "the prior's chains escape. Lower the sampler's step_size, or the learning rate "
        "of the prior",
        "displacement": "the prior's chains overshoot. Lower the sampler's step_size, or the "
        "learning rate of the prior",
    }

    def __init__(
        self,
        latent: LatentVariableModel,
        learning_rates: dict[str, float],
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        kl_weight: float | KLWeight = 1.0,
        regularizers: list[Regularizer] | None = None,
        clip_norms: dict[str, float] | None = None,
        weight_decays: dict[str, float] | None = None,
        initialization: Initialization | None = None,
        prior_weight: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(optimizer, learning_rates, scheduler, clip_norms, weight_decays)
        self.save_recipe()
        self.latent = latent
        self.kl_weight = kl_weight if isinstance(kl_weight, KLWeight) else ConstantWeight(kl_weight)
        if prior_weight is not None and not prior_weight > 0:
            raise ValueError(
                f"prior_weight is {prior_weight}; expected a positive number, or None."
            )
        self.prior_weight = prior_weight
        self.regularizers = list(regularizers or [])
        if initialization is not None:
            initialization(self.latent)
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.configure_optimizers()  # a missing learning rate is found before any data is read

    def on_fit_start(self) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        callbacks: Any = self.trainer.callbacks  # type: ignore[attr-defined]
        given = any(getattr(callback, "gives_labels", False) for callback in callbacks)
        given |= getattr(data, "pseudo_label", None) is not None
        labels = None
        if self.regularizers and isinstance(data, DataModule):
            rows = data.dataset("train")
            if isinstance(rows, TensorRows) and len(rows.columns) > 1:
                labels = rows.columns[1] if rows.rows is None else rows.columns[1][rows.rows]
        check_labels(self.regularizers, given, labels)

    @property
    def learns_energy(self) -> bool:
        return any(p.requires_grad for p in self.latent.prior.parameters())

    def components(self) -> dict[str, nn.Module]:
        return {name: getattr(self.latent, name) for name in ("prior", "posterior", "likelihood")}

    def terms(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return self.latent.loss(batch[0], generator)

    def step(self, batch: tuple[Tensor, Tensor], batch_idx: int, stage: str) -> Tensor:
        """The loss of a batch, logged by term."""
        generator = self.generator(batch_idx)
        training = stage == "train"
        # losses of all validations are of one scale, so that the best of them means something
        weight = self.kl_weight(self.global_step) if training else self.kl_weight.value
        inference = self.latent.infer(batch[0], generator)
        if self.autoencoding and training:
            inference = inference.at_mean()
            log_prob = self.latent.likelihood.log_prob(batch[0], inference.z)
            terms = {"reconstruction": -log_prob.mean()}
            loss = terms["reconstruction"] + 0 * total(self.latent.prior)  # known to every rank
        else:
            own = self.prior_weight or weight
            bound = self.latent.loss(batch[0], generator, inference, weight / own if own else 1.0)
            terms = {name: term.mean() for name, term in bound.items()}
            loss = terms["reconstruction"] + own * terms["prior"]
            if own != weight:  # the value stays the bound's
                loss = loss + (weight - own) * terms["prior"].detach()
        for regularizer in self.regularizers:
            if regularizer.when_autoencoding or "prior" in terms:
                value = regularizer(self.latent, batch, inference, generator)
                terms[regularizer.name] = value
                loss = loss + regularizer.weight * value
        self.require_finite(terms)
        log = {**terms, "loss": loss}
        if "prior" in terms:
            if training and self.noting:
                self.signs = self.latent.prior.vital_signs()
                log |= self.signs
            log |= self.latent.prior.diagnostics
        if not isinstance(self.kl_weight, ConstantWeight):
            log["kl_weight"] = loss.new_tensor(weight)
        self.log_dict(
            {f"{stage}/{name}": value for name, value in log.items()},
            batch_size=len(batch[0]),
            sync_dist=not training,
        )
        return loss

    @property
    def autoencoding(self) -> bool:
        """Whether the prior's term has no weight at this step."""
        return self.kl_weight(self.global_step) == 0

    def on_after_backward(self) -> None:
        """While autoencoding, a prior that no term reached rests: momentum does not move it."""
        if self.autoencoding and not any(r.when_autoencoding for r in self.regularizers):
            for parameter in self.latent.prior.parameters():
                parameter.grad = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        loss = None
        with self.watched():
            loss = self.step(batch, batch_idx, "train")
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(batch, batch_idx, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(batch, batch_idx, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The inferred latents, with shape `(B, D)`."""
        return self.encode(batch[0], self.generator(batch_idx))

    @torch.no_grad()
    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The inferred latents of data (means, where the posterior has one), `(B, D)`."""
        return self.latent.infer(x, generator).at_mean().z

    @torch.no_grad()
    def symbols(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The likeliest symbol of each row of data, int64 `(B,)`.

        Raises:
            TypeError: If the prior has no symbols.
        """
        inference = self.latent.infer(x, generator).at_mean()
        return self.latent.prior.symbol_logits(inference.z, **inference.conditions).argmax(1)

    def sample(
        self,
        num: int,
        generator: torch.Generator | None = None,
        noise: bool = False,
        label: Tensor | None = None,
    ) -> Tensor:
        """Draw data, with shape `(num, *event)`; see `LatentVariableModel.sample`."""
        return self.latent.sample(num, generator, noise, label)

    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Infer and decode, with the shape of `x`."""
        return self.latent.reconstruct(x, generator)

    def log_likelihood(
        self,
        x: Tensor,
        num_samples: int = 100,
        generator: torch.Generator | None = None,
        released: bool = False,
    ) -> Tensor:
        """log p(x), estimated, with shape `(B,)`, in nats.

        Arguments:
            x: Data, with shape `(B, *event)`.
            num_samples: Importance samples per row.
            generator: Source of the noise.
            released: Whether to estimate as published text models were
                (`LatentVariableModel.log_likelihood`), which is optimistic.
        """
        if released:
            return self.latent.log_likelihood(x, num_samples, None, generator, released=True)
        log_z = None
        if self.latent.posterior.condition(x) is None:
            log_z = self.latent.prior.log_normalizer(generator=self.generator(0, 6))  # one for all
        return self.latent.log_likelihood(x, num_samples, log_z, generator)

    @torch.no_grad()
    def scores(self, x: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """How much each of `x` looks like the data, `(B,)` each; high means in-distribution.

        `bound`, the terms of the loss, up to the prior's log Z; and of all data but tokens
        `reconstruction`, minus the squared error of what the latents' mean decodes to.
        """
        reconstruction = {}
        if x.is_floating_point():
            error = (x - self.reconstruct(x, generator)).square().flatten(1).sum(1)
            reconstruction["reconstruction"] = -error
        terms = self.latent.loss(x, generator)
        return {"bound": -terms["reconstruction"] - terms["prior"], **reconstruction}

    def chains(self, generator: torch.Generator | None = None) -> dict[str, ChainSetup]:
        """The chains of training: the prior's, and the posterior's for one datum of the model.

        Arguments:
            generator: Draws the datum.
        """
        prior, likelihood = self.latent.prior, self.latent.likelihood
        x = self.sample(1, generator, noise=True)
        found = prior.chains(generator)
        posterior = self.latent.posterior.chain(x, prior, likelihood)
        return found if posterior is None else {**found, "posterior": posterior}

    @torch.no_grad()
    def log_prob_on_grid(self, bounds: Bounds, resolution: int) -> Tensor:
        """log p(x) of points of the plane, by quadrature over latents.

        The nodes are the prior's own (see `Prior.nodes`): a grid weighted by its density where that
        can be had in the plane, else samples.

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
        nodes, weights = self.latent.prior.nodes(self.generator(0, 5))
        means = torch.cat([likelihood.mean(z) for z in nodes.split(50_000)])
        return push_forward(means, weights, likelihood.scale, bounds, resolution)
