"""Time of a training step of DDAEBM on images, beside a plain transcription of the published one.

    OMP_NUM_THREADS=1 python -m eblvm.benchmarks.speed.diffusion --recipe image/ddaebm_cifar10
    OMP_NUM_THREADS=1 python -m eblvm.benchmarks.speed.diffusion --width 16

The transcription takes the recipe's networks and writes the step as the released code has it: real
and generated states one after the other, the penalty on the whole conditional by double backward at
every step, Adam and running averages parameter by parameter. That both compute the same losses of
one batch is checked first. Ours is then made faster step by step: the learner as it is with the
recipe's settings, a penalty at every sixteenth step only (times of steps with and without it,
weighted), filters with channels last, and autocast to bfloat16.

A round takes one step with each; times are of the processor, and medians over rounds. The floor is
the time that the multiplications of convolutions and matrix products of a step (counted by PyTorch)
would take at the rate of a product of two large float32 matrices on this machine.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from eblvm.benchmarks.compare import machine
from eblvm.training import build

__all__ = ["Ours", "Plain", "main"]

LAZY = 16


class Plain:
    """The published step with f = −E, in the networks of a learner; without tricks.

    Arguments:
        model: A `DenoisingEBM` with `Jeffrey`, a `SquaredReconstruction` and a penalty.
        x: The data of each step, with shape `(B, C, H, W)`.
    """

    def __init__(self, model: Any, x: Tensor) -> None:
        self.model, self.x = model, x
        beta = model.schedule.sigma.square()
        abar = torch.cumprod(1 - beta, 0)
        before, after = abar[:-1], abar[1:]
        self.beta, self.a = beta[1:], (1 - beta[1:]).sqrt()
        self.root, self.rest = before.sqrt(), (1 - before).sqrt()
        self.c1 = self.beta * before.sqrt() / (1 - after)
        self.c2 = (1 - before) * self.a / (1 - after)
        self.var = self.beta * (1 - before) / (1 - after)
        self.f = lambda x, k: -model.energy(x, k)
        self.encoder = model.divergence.encoder
        self.theta = list(model.energy.parameters())
        self.phi = [*model.net.parameters(), *self.encoder.parameters()]
        adam = partial(torch.optim.Adam, lr=1e-4, betas=(0.0, 0.9), foreach=False)
        self.critic, self.player = adam(self.theta), adam(self.phi)
        self.averages = [p.detach().clone() for p in (*self.theta, *self.phi)]

    def log_step(self, y: Tensor, x: Tensor, k: Tensor) -> Tensor:
        """log q(y|x), `(B,)`."""
        beta, dim = self.beta[k], x[0].numel()
        squares = (y - column(self.a[k]) * x).square().flatten(1).sum(1)
        return -squares / (2 * beta) - dim / 2 * torch.log(2 * math.pi * beta)

    def step(self, seed: int) -> dict[str, Tensor]:
        """One batch; the terms of the losses."""
        model, g = self.model, torch.Generator().manual_seed(seed)
        k, n1, n2, z, n3, n4 = noise(model, self.x, g)
        x = (column(self.root[k]) * self.x + column(self.rest[k]) * n1).requires_grad_()
        y = (column(self.a[k]) * x + column(self.beta[k].sqrt()) * n2).detach()
        c1, c2 = column(self.c1[k]), column(self.c2[k])
        fake = c1 * model.net(y, k, z) + c2 * y
        fake = fake + column(torch.where(k > 0, self.var[k].sqrt(), 0.0)) * n3

        for p in self.theta:
            p.requires_grad_(True)
        self.critic.zero_grad()
        f_real = self.f(x, k)
        joint = f_real + self.log_step(y, x, k)
        (slope,) = torch.autograd.grad(joint.sum(), x, create_graph=True)
        weight = model.divergence.penalty.weight
        penalty = weight / 2 * slope.square().flatten(1).sum(1).mean()
        contrast = self.f(fake.detach(), k).mean() - f_real.mean()
        (contrast + penalty).backward()
        self.critic.step()

        for p in self.theta:
            p.requires_grad_(False)
        self.player.zero_grad()
        x = x.detach()
        adversarial = -(self.f(fake, k) + self.log_step(y, fake, k)).mean()
        m, s = self.encoder(fake, y, k).chunk(2, 1)
        entropy = (0.5 * s + 0.5 * (z - m).square() / (1e-6 + s.exp())).sum(1).mean()
        m, s = self.encoder(x, y, k).chunk(2, 1)
        kl = 0.5 * (m.square() + s.exp() - 1 - s).sum(1).mean()
        again = c1 * model.net(y, k, m + (0.5 * s).exp() * n4) + c2 * y
        rec = (x - again).square().flatten(1).sum(1).mean()
        weight = model.divergence.entropy_weight
        (adversarial + weight * entropy + kl + rec).backward()
        self.player.step()
        with torch.no_grad():
            for average, p in zip(self.averages, (*self.theta, *self.phi), strict=True):
                average.mul_(0.9999).add_(p, alpha=1 - 0.9999)
        return {"contrast": contrast, "penalty": penalty, "latent_kl": kl, "reconstruction": rec}


def column(values: Tensor) -> Tensor:
    """`(B,)` as `(B, 1, 1, 1)`."""
    return values[:, None, None, None]


def noise(model: Any, x: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """All draws of a step, in the order of `DenoisingEBM`."""
    k = torch.randint(len(model.schedule), (len(x),), generator=generator)
    n1, n2 = (torch.randn(x.shape, generator=generator) for _ in range(2))
    z = torch.randn(len(x), model.latent_dim, generator=generator)
    n3 = torch.randn(x.shape, generator=generator)
    n4 = torch.randn(len(x), model.latent_dim, generator=generator)
    return k, n1, n2, z, n3, n4


class Ours:
    """A step of the learner, by its own parts, without the trainer.

    Arguments:
        model: A `DenoisingEBM`.
        x: The data of each step, with shape `(B, C, H, W)`.
        low: Whether convolutions and products are in bfloat16.
    """

    def __init__(self, model: Any, x: Tensor, low: bool = False) -> None:
        self.model, self.x, self.low = model, x, low
        (self.critic, self.player), _ = model.configure_optimizers()

    def step(self, seed: int, penalized: bool = True) -> dict[str, Tensor]:
        """One batch; the terms of the losses."""
        model, g = self.model, torch.Generator().manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low):
            jump = model.jump(self.x, g)
        terms: dict[str, Tensor] = {}

        def move(optimizer: Any, make: Callable[[], dict[str, Tensor]]) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.low):
                found = make()
            optimizer.zero_grad()
            torch.stack([term.mean() for term in found.values()]).sum().backward()
            optimizer.step()
            terms.update({name: term.mean() for name, term in found.items()})

        parts = model.energy, model.schedule, jump
        mean = partial(model.transition, jump.x_next, jump.t)
        with model.frozen(model.player()):
            number = 0 if penalized else -1
            move(self.critic, lambda: model.divergence.critic_terms(*parts, number))
        with model.frozen(model.critic()):
            move(self.player, lambda: model.divergence.player_terms(*parts, mean, g))
        for name, average in model.averaged.items():
            average.update_parameters(model.components()[name])
        return terms


class Operations(TorchDispatchMode):
    """Counts multiplications and additions of convolutions and products, double backward, too."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def peak(size: int = 1536) -> float:
    """Operations a second of a product of two float32 matrices, the best of five."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        a @ b
        seconds.append(time.process_time() - begin)
    return 2 * size**3 / min(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="image/ddaebm_cifar10")
    parser.add_argument("--width", type=int, help="of U-Nets and, halved, encoder (as in recipe)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--float32",
        action="store_true",
        help="leave bfloat16 out, which takes minutes where the processor cannot (no AVX-512)",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def fresh(**changes: Any) -> tuple[Any, Tensor]:
        """Model and data; without dropout, so that losses can be compared."""
        torch.manual_seed(0)
        at = "--model.init_args"
        flags = [f"{at}.{part}.init_args.net.init_args.dropout=0" for part in NETS]
        if options.width:
            flags += [f"{at}.{part}.init_args.net.init_args.width={options.width}" for part in NETS]
            encoder = f"{at}.divergence.init_args.encoder.init_args.width"
            flags.append(f"{encoder}={max(options.width // 2, 8)}")
        flags += [f"{at}.{name}={str(value).lower()}" for name, value in changes.items()]
        model, data = build(options.recipe, *flags)
        shape = data.event_shape  # type: ignore[attr-defined]
        x = 2 * torch.rand(options.batch, *shape, generator=torch.Generator().manual_seed(2)) - 1
        return model.train(), x

    plain = Plain(*fresh())
    loops = {
        "eblvm, settings as above": Ours(*fresh()),
        "and channels last": Ours(*fresh(channels_last=True)),
    }
    if not options.float32:
        loops["and bfloat16"] = Ours(*fresh(channels_last=True), low=True)
    with Operations() as counter:
        theirs = plain.step(0)
    operations = counter.total
    mine = loops["eblvm, settings as above"].step(0)
    counts = []
    for penalized in (False, True):
        with Operations() as counter:
            loops["eblvm, settings as above"].step(1, penalized=penalized)
        counts.append(counter.total)
    rare = ((LAZY - 1) * counts[0] + counts[1]) / LAZY  # of a step, on average
    theirs, mine = ({n: t.detach() for n, t in terms.items()} for terms in (theirs, mine))
    worst = max(float((theirs[n] - mine[n]).abs() / theirs[n].abs().clamp(min=1)) for n in theirs)
    print(f"losses of one batch agree to {worst:.1e} of their size\n")
    for loop in list(loops.values())[1:]:
        loop.step(0)  # allocates

    def timed(step: Callable[[int], Any], seed: int) -> float:
        begin = time.process_time()
        step(seed)
        return time.process_time() - begin

    reference: list[float] = []
    always: dict[str, list[float]] = {name: [] for name in loops}
    lazy: dict[str, list[float]] = {name: [] for name in loops}
    for i in range(1, options.rounds + 1):
        reference.append(timed(plain.step, i))
        for name, loop in loops.items():
            always[name].append(timed(loop.step, i))
            bare = timed(partial(loop.step, penalized=False), i)
            lazy[name].append(((LAZY - 1) * bare + always[name][-1]) / LAZY)
    first, *others = loops
    seconds = {"plain transcription": reference, first: always[first]}
    seconds[f"and a penalty every {LAZY} steps"] = lazy[first]
    seconds |= {name: lazy[name] for name in others}
    rate = peak()
    floor = operations / rate
    floors = dict.fromkeys(seconds, rare / rate) | dict.fromkeys(list(seconds)[:2], floor)
    print("| step | s | times faster (least, most) | share of the float32 floor |")
    print("|---|---|---|---|")
    for name, found in seconds.items():
        ratios = [a / b for a, b in zip(reference, found, strict=True)]
        middle = statistics.median(found)
        print(
            f"| {name} | {middle:.3g} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}–{max(ratios):.2f}) | {100 * floors[name] / middle:.0f} % |"
        )
    print(
        f"\n{options.recipe}, batch {options.batch}, width {options.width or 'as in the recipe'}, "
        f"{options.rounds} rounds, one thread, processor time; {operations / 1e9:.4g} GFLOP a step "
        f"({rare / 1e9:.4g} with the rare penalty) at {rate / 1e9:.3g} GFLOP/s: "
        f"floor {floor:.3g} s. {machine()}"
    )


NETS = ("energy", "generator")


if __name__ == "__main__":
    main()
