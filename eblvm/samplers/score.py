r"""The one place that differentiates an energy with respect to its input.

The score of p(x) ∝ exp(−E(x)) is :math:`\nabla_x \log p(x) = -\nabla_x E(x)`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["EnergyFn", "score"]

EnergyFn = Callable[[Tensor], Tensor]
"""`(B, *event) -> (B,)`; low is likely. A conditional energy becomes one by `functools.partial`."""


def score(energy: EnergyFn, x: Tensor) -> Tensor:
    r"""The score :math:`-\nabla_x E(x)`, detached; parameters get no gradient.

    Works under `torch.no_grad` and `torch.inference_mode`.

    Arguments:
        energy: `(B, *event) -> (B,)`.
        x: Where, with shape `(B, *event)`. It is not modified.

    Returns:
        The score, with the shape of `x`, per row (nothing is averaged over the batch).

    Raises:
        ValueError: If the energy does not return one number per row.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()  # the clone also leaves inference mode
        e = energy(x)
        if e.shape != x.shape[:1]:
            raise ValueError(
                f"energy returned shape {tuple(e.shape)} for a batch of {len(x)}; expected "
                f"({len(x)},). Sum over the event, e.g. `net(x).flatten(1).sum(1)`."
            )
        (gradient,) = torch.autograd.grad(e.sum(), x)
    return -gradient
