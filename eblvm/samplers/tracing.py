"""Reading an energy by calling it once, with a stand-in for x.

A stand-in hands every operation that it meets to a :class:`~eblvm.samplers.reader.Reader`; what
does not depend on x is computed on the way, as in any call. So a trace holds all that the energy is
at the time: weights, numbers, switches, closures. It is made for each chain and never kept: whether
an old one is still true could be told only by looking at everything that the energy looks at.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .derivatives import Unsupported
from .frozen import held_modules
from .reader import Parts, Reader, Slot
from .score import EnergyFn

__all__ = ["trace"]


def trace(energy: EnergyFn, reader: Reader) -> Slot:
    """Read an energy; returns where the reader's program has its value.

    Arguments:
        energy: `(B, *event) -> (B,)`, frozen.
        reader: It has seen nothing but x, which is slot 0.

    Raises:
        Exception: Whatever stops the trace, e.g. an operation that the reader does not know or
            control flow that depends on x.
    """
    compiled = hasattr(energy, "_torchdynamo_orig_callable")
    if compiled or any(_hides(module) for module in held_modules(energy)):
        raise Unsupported
    result: Any = energy(StandIn(reader, Slot(0)))  # type: ignore[arg-type]
    if not isinstance(result, StandIn) or not isinstance(result.value, Slot):
        raise Unsupported
    return result.value


def _hides(module: nn.Module) -> bool:
    """Whether calling a module is more than its `forward`: hooks, `torch.compile`."""
    compiled = getattr(module, "_compiled_call_impl", None) or "_orig_mod" in module._modules
    return bool(module._forward_hooks or module._forward_pre_hooks or compiled)


class StandIn:
    """A value that depends on x, in the place of its tensor.

    Shapes are those of the chain. Whatever else would make a number of it raises, as does a change
    in place.
    """

    def __init__(self, reader: Reader, value: Slot | Parts) -> None:
        self.reader, self.value = reader, value

    def call(self, name: str, args: tuple, kwargs: dict) -> "StandIn":
        """What the operation of this name makes of stand-ins and other arguments."""
        if name.endswith("_") and not name.endswith("__"):
            raise Unsupported
        return StandIn(self.reader, self.reader.call(name, _values(args), _values(kwargs)))

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> "StandIn":
        given = kwargs or {}
        first = _first((*args, *given.values()))
        assert first is not None
        return first.call(getattr(function, "__name__", ""), args, given)

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "ndim", "dtype", "device", "size", "dim", "numel"):
            if isinstance(self.value, Slot):
                return getattr(self.reader.program.example[self.value], name)
        elif callable(getattr(Tensor, name, None)):
            return lambda *args, **kwargs: self.call(name, (self, *args), kwargs)
        raise Unsupported

    def __add__(self, other: Any) -> "StandIn":
        return self.call("add", (self, other), {})

    def __sub__(self, other: Any) -> "StandIn":
        return self.call("sub", (self, other), {})

    def __rsub__(self, other: Any) -> "StandIn":
        return self.call("sub", (other, self), {})

    def __mul__(self, other: Any) -> "StandIn":
        return self.call("mul", (self, other), {})

    def __truediv__(self, other: Any) -> "StandIn":
        return self.call("div", (self, other), {})

    def __matmul__(self, other: Any) -> "StandIn":
        return self.call("matmul", (self, other), {})

    def __pow__(self, other: Any) -> "StandIn":
        return self.call("pow", (self, other), {})

    def __neg__(self) -> "StandIn":
        return self.call("neg", (self,), {})

    def __getitem__(self, index: Any) -> "StandIn":
        return self.call("getitem", (self, index), {})

    __radd__, __rmul__ = __add__, __mul__

    def __len__(self) -> int:
        return int(self.shape[0])

    def _refuse(self, *args: Any) -> Any:
        raise Unsupported

    __bool__ = __iter__ = __float__ = __int__ = __index__ = __eq__ = __ne__ = _refuse


def _first(values: Iterable[Any]) -> StandIn | None:
    """A stand-in among arguments."""
    for value in values:
        if isinstance(value, tuple | list):
            value = _first(value)
        if isinstance(value, StandIn):
            return value
    return None


def _values(given: Any) -> Any:
    """Arguments with the values of stand-ins in their places, and tensors without their graphs."""
    if isinstance(given, StandIn):
        return given.value
    if isinstance(given, Tensor):
        return given.detach()
    if isinstance(given, dict):
        return {name: _values(value) for name, value in given.items()}
    if isinstance(given, tuple | list):
        return tuple(_values(value) for value in given)
    return given
