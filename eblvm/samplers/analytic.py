r"""Input gradients without autograd: an energy read once, differentiated by hand, run many times.

A long chain evaluates one energy thousands of times at the same shape. :func:`analyze` traces it
symbolically (:mod:`torch.fx`), evaluates *once* everything that does not depend on x (time and
context branches, normalized weights, schedules), folds constant columns of a concatenation into the
bias of the layer that follows, transposes each weight once, and writes the chain rule as a list of
in-order calls. No graph is built and no parameter is looked at again.

Operations are those of residual multilayer perceptrons, convolutional networks, mixtures and
quadratics; an energy with any other one, with data-dependent control flow, hooks or random numbers
is left to autograd, and so is one whose gradient at the first state disagrees with autograd's.
Nothing is approximated: results agree to rounding.

Matrix products choose, per shape and once per process, the faster of the BLAS that `Linear` uses
and oneDNN with a packed weight: which of them wins depends on the processor, so it is measured.
"""

import math
import time
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .convolution import convolution, padding
from .score import EnergyFn, value_and_gradient

__all__ = ["Analytic", "analyze"]

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}  # of the norm of the first gradient
PACK_FROM = 200  # steps from which packing and timing a weight can pay

NARROW = 8  # columns up to which a product is computed as its transpose

Product = Callable[..., Tensor]
_ops: Any = torch.ops.aten


class _Unsupported(Exception):
    """The energy holds something that is left to autograd."""


class _Rule:
    """A function of tensors, and what may be assumed of it.

    Arguments:
        f: The function.
        into: It takes `out=`, a buffer to write to.
        constant: (Derivatives.) It depends on the incoming gradient alone.
        needs: (Derivatives.) The values it looks at: "h", "out" or "both".
        again: (Of an operation that keeps something for its derivative.) Makes another such pair.
    """

    def __init__(
        self,
        f: Callable[..., Tensor],
        into: bool = False,
        constant: bool = False,
        needs: str = "both",
        again: "Callable[[], Pair] | None" = None,
    ) -> None:
        self.f, self.into, self.constant, self.again = f, into, constant, again
        self.needs = "" if constant else needs


Pair = tuple[_Rule, _Rule]
"""An operation h ↦ out, and its derivative (g, out, h) ↦ gradient for h."""


class Analytic:
    """E and ∇E as a list of calls into buffers that live as long as the chain."""

    def __init__(self, x: Tensor) -> None:
        self.example: list[Tensor] = [x]  # the values at the first state, for shapes
        self.recorded: list[tuple[int, _Rule, tuple[int, ...], tuple[_Rule, ...]]] = []
        self.first: tuple[Tensor, Tensor, Tensor] | None = None  # autograd's, from the check

    def record(self, inputs: tuple[int, ...], forward: _Rule, backward: tuple[_Rule, ...]) -> int:
        """Add an operation: `backward[i](g, out, *inputs)` is the gradient for input i."""
        self.example.append(forward.f(*[self.example[i] for i in inputs]))
        slot = len(self.example) - 1
        self.recorded.append((slot, forward, inputs, backward))
        return slot

    def finish(self, output: int) -> None:
        """Lay out the calls that lead to the output, and back from it."""
        needed = {output}
        for slot, _, inputs, _ in reversed(self.recorded):
            if slot in needed:
                needed.update(inputs)
        kept = [op for op in self.recorded if op[0] in needed]
        uses = [i for _, _, inputs, _ in kept for i in inputs]
        values: list[Any] = [None] * len(self.example)
        gradients: list[Any] = [None] * len(self.example)
        gradients[output] = torch.ones_like(self.example[output])

        self.forward: list[tuple[int, Callable[..., Tensor], tuple[int, ...], Tensor | None]] = []
        for slot, rule, inputs, _ in kept:
            buffer = torch.empty_like(self.example[slot]) if rule.into and slot != output else None
            self.forward.append((slot, rule.f, inputs, buffer))
        self.backward: list[tuple[int, int, Callable[..., Tensor], tuple[int, ...], Any]] = []
        self.sums: dict[int, Tensor] = {}  # where gradients of values used twice are added up
        wanted: set[int] = set()
        for slot, _, inputs, rules in reversed(kept):
            for i, rule in zip(inputs, rules, strict=True):
                if rule.constant and gradients[slot] is not None and uses.count(i) == 1:
                    gradients[i] = rule.f(gradients[slot], *[None] * (1 + len(inputs)))
                    continue
                buffer = torch.empty_like(self.example[i]) if rule.into and i else None
                self.backward.append((slot, i, rule.f, inputs, buffer))
                if i and uses.count(i) > 1:
                    self.sums[i] = torch.empty_like(self.example[i])
                wanted.update(inputs if rule.needs in ("h", "both") else ())
                wanted.update({slot} if rule.needs in ("out", "both") else ())
        for slot, _, inputs, _ in reversed(kept):
            if slot in wanted:
                wanted.update(inputs)
        self.shorter = [op for op in self.forward if op[0] in wanted]  # enough for ∇E
        self.output, self.values, self.gradients = output, values, gradients
        self.example, self.recorded = [], []

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E(x) `(B,)` and ∇E(x), for x of the shape that was analyzed."""
        if self.first is not None and x is self.first[0]:
            return self.first[1], self.first[2]
        values, gradient = self._run(x, self.forward)
        return values[self.output], gradient

    def gradient(self, x: Tensor) -> Tensor:
        """∇E(x) alone, without what only E(x) needs."""
        if self.first is not None and x is self.first[0]:
            return self.first[2]
        return self._run(x, self.shorter)[1]

    def _run(self, x: Tensor, forward: list[Any]) -> tuple[list[Any], Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            values, gradients = self.values.copy(), self.gradients.copy()
            values[0] = x
            for slot, f, inputs, buffer in forward:
                arguments = [values[i] for i in inputs]
                values[slot] = f(*arguments) if buffer is None else f(*arguments, out=buffer)
            for slot, i, f, inputs, buffer in self.backward:
                arguments = [gradients[slot], values[slot], *[values[j] for j in inputs]]
                g = f(*arguments) if buffer is None else f(*arguments, out=buffer)
                known = gradients[i]
                gradients[i] = g if known is None else torch.add(known, g, out=self.sums.get(i))
            return values, gradients[0]


def analyze(energy: EnergyFn, x: Tensor, num_steps: int) -> Analytic | None:
    """Read an energy; None if it is to be left to autograd.

    Arguments:
        energy: `(B, *event) -> (B,)`, frozen.
        x: The first state; the result is valid for its shape, dtype and device only.
        num_steps: Steps ahead, to decide which preparations pay.
    """
    if x.dtype not in TOLERANCE or torch.is_autocast_enabled(x.device.type) or not x.numel():
        return None
    for remembered in (True, False):
        try:
            with torch.no_grad():
                program = _read(energy, x, num_steps, remembered)
        except Exception:  # whatever stops a trace, autograd copes or explains
            return None
        if program is not None:
            e, g = value_and_gradient(energy, x)
            e_ours, g_ours = program(x)
            tolerance = TOLERANCE[x.dtype]
            same_e = (e_ours - e).norm() <= tolerance * (e.norm() + 1)
            same_g = (g_ours - g).norm() <= tolerance * g.norm()
            if bool(same_e & same_g):
                program.first = (x, e, g)
                return program
    return None


class _Tracer(fx.Tracer):
    """Traces any callable; modules and tensors are kept by identity, wherever they live."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: dict[str, nn.Module] = {}
        self.constants: dict[str, Tensor] = {}

    def path_of_module(self, mod: nn.Module) -> str:
        name = f"module_{id(mod)}"
        self.modules[name] = mod
        return name

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            name = f"constant_{id(a)}"
            self.constants[name] = a
            return self.create_node("get_attr", name, (), {})
        return super().create_arg(a)


class _Parts:
    """A concatenation of columns or of channels, kept apart: slots (int) and constants."""

    def __init__(self, parts: list[int | Tensor]) -> None:
        self.parts = parts


class _Slot(int):
    """A value that depends on x, by its index."""


_traces: Any = weakref.WeakKeyDictionary()  # energies to their traces, as long as they live


def _read(energy: EnergyFn, x: Tensor, num_steps: int, remembered: bool) -> Analytic | None:
    """The program of an energy, from an earlier trace of the same object or a fresh one.

    A trace follows weights as they change, but not other attributes: a remembered one that no
    longer agrees with autograd is replaced.
    """
    if remembered:
        if not isinstance(energy, nn.Module | types.FunctionType) or energy not in _traces:
            return None
        graph, modules, constants = _traces[energy]
    else:
        tracer = _Tracer()
        graph = tracer.trace(lambda x: energy(x))
        called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
        modules = {name: m for name, m in tracer.modules.items() if name in called}
        constants = tracer.constants
        if isinstance(energy, nn.Module | types.FunctionType):
            _traces[energy] = (graph, modules, constants)
    program = Analytic(x)
    reader = _Reader(program, len(x), num_steps)
    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            env[node] = _Slot(0)
        elif node.op == "get_attr":
            env[node] = constants[str(node.target)].detach()
        elif node.op == "output":
            result = env[node.args[0]]
            if not isinstance(result, _Slot) or program.example[result].shape != x.shape[:1]:
                raise _Unsupported
            program.finish(int(result))
        else:
            args = fx.node.map_arg(node.args, lambda n: env[n])
            kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n])
            if node.op == "call_module":
                env[node] = reader.module(modules[str(node.target)], args, kwargs)
            else:
                env[node] = reader.call(node.op, node.target, args, kwargs)
    return program


def _depends(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_depends(v) for v in value)
    return isinstance(value, _Slot | _Parts)


class _Reader:
    """Turns traced calls into operations with their derivatives."""

    def __init__(self, program: Analytic, batch: int, num_steps: int) -> None:
        self.program, self.batch, self.num_steps = program, batch, num_steps

    def shape(self, slot: int) -> torch.Size:
        return self.program.example[slot].shape

    def unary(self, value: Any, pair: Pair) -> Any:
        if isinstance(value, _Parts):
            raise _Unsupported
        return _Slot(self.program.record((int(value),), pair[0], (pair[1],)))

    def elementwise(self, value: Any, pair: Pair) -> Any:
        if isinstance(value, _Parts):
            again = pair[0].again or (lambda: pair)
            return _Parts(
                [
                    pair[0].f(p) if isinstance(p, Tensor) else self.unary(p, again())
                    for p in value.parts
                ]
            )
        return self.unary(value, pair)

    def module(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        if not _depends(args):
            return module(*args, **kwargs)
        if kwargs or len(args) != 1 or module._forward_hooks or module._forward_pre_hooks:
            raise _Unsupported
        (value,) = args
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            return self.linear(value, module.weight.detach(), module.bias)
        if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward:
            if module.padding_mode != "zeros":
                raise _Unsupported
            settings = {name: getattr(module, name) for name in _CONVOLUTION}
            return self.conv2d(value, **settings)
        if isinstance(module, nn.Identity | nn.Dropout) and not module.training:
            return value
        if isinstance(module, nn.Flatten):
            return self.flatten(value, module.start_dim, module.end_dim)
        return self.elementwise(value, _activation_of(module))

    def call(self, op: str, target: Any, args: tuple, kwargs: dict) -> Any:
        name = target if op == "call_method" else getattr(target, "__name__", "")
        if not _depends(args) and not _depends(tuple(kwargs.values())):
            if op == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return target(*args, **kwargs)
        if target is getattr and isinstance(args[0], _Slot):
            if args[1] not in ("shape", "ndim", "dtype", "device"):
                raise _Unsupported
            return getattr(self.program.example[args[0]], args[1])
        name = {"truediv": "div", "subtract": "sub", "multiply": "mul"}.get(name, name).strip("_")
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
        if not isinstance(args[0], _Slot | _Parts) or _depends(args[1:]):
            raise _Unsupported
        value = args[0]
        if name == "flatten":
            start = args[1] if len(args) > 1 else kwargs.get("start_dim", 0)
            return self.flatten(value, start, args[2] if len(args) > 2 else -1)
        if name == "pow" and isinstance(args[1], int | float):
            p = args[1]
            if p == 2:
                return self.elementwise(value, _SQUARE)
            power = (
                _Rule(lambda h: h.pow(p)),
                _Rule(lambda g, out, h: g * (p * h.pow(p - 1)), needs="h"),
            )
            return self.elementwise(value, power)
        if name == "neg":
            return self.elementwise(value, (_Rule(torch.neg), _same(torch.neg)))
        if name == "square":
            return self.elementwise(value, _SQUARE)
        if name == "exp":
            return self.elementwise(value, (_Rule(torch.exp), _Rule(lambda g, out, h: g * out)))
        if name in _FUNCTIONS:
            return self.elementwise(value, _FUNCTIONS[name](*args[1:], **kwargs))
        if isinstance(value, _Parts):
            raise _Unsupported
        return self.reshape_or_reduce(name, value, args[1:], kwargs)

    def unchanged(self, name: str, args: tuple, kwargs: dict) -> Any:
        """Calls that return their argument as it is; a cast to another dtype is not one."""
        if isinstance(args[0], _Slot):
            dtype = self.program.example[args[0]].dtype
            plain = {"float": torch.float32, "double": torch.float64}.get(name, dtype)
            if name == "dropout" and (args[1:] != () or kwargs.get("training", True)):
                raise _Unsupported
            if name == "to" and (kwargs or args[1:] != (dtype,)):
                raise _Unsupported
            if plain == dtype:
                return args[0]
        raise _Unsupported

    def reshape_or_reduce(self, name: str, slot: int, args: tuple, kwargs: dict) -> Any:
        shape = self.shape(slot)
        if name in ("sum", "mean", "logsumexp"):
            dim = args[0] if args else kwargs.get("dim")
            keep = kwargs.get("keepdim", args[1] if len(args) > 1 else False)
            if dim is None or set(kwargs) - {"dim", "keepdim"}:
                raise _Unsupported
            dims = tuple(d % len(shape) for d in (dim if isinstance(dim, tuple | list) else (dim,)))
            if name == "logsumexp":
                return self.unary(slot, _logsumexp(dims, keep))
            scale = 1.0 if name == "sum" else 1 / math.prod(shape[d] for d in dims)
            return self.unary(slot, _sum(dims, keep, shape, scale))
        if name in ("squeeze", "unsqueeze", "reshape", "view", "getitem", "select"):
            example = self.program.example[slot]
            index = args[0] if name == "getitem" else None
            pick = (lambda h: h[index]) if name == "getitem" else _method(name, args, kwargs)
            value = pick(example)
            if value.numel() == example.numel():
                return self.unary(slot, (_Rule(pick), _same(lambda g: g.reshape(shape))))

            def scatter(g: Tensor, out: Tensor, h: Tensor) -> Tensor:
                whole = torch.zeros_like(h)
                pick(whole).copy_(g)
                return whole

            if value.untyped_storage().data_ptr() != example.untyped_storage().data_ptr():
                raise _Unsupported  # not a view: an index may repeat
            return self.unary(slot, (_Rule(pick), _Rule(scatter)))
        raise _Unsupported

    def flatten(self, slot: Any, start: int, end: int) -> Any:
        if isinstance(slot, _Parts):
            if (start, end) != (1, -1):
                raise _Unsupported  # channels come first: flat rows of the parts, side by side
            parts = slot.parts
            flat = [
                p.flatten(1) if isinstance(p, Tensor) else self.flatten(p, 1, -1) for p in parts
            ]
            return _Parts(flat)
        shape = self.shape(slot)
        target = torch.empty(shape, device="meta").flatten(start, end).shape
        if target == shape:
            return slot
        return self.unary(
            slot, (_Rule(lambda h: h.reshape(target)), _same(lambda g: g.reshape(shape)))
        )

    def arithmetic(self, name: str, a: Any, b: Any) -> Any:
        if isinstance(a, _Parts) or isinstance(b, _Parts):
            raise _Unsupported
        if isinstance(a, _Slot) and isinstance(b, _Slot):
            return self.binary(name, a, b)
        constant, slot = (b, a) if isinstance(a, _Slot) else (a, b)
        shape = self.shape(slot)
        if isinstance(constant, Tensor):
            out = torch.broadcast_shapes(shape, constant.shape)
        elif isinstance(constant, int | float):
            out = shape
        else:
            raise _Unsupported
        back = (lambda g: g) if out == shape else (lambda g: g.sum_to_size(shape))
        if name == "add":
            return self.unary(slot, (_Rule(lambda h: h + constant), _same(back)))
        if name == "sub" and slot is a:
            return self.unary(slot, (_Rule(lambda h: h - constant), _same(back)))
        if name == "sub":
            return self.unary(slot, (_Rule(lambda h: constant - h), _same(lambda g: back(-g))))
        if name == "mul" or slot is a:  # a division by a constant
            factor = constant if name == "mul" else 1 / constant
            return self.unary(
                slot, (_Rule(lambda h: h * factor), _same(lambda g: back(g * factor)))
            )
        raise _Unsupported

    def binary(self, name: str, a: _Slot, b: _Slot) -> _Slot:
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
        pair = (_Rule(da, constant=constant), _Rule(db, constant=constant))
        return _Slot(self.program.record((int(a), int(b)), _Rule(f, into=True), pair))

    def cat(self, tensors: Any, dim: int = 0) -> _Parts:
        flat: list[int | Tensor] = []
        for t in tensors:
            flat += t.parts if isinstance(t, _Parts) else [t]
        axes = {t.ndim if isinstance(t, Tensor) else len(self.shape(t)) for t in flat}
        if axes not in ({2}, {4}) or dim not in (1, 1 - axes.pop()):
            raise _Unsupported
        return _Parts(flat)

    def pad(self, input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
        if mode != "constant" or value or len(pad) > 4 or min(pad) < 0:
            raise _Unsupported
        if isinstance(input, _Parts):
            parts = input.parts
            return _Parts(
                [F.pad(p, pad) if isinstance(p, Tensor) else self.pad(p, pad) for p in parts]
            )
        if len(self.shape(input)) != 4:
            raise _Unsupported
        forward, backward = padding(self.program.example[input], tuple(pad))
        return self.unary(input, (_Rule(forward), _same(backward)))

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
        if isinstance(padding, str) or (groups != 1 and isinstance(input, _Parts)):
            raise _Unsupported
        parts = input.parts if isinstance(input, _Parts) else [input]
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
            raise _Unsupported
        for slot, filters in pieces:
            example = self.program.example[slot]
            pair = convolution(example, filters, shift, stride, padding, dilation, groups)
            shift = None
            term = self.unary(slot, (_Rule(pair[0]), _same(pair[1])))
            result = term if result is None else self.binary("add", result, term)
        return result if constant is None else self.arithmetic("add", result, constant)

    def linear(self, value: Any, weight: Tensor, bias: Tensor | None) -> Any:
        """h Wᵀ + b; constant columns of h become part of b."""
        parts = value.parts if isinstance(value, _Parts) else [value]
        shift: Any = bias.detach() if bias is not None else None
        start, result = 0, None
        pieces: list[tuple[int, Tensor]] = []
        for part in parts:
            shape = part.shape if isinstance(part, Tensor) else self.shape(part)
            if len(shape) != 2:
                raise _Unsupported
            columns = weight[:, start : start + shape[1]]
            start += shape[1]
            if isinstance(part, Tensor):
                constant = part @ columns.T
                shift = constant if shift is None else shift + constant
            else:
                pieces.append((int(part), columns))
        if start != weight.shape[1] or not pieces:
            raise _Unsupported
        for slot, columns in pieces:
            pair = _products(columns, shift, self.batch, self.num_steps)
            shift = None
            term = _Slot(self.program.record((slot,), pair[0], (pair[1],)))
            result = term if result is None else self.binary("add", result, term)
        return result


_CONVOLUTION = ("weight", "bias", "stride", "padding", "dilation", "groups")


def _named(args: tuple, kwargs: dict, *names: str) -> dict[str, Any]:
    """All arguments of a call by name."""
    return dict(zip(names, args, strict=False)) | kwargs


def _same(f: Callable[[Tensor], Tensor]) -> _Rule:
    """A derivative that depends on the incoming gradient alone."""
    return _Rule(lambda g, *_: f(g), constant=True)


_SQUARE: Pair = _Rule(torch.square), _Rule(lambda g, out, h: g * h * 2, needs="h")


def _method(name: str, args: tuple, kwargs: dict) -> Callable[[Tensor], Tensor]:
    return lambda h: getattr(h, name)(*args, **kwargs)


def _sum(dims: tuple[int, ...], keep: bool, shape: torch.Size, scale: float) -> Pair:
    kept = [1 if i in dims else n for i, n in enumerate(shape)]

    def forward(h: Tensor) -> Tensor:
        s = h.sum(dims, keepdim=keep)
        return s if scale == 1 else s * scale

    def backward(g: Tensor) -> Tensor:
        return (g if scale == 1 else g * scale).reshape(kept).expand(shape)

    return _Rule(forward), _same(backward)


def _logsumexp(dims: tuple[int, ...], keep: bool) -> Pair:
    def backward(g: Tensor, out: Tensor, h: Tensor) -> Tensor:
        if not keep:
            for d in sorted(dims):
                g, out = g.unsqueeze(d), out.unsqueeze(d)
        return (h - out).exp_().mul_(g)

    return _Rule(lambda h: torch.logsumexp(h, dims, keepdim=keep)), _Rule(backward)


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

    return _Rule(forward, into=True), _Rule(backward, into=True, needs=of)


def _relu(inplace: bool = False) -> Pair:
    backward = _Rule(lambda g, out, h: _ops.threshold_backward(g, out, 0))
    return _Rule(torch.relu), backward


def _silu(inplace: bool = False) -> Pair:
    r"""h σ(h), whose derivative σ(h)(1 + h − h σ(h)) needs no second exponential.

    On a GPU, where launches cost more than exponentials, the two fused kernels are faster.
    """
    fused_forward, fused_backward = _elementwise("silu", "silu_backward")
    kept: list[Tensor] = []  # σ(h) of the forward pass at hand

    def forward(h: Tensor, out: Tensor | None = None) -> Tensor:
        if h.is_cuda:
            return fused_forward.f(h, out=out)
        if not kept or kept[0].shape != h.shape or kept[0].dtype != h.dtype:
            kept[:] = [torch.empty_like(h)]
        torch.sigmoid(h, out=kept[0])
        return torch.mul(h, kept[0], out=out)

    def backward(g: Tensor, value: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
        if h.is_cuda:
            return fused_backward.f(g, value, h, out=out)
        slope = torch.sub(h, value, out=out)
        torch.addcmul(kept[0], kept[0], slope, out=slope)
        return torch.mul(g, slope, out=slope)

    return _Rule(forward, into=True, again=_silu), _Rule(backward, into=True)


_FUNCTIONS: dict[str, Callable[..., Pair]] = {
    "silu": _silu,
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


def _activation_of(module: nn.Module) -> Pair:
    """The derivative of an activation module, by its exact type."""
    if type(module) is nn.LeakyReLU:
        return _FUNCTIONS["leaky_relu"](module.negative_slope)
    if type(module) is nn.GELU:
        return _FUNCTIONS["gelu"](module.approximate)
    if type(module) is nn.Softplus:
        return _FUNCTIONS["softplus"](module.beta, module.threshold)
    plain = {nn.SiLU: "silu", nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
    if type(module) not in plain:
        raise _Unsupported
    return _FUNCTIONS[plain[type(module)]]()


def _products(weight: Tensor, shift: Tensor | None, batch: int, num_steps: int) -> Pair:
    """h Wᵀ + shift and its transpose, for W `(O, I)` and h `(B, I)`."""
    if len(weight) == 1 and (shift is None or shift.numel() == 1):  # a head: no matrix needed
        row = weight[0].contiguous()
        bias = shift.reshape(1) if shift is not None else weight.new_zeros(1)
        head = _Rule(lambda h: torch.addmv(bias, h, row).unsqueeze(1))
        return head, _same(lambda g: g * row)
    forward = _product(weight, batch, num_steps, shift)
    backward = _product(weight.T, batch, num_steps)

    def transpose(g: Tensor, value: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
        return backward(g, out=out)

    return _Rule(forward, into=True), _Rule(transpose, into=True, constant=True)


_packing_wins: dict[tuple, bool] = {}


def _product(weight: Tensor, batch: int, num_steps: int, shift: Tensor | None = None) -> Product:
    """The faster way to h ↦ h Wᵀ + shift, for this processor and shape."""
    transposed = weight.T.contiguous()
    if len(weight) <= NARROW and shift is None and not weight.is_cuda:
        rows = weight.contiguous()

        def narrow(h: Tensor, out: Tensor | None = None) -> Tensor:
            across = torch.mm(rows, h.T).T  # BLAS is slow where few columns come out
            return across.contiguous() if out is None else out.copy_(across)

        return narrow

    def plain(h: Tensor, out: Tensor | None = None) -> Tensor:
        if shift is None:
            return torch.mm(h, transposed, out=out)
        return torch.addmm(shift, h, transposed, out=out)

    if num_steps < PACK_FROM or not (shift is None or shift.ndim == 1):
        return plain
    packed = _packed(weight, batch, shift)
    if packed is None:
        return plain
    key = (batch, *weight.shape, torch.get_num_threads())
    if key not in _packing_wins:
        h = torch.randn(batch, weight.shape[1])
        _packing_wins[key] = _seconds(packed, h) < 0.9 * _seconds(plain, h)
    return packed if _packing_wins[key] else plain


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
