"""One cell of a benchmark, in a process of its own: train, test, draw samples, write down the cost.

    python -m eblvm.benchmarks.cell SPEC.json

`SPEC.json` has a `cell`, its `folder`, and `wandb`; `result.json` appears in the folder when all is
done. A cell that was interrupted goes on from its last checkpoint, exactly.

A cell trains on one device, in this process, unless its options or its recipe say
`trainer.devices`. Then each command is a process of its own, from which Lightning can launch others
for the other devices, and which leaves no process group behind for the next command.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import yaml

from eblvm.benchmarks.suite import Budget, Cell
from eblvm.cli import TRAINER_COMMANDS, resolve_recipe
from eblvm.cli import main as command_line

__all__ = ["commit", "machine", "run_apart", "run_cell"]

NUM_SAMPLES = 64
"""How many samples the report shows."""

Eblvm = Callable[[Sequence[str]], None]
"""The command line, here or in a process of its own; SystemExit if a command fails."""


def run_cell(cell: Cell, folder: Path, wandb: bool = False) -> dict[str, Any]:
    """Train, test and sample; everything that is worth knowing of it, for JSON.

    Arguments:
        cell: What to run.
        folder: Its own folder; a run that lies there already goes on.
        wandb: Whether to log to Weights & Biases, too.

    Raises:
        SystemExit: If a command fails; it has said why on the standard error.
    """
    import torch

    from eblvm.callbacks import peak_memory

    start, code = time.perf_counter(), commit()  # files may change while the cell runs
    eblvm = main_of(cell)
    run = trained(cell, folder, wandb, eblvm)
    best, last = (run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    ckpt = best if best.is_file() else last
    eblvm(["test", f"--ckpt_path={ckpt}", "--trainer.enable_progress_bar=false"])
    metrics = json.loads((run / "test.json").read_text(encoding="utf-8"))
    protocol = metrics.pop("protocol", {})
    samples = pictured(run, ckpt, folder, eblvm)
    cost = json.loads((run / "cost.json").read_text(encoding="utf-8"))
    if for_one_device(cell):  # of test and samples, too, which were of this process
        cost["peak_memory_mib"] = max(cost["peak_memory_mib"], peak_memory())
        if "peak_gpu_memory_mib" in cost:
            peak = torch.cuda.max_memory_allocated() // 2**20
            cost["peak_gpu_memory_mib"] = max(cost["peak_gpu_memory_mib"], peak)
    return {
        **asdict(cell),
        "id": cell.id,
        "status": "done",
        "checkpoint": ckpt.stem,
        "metrics": {name.removeprefix("test/"): value for name, value in metrics.items()},
        "protocol": protocol,
        "cost": cost,
        "wall_s": round(time.perf_counter() - start, 1),
        "samples": samples,
        "curve": str((run / "metrics.csv").relative_to(folder)),
        "config_sha256": config_hash(run / "config.yaml"),
        "environment": {**environment(), "commit": code},
    }


def devices_of(cell: Cell) -> Any:
    """What the cell's options, or else its recipe, say of `trainer.devices`; None if neither."""
    for option in reversed(cell.options):
        name, _, value = option.partition("=")
        if name == "--trainer.devices":
            return value
    content = yaml.safe_load(resolve_recipe(cell.recipe).read_text(encoding="utf-8"))
    return (content.get("trainer") or {}).get("devices")


def for_one_device(cell: Cell) -> bool:
    """Whether a cell trains on one device."""
    return str(devices_of(cell)) in ("None", "1")


def main_of(cell: Cell) -> Eblvm:
    """The command line in this process for one device, else each command in one of its own."""
    if for_one_device(cell):
        return command_line
    # Lightning launches the other ranks by the same module
    return partial(launched, [sys.executable, "-m", "eblvm.benchmarks.cell"])


def launched(program: Sequence[str], arguments: Sequence[str]) -> None:
    """Run a command as a process, which ends when this one is asked to end.

    Raises:
        SystemExit: If it fails, with its status.
    """
    with subprocess.Popen([*program, *arguments]) as process:

        def stop(signum: int, frame: Any) -> None:
            process.terminate()  # Lightning hands it on to the other ranks

        before = signal.signal(signal.SIGTERM, stop)
        try:
            status = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if status:
        sys.exit(status)


def trained(cell: Cell, folder: Path, wandb: bool, eblvm: Eblvm) -> Path:
    """The folder of the finished run, which may have been begun before."""
    runs = folder / "run"
    begun = sorted(runs.glob("**/version_0"))
    if begun and (begun[0] / "checkpoints" / "last.ckpt").is_file():
        last = begun[0] / "checkpoints" / "last.ckpt"
        eblvm(["fit", f"--ckpt_path={last}", "--trainer.enable_progress_bar=false"])
        return begun[0]
    shutil.rmtree(runs, ignore_errors=True)
    seeds = [f"--seed_everything={cell.seed}", f"--data.init_args.seed={cell.seed}"]
    devices = ["--trainer.devices=1"] if devices_of(cell) is None else []
    options = [*seeds, *devices, *cell.budget.arguments(), *cell.options, f"--runs={runs}"]
    options += ["--trainer.enable_progress_bar=false", *["--wandb=true"] * wandb]
    eblvm(["fit", f"--config={resolve_recipe(cell.recipe)}", *options])
    (run,) = runs.glob("**/version_0")
    return run


def pictured(run: Path, ckpt: Path, folder: Path, eblvm: Eblvm) -> str | None:
    """The name of a file of samples, or None where the model draws none on its own.

    On the plane this is the picture of densities and samples that the test has drawn.
    """
    density = run / "pictures" / "density_test.png"
    if density.is_file():
        shutil.copyfile(density, folder / "samples.png")
        return "samples.png"
    for name in ("samples.png", "samples.txt"):
        try:
            eblvm(["sample", f"--ckpt={ckpt}", f"--num={NUM_SAMPLES}", f"--out={folder / name}"])
        except SystemExit as stop:
            if stop.code not in (None, 0):
                continue
        except Exception:  # the figures of the test are not lost for want of a picture
            traceback.print_exc()
            continue
        return name
    return None


def config_hash(path: Path) -> str:
    """SHA-256 of a run's configuration, but for its seeds and where its files go."""
    left = r"(?m)^(runs|ckpt_path|wandb|seed_everything|    seed):.*\n"
    kept = re.sub(left, "", path.read_text(encoding="utf-8"))
    return hashlib.sha256(kept.encode()).hexdigest()


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    import torch

    packages = ["eblvm", "torch", "pytorch-lightning", "torchvision", "torchmetrics"]
    packages += ["numpy", "scipy", "scikit-learn"]  # by which figures, and the digits, are made
    return {
        "machine": machine(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "commit": commit(),
    }


def machine() -> str:
    """The processor and how many of its cores there are."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = re.search(r"model name\s*: (.*)", text)
        name = model.group(1) if model else platform.processor()
    except OSError:
        name = platform.processor()
    return f"{name}, {os.cpu_count()} cores"


@cache
def commit() -> str | None:
    """The commit of the code that runs, with a + where files differ from it; None if not known.

    It is that of the first call, as nearly as can be told when the code was imported.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12"]
    try:
        done = subprocess.run(
            [*command, "--dirty=+", "--exclude=*"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def run_apart(path: str, environment: dict[str, str], threads: int, lock: Any) -> None:
    """The cell that a file describes, in this process, whose standard streams go to `log.txt`.

    Arguments:
        path: The file; its folder gets the log.
        environment: What the process shall find in `os.environ`.
        threads: For torch.
        lock: Keeps a file descriptor open as long as the process lives.
    """
    if (runner := parent_process()) is not None and not runner.is_alive():
        return  # it has ended while this began
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, os.getcwd())  # as `python -m` does: a suite may name modules beside it
    log = Path(path).parent / "log.txt"
    for stream, file in enumerate((Path(os.devnull), log, log)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666), stream)
    import torch

    torch.set_num_threads(threads)
    main(path)


def main(path: str) -> None:
    """Run the cell that a file describes."""
    spec = json.loads(Path(path).read_text(encoding="utf-8"))
    content = spec["cell"]
    budget, options = Budget(**content["budget"]), tuple(content["options"])
    cell = Cell(**{**content, "budget": budget, "options": options})
    folder = Path(spec["folder"])
    told = json.dumps(environment()) + "\n"  # for the record of a cell that fails
    (folder / "environment.json").write_text(told, encoding="utf-8")
    result = run_cell(cell, folder, spec["wandb"])
    unfinished = folder / "result.json.part"
    unfinished.write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(folder / "result.json")


if __name__ == "__main__":
    if sys.argv[1] in (*TRAINER_COMMANDS, "sample"):
        command_line(sys.argv[1:])
    else:
        main(sys.argv[1])
