"""How fast are the samplers? `python -m eblvm.benchmarks.speed.samplers` (extra: `bench`).

With `--device cuda` the same on a GPU, where the figure is wall time with the device waited for,
eblvm's steps are CUDA graphs, and blackjax is left out.

Times eblvm, a textbook PyTorch loop, a tight eager loop, torchebm and blackjax on the same
energies, sizes and step counts, interleaved in one process on one thread. Each repeat times every
contender once; the figure is the least processor time of a step over all repeats, and the spread
is the range from the lower to the upper quartile of the repeats, relative to the least. Wall time
is given beside it. Compilation (ours and JAX's) is done before and reported apart.

A second table is of one, two, five and ten steps (for HMC: one proposal of so many leapfrog steps)
as a program takes them that takes no more: every repeat has a copy of the energy that nobody has
called, and the figure includes all that eblvm does before and after the steps. It is the least over
the repeats, so not the first of the process.

The arithmetic floor is the number of operations in the products of an energy, forward and back,
over the rate of its largest product measured in the same run; convolutions count as products of
patches and filters. Elementwise work is not counted.
"""

import argparse
import copy
import json
import math
import os
import platform
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import torch
from torch import Tensor

from eblvm.samplers import compilation_report

from .contenders import (
    LEAPFROG,
    STEP,
    Mixture,
    Runs,
    Tied,
    blackjax_runs,
    convolution,
    double_well,
    eblvm_runs,
    perceptron,
    textbook_runs,
    tight_runs,
    time_energy,
    torchebm_runs,
)

OTHERS = ("tight", "textbook", "torchebm", "blackjax")
RATIOS = ("eblvm/tight", "textbook/eblvm", "torchebm/eblvm", "eblvm/blackjax")
SHORT = (1, 2, 5, 10)  # steps of chains that are over before anything prepared for them has paid
PRODUCTS = {  # rows, inner, outer; those with one column left out
    "MLP": [(1000, 2, 128), (1000, 128, 128)],
    "latent": [(100, 100, 200), (100, 200, 200)],
    "LDEBM": [(128, 40, 200), *[(128, 200, 200)] * 14, (128, 200, 20)],
    "convolution": [(16 * 16**2, 27, 32), (16 * 8**2, 288, 64), (16 * 4**2, 576, 64)],
}


def clock(run: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Processor and wall time of a call in µs."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    wait()
    return 1e6 * (time.process_time() - cpu), 1e6 * (time.perf_counter() - wall)


def figures(times: list[tuple[float, float]], steps: int, device: torch.device) -> dict[str, float]:
    """Least processor and wall time per step in µs, with the spread of the quartiles.

    The figure, and the spread, are those of processor time on a CPU, of wall time on a GPU.
    """
    cpu, wall = (sorted(t / steps for t in each) for each in zip(*times, strict=True))
    s = cpu if device.type == "cpu" else wall
    spread = (s[3 * len(s) // 4] - s[len(s) // 4]) / s[0]
    return {"cpu": cpu[0], "wall": wall[0], "figure": s[0], "spread": spread}


def timed(
    contenders: Runs, repeats: int, steps: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Figures of contenders, interleaved, after one call of each that is not timed."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(repeats):
        for name, run in contenders.items():
            times[name].append(clock(run, device))
    return {name: figures(t, steps, device) for name, t in times.items()}


def first_calls(
    energy: Any, x: Tensor, kernel: str, steps: int, repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Figures of eblvm and the tight loop, interleaved, each time on an energy never called."""
    makers: dict[str, Callable[..., Runs]] = {"eblvm": eblvm_runs, "tight": tight_runs}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
    for _ in range(repeats):
        for name, make in makers.items():
            times[name].append(clock(make(fresh(energy), x, steps)[kernel], device))
    return {name: figures(t, steps, device) for name, t in times.items()}


def fresh(energy: Any) -> Any:
    """A copy of an energy: another object, about which nothing can be known."""
    if isinstance(energy, types.FunctionType):
        f = energy
        return types.FunctionType(f.__code__, f.__globals__, f.__name__, None, f.__closure__)
    return copy.deepcopy(energy)


def rate(rows: int, inner: int, outer: int) -> float:
    """The best rate of a plain float32 product in operations per µs."""
    a, b, out = torch.randn(rows, inner), torch.randn(inner, outer), torch.empty(rows, outer)
    best = math.inf
    for _ in range(60):
        start = time.process_time()
        torch.mm(a, b, out=out)
        best = min(best, time.process_time() - start)
    return 2 * rows * inner * outer / best / 1e6


def cases(device: torch.device) -> list[tuple[str, Any, Tensor, int, bool]]:
    """Name, energy, starts, steps, and whether its steps are compiled; on a GPU all are graphs."""
    x, t = torch.randn(128, 40).to(device), torch.randint(6, (128,)).to(device)
    graphs = device.type == "cuda"
    found: list[tuple[str, Any, Tensor, int, bool]] = [
        ("double well", double_well, torch.randn(1000, 2), 200, True),
        ("mixture", Mixture(), torch.randn(1000, 2), 200, True),
        ("MLP", perceptron(2, 128), torch.randn(1000, 2), 50, True),
        ("latent", perceptron(100, 200), torch.randn(100, 100), 50, True),
        ("LDEBM", Tied(time_energy(), x, t), x, 50, graphs),
        ("convolution", convolution(), torch.randn(16, 3, 32, 32), 20, graphs),
    ]
    return [
        (name, e.to(device) if isinstance(e, torch.nn.Module) else e, x.to(device), steps, compiled)
        for name, e, x, steps, compiled in found
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table in Markdown, and write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", default="", help="names of energies, separated by commas")
    parser.add_argument("--no-compile", action="store_true", help="never compile eblvm's steps")
    parser.add_argument("--out", type=Path, default=None, help="write the figures here as JSON")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    columns = [
        *("energy", "kernel", "eblvm", "tight loop", "textbook", "torchebm", "blackjax"),
        *RATIOS,
        "floor",
    ]
    header = [
        f"{_machine(device)}; Python {platform.python_version()}, " + ", ".join(_versions()),
        f"{options.repeats} interleaved repeats, seed 0, step size {STEP}, HMC with {LEAPFROG} "
        "leapfrog steps (its figures are per leapfrog step).",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
    ]
    print("\n".join(header), flush=True)
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    for name, energy, x, steps, compiled in cases(device):
        if only and name not in only:
            continue
        mode = "always" if compiled and not options.no_compile else "never"
        ours = eblvm_runs(energy, x, steps, mode)
        others = {
            "tight": tight_runs(energy, x, steps),
            "textbook": textbook_runs(energy, x, steps),
            "torchebm": torchebm_runs(energy, x, steps),
            "blackjax": blackjax_runs(name, energy, x, steps),
        }
        for kernel, run in ours.items():
            contenders: Runs = {"eblvm": run}
            contenders.update({who: r[kernel] for who, r in others.items() if kernel in r})
            r = timed(contenders, options.repeats, steps, device)
            results[f"{name}, {kernel}"] = r
            print(_row(name, kernel, r, _floor(name, device)), flush=True)
    if not only or "short" in only:
        _short(options.repeats, results, device)
    print("\nCompiled:", json.dumps(compilation_report(), indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def _short(repeats: int, results: dict[str, Any], device: torch.device) -> None:
    """The table of few steps: µs of ten, and ratios of all."""
    ratios = " | ".join(f"ratio, {n}" for n in SHORT)
    print(f"\n| first call | kernel | eblvm, {SHORT[-1]} steps | tight loop | {ratios} |")
    print("|---" * (4 + len(SHORT)) + "|")
    for name, energy, x, _, _ in cases(device):
        for kernel in ("Langevin", "MALA", "HMC"):
            found = [first_calls(energy, x, kernel, n, 2 * repeats, device) for n in SHORT]
            results |= {
                f"{name}, {kernel}, first {n}": f for n, f in zip(SHORT, found, strict=True)
            }
            pairs = [(f["eblvm"]["figure"], f["tight"]["figure"]) for f in found]
            cells = [*(f"{t:,.1f}" for t in pairs[-1]), *(f"{a / b:.2f}" for a, b in pairs)]
            print(f"| {name} | {kernel} | " + " | ".join(cells) + " |", flush=True)


def _floor(name: str, device: torch.device) -> float | None:
    """µs per gradient for the products alone, forward and back."""
    if name not in PRODUCTS or device.type != "cpu":
        return None
    products = PRODUCTS[name]
    return sum(4 * math.prod(p) for p in products) / rate(*max(products, key=math.prod))


def _row(name: str, kernel: str, r: dict[str, dict[str, float]], floor: float | None) -> str:
    def cell(who: str) -> str:
        if who not in r:
            return "–"
        m = r[who]
        other = m["wall"] if m["figure"] == m["cpu"] else m["cpu"]
        return f"{m['figure']:,.1f} ({other:,.1f}; {m['spread']:.0%})"

    def ratio(a: str, b: str) -> str:
        return f"{r[a]['figure'] / r[b]['figure']:.2f}" if a in r and b in r else "–"

    cells = [cell(who) for who in ("eblvm", *OTHERS)]
    above = f"{floor:,.0f} (×{r['eblvm']['figure'] / floor:.2f})" if floor else "–"
    ratios = [ratio(*pair.split("/")) for pair in RATIOS]
    return f"| {name} | {kernel} | " + " | ".join([*cells, *ratios, above]) + " |"


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"Processor {_processor()}, {os.cpu_count()} threads seen, one used"


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
