"""Time of a training step of pixel-space energies, where it goes, and the textbook loop beside it.

    python -m eblvm.benchmarks.speed.images --recipe image/vae_ebm_mnist --chains 25

The textbook loop is the usual one: the energy's parameters keep their graph in the chain, each step
calls `backward()`, which forms gradients of all weights that nobody asks for, and images lie with
channels first. Ours differs in three ways, switched on one after the other: parameters hold still
in the chain (only x is differentiated), channels lie last, and chains are compiled where that pays.
Both loops do the same arithmetic: the same recipe, start and noise give the same negatives up to
rounding, which is checked first.

Times are medians of `--repeats` steps, of the clock on the wall or (`--cpu`, for busy machines) of
the processor.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eblvm.benchmarks.compare import machine
from eblvm.negatives import with_steps
from eblvm.samplers import compilation, noise_like
from eblvm.training import build

__all__ = ["main", "textbook_chain"]


def textbook_chain(
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    num_steps: int,
    step_size: float,
    noise_scale: float,
    generator: torch.Generator,
) -> Tensor:
    """Langevin dynamics as tutorials write it."""
    x = x.clone()
    for _ in range(num_steps):
        x = x.detach().requires_grad_()
        energy(x).sum().backward()
        assert x.grad is not None
        noise = noise_like(x, generator)
        x = x - 0.5 * step_size**2 * x.grad + noise_scale * step_size * noise
    return x.detach()


class Textbook:
    """The textbook chain with the settings of a kernel.

    Arguments:
        kernel: A Langevin kernel without schedules.
    """

    def __init__(self, kernel: Any) -> None:
        self.settings = kernel.num_steps, kernel.step_size, kernel.noise_scale

    def __call__(
        self, energy: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator
    ) -> Tensor:
        return textbook_chain(energy, x, *self.settings, generator)


class Stopwatch:
    """Seconds of a part of a step, added up over a step's parts of that name."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.steps: list[dict[str, float]] = []

    def time(self, name: str, part: Callable[[], Any]) -> Any:
        start = self.clock()
        result = part()
        self.steps[-1][name] = self.steps[-1].get(name, 0.0) + self.clock() - start
        return result

    def medians(self) -> dict[str, float]:
        """Of each part, and of the whole step."""
        names = self.steps[0]
        parts = {n: statistics.median(step[n] for step in self.steps) for n in names}
        return parts | {"step": statistics.median(sum(step.values()) for step in self.steps)}


def training_steps(
    model: Any, x: Tensor, repeats: int, clock: Callable[[], float], textbook: bool
) -> dict[str, float]:
    """Seconds of the parts of a step: start, chain, energy, starter, update."""
    optimizer = model.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    watch, negatives = Stopwatch(clock), model.negatives
    kernel, num = negatives.sampler, negatives.num_chains or len(x)
    for i in range(repeats + 1):
        watch.steps.append({})
        generator = torch.Generator().manual_seed(i)
        drawn = watch.time("start", lambda g=generator: negatives.start(num, g))
        potential = model.potential()
        run = Textbook(kernel) if textbook else kernel
        ends = watch.time("chain", partial(run, potential, drawn.start, generator))
        optimizer.zero_grad()

        def contrast(ends: Tensor = ends) -> None:
            positive, negative = model.energy(torch.cat([x, ends])).split([len(x), len(ends)])
            (positive.mean() - negative.mean()).backward()

        watch.time("energy", contrast)

        def teach(drawn: Any = drawn, ends: Tensor = ends, g: torch.Generator = generator) -> None:
            terms = negatives.loss(type(drawn)(drawn.start, ends, z=drawn.z), g)
            if terms:
                torch.stack([term.mean() for term in terms.values()]).sum().backward()

        watch.time("starter", teach)
        watch.time("update", optimizer.step)
    watch.steps.pop(0)  # the first allocates
    return watch.medians()


def check(model: Any, x: Tensor) -> float:
    """The largest difference of the two chains' ends after three steps, relative to their size."""
    kernel: Any = with_steps(model.negatives.sampler, 3)
    start = model.negatives.start(len(x), torch.Generator().manual_seed(0)).start
    ours = kernel(model.potential(), start, torch.Generator().manual_seed(1))
    theirs = Textbook(kernel)(model.potential(), start, torch.Generator().manual_seed(1))
    return float((ours - theirs).abs().max() / theirs.abs().max())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="image/vae_ebm_mnist")
    parser.add_argument("--chains", type=int, default=25, help="chains, and images, per step")
    parser.add_argument("--steps", type=int, help="chain steps (as in the recipe)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="processor time, not time on the wall")
    parser.add_argument("--compile", action="store_true", help="a row with compiled chains, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter

    def fresh(channels_last: bool) -> Any:
        torch.manual_seed(0)
        flags = [f"--model.init_args.channels_last={str(channels_last).lower()}"]
        model, data = build(options.recipe, *flags)
        learner: Any = model
        if options.steps is not None:
            learner.negatives._sampler = with_steps(learner.negatives.sampler, options.steps)
        shape = data.event_shape  # type: ignore[attr-defined]
        x = 2 * torch.rand(options.chains, *shape, generator=torch.Generator().manual_seed(2)) - 1
        learner.negatives.num_chains = options.chains
        return learner, x

    rows: list[tuple[str, bool, bool, str]] = [
        ("textbook loop", False, True, "never"),
        ("parameters held still", False, False, "never"),
        ("and channels last", True, False, "never"),
    ]
    rows += [("and compiled", True, False, "always")] * options.compile
    print(f"chains agree to {check(*fresh(False)):.1e} of their size\n")
    print("| loop | start | chain | energy | starter | update | step, s | times faster |")
    print("|---" * 8 + "|")
    reference = None
    for title, channels_last, textbook, mode in rows:
        model, x = fresh(channels_last)
        with compilation(mode):
            seconds = training_steps(model, x, options.repeats, clock, textbook)
        reference = reference or seconds["step"]
        parts = " | ".join(
            f"{100 * seconds[name] / seconds['step']:.0f} %"
            for name in ("start", "chain", "energy", "starter", "update")
        )
        factor = reference / seconds["step"]
        print(f"| {title} | {parts} | {seconds['step']:.3g} | {factor:.2f} |", flush=True)
    kind = "processor" if options.cpu else "wall"
    print(f"\n{options.recipe}, {options.chains} chains, {options.threads} threads, {kind} time.")
    print(machine())


if __name__ == "__main__":
    main()
