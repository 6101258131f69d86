"""Symbolic traces of energies, remembered for as long as the energies live."""

import types
import weakref
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from .score import EnergyFn

__all__ = ["Trace", "traced"]


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


_traces: Any = weakref.WeakKeyDictionary()  # energies to their traces, as long as they live


class Trace(NamedTuple):
    """What an energy calls, in order, and what it calls them with.

    Arguments:
        graph: The calls.
        modules: Modules among them, by the name they have in the graph.
        constants: Tensors that do not depend on x, likewise.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    constants: dict[str, Tensor]


def traced(energy: EnergyFn, remembered: bool) -> Trace | None:
    """The trace of an energy.

    A trace follows weights as they change, but not other attributes: replace a remembered one that
    no longer agrees with autograd by a fresh one.

    Arguments:
        energy: `(B, *event) -> (B,)`.
        remembered: Give an earlier trace of the same object, None if there is none; otherwise trace
            anew, and remember it.

    Raises:
        Exception: Whatever stops the trace, e.g. control flow that depends on x.
    """
    lasting = isinstance(energy, nn.Module | types.FunctionType)
    if remembered:
        return _traces.get(energy) if lasting else None
    tracer = _Tracer()
    graph = tracer.trace(lambda x: energy(x))
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    modules = {name: m for name, m in tracer.modules.items() if name in called}
    trace = Trace(graph, modules, tracer.constants)
    if lasting:
        _traces[energy] = trace
    return trace
