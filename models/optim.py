"""One optimizer with a parameter group per component, and clipping per group."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

__all__ = ["clip_per_group", "parameter_groups"]


def parameter_groups(
    components: Mapping[str, nn.Module], learning_rates: Mapping[str, float]
) -> list[dict]:
    """A parameter group, with its name and learning rate, for each component that has parameters.

    Exact in place of separate optimizers as long as each parameter's gradient comes from its own
    terms only.

    Arguments:
        components: Name to module.
        learning_rates: Name to learning rate.

    Raises:
        ValueError: If a component with parameters has no learning rate, or a rate has no component.
    """
    trained = {n: [p for p in m.parameters() if p.requires_grad] for n, m in components.items()}
    trained = {name: parameters for name, parameters in trained.items() if parameters}
    if missing := sorted(trained.keys() - learning_rates.keys()):
        raise ValueError(
            f"learning_rates has no entry for {missing}; add one for each of {sorted(trained)}."
        )
    if unknown := sorted(learning_rates.keys() - trained.keys()):
        raise ValueError(
            f"learning_rates names {unknown}, which are no components with parameters; the model "
            f"has {sorted(trained)}."
        )
    return [
        {"name": name, "params": parameters, "lr": learning_rates[name]}
        for name, parameters in trained.items()
    ]


def clip_per_group(
    optimizer: torch.optim.Optimizer, clip: float | None, algorithm: str | None = None
) -> None:
    """Clip each group's gradient by itself, so a burst in one component leaves others alone."""
    if not clip:
        return
    for group in optimizer.param_groups:
        if algorithm == "value":
            clip_grad_value_(group["params"], clip)
        else:
            clip_grad_norm_(group["params"], clip)
