"""One optimizer with a parameter group per component, and clipping per group."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

__all__ = ["check_clip_norms", "clip_per_group", "parameter_groups"]


def parameter_groups(
    components: Mapping[str, nn.Module],
    learning_rates: Mapping[str, float],
    weight_decays: Mapping[str, float] | None = None,
) -> list[dict]:
    """A parameter group, with its name and learning rate, for each component that has parameters.

    Exact in place of separate optimizers as long as each parameter's gradient comes from its own
    terms only.

    Arguments:
        components: Name to module.
        learning_rates: Name to learning rate.
        weight_decays: Name to weight decay; components that are not named have the optimizer's.

    Raises:
        ValueError: If a component with parameters has no learning rate, or a rate or decay has no
            component.
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
    decays = dict(weight_decays or {})
    if unknown := sorted(decays.keys() - trained.keys()):
        raise ValueError(
            f"weight_decays names {unknown}, which are no components with parameters; the model "
            f"has {sorted(trained)}."
        )
    groups: list[dict] = []
    for name, parameters in trained.items():
        group: dict = {"name": name, "params": parameters, "lr": learning_rates[name]}
        if name in decays:
            group["weight_decay"] = decays[name]
        groups.append(group)
    return groups


def clip_per_group(
    optimizer: torch.optim.Optimizer,
    clip: float | None,
    algorithm: str | None = None,
    norms: Mapping[str, float] | None = None,
) -> None:
    """Clip each group's gradient by itself, so a burst in one component leaves others alone.

    Arguments:
        optimizer: Whose groups.
        clip: The bound of groups that `norms` does not name; they are left alone if None or 0.
        algorithm: `value` clips each entry to `clip`, anything else each group's norm.
        norms: Group name, or several joined by `+` to be clipped as one, to the largest norm.
    """
    groups = {group.get("name", ""): group["params"] for group in optimizer.param_groups}
    named: set[str] = set()
    for names, norm in (norms or {}).items():
        parts = names.split("+")
        named.update(parts)
        clip_grad_norm_([p for name in parts for p in groups[name]], norm)
    if not clip:
        return
    for group in optimizer.param_groups:
        if group.get("name", "") in named:
            continue
        if algorithm == "value":
            clip_grad_value_(group["params"], clip)
        else:
            clip_grad_norm_(group["params"], clip)


def check_clip_norms(norms: Mapping[str, float], names: Iterable[str]) -> None:
    """Check the names and bounds of `clip_per_group`.

    Raises:
        ValueError: If a name is unknown or comes twice, or a bound is not positive.
    """
    known = sorted(names)
    found = [part for key in norms for part in key.split("+")]
    if unknown := sorted(set(found) - set(known)):
        raise ValueError(f"clip_norms names {unknown}; the model has {known}.")
    if len(found) > len(set(found)):
        raise ValueError(f"clip_norms names a component twice: {sorted(norms)}.")
    for key, norm in norms.items():
        if not norm > 0:
            raise ValueError(f"clip_norms[{key!r}] is {norm}; expected a positive number.")
