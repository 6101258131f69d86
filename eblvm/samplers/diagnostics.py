r"""Has the chain converged, and how much is it worth?

All functions take draws `(N, C, …)`: N draws of C chains, of any number of quantities, as in
:attr:`Chain.trajectory`; they return one number per quantity. They follow the definitions that
Stan, PyMC and ArviZ share, to rounding.

- **Split R̂**, rank-normalized and folded: chains are cut in halves, values replaced by normal
  scores of their ranks, and the variance between halves is compared with that within; below 1.01
  for chains that agree, in location and (folded) in scale.
- **Effective sample size**: N·C over the autocorrelation time, summed by Geyer's initial monotone
  sequence. *Bulk*: of the normal scores; *tail*: the smaller one of the 5 % and 95 % indicators.

References:
    Rank-normalization, folding, and localization: an improved R̂ for assessing convergence of MCMC
    (Vehtari, Gelman, Simpson, Carpenter & Bürkner, 2021), Eq. 3–14.
    Practical Markov chain Monte Carlo (Geyer, 1992), Sec. 3.3.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .chain import Chain

__all__ = [
    "acceptance_rate",
    "autocorrelation",
    "ess_bulk",
    "ess_mean",
    "ess_tail",
    "report",
    "rhat",
    "squared_jump",
]


def rhat(draws: Tensor) -> Tensor:
    r"""Rank-normalized, folded split R̂; the larger of bulk and folded.

    Arguments:
        draws: `(N, C, …)` with N ≥ 4.

    Returns:
        R̂ with shape `(…)`; NaN for a quantity that never varies. One chain is compared with itself,
        half against half.
    """
    split = _split(_checked(draws))
    folded = (split - _median(split)).abs()
    return torch.maximum(_plain_rhat(_normal_scores(split)), _plain_rhat(_normal_scores(folded)))


def ess_mean(draws: Tensor) -> Tensor:
    """Effective sample size for the mean of the draws `(N, C, …)`, with shape `(…)`."""
    return _ess(_split(_checked(draws)))


def ess_bulk(draws: Tensor) -> Tensor:
    """Effective sample size of the rank-normalized draws `(N, C, …)`, with shape `(…)`."""
    return _ess(_normal_scores(_split(_checked(draws))))


def ess_tail(draws: Tensor, probability: float = 0.9) -> Tensor:
    """The smaller effective sample size of the two tail indicators of the draws `(N, C, …)`.

    Arguments:
        draws: `(N, C, …)` with N ≥ 4.
        probability: The mass between the tails; 0.9 looks at the 5 % and 95 % quantiles.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}; expected a number in (0, 1).")
    draws = _checked(draws)
    flat = draws.reshape(-1, *draws.shape[2:])
    tails = []
    for q in ((1 - probability) / 2, (1 + probability) / 2):
        below = (draws <= _quantile(flat, q)).to(draws.dtype)
        tails.append(_ess(_split(below)))
    return torch.minimum(*tails)


def autocorrelation(draws: Tensor, max_lag: int | None = None) -> Tensor:
    """The autocorrelation of each chain, with shape `(max_lag + 1, C, …)`; 1 at lag 0.

    Arguments:
        draws: `(N, C, …)`, e.g. the energies of a chain.
        max_lag: Largest lag; N − 1 if None.
    """
    covariance = _autocovariance(_checked(draws))
    last = len(draws) - 1 if max_lag is None else min(max_lag, len(draws) - 1)
    return covariance[: last + 1] / covariance[0]


def acceptance_rate(draws: Tensor) -> Tensor:
    """The share of draws `(N, C, *event)` that differ from the one before, `(C,)`.

    Of a trajectory with every state kept (`every=1`) this is the share of accepted proposals, for
    energies without ties; :attr:`Chain.acceptance`, the mean acceptance *probability*, estimates
    the same with less noise, and whatever was kept.
    """
    moved = (_checked(draws)[1:] != draws[:-1]).reshape(len(draws) - 1, draws.shape[1], -1).any(-1)
    return moved.to(draws.dtype).mean(0)


def squared_jump(draws: Tensor) -> Tensor:
    """Mean squared distance between consecutive draws `(N, C, *event)` of each chain, `(C,)`."""
    steps = (draws[1:] - draws[:-1]).square()
    return steps.reshape(*steps.shape[:2], -1).sum(-1).mean(0)


def report(trajectory: Tensor | Chain) -> dict[str, Any]:
    """A summary of a run, ready to print or to store.

    Arguments:
        trajectory: Draws `(N, C, *event)`, or a :class:`Chain` (which adds energies and
            acceptance).

    Returns:
        A flat dictionary of numbers: `num_draws`, `num_chains`, the worst `rhat_max` and smallest
        `ess_bulk_min` and `ess_tail_min` over the event, their medians, `squared_jump`; with a
        chain also `acceptance`, `energy_mean`, `energy_std`, `energy_autocorrelation_time`,
        `energy_rhat` and `energy_drift` (mean of the last minus the first tenth, in standard
        deviations). `converged` is True if every R̂ < 1.01 and every ESS > 400 (Vehtari et al.,
        Sec. 4: fewer do not even support the estimate of the ESS itself).
    """
    chain = trajectory if isinstance(trajectory, Chain) else None
    draws = _checked(trajectory.trajectory if isinstance(trajectory, Chain) else trajectory)
    num, chains = draws.shape[:2]
    flat = draws.reshape(num, chains, -1)
    r, bulk, tail = rhat(flat), ess_bulk(flat), ess_tail(flat)
    result: dict[str, Any] = {
        "num_draws": num,
        "num_chains": chains,
        "rhat_max": float(r.max()),
        "rhat_median": float(r.median()),
        "ess_bulk_min": float(bulk.min()),
        "ess_bulk_median": float(bulk.median()),
        "ess_tail_min": float(tail.min()),
        "ess_tail_median": float(tail.median()),
        "squared_jump": float(squared_jump(draws).mean()),
    }
    worst = r.max()
    if chain is not None:
        if chain.acceptance is not None:
            result["acceptance"] = float(chain.acceptance.mean())
            result["acceptance_min"] = float(chain.acceptance.min())
        e = _checked(chain.energies)
        tenth = max(1, num // 10)
        result["energy_mean"] = float(e.mean())
        result["energy_std"] = float(e.std())
        result["energy_autocorrelation_time"] = num * chains / float(ess_mean(e))
        result["energy_rhat"] = float(rhat(e))
        result["energy_drift"] = float((e[-tenth:].mean() - e[:tenth].mean()) / e.std())
        worst = torch.maximum(worst, rhat(e))
    result["converged"] = bool(worst < 1.01 and torch.minimum(bulk, tail).min() > 400)
    return result


def _checked(draws: Tensor) -> Tensor:
    if draws.ndim < 2 or len(draws) < 4:
        raise ValueError(
            f"draws have shape {tuple(draws.shape)}; expected (N, C, …) with at least 4 draws."
        )
    if not bool(draws.isfinite().all()):
        raise ValueError(
            "draws are not all finite: a chain has diverged. Use a smaller step size, or look at "
            "`Chain.energies` for the first step that is not finite."
        )
    return draws.detach().double()


def _split(draws: Tensor) -> Tensor:
    """Halves of the chains as chains: `(N, C, …)` to `(N // 2, 2C, …)`; an odd middle is left."""
    half = len(draws) // 2
    return torch.cat([draws[:half], draws[-half:]], 1)


def _median(draws: Tensor) -> Tensor:
    """The median over draws and chains; the mean of the middle two of an even number."""
    return _quantile(draws.reshape(-1, *draws.shape[2:]), 0.5)


def _quantile(flat: Tensor, q: float) -> Tensor:
    """The linearly interpolated quantile over dimension 0 (torch.quantile refuses large inputs)."""
    ordered = flat.sort(0).values
    position = q * (len(flat) - 1)
    low = math.floor(position)
    high = min(low + 1, len(flat) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def _normal_scores(draws: Tensor) -> Tensor:
    """Φ⁻¹((r − 3/8) / (S + 1/4)) of the average ranks r over draws and chains (Eq. 14)."""
    flat = draws.reshape(-1, math.prod(draws.shape[2:]))
    ranks = torch.stack([_average_ranks(column) for column in flat.unbind(1)], 1)
    p = (ranks - 0.375) / (len(flat) + 0.25)
    return torch.special.ndtri(p).reshape(draws.shape)


def _average_ranks(values: Tensor) -> Tensor:
    """Ranks 1…S, ties sharing their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]


def _plain_rhat(draws: Tensor) -> Tensor:
    """√(((N − 1)/N · W + B/N) / W) of chains `(N, C, …)` (Eq. 3–4)."""
    num = len(draws)
    within = draws.var(0).mean(0)
    between = draws.mean(0).var(0)
    return ((num - 1) / num + between / within).sqrt()


def _autocovariance(draws: Tensor) -> Tensor:
    """Autocovariances `(N, C, …)` at all lags, divided by N, by the fast Fourier transform."""
    num = len(draws)
    centered = draws - draws.mean(0)
    spectrum = torch.fft.rfft(centered, n=2 * num, dim=0)
    power = spectrum.real.square() + spectrum.imag.square()
    return torch.fft.irfft(power, n=2 * num, dim=0)[:num] / num


def _ess(draws: Tensor) -> Tensor:
    """Effective sample size of (split) chains `(N, C, …)` (Eq. 10–13)."""
    num, chains = draws.shape[:2]
    shape = draws.shape[2:]
    columns = draws.reshape(num, chains, -1).unbind(2)
    values = [_ess_of_one(column, num, chains) for column in columns]
    return draws.new_tensor(values).reshape(shape)


def _ess_of_one(draws: Tensor, num: int, chains: int) -> float:
    """Effective sample size of one quantity `(N, C)`."""
    if bool(draws.max() == draws.min()):
        return float(num * chains)
    covariance = _autocovariance(draws).mean(1)  # (N,)
    within = covariance[0] * num / (num - 1)
    total = within * (num - 1) / num
    if chains > 1:
        total = total + draws.mean(0).var()
    rho = (1 - (within - covariance) / total).tolist()
    rho[0] = 1.0
    # Geyer: sums of neighboring pairs stay positive, and are made to fall. The bookkeeping at the
    # end of the sequence is Stan's: its last even entry counts once.
    kept = [0.0] * num
    kept[:2] = rho[:2]
    even, odd, t = rho[0], rho[1], 1
    while t < num - 3 and even + odd > 0:
        even, odd = rho[t + 1], rho[t + 2]
        if even + odd >= 0:
            kept[t + 1 : t + 3] = even, odd
        t += 2
    last = t - 2
    if even > 0:
        kept[last + 1] = even
    for t in range(1, last - 1, 2):
        if kept[t + 1] + kept[t + 2] > kept[t - 1] + kept[t]:
            kept[t + 1] = kept[t + 2] = (kept[t - 1] + kept[t]) / 2
    tau = -1 + 2 * sum(kept[: last + 1]) + kept[last + 1]
    samples = num * chains
    return samples / max(tau, 1 / math.log10(samples))
