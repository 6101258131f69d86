"""How fast are the samplers? `python -m eblvm.benchmarks.speed.samplers` (extra: `bench`).

Times eblvm, a textbook PyTorch loop, a tight eager loop, torchebm and blackjax on the same
energies, sizes and step counts, interleaved in one process on one thread. Each repeat times every
contender once; the figure is the least processor time of a step over all repeats, and the spread
is the range from the lower to the upper quartile of the repeats, relative to the least. Wall time
is given beside it. Compilation (ours and JAX's) is done before and reported apart.

The arithmetic floor of an energy with matrix products is their number of operations over the rate
of the best product of the same shapes measured in the same run; elementwise work is not counted.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import torch
from torch import Tensor, nn

from eblvm.energies import SymbolVectorTimeEnergy
from eblvm.models.networks import ResidualTimeNet
from eblvm.samplers import HMC, MALA, Langevin, compilation, compilation_report

STEP = 0.05
LEAPFROG = 10
CENTERS = [(4 * math.cos(k * math.pi / 4), 4 * math.sin(k * math.pi / 4)) for k in range(8)]


def double_well(x: Tensor) -> Tensor:
    """(x² − 1)², summed over two coordinates."""
    return (x.square() - 1).square().sum(1)


class Mixture(nn.Module):
    """Eight Gaussians on a circle of radius 4."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centers", torch.tensor(CENTERS))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(-0.5 * (x[:, None] - self.centers).square().sum(-1), 1)


def perceptron(dim: int, width: int) -> nn.Sequential:
    """Two hidden layers with SiLU."""
    return nn.Sequential(
        nn.Linear(dim, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, 1),
        nn.Flatten(0),
    )


def time_energy() -> SymbolVectorTimeEnergy:
    """LDEBM's residual energy: spectral norms, a time branch, 12 blocks of width 200, d = 40."""
    return SymbolVectorTimeEnergy(ResidualTimeNet(40, 20))


def convolution() -> nn.Sequential:
    """Three strided convolutions on 32×32×3."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.SiLU(),
        nn.Conv2d(64, 64, 3, 2, 1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 1),
        nn.Flatten(0),
    )


def timed(
    contenders: dict[str, Callable[[], Any]], repeats: int, steps: int
) -> dict[str, dict[str, float]]:
    """Least processor and wall time per step in µs, interleaved, with the quartiles' spread."""
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(repeats):
        for name, run in contenders.items():
            c, w = time.process_time(), time.perf_counter()
            run()
            cpu[name].append(1e6 * (time.process_time() - c) / steps)
            wall[name].append(1e6 * (time.perf_counter() - w) / steps)
    out = {}
    for name in contenders:
        s = sorted(cpu[name])
        spread = (s[3 * len(s) // 4] - s[len(s) // 4]) / s[0]
        out[name] = {"cpu": s[0], "wall": min(wall[name]), "spread": spread}
    return out


def textbook(energy: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Callable[[], Tensor]:
    """Langevin as tutorials write it; parameters keep requiring gradients."""

    def run() -> Tensor:
        y = x.clone()
        for _ in range(steps):
            y = y.detach().requires_grad_(True)
            gradient = torch.autograd.grad(energy(y).sum(), y)[0]
            y = y - 0.5 * STEP**2 * gradient + STEP * torch.randn_like(y)
        return y.detach()

    return run


def tight(energy: Any, x: Tensor, steps: int) -> Callable[[], Tensor]:
    """Langevin with frozen parameters, in place, noise in blocks of ten steps."""
    parameters = list(energy.parameters()) if isinstance(energy, nn.Module) else []

    def run() -> Tensor:
        for p in parameters:
            p.requires_grad_(False)
        y = x.clone().requires_grad_()
        z, ones = y.detach(), torch.ones(len(x))
        for i in range(steps):
            if i % 10 == 0:
                noise = torch.randn(10, *x.shape)
            (gradient,) = torch.autograd.grad(energy(y), y, ones)
            z.add_(gradient, alpha=-0.5 * STEP**2).add_(noise[i % 10], alpha=STEP)
        for p in parameters:
            p.requires_grad_(True)
        return z

    return run


def torchebm_runs(energy: Any, x: Tensor, steps: int) -> dict[str, Callable[[], Any]]:
    """torchebm's Langevin and HMC, where it is installed."""
    try:
        from torchebm.core import BaseModel
        from torchebm.samplers import HamiltonianMonteCarlo, LangevinDynamics
    except ImportError as error:
        print(f"torchebm is left out: {error}", file=sys.stderr)
        return {}

    class Wrapped(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.inner = energy

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = Wrapped()
    langevin = LangevinDynamics(model, step_size=STEP**2 / 2, noise_scale=1.0)
    hmc = HamiltonianMonteCarlo(model, step_size=STEP, n_leapfrog_steps=LEAPFROG)
    runs = {"Langevin": lambda: langevin.sample(x=x.clone(), n_steps=steps)}
    if x.ndim == 2:  # its HMC takes vectors only
        runs["HMC"] = lambda: hmc.sample(x=x.clone(), n_steps=max(1, steps // LEAPFROG))
    return runs


def blackjax_runs(name: str, energy: Any, x: Tensor, steps: int) -> dict[str, Callable[[], Any]]:
    """blackjax's SGLD, MALA and HMC under `lax.scan` and `vmap`, where it is installed."""
    try:
        import blackjax
        import jax
        import jax.numpy as jnp
    except ImportError as error:
        print(f"blackjax is left out: {error}", file=sys.stderr)
        return {}
    centers = jnp.array(CENTERS)
    layers = []
    if isinstance(energy, nn.Sequential):
        layers = [
            (jnp.array(m.weight.detach().numpy()), jnp.array(m.bias.detach().numpy()))
            for m in energy
            if isinstance(m, nn.Linear)
        ]

    def log_density(x: Any) -> Any:
        if name == "double well":
            return -jnp.square(jnp.square(x) - 1).sum()
        if name == "mixture":
            return jax.nn.logsumexp(-0.5 * jnp.square(x - centers).sum(-1))
        for w, b in layers[:-1]:
            x = jax.nn.silu(w @ x + b)
        return -(layers[-1][0] @ x + layers[-1][1])[0]

    start = jnp.array(x.numpy())
    key = jax.random.key(0)
    runs: dict[str, Callable[[], Any]] = {}
    sgld = blackjax.sgld(lambda x, _: jax.vmap(jax.grad(log_density))(x))  # chains as one state

    @jax.jit
    def langevin(key: Any, x: Any) -> Any:
        def body(x: Any, key: Any) -> Any:
            return sgld.step(key, x, 0, STEP**2 / 2), None

        return jax.lax.scan(body, x, jax.random.split(key, steps))[0]

    def adjusted(kernel: Any, n: int) -> Any:
        @jax.jit
        def chain(key: Any, x: Any) -> Any:
            def body(state: Any, key: Any) -> Any:
                return jax.vmap(kernel.step)(jax.random.split(key, len(x)), state)[0], None

            state = jax.vmap(kernel.init)(x)
            return jax.lax.scan(body, state, jax.random.split(key, n))[0].position

        return chain

    mala = adjusted(blackjax.mala(log_density, step_size=STEP**2 / 2), steps)
    mass = jnp.ones(x.shape[1])
    hmc = adjusted(
        blackjax.hmc(
            log_density, step_size=STEP, inverse_mass_matrix=mass, num_integration_steps=LEAPFROG
        ),
        max(1, steps // LEAPFROG),
    )
    runs["Langevin"] = lambda: langevin(key, start).block_until_ready()
    runs["MALA"] = lambda: mala(key, start).block_until_ready()
    runs["HMC"] = lambda: hmc(key, start).block_until_ready()
    return runs


def direct_transcription(
    energy: SymbolVectorTimeEnergy, x: Tensor, t: Tensor, steps: int
) -> Callable[[], Any]:
    """LDEBM's chain as its paper writes it, in training mode: every normalization at every step."""

    def run() -> Tensor:
        y = x.clone()
        for _ in range(steps):
            y = y.detach().requires_grad_(True)
            e = (energy(y, t) + 0.5 * (y - x).square().sum(1)).sum()
            y = y - 0.5 * STEP**2 * torch.autograd.grad(e, y)[0] + STEP * torch.randn_like(y)
        return y.detach()

    return run


def rate(rows: int, inner: int, outer: int) -> float:
    """The best rate of a float32 product in operations per µs, plain or packed."""
    a, b, out = torch.randn(rows, inner), torch.randn(inner, outer), torch.empty(rows, outer)
    best = math.inf
    for _ in range(60):
        start = time.process_time()
        torch.mm(a, b, out=out)
        best = min(best, time.process_time() - start)
    return 2 * rows * inner * outer / best / 1e6


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table in Markdown, and write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--only", default="", help="names of energies, separated by commas")
    parser.add_argument("--no-compile", action="store_true", help="never compile eblvm's steps")
    parser.add_argument("--out", type=Path, default=None, help="write the figures here as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    header = [
        f"Processor {_processor()}, {os.cpu_count()} threads seen, one used; "
        f"Python {platform.python_version()}, " + ", ".join(_versions()),
        f"{options.repeats} interleaved repeats, seed 0, step size {STEP}, HMC with {LEAPFROG} "
        "leapfrog steps (its figures are per leapfrog step).",
        "",
        "| energy | kernel | eblvm | tight loop | textbook | torchebm | blackjax "
        "| torchebm/eblvm | eblvm/blackjax | floor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(header), flush=True)
    flat: list[tuple[str, Any, Tensor, int, bool]] = [
        ("double well", double_well, torch.randn(1000, 2), 200, True),
        ("mixture", Mixture(), torch.randn(1000, 2), 200, True),
        ("MLP", perceptron(2, 128), torch.randn(1000, 2), 50, False),
        ("latent", perceptron(100, 200), torch.randn(100, 100), 50, False),
        ("convolution", convolution(), torch.randn(16, 3, 32, 32), 20, False),
    ]
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    for name, energy, x, steps, cheap in flat:
        if only and name not in only:
            continue
        mode = "always" if cheap and not options.no_compile else "never"
        ours = {
            "Langevin": Langevin(steps, STEP),
            "MALA": MALA(steps, STEP),
            "HMC": HMC(steps // LEAPFROG, STEP, num_leapfrog=LEAPFROG),
        }
        other = torchebm_runs(energy, x, steps)
        jax_runs = blackjax_runs(name, energy, x, steps) if name != "convolution" else {}
        for kernel, sampler in ours.items():

            def run(sampler: Any = sampler, mode: str = mode, e: Any = energy, x: Any = x) -> Any:
                with compilation(mode):
                    return sampler(e, x)

            contenders: dict[str, Callable[[], Any]] = {"eblvm": run}
            if kernel == "Langevin":
                contenders["tight"] = tight(energy, x, steps)
                contenders["textbook"] = textbook(energy, x, steps)
            if kernel in other:
                contenders["torchebm"] = other[kernel]
            if kernel in jax_runs:
                contenders["blackjax"] = jax_runs[kernel]
            r = timed(contenders, options.repeats, steps)
            results[f"{name}, {kernel}"] = r
            print(_row(name, kernel, r, _floor(name)), flush=True)
    if not only or "LDEBM" in only:
        _ldebm(options.repeats, results)
    if not only or "short" in only:
        _short(options.repeats, results)
    print("\nCompiled:", json.dumps(compilation_report(), indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def _ldebm(repeats: int, results: dict[str, Any]) -> None:
    """LDEBM's energy, 128 chains of 50 steps: direct transcription against eblvm."""
    energy, x, t = time_energy(), torch.randn(128, 40), torch.randint(6, (128,))

    def conditional(y: Tensor) -> Tensor:
        return energy(y, t) + 0.5 * (y - x).square().sum(1)

    def run() -> Tensor:
        with compilation("never"):
            return Langevin(50, STEP)(conditional, x)

    r = timed(
        {"eblvm": run, "textbook": direct_transcription(energy, x, t, 50)}, max(5, repeats // 2), 50
    )
    results["LDEBM, Langevin"] = r
    width, blocks = 200, 12
    shapes = [(40, width), (width, width), (width, width)] + blocks * [(width, width)]
    flops = sum(2 * 2 * 128 * a * b for a, b in [*shapes, (width, 20)])
    print(_row("LDEBM", "Langevin", r, flops / rate(128, 200, 200)), flush=True)


def _short(repeats: int, results: dict[str, Any]) -> None:
    """Ten steps, first and only call: everything included, against the tight loop."""
    print("\n| ten steps, one call | eblvm | tight loop | ratio |\n|---|---|---|---|")
    cases: list[tuple[str, Any, Tensor]] = [
        ("double well", double_well, torch.randn(1000, 2)),
        ("mixture", Mixture(), torch.randn(1000, 2)),
        ("MLP", perceptron(2, 128), torch.randn(1000, 2)),
        ("latent", perceptron(100, 200), torch.randn(100, 100)),
        ("convolution", convolution(), torch.randn(16, 3, 32, 32)),
    ]
    for name, energy, x in cases:
        sampler = Langevin(10, STEP)
        contenders = {
            "eblvm": lambda s=sampler, e=energy, x=x: s(e, x),
            "tight": tight(energy, x, 10),
        }
        r = timed(contenders, 6 * repeats, 10)
        results[f"{name}, ten steps"] = r
        a, b = r["eblvm"]["cpu"], r["tight"]["cpu"]
        print(f"| {name} | {a:,.1f} | {b:,.1f} | {a / b:.2f} |", flush=True)


def _floor(name: str) -> float | None:
    """µs per gradient for the matrix products alone, forward and back."""
    if name == "MLP":
        shapes, rows = [(2, 128), (128, 128)], 1000
    elif name == "latent":
        shapes, rows = [(100, 200), (200, 200)], 100
    else:
        return None
    best = rate(rows, shapes[1][0], shapes[1][1])
    return sum(2 * 2 * rows * a * b for a, b in shapes) / best


def _row(name: str, kernel: str, r: dict[str, dict[str, float]], floor: float | None) -> str:
    def cell(who: str) -> str:
        if who not in r:
            return "–"
        m = r[who]
        return f"{m['cpu']:,.1f} ({m['wall']:,.1f}; {m['spread']:.0%})"

    def ratio(a: str, b: str) -> str:
        return f"{r[a]['cpu'] / r[b]['cpu']:.2f}" if a in r and b in r else "–"

    cells = [cell(who) for who in ("eblvm", "tight", "textbook", "torchebm", "blackjax")]
    above = f"{floor:,.0f} (×{r['eblvm']['cpu'] / floor:.2f})" if floor else "–"
    ratios = [ratio("torchebm", "eblvm"), ratio("eblvm", "blackjax")]
    return f"| {name} | {kernel} | " + " | ".join([*cells, *ratios, above]) + " |"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()} ({torch.backends.cpu.get_cpu_capability()})"
    except OSError:
        pass
    return platform.processor()


def _versions() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("eblvm", "torch", "torchebm", "blackjax", "jax"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} absent")
    return found


if __name__ == "__main__":
    main()
