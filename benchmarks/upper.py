"""How well the energy's gradient in bi-level learning is that of maximum likelihood.

    python -m eblvm.benchmarks.upper

On a Gaussian–Bernoulli RBM of 2 visible and 3 hidden units everything is known. The pair starts as
the exact one of a machine whose parameters differ, and takes N plain gradient steps of 0.1 on the
lower level. Then J's gradient in the energy's parameters is compared with the exact one: taken at
the pair as it is (first order), or through all N steps (unrolled). Cosine of the angle, and norm of
the difference over the exact norm: medians over several starts, and the greatest error of any.
Everything is closed form in float64; only the starts are drawn.
"""

import argparse
import copy
from collections.abc import Sequence

import torch

from eblvm.models import JointBiDVL
from eblvm.models.joint_bidvl import gradient_fit
from eblvm.objectives import Divergence, ReverseDivergence, SymmetricDivergence
from eblvm.pairs import EnumeratedPair
from eblvm.rbm import GaussianBernoulliRBM

__all__ = ["Fit", "fit_after", "machine"]

DATA = torch.tensor([[0.4, -0.7], [-1.0, 0.5]], dtype=torch.float64)
STEP_SIZE = 0.1

Fit = tuple[float, float, float]
"""K_joint before the energy's step, cosine, relative error."""


def machine() -> GaussianBernoulliRBM:
    """The machine whose figures the tests know."""
    rbm = GaussianBernoulliRBM(2, 3).double()
    values = {
        "weight": [[1, -0.5, 0.3], [0.2, 0.8, -1]],
        "visible_bias": [0.1, -0.2],
        "hidden_bias": [0.3, -0.1, 0.2],
        "log_scale": [-0.6931471805599453, -0.2231435513142097],  # log ½, log 0.8
    }
    with torch.no_grad():
        for name, value in values.items():
            getattr(rbm, name).copy_(torch.tensor(value))
    return rbm


def fit_after(
    rbm: GaussianBernoulliRBM,
    start: EnumeratedPair,
    divergence: Divergence,
    num_steps: int,
    unrolled: bool,
) -> Fit:
    """How J's gradient compares with the exact one, `num_steps` of the pair after `start`.

    Arguments:
        rbm: The energy.
        start: The pair, which is left as it is.
        divergence: Of the lower level, for posterior and joint.
        num_steps: N.
        unrolled: Whether the gradient sees these steps.
    """
    pair = copy.deepcopy(start)
    optimizer = torch.optim.SGD(pair.parameters(), lr=STEP_SIZE)
    rates = {"energy": 1.0, "pair": 1.0}
    learner = JointBiDVL(rbm, pair, rates, divergence, divergence, unroll_steps=num_steps)
    ahead = learner.unrolled(DATA, optimizer).mean() if unrolled else None
    for _ in range(num_steps):
        optimizer.zero_grad()
        terms = learner.player_terms((DATA, DATA), torch.Generator(), 0)
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
        optimizer.step()
    rbm.zero_grad()
    joint = float(pair.joint_divergence(rbm)[0].detach())
    objective = pair.upper(rbm, DATA).mean() if ahead is None else ahead
    cosine, error = gradient_fit(rbm, objective, DATA)
    return joint, float(cosine), float(error)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 1, 2, 5, 10, 50])
    parser.add_argument("--machines", type=int, default=20)
    parser.add_argument("--shift", type=float, default=0.2, help="deviation of the shifts")
    options = parser.parse_args(arguments)
    rbm, starts = machine(), []
    for seed in range(options.machines):
        g, other = torch.Generator().manual_seed(seed), machine()
        with torch.no_grad():
            for p in other.parameters():
                p.add_(options.shift * torch.randn(p.shape, generator=g, dtype=p.dtype))
        pair = EnumeratedPair(2, 3).double()
        pair.match(other)
        starts.append(pair)
    print("| lower level | N | K_joint | first order: cos, error | unrolled: cos, error |")
    print("|---|---|---|---|---|")
    for divergence in (ReverseDivergence(), SymmetricDivergence()):
        for num_steps in options.steps:
            cells = []
            for unrolled in (False, True):
                fits = [fit_after(rbm, s, divergence, num_steps, unrolled) for s in starts]
                joint, cosine, error = torch.tensor(fits).quantile(0.5, dim=0).tolist()
                worst = max(fit[2] for fit in fits)
                cells.append(f"{cosine:.4f}, {error:.3f} (≤ {worst:.2f})")
            name = type(divergence).__name__.removesuffix("Divergence").lower()
            print(f"| {name} | {num_steps} | {joint:.1e} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
