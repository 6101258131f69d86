r"""Log-likelihoods: averages over data, bits per dimension, importance sampling.

For a latent-variable model with proposals :math:`z_k \sim q(z \mid x)` the log-weights
:math:`\log w_k = \log p(x \mid z_k) + \log p(z_k) - \log q(z_k \mid x)` give

.. math:: \log p(x) \ge E \Big[\log \frac1K \sum_k w_k\Big],
    \qquad \text{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}.

References:
    Importance Weighted Autoencoders (Burda et al., 2016), Eq. 8.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from .precision import device_only

__all__ = [
    "MeanLogLikelihood",
    "bits_per_dim",
    "effective_sample_size",
    "importance_log_likelihood",
]


def importance_log_likelihood(log_weights: Tensor) -> Tensor:
    """Importance-sampling estimate of log p(x): a lower bound in expectation, rising with K.

    Arguments:
        log_weights: Log-weights in nats, with shape `(K, B)`: K proposals for each datum.

    Returns:
        Estimates in nats, with shape `(B,)`.
    """
    _check_log_weights(log_weights)
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """How many equally weighted proposals the weighted ones are worth.

    Near K the proposal is the posterior; near 1 a single proposal carries the estimate, which is
    then not to be trusted. Not a number where all weights are zero.

    Arguments:
        log_weights: Log-weights in nats, with shape `(K, B)`.

    Returns:
        Sizes in [1, K], with shape `(B,)`.
    """
    _check_log_weights(log_weights)
    return log_weights.softmax(0).square().sum(0).reciprocal()


def bits_per_dim(log_prob: Tensor, num_dims: int, bin_width: float = 1.0) -> Tensor:
    r"""Bits per dimension of data with discrete levels.

    .. math:: -\frac{1}{\log 2} \Big(\frac{\log p(x)}{D} + \log \Delta\Big)

    With Δ the distance of two levels in the units of x, :math:`p(x) \Delta^D` is the probability of
    the cell of x, when the density was fitted to uniformly dequantized data.

    Arguments:
        log_prob: Log-densities (or log-probabilities) in nats, with shape `(B,)` or a scalar.
        num_dims: D, e.g. C · H · W.
        bin_width: Δ: 2 / 256 for bytes v dequantized as (v + u) / 128 − 1 with u uniform in [0, 1];
            1 where `log_prob` is a probability already.

    Returns:
        Bits per dimension, with the shape of `log_prob`.
    """
    if num_dims < 1 or not bin_width > 0:
        raise ValueError(
            f"num_dims is {num_dims} and bin_width {bin_width}; expected positive numbers."
        )
    return -(log_prob / num_dims + math.log(bin_width)) / math.log(2)


class MeanLogLikelihood(Metric):
    """Mean log-likelihood over data with its standard error, in nats.

    The standard error is that of the data as a sample of the population; the bias of an estimate of
    each log p(x) is not part of it. Sums are kept in float64 and added over ranks.

    Arguments:
        estimator: How the log-likelihoods were had, in words, for the protocol; e.g.
            "importance sampling, K=100, proposal = encoder".
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    num: Tensor
    total: Tensor
    total_square: Tensor

    def __init__(self, estimator: str = "exact") -> None:
        super().__init__()
        self.estimator = estimator
        self._last_num: int | None = None
        self.add_state("num", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total_square", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, log_prob: Tensor) -> None:
        """Add a batch.

        Arguments:
            log_prob: Log-likelihoods in nats, with shape `(B,)`.

        Raises:
            ValueError: If the shape is another, or a number is not finite.
        """
        if log_prob.ndim != 1:
            raise ValueError(
                f"log_prob has shape {tuple(log_prob.shape)}; expected (B,), one number per datum. "
                "Sum over the event, e.g. `log_prob.flatten(1).sum(1)`."
            )
        if not log_prob.isfinite().all():
            raise ValueError(
                f"{int((~log_prob.isfinite()).sum())} of {len(log_prob)} log-likelihoods are not "
                "finite, so there is no mean. Find those data: `log_prob.isfinite()`."
            )
        log_prob = log_prob.detach().double()
        self.num += len(log_prob)
        self.total += log_prob.sum()
        self.total_square += log_prob.square().sum()

    def compute(self) -> dict[str, Tensor]:
        """`mean` and `standard_error`, float64 scalars; the latter is nan for a single datum.

        Raises:
            ValueError: If there is no datum.
        """
        num = int(self.num)
        if num == 0:
            raise ValueError("no log-likelihood was given. Call `update(log_prob)` first.")
        self._last_num = num
        mean = self.total / num
        if num == 1:
            return {"mean": mean, "standard_error": torch.full_like(mean, math.nan)}
        # rounding may take the variance of equal numbers below zero
        variance = (self.total_square - num * mean.square()).clamp_min(0) / (num - 1)
        return {"mean": mean, "standard_error": (variance / num).sqrt()}

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> nn.Module:
        return super()._apply(device_only(fn), exclude_state)

    @property
    def protocol(self) -> dict[str, Any]:
        """How the last figure was made, as a plain dictionary.

        Raises:
            RuntimeError: Before the first `compute`.
        """
        if self._last_num is None:
            raise RuntimeError(
                "there is no protocol before there is a figure. Call `compute()` first."
            )
        return {
            "metric": "mean_log_likelihood",
            "unit": "nats",
            "estimator": self.estimator,
            "num_data": self._last_num,
            "dtype": "sums float64",
        }


def _check_log_weights(log_weights: Tensor) -> None:
    if log_weights.ndim != 2 or len(log_weights) == 0:
        raise ValueError(
            f"log_weights has shape {tuple(log_weights.shape)}; expected (K, B) with K of 1 or "
            "more proposals in the first axis. For one datum write `log_weights[:, None]`."
        )
