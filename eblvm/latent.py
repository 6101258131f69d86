r"""The energy-based latent-variable model: a prior, a posterior and a likelihood.

Learning ascends the evidence lower bound

.. math:: \log p(x) \ge \mathbb{E}_{q(z|x)}[\log p(x|z)] - KL(q(z|x) \| p(z))

with an amortized q, or the exact gradient :math:`\mathbb{E}_{p(z|x)}[\nabla \log p(x, z)]` with
samples of a chain. Either way the loss is a reconstruction term and a prior term.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from .decoding import Decoding
from .likelihoods import CategoricalLikelihood, DialogueLikelihood, Likelihood
from .objectives.variational import importance_bound
from .posteriors import Inference, Posterior, conditions
from .priors import Prior
from .samplers import noise_like

__all__ = ["Given", "LatentVariableModel", "bound", "interpolate"]


RELEASED_GROUP = 100
"""Draws that the released estimate of a likelihood normalizes together."""


def interpolate(z: Tensor, other: Tensor, num: int, spherical: bool = True) -> Tensor:
    r"""Paths between latents, with shape `(B, num, D)`, both ends included.

    The great circle, :math:`(\sin((1-t)\omega)\, z + \sin(t\omega)\, z') / \sin\omega`, keeps to
    the norms that a Gaussian prior has; the straight line passes nearer to the origin.

    Arguments:
        z: Where paths begin, with shape `(B, D)`.
        other: Where they end, with shape `(B, D)`.
        num: Points on each path, 2 or more.
        spherical: Great circle or straight line; latents that are nearly parallel get a line.
    """
    t = torch.linspace(0, 1, num, dtype=z.dtype, device=z.device)[:, None]  # (num, 1)
    z, other = z[:, None], other[:, None]
    line = (1 - t) * z + t * other
    if not spherical:
        return line
    omega = torch.nn.functional.cosine_similarity(z, other, dim=-1).clamp(-1, 1).arccos()[..., None]
    sine = omega.sin()
    arc = (((1 - t) * omega).sin() * z + (t * omega).sin() * other) / sine.clamp_min(1e-6)
    return torch.where(sine > 1e-3, arc, line)


class Given(nn.Module):
    """A conditional network with its condition: `f(·)` is `network(·, condition)`.

    Arguments:
        network: Takes the condition as its last argument.
        condition: One per row, with shape `(B, *c)`; a single one serves all rows.
    """

    def __init__(self, network: nn.Module, condition: Tensor) -> None:
        super().__init__()
        self.network = network
        self.condition = condition

    def forward(self, *inputs: Tensor) -> Tensor:
        condition = self.condition
        if len(condition) == 1:
            condition = condition.expand(len(inputs[0]), *condition.shape[1:])
        return self.network(*inputs, condition)


def bound(role: Any, name: str, condition: Tensor | None) -> Any:
    """A role that shares all parameters with the given one, its network bound to a condition.

    Arguments:
        role: A posterior or likelihood.
        name: Of the network within it; a role without one, such as a chain, is left as it is.
        condition: With shape `(B, *c)`; None leaves the role as it is.
    """
    if condition is None or name not in role._modules:
        return role
    twin = copy.copy(role)
    twin._modules = dict(role._modules)
    twin._modules[name] = Given(role._modules[name], condition)
    return twin


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied by a factor on the way back."""
    return x.detach() + factor * (x - x.detach())


class LatentVariableModel(nn.Module):
    """p(x, z) = p(z) p(x|z), and a way to infer z.

    Arguments:
        prior: p(z).
        posterior: q(z|x), or a chain on p(z|x).
        likelihood: p(x|z).
    """

    def __init__(self, prior: Prior, posterior: Posterior, likelihood: Likelihood) -> None:
        super().__init__()
        self.prior = prior
        self.posterior = posterior
        self.likelihood = likelihood

    def given(self, condition: Tensor | None) -> "LatentVariableModel":
        """The model of p(x, z | c) = p(z) p(x | z, c), which shares all parameters with this one.

        Arguments:
            condition: c, handed to `encoder(x, c)` and `decoder(z, c)`, with shape `(B, *c)`; None
                gives this model.
        """
        if condition is None:
            return self
        posterior = bound(self.posterior, "encoder", condition)
        likelihood = bound(self.likelihood, "decoder", condition)
        return LatentVariableModel(self.prior, posterior, likelihood)

    def infer(self, x: Tensor, generator: torch.Generator | None = None) -> Inference:
        """Latents for `x`, with shape `(B, *event)`."""
        return self.posterior(x, self.prior, self.likelihood, generator)

    def loss(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        inference: Inference | None = None,
        pull: float = 1.0,
    ) -> dict[str, Tensor]:
        """The terms of the negative bound, each with shape `(B,)`, in nats.

        Arguments:
            x: Data, with shape `(B, *event)`.
            generator: Source of all noise of this step.
            inference: What `infer` said of `x`, where it is known.
            pull: Factor on the gradient of `prior` in the latents; its value, and its gradient in
                the prior's parameters, are as with 1.

        Returns:
            `reconstruction`, −log p(x|z); and `prior`, whose gradient is that of KL(q(z|x) ‖ p(z))
            or, for chains, of −log p(z). Where the prior is learned, the value of `prior` lacks
            log Z and is no measure of progress.
        """
        inference = inference or self.infer(x, generator)
        z, mean, log_variance = inference.z, inference.mean, inference.log_variance
        context = inference.conditions
        felt = z if pull == 1.0 else scaled_gradient(z, pull)
        if mean is None or log_variance is None:
            prior = self.prior.loss(felt, generator, **context)
        else:
            if pull != 1.0:
                mean, log_variance = (scaled_gradient(v, pull) for v in (mean, log_variance))
            prior = self.prior.divergence(felt, mean, log_variance, generator, **context)
        return {"reconstruction": -self.likelihood.log_prob(x, z), "prior": prior}

    @torch.no_grad()
    def sample(
        self,
        num: int,
        generator: torch.Generator | None = None,
        noise: bool = False,
        label: Tensor | None = None,
        how: Decoding | None = None,
    ) -> Tensor:
        """Draw data, with shape `(num, *event)`.

        Arguments:
            num: How many.
            generator: Source of the noise.
            noise: Whether to draw from p(x|z) instead of taking its mean. Pictures look better
                without; the density of the model is the one with noise.
            label: Symbols, int64 `(num,)`, to draw latents given; for priors that have symbols.
            how: How to choose words, where data are sequences; see `eblvm.decoding`.

        Raises:
            TypeError: If the prior has no symbols, or the data are no sequences.
            ValueError: If the data are responses, which need the turns before.
        """
        if isinstance(self.likelihood, DialogueLikelihood):
            raise self.likelihood.unheard()
        z = self.prior.sample(num, generator, label)
        if how is not None:
            if not isinstance(self.likelihood, CategoricalLikelihood):
                raise TypeError(
                    f"{type(self.likelihood).__name__} has no words to choose; temperature, top-k, "
                    "top-p and beam are for sequences."
                )
            return self.likelihood.decode(z, how, generator)
        return self.likelihood.sample(z, generator) if noise else self.likelihood.mean(z)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Decode the inferred latent (the mean of an amortized posterior), `(B, *event)`."""
        return self.likelihood.reconstruction(x, self.infer(x, generator).at_mean().z)

    @torch.no_grad()
    def log_likelihood(
        self,
        x: Tensor,
        num_samples: int = 100,
        log_normalizer: Tensor | None = None,
        generator: torch.Generator | None = None,
        released: bool = False,
    ) -> Tensor:
        """Importance-weighted estimate of log p(x), a lower bound on average, `(B,)`, in nats.

        Arguments:
            x: Data, with shape `(B, *event)`.
            num_samples: Importance samples per row.
            log_normalizer: log Z of the prior; estimated by `prior.log_normalizer` if None. Pass it
                when you score many batches. A prior that is conditioned on what comes with `x` has
                one for each row, and it is estimated here.
            generator: Source of the noise.
            released: Whether to estimate as the released code of the symbol-vector and the latent
                diffusion models does (see `Prior.released_log_prob`), which is optimistic. Figures
                of the two estimators must not share a column.

        Raises:
            TypeError: If `released`, and the prior is conditioned, which that code does not score.
        """
        condition = conditions(self.posterior.condition(x))
        if released:
            if condition:
                raise TypeError(
                    "the released estimate is of priors that depend on nothing; this one depends "
                    "on the turns before. Leave `released` out."
                )
            return self._released(x, num_samples, generator)
        if log_normalizer is None or condition:
            log_normalizer = self.prior.log_normalizer(generator=generator, **condition)
        proposal = self.posterior.proposal(x, self.prior, self.likelihood, generator)
        mean, log_variance = self.prior.state(*proposal)
        log_weights = []
        for _ in range(num_samples):
            eps = noise_like(mean, generator)
            z = mean + (0.5 * log_variance).exp() * eps
            log_joint = self.likelihood.log_prob(x, z)
            log_joint = log_joint + self.prior.log_prob(z, log_normalizer, generator, **condition)
            log_q = -0.5 * (eps.square() + log_variance).sum(-1)
            log_weights.append(log_joint - log_q)
        constant = 0.5 * self.prior.latent_dim * math.log(2 * math.pi)
        return importance_bound(torch.stack(log_weights).double()) + constant

    def _released(self, x: Tensor, num_samples: int, generator: torch.Generator | None) -> Tensor:
        mean, log_variance = self.posterior.proposal(x, self.prior, self.likelihood, generator)
        eps = torch.stack([noise_like(mean, generator) for _ in range(num_samples)])
        z = mean + (0.5 * log_variance).exp() * eps  # (K, B, D)
        log_q = -0.5 * (eps.square() + log_variance + math.log(2 * math.pi)).sum(-1)
        log_x = torch.stack([self.likelihood.log_prob(x, part) for part in z])
        log_prior = [  # normalized within each group of draws
            self.prior.released_log_prob(*group, generator)
            for group in zip(z.split(RELEASED_GROUP), log_q.split(RELEASED_GROUP), strict=True)
        ]
        return importance_bound((log_x + torch.cat(log_prior) - log_q).double())
