"""Posteriors p(z|x), approximate: by an encoder, or by a chain on the exact one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .likelihoods import Likelihood
from .priors import Prior
from .samplers import ChainSetup, Kernel, noise_like

__all__ = [
    "AmortizedPosterior",
    "DialoguePosterior",
    "Inference",
    "LangevinPosterior",
    "Posterior",
    "conditions",
]


@dataclass(frozen=True)
class Inference:
    """What a posterior says of a batch.

    Arguments:
        z: One draw per row, with shape `(B, D)`; reparameterized if `mean` is there, else detached.
        mean: The mean of the Gaussian q(z|x), with shape `(B, D)`; None for chains.
        log_variance: Its log-variance, with shape `(B, D)`; None for chains.
        context: What the prior is conditioned on, with shape `(B, C)`, for priors that take one.

    Attributes:
        symbols: What regularizers have read off `z`, by whether it was noised: those of one step
            share a draw.
    """

    z: Tensor
    mean: Tensor | None = None
    log_variance: Tensor | None = None
    context: Tensor | None = None
    symbols: dict[bool, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def conditions(self) -> dict[str, Any]:
        """The context as a keyword of the prior's methods; empty where there is none."""
        return conditions(self.context)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """Another draw of the Gaussian q(z|x), reparameterized; of a chain the same latents."""
        if self.mean is None or self.log_variance is None:
            return self.z
        eps = noise_like(self.mean, generator)
        return self.mean + (0.5 * self.log_variance).exp() * eps

    def at_mean(self) -> "Inference":
        """The same with the mean as its latents, where there is one."""
        return self if self.mean is None else replace(self, z=self.mean)


def conditions(context: Tensor | None) -> dict[str, Any]:
    """A context as a keyword, for priors that take one; empty where there is none."""
    return {} if context is None else {"context": context}


class Posterior(nn.Module, ABC):
    """Latents for data."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        prior: Prior,
        likelihood: Likelihood,
        generator: torch.Generator | None = None,
    ) -> Inference:
        """Infer latents for `x`, with shape `(B, *event)`."""

    @abstractmethod
    def proposal(
        self,
        x: Tensor,
        prior: Prior,
        likelihood: Likelihood,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each `(B, D)`, of a Gaussian to draw importance samples from."""

    def condition(self, x: Tensor) -> Tensor | None:
        """What the prior of data `(B, *event)` is conditioned on, `(B, C)`; None if on nothing."""
        return None

    def chain(self, x: Tensor, prior: Prior, likelihood: Likelihood) -> ChainSetup | None:
        """The chain behind `forward` for data `(B, *event)`; None if there is none."""
        return None


class AmortizedPosterior(Posterior):
    r"""q(z|x) = N(z; μ(x), diag exp ℓ(x)).

    Arguments:
        encoder: `(B, *event) -> (B, 2 D)`, the mean and the log-variance side by side.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        x: Tensor,
        prior: Prior,
        likelihood: Likelihood,
        generator: torch.Generator | None = None,
    ) -> Inference:
        mean, log_variance = self.proposal(x, prior, likelihood)
        z = Inference(mean, mean, log_variance).draw(generator)
        return Inference(z, mean, log_variance)

    def proposal(
        self,
        x: Tensor,
        prior: Prior,
        likelihood: Likelihood,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self.gaussian(self.encoder(x), len(x), prior)

    @staticmethod
    def gaussian(heads: Tensor, num: int, prior: Prior) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each `(B, D)`, from what the encoder says of B rows."""
        if heads.shape != (num, 2 * prior.latent_dim):
            raise ValueError(
                f"the encoder returned shape {tuple(heads.shape)}; expected ({num}, "
                f"{2 * prior.latent_dim}): a mean and a log-variance for each of the prior's "
                f"latent_dim={prior.latent_dim} coordinates."
            )
        mean, log_variance = heads.chunk(2, dim=-1)
        return mean, log_variance


class DialoguePosterior(AmortizedPosterior):
    r"""q(z | response, turns before), of a model whose prior is p(z | turns before).

    The prior is conditioned on what the encoder read of the turns before, without a gradient.

    References:
        Latent Diffusion Energy-Based Model for Interpretable Text Modelling (Yu et al., 2022), its
        code for responses.

    Arguments:
        encoder: As for `AmortizedPosterior`, with parts `context(turns)`, `(B, T, L) -> (B, C)`,
            and `heads_of(response, context)`, such as `eblvm.models.networks.DialogueEncoder`.
    """

    def condition(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.encoder.context(x[:, 1:])  # type: ignore[operator]

    def forward(
        self,
        x: Tensor,
        prior: Prior,
        likelihood: Likelihood,
        generator: torch.Generator | None = None,
    ) -> Inference:
        context = self.encoder.context(x[:, 1:])  # type: ignore[operator]
        heads = self.encoder.heads_of(x[:, 0], context)  # type: ignore[operator]
        mean, log_variance = self.gaussian(heads, len(x), prior)
        z = Inference(mean, mean, log_variance).draw(generator)
        return Inference(z, mean, log_variance, context.detach())


class LangevinPosterior(Posterior):
    """A short chain on p(z|x) ∝ p(x|z) p(z), from N(0, I) afresh for each batch.

    References:
        Learning Latent Space Energy-Based Prior Model (Pang et al., 2020), Sec. 3.2.

    Arguments:
        sampler: The chain. Stable for s²/2 · (‖Jacobian of the decoder‖²/σ² + 1) < 2.
        num_chains: Chains per row from which `proposal` estimates mean and variance.
    """

    def __init__(self, sampler: Kernel, num_chains: int = 16) -> None:
        super().__init__()
        self.sampler = sampler
        self.num_chains = num_chains

    def forward(
        self,
        x: Tensor,
        prior: Prior,
        likelihood: Likelihood,
        generator: torch.Generator | None = None,
    ) -> Inference:
        chain = self.chain(x, prior, likelihood)
        return Inference(chain.sampler(chain.energy, chain.start(len(x), generator), generator))

    def chain(self, x: Tensor, prior: Prior, likelihood: Likelihood) -> ChainSetup:
        """One chain per row of `x`; a single row serves any number of chains."""

        def energy(z: Tensor) -> Tensor:
            return prior.energy(z) - likelihood.log_prob(x.expand(len(z), *x.shape[1:]), z)

        def start(num: int, generator: torch.Generator | None) -> Tensor:
            return noise_like(prior.origin.expand(num, -1), generator)

        return ChainSetup(energy, self.sampler, start)

    def proposal(
        self,
        x: Tensor,
        prior: Prior,
        likelihood: Likelihood,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A Gaussian with the moments of `num_chains` chains, its variance widened by half."""
        rows = x.repeat_interleave(self.num_chains, dim=0)
        z = self(rows, prior, likelihood, generator).z.unflatten(0, (len(x), -1))
        return z.mean(1), (1.5 * z.var(1)).log()
