"""A precision of one's own: a figure must not change with the trainer's `precision`.

`Trainer(precision="bf16-true")` converts every tensor of a module, and with them the weights of a
feature extractor and the float64 sums of a metric. `device_only` turns the function that
`nn.Module._apply` is given into one that moves tensors, but never converts them.
"""

from collections.abc import Callable

from torch import Tensor

__all__ = ["device_only"]


def device_only(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` without its change of dtype."""

    def moved(value: Tensor) -> Tensor:
        result = fn(value)
        return result if result.dtype == value.dtype else value.to(result.device)

    return moved
