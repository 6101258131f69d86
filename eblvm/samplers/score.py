r"""The one place where autograd differentiates an energy with respect to its input.

The score of p(x) ∝ exp(−E(x)) is :math:`\nabla_x \log p(x) = -\nabla_x E(x)`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .frozen import frozen

_engine: Any = getattr(torch.autograd.graph, "_engine_run_backward", None)

__all__ = [
    "EnergyFn",
    "checked_gradient",
    "live_curvature",
    "live_gradient",
    "score",
    "squared_gradient",
    "value_and_gradient",
    "value_and_squared_gradient",
]

EnergyFn = Callable[[Tensor], Tensor]
"""`(B, *event) -> (B,)`; low is likely. A conditional energy becomes one by `functools.partial`."""


def score(energy: EnergyFn, x: Tensor) -> Tensor:
    r"""The score :math:`-\nabla_x E(x)`, detached; parameters get no gradient.

    Works under `torch.no_grad` and `torch.inference_mode`, and leaves the energy's state as found
    (:mod:`eblvm.samplers.frozen`).

    Arguments:
        energy: `(B, *event) -> (B,)`.
        x: Where, with shape `(B, *event)`. It is not modified.

    Returns:
        The score, with the shape of `x`, per row (nothing is averaged over the batch).

    Raises:
        ValueError: If the energy does not return one number per row.
        RuntimeError: If the energy does not depend on `x`.
    """
    with frozen(energy):
        return -value_and_gradient(energy, x)[1]


def value_and_gradient(
    energy: EnergyFn, x: Tensor, ones: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""E(x) and :math:`\nabla_x E(x)`, both detached: the step of every chain.

    It neither freezes nor restores anything: call it inside :func:`eblvm.samplers.frozen.frozen`.

    Arguments:
        energy: `(B, *event) -> (B,)`.
        x: Where, with shape `(B, *event)`. It is not modified.
        ones: `ones_like` of an earlier value; with it nothing is checked again.

    Returns:
        The energy `(B,)` and its gradient, with the shape of `x`.

    Raises:
        ValueError: If the energy does not return one number per row.
        RuntimeError: If the energy does not depend on `x`.
    """
    # An inference tensor cannot require a gradient; a clone of it can.
    leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
    try:
        e = energy(leaf)
        if ones is None:
            if e.shape != leaf.shape[:1] or not e.requires_grad:
                _explain(e, leaf)
            ones = torch.ones_like(e)
        gradient = checked_gradient(e, leaf, ones)
        if gradient is None:
            _explain(e, leaf)
    except RuntimeError as error:
        if "Inference tensors cannot be saved" in str(error):
            raise RuntimeError(
                "the energy holds tensors that were made in inference mode, and autograd cannot "
                "differentiate through them. Pass `inference_mode=False` to the Trainer (the "
                "eblvm command line does), or give the energy clones made outside."
            ) from error
        raise
    return e.detach(), gradient


def checked_gradient(e: Tensor, leaf: Tensor, ones: Tensor) -> Tensor:
    """What `torch.autograd.grad(e, leaf, ones)` gives, without its checks.

    They take 20 µs, a third of a step of a cheap energy, and an earlier step has passed them. The
    engine's own entry is not a public one: where torch has none of that name, the public one is
    used.

    Arguments:
        e: With shape `(B,)`, of a graph that leads to `leaf`.
        leaf: With shape `(B, *event)`.
        ones: Ones `(B,)`.
    """
    if _engine is None:
        return torch.autograd.grad(e, leaf, ones)[0]
    return _engine((e,), (ones,), False, False, (leaf,), False, accumulate_grad=False)[0]


def squared_gradient(energy: EnergyFn, x: Tensor) -> Tensor:
    r""":math:`\|\nabla_x E(x)\|^2`, with a graph to the energy's parameters: a penalty's core.

    Arguments:
        energy: `(B, *event) -> (B,)`.
        x: Where, with shape `(B, *event)`; nothing flows back to it.

    Returns:
        With shape `(B,)`.
    """
    return value_and_squared_gradient(energy, x)[1]


def value_and_squared_gradient(
    energy: EnergyFn, x: Tensor, tie: EnergyFn | None = None
) -> tuple[Tensor, Tensor]:
    r"""E(x) and :math:`\|\nabla_x (E + \mathrm{tie})(x)\|^2` of one pass, both with a graph.

    Arguments:
        energy: `(B, *event) -> (B,)`.
        x: Where, with shape `(B, *event)`; nothing flows back to it.
        tie: Another energy whose gradient counts, and whose value does not; none if None.

    Returns:
        Two tensors `(B,)`.
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        value = energy(leaf)
        whole = value if tie is None else value + tie(leaf)
        (gradient,) = torch.autograd.grad(whole.sum(), leaf, create_graph=True)
    return value, gradient.square().flatten(1).sum(1)


def live_gradient(energy: EnergyFn, x: Tensor) -> Tensor:
    r""":math:`\nabla_x E(x)` with a graph to the energy's parameters, for losses on scores.

    Arguments:
        energy: `(B, *event) -> (B,)`.
        x: Where, with shape `(B, *event)`; nothing flows back to it.

    Returns:
        With the shape of `x`.
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(leaf).sum(), leaf, create_graph=True)
    return gradient


def live_curvature(energy: EnergyFn, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\nabla_x E(x)` and :math:`u^\top \nabla_x^2 E(x)\, u`, with a graph.

    Arguments:
        energy: `(B, *event) -> (B,)`.
        x: Where, with shape `(B, *event)`; nothing flows back to it.
        u: Directions, with the shape of `x`.

    Returns:
        With the shape of `x`, and `(B,)`.
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(leaf).sum(), leaf, create_graph=True)
        (bend,) = torch.autograd.grad((gradient * u).sum(), leaf, create_graph=True)
    return gradient, (bend * u).flatten(1).sum(1)


def _explain(e: Tensor, x: Tensor) -> None:
    """Say what is wrong with the value of an energy."""
    if e.shape != x.shape[:1]:
        raise ValueError(
            f"energy returned shape {tuple(e.shape)} for a batch of {len(x)}; expected "
            f"({len(x)},). Sum over the event, e.g. `net(x).flatten(1).sum(1)`."
        )
    raise RuntimeError(
        "the energy does not depend on x as far as autograd can see: it has no gradient. Remove "
        "`detach()` or `no_grad` from it; a flat energy is `0 * x.flatten(1).sum(1)`."
    )
