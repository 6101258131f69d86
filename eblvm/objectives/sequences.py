"""The cross-entropy of a linear layer over a vocabulary, without its logits in memory."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["linear_cross_entropy"]

PLAIN = 2**22
"""Logits that may be kept for the backward pass: 16 MB in float32."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    chunk: int | None = None,
) -> Tensor:
    r"""−log softmax(W h + b) at the target, in nats, with shape `(N,)`.

    Logits of N rows and V words, their softmax and its gradient would be 3 N V numbers. This works
    on some rows at a time, takes gradients on the way forward, and needs memory for `chunk` · V
    numbers and the gradients. Where losses are weighted unequally, the backward pass computes the
    logits again for the weight's gradient: a third more arithmetic. Few logits are computed and
    kept as usual.

    Arguments:
        hidden: h, with shape `(N, H)`.
        weight: W, with shape `(V, H)`.
        bias: b, with shape `(V,)`, or None.
        target: int64, with shape `(N,)`.
        chunk: Rows at a time. None keeps everything where N V is at most four million, and else
            takes so many rows that a chunk's logits are that many.
    """
    if chunk is None:
        if hidden.shape[0] * weight.shape[0] <= PLAIN:
            return F.cross_entropy(F.linear(hidden, weight, bias), target, reduction="none")
        chunk = max(1, PLAIN // weight.shape[0])
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return _LinearCrossEntropy.apply(hidden, weight, bias, target, chunk, torch.is_grad_enabled())


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits, in float32 where they would be of half precision."""
    logits = F.linear(hidden, weight, bias)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over chunks; a second one only for unequal weights."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        chunk: int,
        learning: bool,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            sums: list[Tensor] = []
            gradients = _Gradients(ctx.needs_input_grad if learning else (False,) * 3)
            for rows, goal in zip(hidden.split(chunk), target.split(chunk), strict=True):
                logits = _logits(rows, weight, bias)
                if not learning:
                    sums.append(logits.logsumexp(1))
                    continue
                largest = logits.amax(1)
                share = logits.sub_(largest[:, None]).exp_()  # in place: one exponential each
                mass = share.sum(1)
                sums.append(largest + mass.log())
                gradients.add(share.div_(mass[:, None]), goal, rows, weight, bias)
            total = torch.cat(sums) if sums else hidden.new_zeros(0)
            picked = (hidden * weight[target]).to(total.dtype).sum(1)
            if bias is not None:
                picked = picked + bias[target]
        ctx.save_for_backward(hidden, weight, bias, target, total, *gradients.all())
        ctx.chunk = chunk
        return total - picked

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, bias, target, total, for_hidden, for_weight, for_bias = ctx.saved_tensors
        if for_hidden is not None:
            for_hidden = (for_hidden * grad[:, None]).to(hidden.dtype)
        if for_weight is None and for_bias is None:
            return for_hidden, None, None, None, None, None
        if len(grad) and bool((grad == grad[0]).all()):
            scaled = [
                None if g is None else (g * grad[0]).to(g.dtype) for g in (for_weight, for_bias)
            ]
            return for_hidden, scaled[0], scaled[1], None, None, None
        again = _Gradients((False, *ctx.needs_input_grad[1:3]))
        with torch.autocast(hidden.device.type, enabled=False):
            parts = (part.split(ctx.chunk) for part in (hidden, target, total, grad))
            for rows, goal, log_sum, scale in zip(*parts, strict=True):
                share = _logits(rows, weight, bias).sub_(log_sum[:, None]).exp_()
                again.add(share, goal, rows, weight, bias, scale)
        _, for_weight, for_bias = again.all()
        return for_hidden, for_weight, for_bias, None, None, None


class _Gradients:
    """Gradients of the sum of losses, gathered chunk by chunk; those of hidden rows unsummed."""

    def __init__(self, wanted: tuple[bool, ...]) -> None:
        self.wanted = wanted
        self.rows: list[Tensor] = []
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def add(
        self,
        share: Tensor,
        goal: Tensor,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None = None,
    ) -> None:
        """Add a chunk's; its softmax `(C, V)` is used up."""
        share[torch.arange(len(share), device=share.device), goal] -= 1
        if scale is not None:
            share *= scale[:, None]
        share = share.to(weight.dtype)
        if self.wanted[0]:
            self.rows.append(share @ weight)
        if self.wanted[1]:
            self.weight = torch.zeros_like(weight) if self.weight is None else self.weight
            self.weight.addmm_(share.t(), rows)
        if self.wanted[2] and bias is not None:
            self.bias = torch.zeros_like(bias) if self.bias is None else self.bias
            self.bias += share.sum(0)

    def all(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden rows `(N, H)`, weight and bias; None where not wanted."""
        return torch.cat(self.rows) if self.rows else None, self.weight, self.bias
