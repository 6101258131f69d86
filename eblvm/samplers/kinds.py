"""Chains of one kind: those that one compiled function serves.

The compiler builds a function for the code that it reads and for whatever is not a tensor in it:
numbers, switches, shapes. What differs in any of these is another kind, with its own account of the
time spent. Numbers that the code never reads are not told apart from those that it does.
"""

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .frozen import MAX_ITEMS, Found, is_plain
from .score import EnergyFn

__all__ = ["MAX_KINDS", "Kind", "compilation_report", "kind_of"]

MAX_KINDS = 8
"""Kinds of one kernel, one energy and one shape that are known at a time.

Where a number changes from chain to chain the oldest ones are forgotten. Those that were compiled
(or refused) are kept, and with so many of them all further ones stay eager.
"""


@dataclass
class Kind:
    """What is known of chains of one kind."""

    label: str
    spent: float = 0.0
    refused: str = ""
    function: Any = None
    reads_program: bool = False
    report: dict[str, Any] = field(default_factory=dict)


_kinds: dict[Any, Kind] = {}
"""Those of this process, the last used at the end; the first entry of a key is the family."""


def compilation_report() -> list[dict[str, Any]]:
    """What was compiled in this process: kernel and energy, seconds, µs per step before, after."""
    return [kind.report for kind in _kinds.values() if kind.report]


def kind_of(
    rule: Callable[..., Any],
    energy: EnergyFn,
    x: Tensor,
    numbers: tuple[float | Tensor, ...],
    precision: torch.dtype | None,
) -> Kind | None:
    """The kind of a chain; None if its family has :data:`MAX_KINDS` of lasting ones.

    Arguments:
        rule: The pure step.
        energy: `(B, *event) -> (B,)`.
        x: The start, for its shape, dtype and device.
        numbers: The step's coefficients, for their shapes.
        precision: That of autocast, None without.
    """
    shapes = tuple(n.shape if isinstance(n, Tensor) else () for n in numbers)
    family = (_code(rule), _code(energy), x.shape, x.dtype, x.device, shapes, precision)
    signature = _Signature()
    signature.visit(rule)
    signature.visit(energy)
    key = (family, tuple(signature.tokens))
    kind = _kinds.pop(key, None)
    if kind is None:
        siblings = [k for k in _kinds if k[0] == family]
        if len(siblings) >= MAX_KINDS:
            idle = [k for k in siblings if not (_kinds[k].function or _kinds[k].refused)]
            if not idle:
                return None
            del _kinds[idle[0]]
        kind = Kind(f"{_label(rule)} of {_label(energy)} at {tuple(x.shape)}")
    _kinds[key] = kind
    return kind


class _Signature(Found):
    """What a function depends on beside the values of tensors, as far as it can be found."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[Any] = []

    def visit(self, obj: Any, owner: bool = False) -> None:
        self.tokens.append(_token(obj))
        super().visit(obj, owner)


def _token(obj: Any) -> Any:
    if is_plain(obj):
        return type(obj), obj
    if isinstance(obj, Tensor):
        return obj.shape, obj.stride(), obj.dtype, obj.device
    if isinstance(obj, nn.Module):
        tensors = (*obj._parameters.items(), *obj._buffers.items())
        return (
            type(obj),
            obj.training,
            *((n, t.shape, t.dtype) for n, t in tensors if t is not None),
        )
    if isinstance(obj, types.FunctionType):
        return obj.__code__
    if isinstance(obj, dict):
        return dict, *map(str, [*obj][:MAX_ITEMS])
    return type(obj)


def _code(f: Any) -> Any:
    """What a function runs, whatever it holds."""
    if isinstance(f, functools.partial):
        return ("partial", _code(f.func))
    if isinstance(f, types.MethodType):
        return (_code(f.__func__), type(f.__self__))
    return getattr(f, "__code__", type(f))


def _label(f: Any) -> str:
    if isinstance(f, functools.partial):
        held = [f"{name}={v}" for name, v in f.keywords.items() if is_plain(v) or type(v) is tuple]
        return f"{_label(f.func)}({', '.join(held)})" if held else _label(f.func)
    return getattr(f, "__qualname__", type(f).__name__)
