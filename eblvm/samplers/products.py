"""Products with weights that hold still for a chain.

Each product of a long chain chooses, per shape and once per process, the faster of the BLAS that
`Linear` uses and oneDNN with a packed weight: which of them wins depends on the processor, so it is
measured. They round differently. Under `compilation("never")` nothing is measured, and it is BLAS.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .derivatives import Pair, Rule, same
from .mode import mode

__all__ = ["products"]

PACK_FROM = 200  # steps from which packing and timing a weight can pay
NARROW = 8  # columns up to which a product is computed as its transpose

Product = Callable[..., Tensor]


def products(weight: Tensor, shift: Tensor | None, batch: int, num_steps: int) -> Pair:
    """h Wᵀ + shift and its transpose, for W `(O, I)` and h `(B, I)`."""
    if len(weight) == 1 and (shift is None or shift.numel() == 1):  # a head: no matrix needed
        row = weight[0].contiguous()
        bias = shift.reshape(1) if shift is not None else weight.new_zeros(1)
        head = Rule(lambda h: torch.addmv(bias, h, row).unsqueeze(1))
        return head, same(lambda g: g * row)
    forward, plain = _product(weight, batch, num_steps, shift)
    backward, plain_backward = _product(weight.T, batch, num_steps)

    def transpose(g: Tensor, value: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
        return backward(g, out=out)

    def plain_transpose(g: Tensor, value: Tensor, h: Tensor) -> Tensor:
        return plain_backward(g)

    return (
        Rule(forward, into=True, pure=plain),
        Rule(transpose, into=True, constant=True, pure=plain_transpose),
    )


_packing_wins: dict[tuple, bool] = {}


def _product(
    weight: Tensor, batch: int, num_steps: int, shift: Tensor | None = None
) -> tuple[Product, Product]:
    """The faster way to h ↦ h Wᵀ + shift for this processor and shape, and one without oneDNN."""
    transposed = weight.T.contiguous()
    if len(weight) <= NARROW and shift is None and not weight.is_cuda:
        rows = weight.contiguous()

        def narrow(h: Tensor, out: Tensor | None = None) -> Tensor:
            across = torch.mm(rows, h.T).T  # BLAS is slow where few columns come out
            return across.contiguous() if out is None else out.copy_(across)

        return narrow, narrow

    def plain(h: Tensor, out: Tensor | None = None) -> Tensor:
        if shift is None:
            return torch.mm(h, transposed, out=out)
        return torch.addmm(shift, h, transposed, out=out)

    if num_steps < PACK_FROM or mode() == "never" or not (shift is None or shift.ndim == 1):
        return plain, plain
    packed = _packed(weight, batch, shift)
    if packed is None:
        return plain, plain
    key = (batch, *weight.shape, torch.get_num_threads())
    if key not in _packing_wins:
        h = torch.linspace(-1, 1, batch * weight.shape[1]).reshape(batch, -1).to(weight)
        _packing_wins[key] = _seconds(packed, h) < 0.9 * _seconds(plain, h)
    return (packed if _packing_wins[key] else plain), plain


def _packed(weight: Tensor, batch: int, shift: Tensor | None) -> Product | None:
    """oneDNN's product with a weight packed once, as the inductor uses it; None if not at hand."""
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    try:
        pointwise: Any = torch.ops.mkldnn._linear_pointwise.default
        laid = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), batch)
        return lambda h, out=None: pointwise(h, laid, shift, "none", [], "")
    except (AttributeError, RuntimeError):
        return None


def _seconds(product: Product, h: Tensor, repeats: int = 7) -> float:
    """Least processor time of one product."""
    best = math.inf
    for _ in range(repeats):
        start = time.thread_time()
        product(h)
        best = min(best, time.thread_time() - start)
    return best
