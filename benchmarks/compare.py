"""Train recipes with several seeds, evaluate their best checkpoints, and print a table.

    python -m eblvm.benchmarks.compare image/vae_digits image/lebm_digits --metrics frechet coverage

A recipe without a metric gets a dash. Each run is a process of its own. The seed determines
initialization, noise, the order of the data and, where they are drawn, the training data. The table
is Markdown: mean ± standard deviation over seeds, and beneath it what made it. Every run adds a
line to `compare.jsonl` in the runs folder.

To choose settings, compare on the validation split, which leaves the test split unseen:

    python -m eblvm.benchmarks.compare image/vae_digits --metrics frechet --stage validate \
        --model.init_args.latent.init_args.likelihood.init_args.scale=0.3
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eblvm.benchmarks.cell import machine

PREFIXES = {"validate": "val", "test": "test"}
"""What the figures of a stage are called."""


def train_and_evaluate(
    recipe: str, seed: int, runs: Path, overrides: Sequence[str], stage: str = "test"
) -> dict[str, Any]:
    """One run; its figures, and what they cost.

    Arguments:
        recipe: The name of a recipe, or the path of one.
        seed: Of the run and of its data module.
        runs: Where run folders go, in a folder per seed.
        overrides: Further options of `eblvm fit`.
        stage: `test` or `validate`.

    Raises:
        RuntimeError: If training or evaluation fails; with the command and its last words.
    """
    seeds = (f"--seed_everything={seed}", f"--data.init_args.seed={seed}")
    folder = runs / f"seed_{seed}"
    start, usage = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    _eblvm("fit", "--config", recipe, *seeds, f"--runs={folder}", *overrides)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    name = Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe
    newest = max((folder / name).glob("version_*"), key=lambda p: p.stat().st_mtime)
    _eblvm(stage, f"--ckpt_path={newest / 'checkpoints' / 'best.ckpt'}")
    return {
        "recipe": recipe,
        "seed": seed,
        "stage": stage,
        "overrides": list(overrides),
        "run": str(newest),
        "fit_wall_s": round(time.perf_counter() - start, 1),
        "fit_cpu_s": round(spent.ru_utime + spent.ru_stime - usage.ru_utime - usage.ru_stime, 1),
        "metrics": json.loads((newest / f"{stage}.json").read_text(encoding="utf-8")),
    }


def _eblvm(*arguments: str) -> None:
    command = [sys.executable, "-c", "from eblvm.cli import main; main()", *arguments]
    command.append("--trainer.enable_progress_bar=false")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = "\n".join(result.stderr.splitlines()[-5:])
        raise RuntimeError(f"`eblvm {' '.join(arguments)}` ended with {result.returncode}:\n{last}")


def figure(row: dict[str, Any], metric: str) -> float:
    """A metric of a run, named without its stage.

    Raises:
        KeyError: If the run has none of that name; the names it has are listed.
    """
    name = f"{PREFIXES[row['stage']]}/{metric}"
    if name not in row["metrics"]:
        known = ", ".join(sorted(k.split("/", 1)[1] for k in row["metrics"] if "/" in k))
        raise KeyError(f"{row['recipe']} reports no {metric}; it reports {known}.")
    return float(row["metrics"][name])


def table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Markdown: a line per recipe, mean ± standard deviation over its seeds."""
    lines = ["| recipe | " + " | ".join(metrics) + " | CPU s per run |"]
    lines.append("|---" * (len(metrics) + 2) + "|")
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        chosen = [row for row in rows if row["recipe"] == recipe]
        has = known(chosen[0], metrics)
        cells = [_spread([figure(row, m) for row in chosen]) if m in has else "–" for m in metrics]
        cpu = statistics.mean(row["fit_cpu_s"] for row in chosen)
        lines.append(f"| `{recipe}` | " + " | ".join(cells) + f" | {cpu:.0f} |")
    return "\n".join(lines)


def known(row: dict[str, Any], metrics: Sequence[str]) -> list[str]:
    """Those of the metrics that a run reports."""
    return [m for m in metrics if f"{PREFIXES[row['stage']]}/{m}" in row["metrics"]]


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; of one value, the value alone."""
    mean = f"{statistics.mean(values):.3g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def environment() -> str:
    """Processor, cores and versions, in a sentence."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "pytorch-lightning"))
    return f"{machine()}, Python {platform.python_version()}, {packages}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipes", nargs="+", help="names such as image/lebm_digits, or files")
    parser.add_argument("--metrics", nargs="+", required=True, help="names without `test/`")
    parser.add_argument("--stage", choices=list(PREFIXES), default="test")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    parser.epilog = "Other options, such as --trainer.max_epochs=2, go to `eblvm fit`."
    options, overrides = parser.parse_known_args(arguments)
    rows = []
    for seed in options.seeds:
        for recipe in options.recipes:
            row = train_and_evaluate(recipe, seed, options.runs, overrides, options.stage)
            rows.append(row)
            has = known(row, options.metrics)
            if not has:
                figure(row, options.metrics[0])  # says what there is
            figures = {m: round(figure(row, m), 4) for m in has}
            print(f"{recipe} seed {seed}: {figures}, {row['fit_cpu_s']:.0f} CPU s", flush=True)
            with open(options.runs / "compare.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    print()
    print(table(rows, options.metrics))
    print(f"\nSeeds {options.seeds}; {environment()}.")


if __name__ == "__main__":
    main()
