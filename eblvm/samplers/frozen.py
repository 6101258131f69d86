r"""The state of an energy, held still while a chain runs.

A chain samples *one* density, so its energy must be one function, row by row, from the first step
to the last. :func:`frozen` makes it so and gives everything back as it was found, also when the
energy raises (but for the content of large buffers, which an energy must not change):

- **Parameters**: `requires_grad` is off, so that no step builds a graph nobody asked for.
- **Mode**: modules run as `eval()` gives them. Dropout is off (an energy that flips coins cannot be
  accepted or rejected) and batch normalization uses its running statistics (with batch statistics
  the energy of one row would depend on the other rows). Recurrent layers keep their mode, because
  cuDNN differentiates them in training mode only; the dropout between their layers is set to 0.
- **Weight normalizations** (`spectral_norm` and `weight_norm`, old style and parametrizations) are
  computed once per chain, with the stored vectors and no power iteration. Published code that lets
  the power iteration run on during the chain samples from a slowly moving energy; the difference
  vanishes as the iteration converges.
- **Autocast** does not remember casts. It would keep one of every state, since states require a
  gradient, until the caller's context ends: memory that grows with the number of steps.
- **Buffers** up to `MAX_SNAPSHOT` elements are copied and as found afterwards. Larger ones (replay
  chains) are not, which would cost each chain their size in memory: they are watched, and writing
  to one raises after the chain. What was written stays.
- **Random numbers** come from the chain's generator. An energy that draws its own uses the global
  one, which is not put back.

Modules are found where an :data:`EnergyFn` can hold them: a module, a `functools.partial`, a bound
method, the closure, defaults and named globals of a function, and the attributes of an object with
`__call__` (lists, tuples and dicts included).
"""

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["frozen", "held_modules"]

MAX_SNAPSHOT = 2**16  # elements: every statistic of a layer is smaller, every replay buffer larger
MAX_ITEMS = 256  # how far into a list an energy's modules are looked for

_ATOMS = (
    bool, int, float, complex, str, bytes, type(None), type, types.ModuleType,
    types.BuiltinFunctionType, torch.dtype, torch.device, torch.Size, torch.Generator,
)  # fmt: skip
_ATOM_TYPES = frozenset(_ATOMS)  # exact types first: most of what is met is one of these
_MODULE_KEYS = frozenset(vars(nn.Module()))


def is_plain(obj: Any) -> bool:
    """Whether an object holds nothing that could be looked for."""
    return type(obj) in _ATOM_TYPES or isinstance(obj, _ATOMS)


class Found:
    """Modules and loose tensors behind an energy, each once."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.modules: list[nn.Module] = []
        self.tensors: list[Tensor] = []

    def visit(self, obj: Any, owner: bool = False) -> None:
        """Follow `obj`; `owner` says that its attributes belong to the energy whatever it is."""
        if type(obj) in _ATOM_TYPES or id(obj) in self.seen or isinstance(obj, _ATOMS):
            return
        self.seen.add(id(obj))
        if isinstance(obj, Tensor):
            self.tensors.append(obj)
        elif isinstance(obj, nn.Module):
            self.modules.append(obj)
            for child in obj._modules.values():
                self.visit(child)
            for name, value in vars(obj).items():
                if name not in _MODULE_KEYS:
                    self.visit(value)
        elif isinstance(obj, types.FunctionType):
            self._visit_function(obj)
        elif isinstance(obj, types.MethodType):
            self.visit(obj.__self__, owner=True)
            self.visit(obj.__func__)
        elif isinstance(obj, functools.partial):
            self.visit(obj.func)
            self.visit(obj.args)
            self.visit(obj.keywords)
        elif isinstance(obj, list | tuple | set | frozenset):
            for _, value in zip(range(MAX_ITEMS), obj, strict=False):
                self.visit(value)
        elif isinstance(obj, dict):
            for _, value in zip(range(MAX_ITEMS), obj.values(), strict=False):
                self.visit(value)
        elif owner or callable(obj):
            for value in getattr(obj, "__dict__", {}).values():
                self.visit(value)
            for slot in getattr(type(obj), "__slots__", ()):
                self.visit(getattr(obj, slot, None))
            if callable(obj):
                self.visit(getattr(type(obj).__call__, "__func__", type(obj).__call__))

    def _visit_function(self, function: types.FunctionType) -> None:
        if (function.__module__ or "").split(".")[0] in ("torch", "numpy", "math"):
            return
        for cell in function.__closure__ or ():
            try:
                self.visit(cell.cell_contents)
            except ValueError:  # an empty cell: the name is not bound yet
                continue
        self.visit(function.__defaults__)
        self.visit(function.__kwdefaults__)
        codes = [function.__code__]
        while codes:
            code = codes.pop()
            for name in code.co_names:
                self.visit(function.__globals__.get(name))
            codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]


def held_modules(energy: Any) -> list[nn.Module]:
    """All modules behind an energy, submodules included, each once.

    Arguments:
        energy: Anything callable: a module, a partial, a bound method, a closure, an object.
    """
    found = Found()
    found.visit(energy)
    return found.modules


@contextmanager
def frozen(energy: Any) -> Iterator[None]:
    """Hold the energy's state still (see the module's text) and allow input gradients.

    Inside, gradients are enabled even if the caller is under `torch.no_grad` or
    `torch.inference_mode`. Contexts may be nested.

    Arguments:
        energy: An energy or anything that holds modules, e.g. a tuple of two energies.

    Raises:
        RuntimeError: If the energy wrote to a buffer too large to have been copied.
    """
    found = Found()
    found.visit(energy)
    trainable: list[Tensor] = [t for t in found.tensors if t.requires_grad and t.is_leaf]
    training: list[nn.Module] = []
    dropouts: list[tuple[nn.RNNBase, float]] = []
    buffers: list[tuple[dict, str, Tensor, Tensor | None, int]] = []
    hooked: list[nn.Module] = []
    parametrized = False
    for module in found.modules:
        for p in module._parameters.values():
            if p is not None and p.requires_grad and p.is_leaf:
                trainable.append(p)
        if isinstance(module, nn.RNNBase):
            dropouts.append((module, module.dropout))
        elif module.training:
            training.append(module)
        for name, b in module._buffers.items():
            if b is not None:
                small = b.numel() <= MAX_SNAPSHOT or b.is_inference()
                version = -1 if b.is_inference() else b._version
                copy = b.detach().clone() if small else None
                buffers.append((module._buffers, name, b, copy, version))
        for hook in module._forward_pre_hooks.values():
            if hasattr(hook, "compute_weight"):  # old-style spectral_norm and weight_norm
                hooked.append(module)
                break
        parametrized = parametrized or isinstance(module, parametrize.ParametrizationList)

    remembers = torch.is_autocast_cache_enabled()
    restore: list[tuple[nn.Module, dict, dict[str, Tensor]]] = []
    cache = getattr(parametrize, "_cache", None) if parametrized else None
    with torch.inference_mode(False), torch.enable_grad():
        try:
            torch.set_autocast_cache_enabled(False)
            for t in trainable:
                t.requires_grad_(False)
            for module in training:
                vars(module)["training"] = False  # as an assignment, without `Module.__setattr__`
            for layer, _ in dropouts:
                layer.dropout = 0.0
            for module in hooked:
                restore.append(_fold_hooks(module))
            if cache is None:
                yield
            else:
                # Our weights carry no graph: they must not stay in a cache the caller has opened.
                outer = dict(cache)
                cache.clear()
                try:
                    with parametrize.cached():
                        yield
                finally:
                    cache.clear()
                    cache.update(outer)
        finally:
            torch.set_autocast_cache_enabled(remembers)
            for module, hooks, weights in restore:
                module._forward_pre_hooks.clear()
                module._forward_pre_hooks.update(hooks)
                vars(module).update(weights)
            for module in training:
                vars(module)["training"] = True
            for layer, dropout in dropouts:
                layer.dropout = dropout
            for t in trainable:
                t.requires_grad_(True)
            written = _restore_buffers(buffers) if buffers else []
    if written:
        raise RuntimeError(
            f"the energy wrote to its buffers {written} while a chain was running, and they stay "
            "changed: a chain puts buffers back, but these are too large to be copied for each "
            "chain. Update them outside `forward`, e.g. after sampling."
        )


def _fold_hooks(module: nn.Module) -> tuple[nn.Module, dict, dict[str, Tensor]]:
    """Compute hook-normalized weights once; returns what is needed to undo it."""
    hooks = dict(module._forward_pre_hooks)
    weights: dict[str, Tensor] = {}
    hook: Any
    for key, hook in hooks.items():
        compute = getattr(hook, "compute_weight", None)
        if compute is None:
            continue
        name = hook.name
        weights[name] = vars(module)[name]
        if hasattr(hook, "n_power_iterations"):
            folded = compute(module, do_power_iteration=False)
        else:
            folded = compute(module)
        vars(module)[name] = folded.detach()
        del module._forward_pre_hooks[key]
    return module, hooks, weights


def _restore_buffers(buffers: list[tuple[dict, str, Tensor, Tensor | None, int]]) -> list[str]:
    """Put small buffers back; returns the names of large ones that were written to."""
    written = []
    with torch.no_grad():
        for store, name, buffer, copy, version in buffers:
            store[name] = buffer
            if buffer.is_inference():  # it has no version: always put back
                with torch.inference_mode():
                    buffer.copy_(buffer if copy is None else copy)
            elif buffer._version != version:  # an unneeded write would spoil a graph of the caller
                if copy is None:
                    written.append(name)
                else:
                    buffer.copy_(copy)
    return written
