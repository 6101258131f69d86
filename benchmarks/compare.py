"""Train recipes with several seeds, test their best checkpoints, and print a table.

    python -m eblvm.benchmarks.compare image/vae_digits image/lebm_digits --metrics frechet coverage

Each run is a process of its own. The table is Markdown: mean ± standard deviation over seeds, and
beneath it what made it. Every run adds a line to `compare.jsonl` in the runs folder.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def train_and_test(recipe: str, seed: int, runs: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One run; its figures, and what they cost.

    Raises:
        RuntimeError: If training or testing fails; with the command and its last words.
    """
    folder = runs / f"seed_{seed}"
    start, usage = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    _eblvm("fit", "--config", recipe, f"--seed_everything={seed}", f"--runs={folder}", *overrides)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    newest = max((folder / recipe).glob("version_*"), key=lambda p: p.stat().st_mtime)
    _eblvm("test", f"--ckpt_path={newest / 'checkpoints' / 'best.ckpt'}")
    return {
        "recipe": recipe,
        "seed": seed,
        "overrides": list(overrides),
        "run": str(newest),
        "fit_wall_s": round(time.perf_counter() - start, 1),
        "fit_cpu_s": round(spent.ru_utime + spent.ru_stime - usage.ru_utime - usage.ru_stime, 1),
        "metrics": json.loads((newest / "test.json").read_text(encoding="utf-8")),
    }


def _eblvm(*arguments: str) -> None:
    command = [sys.executable, "-c", "from eblvm.cli import main; main()", *arguments]
    command.append("--trainer.enable_progress_bar=false")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = "\n".join(result.stderr.splitlines()[-5:])
        raise RuntimeError(f"`eblvm {' '.join(arguments)}` ended with {result.returncode}:\n{last}")


def table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Markdown: a line per recipe, mean ± standard deviation over its seeds."""
    lines = ["| recipe | " + " | ".join(metrics) + " | CPU s per run |"]
    lines.append("|---" * (len(metrics) + 2) + "|")
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        chosen = [row for row in rows if row["recipe"] == recipe]
        cells = [_spread([row["metrics"][f"test/{m}"] for row in chosen]) for m in metrics]
        cpu = statistics.mean(row["fit_cpu_s"] for row in chosen)
        lines.append(f"| `{recipe}` | " + " | ".join(cells) + f" | {cpu:.0f} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3g} ± {deviation:.2g}"


def machine() -> str:
    """Processor, cores and versions, in a sentence."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = re.search(r"model name\s*: (.*)", text)
        name = model.group(1) if model else platform.processor()
    except OSError:
        name = platform.processor()
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "pytorch-lightning"))
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipes", nargs="+", help="names such as image/lebm_digits")
    parser.add_argument("--metrics", nargs="+", required=True, help="names without `test/`")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    parser.epilog = "Other options, such as --trainer.max_epochs=2, go to `eblvm fit`."
    options, overrides = parser.parse_known_args(arguments)
    rows = []
    for seed in options.seeds:
        for recipe in options.recipes:
            row = train_and_test(recipe, seed, options.runs, overrides)
            rows.append(row)
            figures = {m: round(row["metrics"][f"test/{m}"], 4) for m in options.metrics}
            print(f"{recipe} seed {seed}: {figures}, {row['fit_cpu_s']:.0f} CPU s", flush=True)
            with open(options.runs / "compare.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    print()
    print(table(rows, options.metrics))
    print(f"\nSeeds {options.seeds}; {machine()}.")


if __name__ == "__main__":
    main()
