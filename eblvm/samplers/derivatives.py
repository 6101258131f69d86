"""Operations and their derivatives, for energies that are differentiated by hand."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "FUNCTIONS",
    "SQUARE",
    "Pair",
    "Rule",
    "Unsupported",
    "exponentials_are_cheap",
    "logsumexp",
    "same",
    "silu_in_passes",
    "summed",
]

_ops: Any = torch.ops.aten


class Unsupported(Exception):
    """The energy holds something that is left to autograd."""


class Rule:
    """A function of tensors, and what may be assumed of it.

    Arguments:
        f: The function.
        into: It takes `out=`, a buffer to write to.
        constant: (Derivatives.) It depends on the incoming gradient alone.
        needs: (Derivatives.) The values it looks at: "h", "out" or "both".
        again: (Of an operation that keeps something for its derivative.) Makes another such pair.
        pure: The same function in plain calls that a compiler can read; `f` itself if None.
    """

    def __init__(
        self,
        f: Callable[..., Tensor],
        into: bool = False,
        constant: bool = False,
        needs: str = "both",
        again: "Callable[[], Pair] | None" = None,
        pure: Callable[..., Tensor] | None = None,
    ) -> None:
        self.f, self.into, self.constant, self.again = f, into, constant, again
        self.pure = f if pure is None else pure
        self.needs = "" if constant else needs


Pair = tuple[Rule, Rule]
"""An operation h ↦ out, and its derivative (g, out, h) ↦ gradient for h."""


def same(f: Callable[[Tensor], Tensor]) -> Rule:
    """A derivative that depends on the incoming gradient alone."""
    return Rule(lambda g, *_: f(g), constant=True)


SQUARE: Pair = Rule(torch.square), Rule(lambda g, out, h: g * h * 2, needs="h")


def summed(dims: tuple[int, ...], keep: bool, shape: torch.Size, scale: float) -> Pair:
    kept = [1 if i in dims else n for i, n in enumerate(shape)]

    def forward(h: Tensor) -> Tensor:
        s = h.sum(dims, keepdim=keep)
        return s if scale == 1 else s * scale

    def backward(g: Tensor) -> Tensor:
        return (g if scale == 1 else g * scale).reshape(kept).expand(shape)

    return Rule(forward), same(backward)


def logsumexp(dims: tuple[int, ...], keep: bool) -> Pair:
    def backward(g: Tensor, out: Tensor, h: Tensor) -> Tensor:
        if not keep:
            for d in sorted(dims):
                g, out = g.unsqueeze(d), out.unsqueeze(d)
        return (h - out).exp_().mul_(g)

    return Rule(lambda h: torch.logsumexp(h, dims, keepdim=keep)), Rule(backward)


def _elementwise(name: str, derivative: str, of: str = "h", *args: Any, **kwargs: Any) -> Pair:
    """An ATen activation and its derivative, into buffers.

    Arguments:
        name: The operator.
        derivative: Its derivative's operator, called with g and with `of` ("h" or "out").
        of: What the derivative is written in.
        args: Further arguments of both.
        kwargs: Further arguments of both.
    """
    op, d_op = getattr(_ops, name), getattr(_ops, derivative)
    tail = (*args, False) if name == "leaky_relu" else args

    def forward(h: Tensor, out: Tensor | None = None) -> Tensor:
        return op(h, *args, **kwargs) if out is None else op.out(h, *args, **kwargs, out=out)

    def backward(g: Tensor, value: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
        written_in = h if of == "h" else value
        if out is None:
            return d_op(g, written_in, *tail, **kwargs)
        return d_op.grad_input(g, written_in, *tail, **kwargs, grad_input=out)

    return Rule(forward, into=True), Rule(backward, into=True, needs=of)


def _relu(inplace: bool = False) -> Pair:
    backward = Rule(lambda g, out, h: _ops.threshold_backward(g, out, 0))
    return Rule(torch.relu), backward


def silu_in_passes(inplace: bool = False) -> Pair:
    r"""h σ(h), whose derivative σ(h)(1 + h − h σ(h)) needs no second exponential.

    For processors where an exponential costs more than the four passes over memory that take its
    place; see :func:`exponentials_are_cheap`.
    """
    kept: list[Tensor] = []  # σ(h) of the forward pass at hand

    def forward(h: Tensor, out: Tensor | None = None) -> Tensor:
        if not kept or kept[0].shape != h.shape or kept[0].dtype != h.dtype:
            kept[:] = [torch.empty_like(h)]
        torch.sigmoid(h, out=kept[0])
        return torch.mul(h, kept[0], out=out)

    def backward(g: Tensor, value: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
        slope = torch.sub(h, value, out=out)
        torch.addcmul(kept[0], kept[0], slope, out=slope)
        return torch.mul(g, slope, out=slope)

    fused = FUNCTIONS["silu"]()
    return (
        Rule(forward, into=True, again=silu_in_passes, pure=fused[0].f),
        Rule(backward, into=True, pure=fused[1].f),
    )


def exponentials_are_cheap(device: torch.device) -> bool:
    """Whether a fused kernel that computes an exponential again is faster than further passes.

    So it is on a GPU, where launches cost more, and with AVX-512 (for 1,000 × 128 numbers SiLU and
    its derivative took 100 µs fused and 121 in passes); with AVX2 the passes are faster.
    """
    return device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()


FUNCTIONS: dict[str, Callable[..., Pair]] = {
    "silu": lambda inplace=False: _elementwise("silu", "silu_backward"),
    "relu": _relu,
    "tanh": lambda: _elementwise("tanh", "tanh_backward", "out"),
    "sigmoid": lambda: _elementwise("sigmoid", "sigmoid_backward", "out"),
    "leaky_relu": lambda negative_slope=0.01, inplace=False: _elementwise(
        "leaky_relu", "leaky_relu_backward", "h", negative_slope
    ),
    "gelu": lambda approximate="none": _elementwise(
        "gelu", "gelu_backward", "h", approximate=approximate
    ),
    "softplus": lambda beta=1, threshold=20: _elementwise(
        "softplus", "softplus_backward", "h", beta, threshold
    ),
}
