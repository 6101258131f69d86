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

    Logits of N rows and V words, their softmax and its gradient would be 3 N V numbers; this works
    on some rows at a time and computes logits again for the gradient: a third more arithmetic, and
    memory for `chunk` · V numbers. Few logits are computed and kept as usual.

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
    return _LinearCrossEntropy.apply(hidden, weight, bias, target, chunk)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits, in float32 where they would be of half precision."""
    logits = F.linear(hidden, weight, bias)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


class _LinearCrossEntropy(torch.autograd.Function):
    """Chunked forward; the backward pass computes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk: int
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            log_sums = [_logits(rows, weight, bias).logsumexp(1) for rows in hidden.split(chunk)]
            total = torch.cat(log_sums)
            picked = (hidden * weight[target]).to(total.dtype).sum(1)
            if bias is not None:
                picked = picked + bias[target]
        ctx.save_for_backward(hidden, weight, bias, target, total)
        ctx.chunk = chunk
        return total - picked

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, bias, target, total = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                share = _logits(hidden[part], weight, bias).sub_(total[part, None]).exp_()
                rows = torch.arange(len(share), device=share.device)
                share[rows, target[part]] -= 1
                share = share.mul_(grad[part, None]).to(weight.dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = share @ weight
                if grad_weight is not None:
                    grad_weight.addmm_(share.t(), hidden[part])
                if grad_bias is not None:
                    grad_bias += share.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None
