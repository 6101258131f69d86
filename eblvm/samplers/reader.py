"""From calls to operations with their derivatives."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .convolution import convolution, padding
from .derivatives import (
    FUNCTIONS,
    SQUARE,
    Pair,
    Rule,
    Unsupported,
    exponentials_are_cheap,
    logsumexp,
    same,
    silu_in_passes,
    summed,
)
from .products import products

if TYPE_CHECKING:
    from .analytic import Analytic

__all__ = ["Reader", "Slot"]


class Parts:
    """A concatenation of columns or of channels, kept apart: slots (int) and constants."""

    def __init__(self, parts: list[int | Tensor]) -> None:
        self.parts = parts


class Slot(int):
    """A value that depends on x, by its index."""


def depends(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(depends(v) for v in value)
    return isinstance(value, Slot | Parts)


class Reader:
    """Turns the calls of an energy into operations with their derivatives."""

    def __init__(self, program: "Analytic", batch: int, num_steps: int) -> None:
        self.program, self.batch, self.num_steps = program, batch, num_steps

    def shape(self, slot: int) -> torch.Size:
        return self.program.example[slot].shape

    def unary(self, value: Any, pair: Pair) -> Any:
        if isinstance(value, Parts):
            raise Unsupported
        return Slot(self.program.record((int(value),), pair[0], (pair[1],)))

    def elementwise(self, value: Any, pair: Pair) -> Any:
        if isinstance(value, Parts):
            again = pair[0].again or (lambda: pair)
            return Parts(
                [
                    pair[0].f(p) if isinstance(p, Tensor) else self.unary(p, again())
                    for p in value.parts
                ]
            )
        return self.unary(value, pair)

    def activation(self, name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """A function of :data:`FUNCTIONS`, by the faster of its forms."""
        make = FUNCTIONS[name]
        if name == "silu" and not exponentials_are_cheap(self.program.example[0].device):
            make = silu_in_passes
        return self.elementwise(value, make(*args, **kwargs))

    def call(self, name: str, args: tuple, kwargs: dict) -> Any:
        """The value of a call by its name; among the arguments are values that depend on x."""
        name = name.strip("_")  # of a method like `__sub__`
        name = {"truediv": "div", "subtract": "sub", "multiply": "mul"}.get(name, name)
        if name in ("add", "sub", "mul", "div") and len(args) == 2 and not kwargs:
            return self.arithmetic(name, *args)
        if name in ("cat", "concat"):
            return self.cat(*args, **kwargs)
        if name == "linear":
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            return self.linear(args[0], weight.detach(), bias)
        if name in ("matmul", "mm") and isinstance(args[1], Tensor) and args[1].ndim == 2:
            return self.linear(args[0], args[1].T, None)
        if name == "conv2d":
            return self.conv2d(**_named(args, kwargs, "input", *_CONVOLUTION))
        if name == "pad":
            return self.pad(**_named(args, kwargs, "input", "pad", "mode", "value"))
        if name in ("dropout", "contiguous", "float", "double", "to", "clone"):
            return self.unchanged(name, args, kwargs)
        if not isinstance(args[0], Slot | Parts) or depends(args[1:]):
            raise Unsupported
        value = args[0]
        if name == "flatten":
            start = args[1] if len(args) > 1 else kwargs.get("start_dim", 0)
            return self.flatten(value, start, args[2] if len(args) > 2 else -1)
        if name == "pow" and isinstance(args[1], int | float):
            p = args[1]
            if p == 2:
                return self.elementwise(value, SQUARE)
            power = (
                Rule(lambda h: h.pow(p)),
                Rule(lambda g, out, h: g * (p * h.pow(p - 1)), needs="h"),
            )
            return self.elementwise(value, power)
        if name == "neg":
            return self.elementwise(value, (Rule(torch.neg), same(torch.neg)))
        if name == "square":
            return self.elementwise(value, SQUARE)
        if name == "exp":
            return self.elementwise(value, (Rule(torch.exp), Rule(lambda g, out, h: g * out)))
        if name in FUNCTIONS:
            return self.activation(name, value, *args[1:], **kwargs)
        if isinstance(value, Parts):
            raise Unsupported
        return self.reshape_or_reduce(name, value, args[1:], kwargs)

    def unchanged(self, name: str, args: tuple, kwargs: dict) -> Any:
        """Calls that return their argument as it is; a cast to another dtype is not one."""
        if isinstance(args[0], Slot):
            dtype = self.program.example[args[0]].dtype
            plain = {"float": torch.float32, "double": torch.float64}.get(name, dtype)
            if name == "dropout" and (args[1:] != () or kwargs.get("training", True)):
                raise Unsupported
            if name == "to" and (kwargs or args[1:] != (dtype,)):
                raise Unsupported
            if plain == dtype:
                return args[0]
        raise Unsupported

    def reshape_or_reduce(self, name: str, slot: int, args: tuple, kwargs: dict) -> Any:
        shape = self.shape(slot)
        if name in ("sum", "mean", "logsumexp"):
            dim = args[0] if args else kwargs.get("dim")
            keep = kwargs.get("keepdim", args[1] if len(args) > 1 else False)
            if dim is None or set(kwargs) - {"dim", "keepdim"}:
                raise Unsupported
            dims = tuple(d % len(shape) for d in (dim if isinstance(dim, tuple | list) else (dim,)))
            if name == "logsumexp":
                return self.unary(slot, logsumexp(dims, keep))
            scale = 1.0 if name == "sum" else 1 / math.prod(shape[d] for d in dims)
            return self.unary(slot, summed(dims, keep, shape, scale))
        if name in ("squeeze", "unsqueeze", "reshape", "view", "getitem", "select"):
            example = self.program.example[slot]
            index = args[0] if name == "getitem" else None
            pick = (lambda h: h[index]) if name == "getitem" else _method(name, args, kwargs)
            value = pick(example)
            if value.numel() == example.numel():
                return self.unary(slot, (Rule(pick), same(lambda g: g.reshape(shape))))

            def scatter(g: Tensor, out: Tensor, h: Tensor) -> Tensor:
                whole = torch.zeros_like(h)
                pick(whole).copy_(g)
                return whole

            if value.untyped_storage().data_ptr() != example.untyped_storage().data_ptr():
                raise Unsupported  # not a view: an index may repeat
            return self.unary(slot, (Rule(pick), Rule(scatter)))
        raise Unsupported

    def flatten(self, slot: Any, start: int, end: int) -> Any:
        if isinstance(slot, Parts):
            if (start, end) != (1, -1):
                raise Unsupported  # channels come first: flat rows of the parts, side by side
            parts = slot.parts
            flat = [
                p.flatten(1) if isinstance(p, Tensor) else self.flatten(p, 1, -1) for p in parts
            ]
            return Parts(flat)
        shape = self.shape(slot)
        target = torch.empty(shape, device="meta").flatten(start, end).shape
        if target == shape:
            return slot
        return self.unary(
            slot, (Rule(lambda h: h.reshape(target)), same(lambda g: g.reshape(shape)))
        )

    def arithmetic(self, name: str, a: Any, b: Any) -> Any:
        if isinstance(a, Parts) or isinstance(b, Parts):
            raise Unsupported
        if isinstance(a, Slot) and isinstance(b, Slot):
            return self.binary(name, a, b)
        constant, slot = (b, a) if isinstance(a, Slot) else (a, b)
        shape = self.shape(slot)
        if isinstance(constant, Tensor):
            out = torch.broadcast_shapes(shape, constant.shape)
        elif isinstance(constant, int | float):
            out = shape
        else:
            raise Unsupported
        back = (lambda g: g) if out == shape else (lambda g: g.sum_to_size(shape))
        if name == "add":
            return self.unary(slot, (Rule(lambda h: h + constant), same(back)))
        if name == "sub" and slot is a:
            return self.unary(slot, (Rule(lambda h: h - constant), same(back)))
        if name == "sub":
            return self.unary(slot, (Rule(lambda h: constant - h), same(lambda g: back(-g))))
        if name == "mul" or slot is a:  # a division by a constant
            factor = constant if name == "mul" else 1 / constant
            return self.unary(slot, (Rule(lambda h: h * factor), same(lambda g: back(g * factor))))
        raise Unsupported

    def binary(self, name: str, a: Slot, b: Slot) -> Slot:
        sa, sb = self.shape(a), self.shape(b)
        out = torch.broadcast_shapes(sa, sb)

        def to(shape: torch.Size) -> Callable[[Tensor], Tensor]:
            return (lambda g: g) if shape == out else (lambda g: g.sum_to_size(shape))

        left, right = to(sa), to(sb)
        rules: dict[str, tuple[Any, Any, Any]] = {  # forward; derivatives (g, out, u, v)
            "add": (torch.add, lambda g, o, u, v: left(g), lambda g, o, u, v: right(g)),
            "sub": (torch.sub, lambda g, o, u, v: left(g), lambda g, o, u, v: right(g.neg())),
            "mul": (torch.mul, lambda g, o, u, v: left(g * v), lambda g, o, u, v: right(g * u)),
            "div": (
                torch.div,
                lambda g, o, u, v: left(g / v),
                lambda g, o, u, v: right(-g * o / v),
            ),
        }
        f, da, db = rules[name]
        constant = name in ("add", "sub")
        pair = (Rule(da, constant=constant), Rule(db, constant=constant))
        return Slot(self.program.record((int(a), int(b)), Rule(f, into=True), pair))

    def cat(self, tensors: Any, dim: int = 0) -> Parts:
        flat: list[int | Tensor] = []
        for t in tensors:
            flat += t.parts if isinstance(t, Parts) else [t]
        axes = {t.ndim if isinstance(t, Tensor) else len(self.shape(t)) for t in flat}
        if axes not in ({2}, {4}) or dim not in (1, 1 - axes.pop()):
            raise Unsupported
        return Parts(flat)

    def pad(self, input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
        if mode != "constant" or value or len(pad) > 4 or min(pad) < 0:
            raise Unsupported
        if isinstance(input, Parts):
            parts = input.parts
            return Parts(
                [F.pad(p, pad) if isinstance(p, Tensor) else self.pad(p, pad) for p in parts]
            )
        if len(self.shape(input)) != 4:
            raise Unsupported
        forward, backward = padding(self.program.example[input], tuple(pad))
        return self.unary(input, (Rule(forward), same(backward)))

    def conv2d(
        self,
        input: Any,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        """A convolution; what constant channels give is computed once."""
        self.program.heavy = True
        if isinstance(padding, str) or (groups != 1 and isinstance(input, Parts)):
            raise Unsupported
        parts = input.parts if isinstance(input, Parts) else [input]
        weight, shift = weight.detach(), None if bias is None else bias.detach()
        start, constant, result = 0, None, None
        pieces: list[tuple[int, Tensor]] = []
        for part in parts:
            shape = part.shape if isinstance(part, Tensor) else self.shape(part)
            filters = weight[:, start : start + shape[1]] if len(parts) > 1 else weight
            start += shape[1]
            if isinstance(part, Tensor):
                given = F.conv2d(part, filters, None, stride, padding, dilation)
                constant = given if constant is None else constant + given
            else:
                pieces.append((int(part), filters))
        if not pieces or start != weight.shape[1] * groups:
            raise Unsupported
        for slot, filters in pieces:
            example = self.program.example[slot]
            pair = convolution(example, filters, shift, stride, padding, dilation, groups)
            shift = None
            term = self.unary(slot, (Rule(pair[0]), same(pair[1])))
            result = term if result is None else self.binary("add", result, term)
        return result if constant is None else self.arithmetic("add", result, constant)

    def linear(self, value: Any, weight: Tensor, bias: Tensor | None) -> Any:
        """h Wᵀ + b; constant columns of h become part of b."""
        self.program.heavy = True
        parts = value.parts if isinstance(value, Parts) else [value]
        shift: Any = bias.detach() if bias is not None else None
        start, result = 0, None
        pieces: list[tuple[int, Tensor]] = []
        for part in parts:
            shape = part.shape if isinstance(part, Tensor) else self.shape(part)
            if len(shape) != 2:
                raise Unsupported
            columns = weight[:, start : start + shape[1]]
            start += shape[1]
            if isinstance(part, Tensor):
                constant = part @ columns.T
                shift = constant if shift is None else shift + constant
            else:
                pieces.append((int(part), columns))
        if start != weight.shape[1] or not pieces:
            raise Unsupported
        for slot, columns in pieces:
            pair = products(columns, shift, self.batch, self.num_steps)
            shift = None
            term = Slot(self.program.record((slot,), pair[0], (pair[1],)))
            result = term if result is None else self.binary("add", result, term)
        return result


_CONVOLUTION = ("weight", "bias", "stride", "padding", "dilation", "groups")


def _named(args: tuple, kwargs: dict, *names: str) -> dict[str, Any]:
    """All arguments of a call by name."""
    return dict(zip(names, args, strict=False)) | kwargs


def _method(name: str, args: tuple, kwargs: dict) -> Callable[[Tensor], Tensor]:
    return lambda h: getattr(h, name)(*args, **kwargs)
