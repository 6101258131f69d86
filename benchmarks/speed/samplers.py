"""How fast are the samplers? `python -m eblvm.benchmarks.speed.samplers` (extra: `bench`).

With `--device cuda` the same on a GPU, where the figure is wall time with the device waited for,
eblvm's steps are CUDA graphs, and blackjax is left out.

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
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import torch
from torch import Tensor

from eblvm.samplers import HMC, MALA, Langevin, compilation, compilation_report

from .contenders import (
    LEAPFROG,
    STEP,
    Mixture,
    Runs,
    Tied,
    blackjax_runs,
    convolution,
    double_well,
    perceptron,
    textbook_runs,
    tight_runs,
    time_energy,
    torchebm_runs,
)

OTHERS = ("tight", "textbook", "torchebm", "blackjax")


def timed(
    contenders: Runs, repeats: int, steps: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Least processor and wall time per step in µs, interleaved, with the quartiles' spread.

    The spread is that of the figure: of processor time on a CPU, of wall time on a GPU.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(repeats):
        for name, run in contenders.items():
            wait()
            c, w = time.process_time(), time.perf_counter()
            run()
            wait()
            cpu[name].append(1e6 * (time.process_time() - c) / steps)
            wall[name].append(1e6 * (time.perf_counter() - w) / steps)
    out = {}
    for name in contenders:
        s = sorted((cpu if device.type == "cpu" else wall)[name])
        spread = (s[3 * len(s) // 4] - s[len(s) // 4]) / s[0]
        least = {"cpu": min(cpu[name]), "wall": min(wall[name])}
        out[name] = {**least, "figure": s[0], "spread": spread}
    return out


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
        *("eblvm/tight", "torchebm/eblvm", "eblvm/blackjax", "floor"),
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
        ours = {
            "Langevin": Langevin(steps, STEP),
            "MALA": MALA(steps, STEP),
            "HMC": HMC(steps // LEAPFROG, STEP, num_leapfrog=LEAPFROG),
        }
        others = {
            "tight": tight_runs(energy, x, steps),
            "textbook": textbook_runs(energy, x, steps),
            "torchebm": torchebm_runs(energy, x, steps),
            "blackjax": blackjax_runs(name, energy, x, steps),
        }
        for kernel, sampler in ours.items():

            def run(sampler: Any = sampler, mode: str = mode, e: Any = energy, x: Any = x) -> Any:
                with compilation(mode):
                    return sampler(e, x)

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
    """Ten steps, first and only call: everything included, against the tight loop."""
    print("\n| ten steps, one call | eblvm | tight loop | ratio |\n|---|---|---|---|")
    for name, energy, x, _, _ in cases(device):
        contenders: Runs = {
            "eblvm": lambda e=energy, x=x: Langevin(10, STEP)(e, x),
            "tight": tight_runs(energy, x, 10)["Langevin"],
        }
        r = timed(contenders, 6 * repeats, 10, device)
        results[f"{name}, ten steps"] = r
        a, b = r["eblvm"]["figure"], r["tight"]["figure"]
        print(f"| {name} | {a:,.1f} | {b:,.1f} | {a / b:.2f} |", flush=True)


def _floor(name: str, device: torch.device) -> float | None:
    """µs per gradient for the matrix products alone, forward and back."""
    shapes = {
        "MLP": [(2, 128), (128, 128)],
        "latent": [(100, 200), (200, 200)],
        "LDEBM": [(40, 200), *[(200, 200)] * 14, (200, 20)],
    }.get(name)
    if shapes is None or device.type != "cpu":
        return None
    rows = {"MLP": 1000, "latent": 100, "LDEBM": 128}[name]
    return sum(4 * rows * a * b for a, b in shapes) / rate(rows, *shapes[1])


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
    ratios = [ratio("eblvm", "tight"), ratio("torchebm", "eblvm"), ratio("eblvm", "blackjax")]
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
