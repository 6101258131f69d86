r"""Several steps folded into one function: compiled on the CPU, captured as a graph on CUDA.

For cheap energies the time of a step goes into dispatching two dozen small operations.
`torch.compile` fuses some ten steps into one function, which is several times faster, but takes
seconds to build, up to a minute: more than most chains last. So, by default (`"auto"`), a chain on
the CPU compiles when, and only when, chains of the same kind (:mod:`.kinds`: kernel, energy, their
numbers, shapes) have already spent :data:`COMPILE_AFTER` seconds of processor time in this process:
whatever happens next, compiling then costs about what was spent, twice that where it is slow. What
was compiled is timed against the eager steps on the spot, and kept only if it is faster. The cost
is logged (logger `eblvm.samplers`) and listed by :func:`~eblvm.samplers.compilation_report`.

    with compilation("always"):  # or "never"
        x = sampler(energy, x)

Of an energy with products of matrices the analytic gradient (:mod:`.analytic`) is compiled, which
is shorter than what the compiler makes of autograd's. Compiled and eager steps use the same noise
and agree to rounding. If the energy cannot be compiled, or no C++ compiler is at hand, chains go on
in eager mode after one warning.

On CUDA, `"always"` captures the steps of a chain in a CUDA graph instead, once per chain: a launch
for several steps is left. `"auto"` does not do so yet: see the results page.
"""

import itertools
import logging
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .analytic import Analytic
from .kinds import Kind, kind_of
from .mode import mode
from .score import EnergyFn

__all__ = ["COMPILE_AFTER", "Unrolled"]

COMPILE_AFTER = 30.0
"""Seconds of processor time that chains of one kind spend before they are compiled."""

STEPS_PER_CALL = 10  # unrolled steps: more compile longer and gain little
GRADIENTS_PER_CALL = 20  # and this many energy gradients at most, for steps that take several
STEPS_PER_GRAPH = 5  # a graph is captured for each chain, which takes as long as its steps do
GRADIENTS_PER_GRAPH = 10
GRAPHED_ON = ("cuda",)
_warned: list[str] = []
_numbers = itertools.count()
LOGGER = logging.getLogger("eblvm.samplers")

State = tuple[Tensor, ...]
Steps = Callable[[State, tuple[Tensor, ...]], State]
"""A state and the noise of several steps to the state after them."""


class Unrolled:
    """Runs several steps at once where that is faster; used by :class:`Kernel`.

    Arguments:
        rule: The pure step.
        energy: The frozen energy.
        x: The start, for its shape.
        numbers: The step's coefficients, the same for all steps.
        gradients_per_step: Energy gradients per step.
        num_steps: Steps ahead.
    """

    def __init__(
        self,
        rule: Callable[..., State],
        energy: EnergyFn,
        x: Tensor,
        numbers: tuple[float | Tensor, ...],
        gradients_per_step: int,
        num_steps: int,
    ) -> None:
        self.rule, self.energy = rule, energy
        self.graphed = x.device.type in GRAPHED_ON
        most, gradients = STEPS_PER_CALL, GRADIENTS_PER_CALL
        if self.graphed:
            most, gradients = STEPS_PER_GRAPH, GRADIENTS_PER_GRAPH
        self.length = max(1, min(most, gradients // gradients_per_step))
        self.steps: Steps | None = None
        self.start = time.thread_time()
        self.ready = self.proven = False
        self.kind: Kind | None = None
        self.program: Analytic | None = None
        if self.graphed:
            able = mode() == "always"
        else:
            able = mode() != "never" and x.device.type == "cpu"
        if not able or num_steps < 2 * self.length or not x.numel():
            return
        low = torch.is_autocast_enabled(x.device.type)
        precision = torch.get_autocast_dtype(x.device.type) if low else None
        self.kind = kind_of(rule, energy, x, numbers, precision)
        if self.kind is None:
            return
        wanted = mode() == "always" or self.kind.spent >= COMPILE_AFTER
        self.ready = wanted and not self.kind.refused
        self.proven = self.ready and bool(self.kind.report)  # eager steps will be few
        if self.ready:
            self.numbers = tuple(
                torch.as_tensor(n, dtype=x.dtype, device=x.device) for n in numbers
            )

    @property
    def reads_program(self) -> bool:
        """Whether what was compiled for this kind of chain is the analytic gradient."""
        return self.kind is not None and self.kind.reads_program

    def finish(self) -> None:
        """Note the time that the chain took, for later chains of its kind."""
        if self.kind is not None and self.steps is None:
            self.kind.spent += time.thread_time() - self.start

    def __call__(
        self, state: State, noise: tuple[Tensor, ...], eager: Callable[..., State]
    ) -> State | None:
        """`length` steps with their noise `(length, B, …)`; None if eager steps are to be taken.

        Arguments:
            state: The state.
            noise: The noise of the steps.
            eager: The same steps, `(state, noise) -> state`, to be measured against.
        """
        if not self.ready or self.kind is None:
            return None
        if self.reads_program and self.program is None:
            self.ready = False  # another energy of this kind, which cannot be read
            return None
        try:
            if self.steps is None:
                if self.graphed:
                    self.steps = _graphed(eager, state, noise)
                else:
                    self.steps = self._compiled(state, noise, eager)
                    if self.steps is None:
                        self.ready = False
                        return None
            return self.steps(state, noise)
        except Exception as error:
            self.ready, self.steps = False, None
            self.kind.refused = f"{type(error).__name__}: {error}"
            LOGGER.info("%s stays eager: %s", self.kind.label, self.kind.refused)
            if not _warned:
                _warned.append(self.kind.label)
                warnings.warn(
                    f"the steps of {self.kind.label} could not be compiled "
                    f"({self.kind.refused.splitlines()[0][:200]}); chains go on in eager mode, "
                    "with the same results. `samplers.compilation('never')` keeps this quiet.",
                    RuntimeWarning,
                    stacklevel=4,
                )
            return None

    def _compiled(
        self, state: State, noise: tuple[Tensor, ...], eager: Callable[..., State]
    ) -> Steps | None:
        kind = self.kind
        assert kind is not None
        if kind.function is None:
            kind.function = torch.compile(_fresh(_unrolled), fullgraph=True, dynamic=False)
            # For cheap energies reading them takes longer than it saves, each time a chain begins.
            kind.reads_program = self.program is not None and self.program.heavy
        function = kind.function

        def steps(state: State, noise: tuple[Tensor, ...]) -> State:
            source = self.program if kind.reads_program else self.energy
            with torch.no_grad():
                return function(self.rule, source, state, noise, self.numbers)

        if kind.report:
            return steps
        start = time.perf_counter()
        try:
            steps(state, noise)
        except Exception:
            if not kind.reads_program:
                raise
            kind.reads_program = False  # the energy itself may be easier to compile
            steps(state, noise)
        seconds = time.perf_counter() - start
        before, after = _least(eager, state, noise), _least(steps, state, noise)
        kind.report = {
            "steps": kind.label,
            "compile_seconds": seconds,
            "eager_us_per_step": 1e6 * before / self.length,
            "compiled_us_per_step": 1e6 * after / self.length,
            "used": after < before,
        }
        LOGGER.info("compiled %s", kind.report)
        if after >= before:
            kind.refused = "the compiled steps were not faster"
            return None
        return steps


def _unrolled(
    rule: Callable[..., State],
    source: "Analytic | EnergyFn",
    state: State,
    noise: tuple[Tensor, ...],
    numbers: tuple[Tensor, ...],
) -> State:
    potential: Any = _Read(source) if isinstance(source, Analytic) else _Functional(source)
    for i in range(len(noise[0])):
        state = rule(potential, state, tuple(e[i] for e in noise), numbers)
    return state


class _Read:
    """E and ∇E of an energy that was read, for the compiler to fuse."""

    def __init__(self, program: Analytic) -> None:
        self.program = program

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        e, gradient = self.program.plain(x)
        assert e is not None
        return e, gradient

    def gradient(self, x: Tensor) -> Tensor:
        return self.program.plain(x, alone=True)[1]


class _Functional:
    """E and ∇E of an energy that the compiler is to differentiate."""

    def __init__(self, energy: EnergyFn) -> None:
        self.energy = energy

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            e = self.energy(x)
            return e.sum(), e

        gradient, (_, e) = torch.func.grad_and_value(total, has_aux=True)(x)
        return e, gradient

    def gradient(self, x: Tensor) -> Tensor:
        return self(x)[1]


def _graphed(eager: Callable[..., State], state: State, noise: tuple[Tensor, ...]) -> Steps:
    """The steps as a CUDA graph over fixed buffers; the graph lives as long as the chain.

    The state stays in its buffers from call to call, and the chain's last state is handed out in
    them: nothing replays the graph after that.
    """
    held_state = tuple(s.clone() for s in state)
    held_noise = tuple(e.clone() for e in noise)

    def several() -> None:
        for held, new in zip(held_state, eager(held_state, held_noise), strict=True):
            held.copy_(new)

    def one() -> None:
        eager(held_state, tuple(e[:1] for e in held_noise))

    replay = _capture(several, one, state[0].device)

    def steps(state: State, noise: tuple[Tensor, ...]) -> State:
        if state is held_state:
            torch._foreach_copy_(held_noise, noise)
        else:  # the first call, or eager steps came between
            torch._foreach_copy_((*held_noise, *held_state), (*noise, *state))
        replay()
        return held_state

    return steps


def _capture(
    body: Callable[[], None], warm_up: Callable[[], None], device: torch.device
) -> Callable[[], None]:
    """A function that repeats what `body` launches, from a CUDA graph.

    What the graph must not do is kept out of it: `warm_up` lets libraries load and allocate their
    workspaces, on the stream that captures (workspaces belong to streams); autograd stays on this
    thread; other threads (a loader that pins memory, NCCL's watchdog) may use CUDA meanwhile. Noise
    is an input, so no generator is involved, and autocast remembers nothing inside `frozen`.

    Arguments:
        body: It works on tensors that keep their place, and never waits for the device.
        warm_up: A part of it that calls each library once.
        device: Where.
    """
    with torch.cuda.device(device), torch.autograd.set_multithreading_enabled(False):
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            warm_up()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            body()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay


def _fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy with a code object of its own: the compiler's limit on variants counts per code."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    return types.FunctionType(code, function.__globals__, code.co_name)


def _least(steps: Steps, state: State, noise: tuple[Tensor, ...], repeats: int = 9) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        steps(state, noise)
        best = min(best, time.thread_time() - start)
    return best
