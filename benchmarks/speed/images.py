"""Time of a training step of pixel-space energies, where it goes, and the textbook loop beside it.

    python -m eblvm.benchmarks.speed.images --recipe image/vae_ebm_mnist --chains 25

The textbook loop is the usual one: the energy's parameters keep their graph in the chain, each step
calls `backward()`, which forms gradients of all weights that nobody asks for, and images lie with
channels first. Ours differs in ways that are switched on one after the other: parameters hold still
in the chain (only x is differentiated), channels lie last, the chain's gradients are formed by hand
(`eblvm.samplers.analytic`: no graph, nothing for what is linear or does not depend on x), and with
`--compile` chains are compiled. All these loops do the same arithmetic: the same recipe, start and
noise give the same negatives up to rounding, which is checked first. With `--bf16` a last row has
the updates of energy and starter in bfloat16, as `--trainer.precision=bf16-mixed` makes them; its
chains, too, stay in float32.

A round takes one step with each loop, so that what else the machine does hits all of them. Times
are medians over `--repeats` rounds, of the clock on the wall or (`--cpu`, for busy machines) of the
processor; ratios are those of a round, with their quartiles. With `--device cuda` noise is drawn on
the device, and each part is over when the device is done with it.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from eblvm.benchmarks.compare import machine
from eblvm.negatives import with_steps
from eblvm.samplers import compilation, noise_like, potential
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


class Loop:
    """A training step by its parts, and the seconds of each part of all steps so far.

    Arguments:
        model: A `DataEBM`.
        x: The data of each step.
        clock: Seconds.
        textbook: Whether the chain is the textbook's.
        analyze: Whether gradients may be formed by hand.
        mode: When chains are compiled, see `eblvm.samplers.compilation`.
        mixed: Whether energy and starter learn under autocast to bfloat16.

    Attributes:
        losses: The loss of the energy and that of the starter of the last step.
    """

    parts = ("start", "chain", "energy", "starter", "update")

    def __init__(
        self,
        model: Any,
        x: Tensor,
        clock: Callable[[], float],
        textbook: bool,
        analyze: bool,
        mode: str,
        mixed: bool = False,
    ) -> None:
        self.model, self.x, self.clock, self.mode, self.mixed = model, x, clock, mode, mixed
        self.analyze_from = potential.ANALYZE_FROM if analyze else 10**9
        kernel = model.negatives.sampler
        self.kernel = Textbook(kernel) if textbook else kernel
        made = model.configure_optimizers()
        self.optimizer = made["optimizer"] if isinstance(made, dict) else made
        self.steps: list[dict[str, float]] = []
        self.losses: dict[str, Tensor] = {}

    def step(self, seed: int) -> None:
        """One step of training, timed."""
        usual = potential.ANALYZE_FROM
        potential.ANALYZE_FROM = self.analyze_from
        self.steps.append({})
        try:
            with compilation(self.mode):
                self._step(torch.Generator(self.x.device).manual_seed(seed))
        finally:
            potential.ANALYZE_FROM = usual

    def _step(self, generator: torch.Generator) -> None:
        model, x, negatives = self.model, self.x, self.model.negatives
        drawn = self._time("start", lambda: negatives.start(negatives.num_chains, generator))
        energy = model.potential()
        ends = self._time("chain", lambda: self.kernel(energy, drawn.start, generator))
        self.optimizer.zero_grad()

        def contrast() -> None:
            with self._autocast():
                energies = model.energy(torch.cat([x, ends]))
                positive, negative = energies.split([len(x), len(ends)])
                loss = positive.mean() - negative.mean()
            loss.backward()
            self.losses["energy"] = loss.detach()

        def teach() -> None:
            with self._autocast():
                terms = negatives.loss(dataclasses.replace(drawn, x=ends), generator)
            if terms:
                loss = torch.stack([term.float().mean() for term in terms.values()]).sum()
                loss.backward()
                self.losses["starter"] = loss.detach()

        self._time("energy", contrast)
        self._time("starter", teach)
        self._time("update", self.optimizer.step)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.mixed)

    def _time(self, name: str, part: Callable[[], Any]) -> Any:
        start = self.clock()
        result = part()
        self.steps[-1][name] = self.clock() - start
        return result

    def totals(self) -> list[float]:
        """Seconds of each step but the first, which allocates."""
        return [sum(step.values()) for step in self.steps[1:]]

    def shares(self) -> list[float]:
        """What share of a step each part takes, by medians."""
        medians = [statistics.median(step[n] for step in self.steps[1:]) for n in self.parts]
        return [seconds / sum(medians) for seconds in medians]


def check(model: Any, x: Tensor) -> float:
    """The largest difference of the two chains' ends after a few steps, relative to their size."""
    kernel: Any = with_steps(model.negatives.sampler, potential.ANALYZE_FROM)

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator(x.device).manual_seed(seed)

    start = model.negatives.start(len(x), seeded(0)).start
    ours = kernel(model.potential(), start, seeded(1))
    theirs = Textbook(kernel)(model.potential(), start, seeded(1))
    return float((ours - theirs).abs().max() / theirs.abs().max())


def waited() -> float:
    """Time on the wall, once the GPU has done what it was asked."""
    torch.cuda.synchronize()
    return time.perf_counter()


def prepared(options: argparse.Namespace, channels_last: bool) -> tuple[Any, Tensor]:
    """The model of the options' recipe and the data of each step, on their device."""
    torch.manual_seed(0)
    flags = [f"--model.init_args.channels_last={str(channels_last).lower()}"]
    model, data = build(options.recipe, *flags)
    learner: Any = model.to(options.device)
    if options.steps is not None:
        learner.negatives._sampler = with_steps(learner.negatives.sampler, options.steps)
    shape = data.event_shape  # type: ignore[attr-defined]
    x = 2 * torch.rand(options.chains, *shape, generator=torch.Generator().manual_seed(2)) - 1
    learner.negatives.num_chains = options.chains
    return learner, x.to(options.device)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="image/vae_ebm_mnist")
    parser.add_argument("--chains", type=int, default=25, help="chains, and images, per step")
    parser.add_argument("--steps", type=int, help="chain steps (as in the recipe)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="processor time, not time on the wall")
    parser.add_argument("--compile", action="store_true", help="a row with compiled chains, too")
    parser.add_argument("--bf16", action="store_true", help="a row with bfloat16 updates, too")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    on_gpu = options.device.startswith("cuda")
    if options.cpu and on_gpu:
        parser.error("--cpu is processor time, which says nothing of a GPU")
    if on_gpu and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch sees no CUDA device")
    torch.set_num_threads(options.threads)
    clock = waited if on_gpu else time.process_time if options.cpu else time.perf_counter

    rows: list[tuple[str, bool, tuple[bool, bool, str, bool]]] = [
        ("textbook loop", False, (True, False, "never", False)),
        ("parameters held still", False, (False, False, "never", False)),
        ("and channels last", True, (False, False, "never", False)),
        ("and gradients by hand", True, (False, True, "never", False)),
    ]
    rows += [("and compiled", True, (False, True, "always", False))] * options.compile
    mode = "always" if options.compile else "never"
    rows += [("and bfloat16", True, (False, True, mode, True))] * options.bf16
    print(f"chains agree to {check(*prepared(options, False)):.1e} of their size\n")
    loops = []
    for _, channels_last, (textbook, analyze, mode, mixed) in rows:
        model, x = prepared(options, channels_last)
        loops.append(Loop(model, x, clock, textbook, analyze, mode, mixed))
    for i in range(options.repeats + 1):
        for loop in loops:
            loop.step(i)
    print("| loop | " + " | ".join(Loop.parts) + " | step, s | times faster (quartiles) |")
    print("|---" * (len(Loop.parts) + 3) + "|")
    reference = loops[0].totals()
    for (title, *_), loop in zip(rows, loops, strict=True):
        parts = " | ".join(f"{100 * share:.0f} %" for share in loop.shares())
        ratios = [theirs / ours for theirs, ours in zip(reference, loop.totals(), strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        seconds = statistics.median(loop.totals())
        print(f"| {title} | {parts} | {seconds:.3g} | {middle:.2f} ({low:.2f}–{high:.2f}) |")
    kind = "processor" if options.cpu else "wall"
    gpu = f"{torch.cuda.get_device_name(options.device)}; " if on_gpu else ""
    print(
        f"\n{options.recipe}, {options.chains} chains and images, {options.repeats} rounds, "
        f"{options.threads} threads, {kind} time."
    )
    print(gpu + machine())


if __name__ == "__main__":
    main()
