"""Pictures of a run: traces and autocorrelations. Matplotlib is imported when first used."""

from typing import TYPE_CHECKING

from torch import Tensor

from .chain import Chain
from .diagnostics import autocorrelation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_chain"]


def plot_chain(
    chain: Chain | Tensor, num_chains: int = 8, max_lag: int = 100, warm_up: int = 0
) -> "Figure":
    """Traces and autocorrelations of the energy and of the first coordinate.

    Arguments:
        chain: A run, or draws `(N, C, *event)` without energies.
        num_chains: How many chains to draw.
        max_lag: Largest lag of the autocorrelation.
        warm_up: Draws to leave out of the autocorrelation; a dashed line in the traces.

    Returns:
        A figure with one row per quantity; save it with `figure.savefig(path)`.
    """
    from matplotlib.figure import Figure

    draws = chain.trajectory if isinstance(chain, Chain) else chain
    first = draws.reshape(*draws.shape[:2], -1)[..., 0]
    rows = {"first coordinate": first}
    if isinstance(chain, Chain):
        rows = {"energy": chain.energies, **rows}
    figure = Figure(figsize=(9, 2.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for (name, values), (left, right) in zip(rows.items(), axes, strict=True):
        values = values[:, :num_chains].detach().cpu()
        left.plot(values, linewidth=0.6)
        if warm_up:
            left.axvline(warm_up, color="black", linewidth=0.5, linestyle="--")
        left.set(xlabel="kept draw", ylabel=name)
        right.plot(autocorrelation(values[warm_up:], max_lag), linewidth=0.6)
        right.axhline(0, color="black", linewidth=0.5)
        right.set(xlabel="lag", ylabel=f"autocorrelation, {name}")
    return figure
