"""Steps of an optimizer on copies of parameters, with a graph to whatever the loss depends on."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["unroll"]

Parameters = dict[str, Tensor]


def unroll(
    loss: Callable[[Parameters], Tensor],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    num_steps: int,
) -> Parameters:
    """What the optimizer would make of the parameters, as a function of the loss's own parameters.

    Neither parameters nor the optimizer's state change; its moments and counts are copied.

    Arguments:
        loss: From values of the parameters to a scalar.
        parameters: Names to parameters of the optimizer.
        optimizer: `SGD` without momentum, or `Adam` without amsgrad.
        num_steps: Steps; 0 gives the parameters as they are.

    Returns:
        Their new values, with a graph.

    Raises:
        TypeError: If the optimizer is of another kind.
    """
    values = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rules = {name: rule(optimizer, p, groups[id(p)]) for name, p in parameters.items()}
    with torch.enable_grad():
        for _ in range(num_steps):
            gradients = torch.autograd.grad(
                loss(values), list(values.values()), create_graph=True, allow_unused=True
            )
            moved = {}
            for (name, value), gradient in zip(values.items(), gradients, strict=True):
                moved[name] = value if gradient is None else rules[name](value, gradient)
            values = moved
    return values


def rule(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, group: dict
) -> Callable[[Tensor, Tensor], Tensor]:
    """From a value and its gradient to the next value, as the optimizer would step."""
    lr, decay = group["lr"], group.get("weight_decay", 0.0)
    if type(optimizer) is torch.optim.SGD and not group["momentum"]:
        return lambda value, gradient: value - lr * (gradient + decay * value)
    if type(optimizer) is not torch.optim.Adam or group["amsgrad"]:
        raise TypeError(
            f"cannot unroll {type(optimizer).__name__} with these settings; use Adam without "
            "amsgrad, or SGD without momentum, or set unroll_steps to 0."
        )
    state = optimizer.state.get(parameter, {})
    zeros = torch.zeros_like(parameter)
    moments = [state.get("exp_avg", zeros), state.get("exp_avg_sq", zeros)]
    count = float(state.get("step", 0))
    (beta1, beta2), eps = group["betas"], group["eps"]

    def step(value: Tensor, gradient: Tensor) -> Tensor:
        nonlocal count
        count += 1
        gradient = gradient + decay * value
        moments[0] = beta1 * moments[0] + (1 - beta1) * gradient
        moments[1] = beta2 * moments[1] + (1 - beta2) * gradient.square()
        mean = moments[0] / (1 - beta1**count)
        # the slope of a root at 0 is infinite, that of gradient² zero: a touch above 0 gives zero
        root = (moments[1] / (1 - beta2**count) + 1e-30).sqrt()
        return value - lr * mean / (root + eps)

    return step
