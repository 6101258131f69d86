"""Where runs lie: their folders, names, loggers and checkpoints."""

import csv
import os
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from eblvm.checkpoint import read_checkpoint
from eblvm.cli import UserError, recipe_root

__all__ = [
    "checkpoint_callbacks",
    "checkpoints",
    "claim_run_dir",
    "display",
    "evaluation_dir",
    "keep_rows",
    "loggers",
    "make_folder",
    "next_run_dir",
    "recipe_name",
    "run_recipe",
]


def recipe_name(path: Path) -> str:
    """`image/lebm_digits` for an installed recipe, the stem for a user's file."""
    if path.is_relative_to(recipe_root()):
        return path.relative_to(recipe_root()).with_suffix("").as_posix()
    if path.name == "config.yaml" and path.parent.name.startswith("version_"):
        return run_recipe(path.parent)
    return path.stem


def run_recipe(run_dir: Path) -> str:
    """The recipe of a run folder `runs/<recipe>/version_N`."""
    name = "/".join(run_dir.parent.parts[-2:])
    return name if (recipe_root() / f"{name}.yaml").is_file() else run_dir.parent.name


def next_run_dir(runs: str, recipe: str) -> Path:
    """The first free `runs/<recipe>/version_N`, not yet made."""
    folder = Path(runs).absolute() / recipe
    taken = [p.name.removeprefix("version_") for p in folder.glob("version_*")]
    number = max((int(n) + 1 for n in taken if n.isdigit()), default=0)
    return folder / f"version_{number}"


def claim_run_dir(runs: str, recipe: str) -> Path:
    """Make the first free run folder, which no other run then gets.

    Raises:
        UserError: If nothing can be written there.
    """
    while True:
        folder = next_run_dir(runs, recipe)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError as error:
            if not folder.is_dir():
                raise UserError(
                    f"cannot write to {folder}: there is a file in its place. Choose another "
                    "folder with --runs."
                ) from error
        except OSError as error:
            reason = str(error.strerror).lower()
            raise UserError(
                f"cannot write to {folder}: {reason}. Choose another folder with --runs."
            ) from error


def evaluation_dir(options: Any, recipe: str) -> Path:
    """The folder of the run whose checkpoint is evaluated; without one, `runs/<recipe>/untrained`.

    Where the run's folder is read-only, this is `runs/<recipe>/evaluated`.

    Raises:
        UserError: If nothing can be written there.
    """
    path = options.get("ckpt_path")
    folder = Path(options.runs) / recipe / "untrained"
    if path:
        parents = Path(path).absolute().parents
        run = parents[1] if parents[0].name == "checkpoints" else parents[0]
        folder = run if os.access(run, os.W_OK) else Path(options.runs) / recipe / "evaluated"
    make_folder(folder, "--runs")
    return folder


def make_folder(folder: Path, option: str) -> None:
    """Make a folder, or say which option names another one.

    Raises:
        UserError: If nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "permission denied")
    except OSError as error:
        reason = str(error.strerror).lower()
        raise UserError(
            f"cannot write to {folder}: {reason}. Choose another folder with {option}."
        ) from error


def display(path: Path | None) -> str:
    """The path, relative where that is shorter."""
    relative = os.path.relpath(str(path))
    return str(path) if relative.startswith("..") else relative


def loggers(run_dir: Path, recipe: str, wandb: bool) -> list[Logger]:
    """CSV and TensorBoard, and Weights & Biases where asked for, all in one run folder."""
    root = run_dir.parent.parent if "/" in recipe else run_dir.parent
    place: dict[str, Any] = {"name": run_dir.parent.relative_to(root).as_posix()}
    found: list[Logger] = [
        TensorBoardLogger(root, version=run_dir.name, default_hp_metric=False, **place),
        CSVLogger(root, version=run_dir.name, **place),
    ]
    if wandb:
        offline = os.environ.get("WANDB_MODE") == "offline"
        run_dir.mkdir(parents=True, exist_ok=True)
        called = os.environ.get("WANDB_NAME", recipe)  # a benchmark names its cells so
        found.append(
            WandbLogger(project="eblvm", name=called, save_dir=str(run_dir), offline=offline)
        )
    return found


def keep_rows(logger: CSVLogger, path: Path, ckpt: str) -> None:
    """Keep what `metrics.csv` says of the steps before a checkpoint; the logger would clear it."""
    if not path.is_file():
        return
    step = read_checkpoint(ckpt)["global_step"]
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
    writer = logger.experiment
    if isinstance(writer, ExperimentWriter) and rows:
        writer.metrics_keys = list(rows[0])
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, writer.metrics_keys)
            table.writeheader()
            table.writerows(rows)


def checkpoints(folder: Path, monitor: str, mode: str) -> list[ModelCheckpoint]:
    """`best.ckpt` by the monitored metric, and `last.ckpt` after each epoch."""
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    return [
        ModelCheckpoint(filename="best", monitor=monitor, mode=mode, **common),
        ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common),
    ]


def checkpoint_callbacks(trainer: Trainer) -> list[ModelCheckpoint]:
    """The trainer's checkpoint callbacks of Lightning's own class."""
    return [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
