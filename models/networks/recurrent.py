r"""One recurrent layer over sentences of unlike length, on a processor.

PyTorch's own layer adds up the gradient of its weights step by step: for each word of a sentence a
product as small as the batch, and a pass over all weights. Here that gradient is one product over
all words of the batch, which is exact and, at the widths and batches of published text models,
saves up to half of the time, and little where batches are sorted by length. Padding costs nothing,
as sequences are packed.

The layer is :class:`torch.nn.GRU`'s,

.. math::
    r &= \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \\
    u &= \sigma(W_{iu} x + b_{iu} + W_{hu} h + b_{hu}) \\
    n &= \tanh(W_{in} x + b_{in} + r * (W_{hn} h + b_{hn})) \\
    h' &= n + u * (h - n)
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["quick", "run_packed"]


@torch.compiler.disable
def run_packed(
    rnn: nn.RNNBase, packed: PackedSequence, state: Any = None
) -> tuple[PackedSequence, Any]:
    """What `rnn(packed, state)` returns, up to rounding; gradients of gradients are not to be had.

    Transforms of `torch.func` refuse it, and compiled graphs break around it.

    Arguments:
        rnn: One layer. An LSTM, a GPU and autocast are left to PyTorch.
        packed: The sequences.
        state: `(directions, B, H)`; zeros if None.
    """
    if not quick(rnn, packed.data):
        return rnn(packed, state)
    sizes = packed.batch_sizes.tolist()
    directions = 1 + rnn.bidirectional
    if state is None:
        state = packed.data.new_zeros(directions, sizes[0], rnn.hidden_size)
    elif packed.sorted_indices is not None:
        state = state.index_select(1, packed.sorted_indices)
    learning = torch.is_grad_enabled()
    found = []
    for first, end in zip(state, ("", "_reverse"), strict=False):
        names = (f"{kind}_l0{end}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        weights = (getattr(rnn, name) for name in names)
        found.append(_GRU.apply(packed.data, first, *weights, sizes, bool(end), learning))
    outputs, states = zip(*found, strict=True)
    last = torch.stack(states)
    if packed.unsorted_indices is not None:
        last = last.index_select(1, packed.unsorted_indices)
    return PackedSequence(torch.cat(outputs, 1), *packed[1:]), last


def quick(rnn: nn.RNNBase, x: Tensor) -> bool:
    """Whether inputs `x` are for the layer of this file."""
    return (
        type(rnn) is nn.GRU
        and (rnn.num_layers, rnn.bias) == (1, True)
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


class _GRU(torch.autograd.Function):
    """One direction: states of all words `(N, H)`, in the packed order, and the last ones `(B, H)`.

    Words lie step by step, those of the longest sentence first. `state` holds one row a sentence;
    each step takes and leaves its first rows, so that the last state of a sentence stays, and the
    backward direction finds the first one of each where it begins.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor,
        b_hh: Tensor,
        sizes: list[int],
        reverse: bool,
        learning: bool,
    ) -> tuple[Tensor, Tensor]:
        width = first.shape[1]
        state = first.clone()
        gates = torch.addmm(b_ih, x, w_ih.t())  # (N, 3 H): r, u, n
        out = x.new_empty(len(x), width)
        before, drive = (x.new_empty(len(x) * learning, width) for _ in range(2))
        for rows in _steps(sizes, reverse):
            h = state[: rows.stop - rows.start]
            from_h = torch.addmm(b_hh, h, w_hh.t())
            r_u, n = gates[rows].split([2 * width, width], 1)
            r_u.add_(from_h[:, : 2 * width]).sigmoid_()
            r, u = r_u.chunk(2, 1)
            n.addcmul_(r, from_h[:, 2 * width :]).tanh_()
            if learning:
                before[rows], drive[rows] = h, from_h[:, 2 * width :]
            h.copy_(torch.lerp(n, h, u, out=out[rows]))
        ctx.save_for_backward(x, w_ih, w_hh, gates, before, drive)
        ctx.steps = _steps(sizes, reverse)
        return out, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, carry = grads[0], grads[1].clone()
        x, w_ih, w_hh, gates, before, drive = ctx.saved_tensors
        r, u, n = gates.chunk(3, 1)
        # the gradient in each gate's sum, as a factor on that in the state
        by_n = (1 - u) * (1 - n.square())
        by_u = (before - n) * u * (1 - u)
        by_r = by_n * drive * r * (1 - r)
        from_h = torch.empty_like(gates)
        to_r, to_u, to_n = from_h.chunk(3, 1)
        for rows in reversed(ctx.steps):
            num = rows.stop - rows.start
            g = grad[rows] + carry[:num]
            torch.mul(g, by_r[rows], out=to_r[rows])
            torch.mul(g, by_u[rows], out=to_u[rows])
            torch.mul(g, by_n[rows], out=by_n[rows])
            torch.mul(by_n[rows], r[rows], out=to_n[rows])
            torch.addmm(g.mul_(u[rows]), from_h[rows], w_hh, out=carry[:num])
        needed = ctx.needs_input_grad
        for_w_hh = from_h.t() @ before if needed[3] else None
        for_b_hh = from_h.sum(0) if needed[5] else None
        from_x = from_h
        to_n.copy_(by_n)
        for_x = from_x @ w_ih if needed[0] else None
        for_w_ih = from_x.t() @ x if needed[2] else None
        for_b_ih = from_x.sum(0) if needed[4] else None
        return for_x, carry, for_w_ih, for_w_hh, for_b_ih, for_b_hh, None, None, None


def _steps(sizes: list[int], reverse: bool) -> list[slice]:
    """The rows of each step, in the order in which it is taken."""
    steps, start = [], 0
    for size in sizes:
        steps.append(slice(start, start + size))
        start += size
    return steps[::-1] if reverse else steps
