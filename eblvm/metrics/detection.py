r"""Out-of-distribution detection by a score: **high means in-distribution**.

An energy is low where data are likely: hand in −E(x). In-distribution data are the positives:

.. math::
    \text{TPR}(\tau) = P(\text{score}_\text{in} \ge \tau), \qquad
    \text{FPR}(\tau) = P(\text{score}_\text{out} \ge \tau)

Each figure comes with a percentile bootstrap interval, for which both sets are resampled
independently. It covers the choice of data, not that of the training seed.

References:
    A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks
    (Hendrycks and Gimpel, 2017).
    An Introduction to the Bootstrap (Efron and Tibshirani, 1993), chapter 13.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["Estimate", "aupr", "auroc", "fpr_at_95_tpr"]

Array = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A figure in [0, 1] with the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def auroc(
    score_in: Tensor,
    score_out: Tensor,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Area under the receiver operating characteristic: P(score_in > score_out), ties one half.

    Arguments:
        score_in: Scores of in-distribution data, with shape `(M,)`; high means in-distribution.
        score_out: Scores of other data, with shape `(N,)`.
        num_bootstrap: Resamples for the interval; 0 leaves it out (nan).
        confidence: Coverage of the interval.
        seed: Seeds the resampling alone.

    Returns:
        1 is perfect, 0.5 is chance.
    """
    return _estimate(_auroc, score_in, score_out, num_bootstrap, confidence, seed)


def aupr(
    score_in: Tensor,
    score_out: Tensor,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Area under the precision-recall curve, as average precision; in-distribution is positive.

    The area of steps, not of trapezoids, which would be too large (Davis and Goadrich, 2006). The
    "AUPR-out" of some papers is `aupr(-score_out, -score_in)`.

    Arguments:
        score_in: Scores of in-distribution data, with shape `(M,)`; high means in-distribution.
        score_out: Scores of other data, with shape `(N,)`.
        num_bootstrap: Resamples for the interval; 0 leaves it out (nan).
        confidence: Coverage of the interval.
        seed: Seeds the resampling alone.

    Returns:
        1 is perfect, M / (M + N) is chance.
    """
    return _estimate(_aupr, score_in, score_out, num_bootstrap, confidence, seed)


def fpr_at_95_tpr(
    score_in: Tensor,
    score_out: Tensor,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Fraction of other data accepted at the highest threshold that accepts 95 % of the data.

    Arguments:
        score_in: Scores of in-distribution data, with shape `(M,)`; high means in-distribution.
        score_out: Scores of other data, with shape `(N,)`.
        num_bootstrap: Resamples for the interval; 0 leaves it out (nan).
        confidence: Coverage of the interval.
        seed: Seeds the resampling alone.

    Returns:
        0 is perfect, 0.95 is chance.
    """
    return _estimate(_fpr_at_95_tpr, score_in, score_out, num_bootstrap, confidence, seed)


# The curves: weights accepted at each distinct threshold, from the highest down, both `(T,)`.


def _auroc(accepted_in: Array, accepted_out: Array) -> float:
    tpr, fpr = accepted_in / accepted_in[-1], accepted_out / accepted_out[-1]
    return float(np.trapezoid(np.concatenate([[0], tpr]), np.concatenate([[0], fpr])))


def _aupr(accepted_in: Array, accepted_out: Array) -> float:
    recall = accepted_in / accepted_in[-1]
    # a resample may accept nobody at the first thresholds; the recall does not rise there
    precision = accepted_in / np.maximum(accepted_in + accepted_out, 1)
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def _fpr_at_95_tpr(accepted_in: Array, accepted_out: Array) -> float:
    # 0.95 as a ratio of integers: 19 of 20 data are enough
    first = np.argmax(20 * accepted_in >= 19 * accepted_in[-1])
    return float(accepted_out[first] / accepted_out[-1])


def _estimate(
    figure: Callable[[Array, Array], float],
    score_in: Tensor,
    score_out: Tensor,
    num_bootstrap: int,
    confidence: float,
    seed: int,
) -> Estimate:
    if num_bootstrap < 0 or not 0 < confidence < 1:
        raise ValueError(
            f"num_bootstrap is {num_bootstrap} and confidence {confidence}; expected 0 or more, "
            "and a number between 0 and 1."
        )
    inside, outside = _scores(score_in, "score_in"), _scores(score_out, "score_out")
    _, level = np.unique(-np.concatenate([inside, outside]), return_inverse=True)
    num_levels = level.max() + 1
    level_in, level_out = level[: len(inside)], level[len(inside) :]

    def value(chosen_in: npt.NDArray[np.int64], chosen_out: npt.NDArray[np.int64]) -> float:
        count_in = np.bincount(chosen_in, minlength=num_levels).astype(np.float64)
        count_out = np.bincount(chosen_out, minlength=num_levels).astype(np.float64)
        return figure(count_in.cumsum(), count_out.cumsum())

    random = np.random.default_rng(seed)
    resampled = [
        value(
            level_in[random.integers(len(level_in), size=len(level_in))],
            level_out[random.integers(len(level_out), size=len(level_out))],
        )
        for _ in range(num_bootstrap)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail]) if resampled else (np.nan, np.nan)
    return Estimate(value(level_in, level_out), float(low), float(high))


def _scores(score: Tensor, name: str) -> Array:
    if score.ndim != 1 or len(score) == 0:
        raise ValueError(
            f"{name} has shape {tuple(score.shape)}; expected (B,) with B of 1 or more. Sum over "
            "the event, e.g. `score.flatten(1).sum(1)`."
        )
    if score.isnan().any():
        raise ValueError(
            f"{int(score.isnan().sum())} of {len(score)} numbers in {name} are nan, which has no "
            "place in an order. Find those data: `score.isnan()`."
        )
    return score.detach().double().cpu().numpy()
