r"""Input gradients without autograd: an energy read once, differentiated by hand, run many times.

A long chain evaluates one energy thousands of times at the same shape. :func:`analyze` calls it
once with a stand-in for x, evaluates *once* everything that does not depend on x (time and context
branches, normalized weights, schedules), folds constant columns of a concatenation into the bias of
the layer that follows, transposes each weight once, and writes the chain rule as a list of in-order
calls. No graph is built and no parameter is looked at again; the next chain reads its energy anew.

Operations are those of residual multilayer perceptrons, convolutional networks, mixtures and
quadratics; an energy with any other one, with data-dependent control flow, hooks or random numbers
is left to autograd. So is one whose value or gradient differs from autograd's in any row of the
first state by more than :data:`TOLERANCE` (and of one beside it, where all gradients of the first
are 0); later states are not compared. The formulas are exact, but sums are taken in another order,
so that results differ from autograd's by rounding.

The parts: :mod:`.tracing` calls the energy, :mod:`.reader` turns what it does into operations with
their :mod:`.derivatives`, matrix :mod:`.products` and convolutions (:mod:`.convolution`), and here
these become a program.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .buffers import Plan
from .derivatives import Rule
from .reader import Reader
from .score import EnergyFn, value_and_gradient
from .tracing import trace

__all__ = ["Analytic", "analyze"]

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
"""Rounding that is accepted at the first state: see :func:`_agree`."""


class Analytic:
    """E and ∇E as a list of calls into buffers that live as long as the chain.

    What a call hands out is its own: the next one does not write to it.
    """

    def __init__(self, x: Tensor) -> None:
        self.example: list[Tensor] = [x]  # the values at the first state, for shapes
        self.recorded: list[tuple[int, Rule, tuple[int, ...], tuple[Rule, ...]]] = []
        self.heavy = False  # whether it has products of matrices or convolutions
        self.first: tuple[Tensor, Tensor, Tensor] | None = None  # autograd's, from the check

    def record(self, inputs: tuple[int, ...], forward: Rule, backward: tuple[Rule, ...]) -> int:
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

        plan = Plan()
        pure, pure_backward = [], []
        forward: list[tuple[int, Callable[..., Tensor], tuple[int, ...]]] = []
        for slot, rule, inputs, _ in kept:
            forward.append((slot, rule.f, inputs))
            pure.append((slot, rule.pure, inputs))
            plan.call(slot, inputs, self.example[slot] if rule.into else None)
        backward: list[tuple[int, int, Callable[..., Tensor], tuple[int, ...]]] = []
        held: dict[int, Any] = {}  # the plan's name of the gradient so far
        wanted: set[int] = set()
        for slot, _, inputs, rules in reversed(kept):
            for i, rule in zip(inputs, rules, strict=True):
                if rule.constant and gradients[slot] is not None and uses.count(i) == 1:
                    gradients[i] = rule.f(gradients[slot], *[None] * (1 + len(inputs)))
                    continue
                seen = {*(inputs if rule.needs in ("h", "both") else ())}
                seen |= {slot} if rule.needs in ("out", "both") else set()
                wanted |= seen
                before = held.get(i)
                held[i] = ("gradient", len(backward))
                backward.append((slot, i, rule.f, inputs))
                pure_backward.append((slot, i, rule.pure, inputs))
                reads = {*seen, *([held[slot]] if slot in held else [])}
                plan.call(held[i], reads, self.example[i] if rule.into else None)
                if before is not None:
                    plan.read((before, held[i]))
                    held[i] = ("sum", i)
        plan.keep(output)
        if 0 in held:
            plan.keep(held[0])
        buffers = plan.buffers()
        self.sums = {  # where gradients of values used twice are added up
            i: torch.empty_like(self.example[i])
            for i in held
            if held[i] == ("sum", i) and not plan.is_kept(held[i])
        }
        self.forward = [(*call, b) for call, b in zip(forward, buffers, strict=False)]
        after = buffers[len(forward) :]
        self.backward = [(*call, b) for call, b in zip(backward, after, strict=True)]
        for slot, _, inputs, _ in reversed(kept):
            if slot in wanted:
                wanted.update(inputs)
        self.shorter = [op for op in self.forward if op[0] in wanted]  # enough for ∇E
        self.pure = pure, [op for op in pure if op[0] in wanted], pure_backward
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

    def plain(self, x: Tensor, alone: bool = False) -> tuple[Tensor | None, Tensor]:
        """E(x) and ∇E(x) without buffers, as a compiler can read it; `alone`: without E(x)."""
        whole, shorter, backward = self.pure
        values, gradients = list(self.values), list(self.gradients)
        values[0] = x
        for slot, f, inputs in shorter if alone else whole:
            values[slot] = f(*[values[i] for i in inputs])
        for slot, i, f, inputs in backward:
            g = f(gradients[slot], values[slot], *[values[j] for j in inputs])
            gradients[i] = g if gradients[i] is None else gradients[i] + g
        return values[self.output], gradients[0]

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
    try:
        with torch.no_grad():
            program = Analytic(x)
            output = trace(energy, Reader(program, len(x), num_steps))
            if program.example[output].shape != x.shape[:1]:
                return None
            program.finish(output)
    except Exception:  # whatever stops a trace, autograd copes or explains
        return None
    first = _compared(program, energy, x)
    if first is None:
        return None
    if not first[1].any():  # at a mode of all rows much agrees: look aside
        aside = x + torch.linspace(-1, 1, x.numel()).to(x).reshape(x.shape)
        try:
            if _compared(program, energy, aside) is None:
                return None
        except Exception:  # an energy may refuse states that no chain of it enters
            return None
    program.first = (x, *first)
    return program


def _compared(program: Analytic, energy: EnergyFn, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Autograd's E(x) and ∇E(x), if the program's are the same."""
    e, g = value_and_gradient(energy, x)
    e_ours, g_ours = program(x)
    return (e, g) if bool(_agree(e_ours, e, 1.0) & _agree(g_ours, g)) else None


def _agree(ours: Tensor, theirs: Tensor, unit: float = 0.0) -> Tensor:
    """Whether two results `(B, …)` are equal in every row, up to rounding.

    Rounding is relative to the norm of the row plus the median norm of all rows plus `unit`: a row
    may be small by cancellation, and a huge one must not hide the others.
    """
    norms = theirs.flatten(1).norm(dim=1) if theirs.ndim > 1 else theirs.abs()
    difference = ours - theirs
    off = difference.flatten(1).norm(dim=1) if theirs.ndim > 1 else difference.abs()
    return (off <= TOLERANCE[theirs.dtype] * (norms + norms.median() + unit)).all()
