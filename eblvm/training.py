"""Behind `eblvm fit|validate|test|predict`: recipes to objects, and what is told of a run."""

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, set_loader, set_parsing_settings
from jsonargparse._loaders_dumpers import get_loader_exceptions
from jsonargparse._optionals import get_omegaconf_loader
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from eblvm.callbacks import (
    AveragedWeights,
    CompileNetworks,
    Cost,
    Interrupt,
    Progress,
    RandomState,
)
from eblvm.checkpoint import check_weights, read_checkpoint
from eblvm.cli import UserError, resolve_recipe
from eblvm.complaint import retell
from eblvm.models.learner import NonFiniteError
from eblvm.runs import (
    checkpoint_callbacks,
    checkpoints,
    claim_run_dir,
    display,
    evaluation_dir,
    keep_rows,
    loggers,
    make_folder,
    next_run_dir,
    recipe_name,
    run_recipe,
)
from eblvm.samplers import compilation

RUN_DIR = "EBLVM_RUN_DIR"

MENDABLE = (
    ValueError,
    TypeError,
    RuntimeError,
    OSError,
    ImportError,
    MisconfigurationException,
)
"""What settings, files or the machine can cause, while parts are built and used."""

__all__ = ["CommandLine", "build", "parse", "protocols", "quiet", "run"]

# Lightning 2.6 calls jsonargparse by names that are going away; no user can act on that.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

_load = get_omegaconf_loader("omegaconf+")


def load_value(text: str) -> Any:
    """A value of a recipe or of the command line.

    jsonargparse (4.53) hands a null that is meant for a class within a class on as the word None,
    and then misses a number: the word is read as the null that it was.
    """
    return None if text.strip() == "None" else _load(text)


# Overrides reach every `${…}` of a recipe only with this pair.
PARSER = {"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False}
set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
set_loader("omegaconf+", load_value, get_loader_exceptions("yaml"))

SPLITS = {"validate": "val", "test": "test"}
"""What is evaluated by a command."""

TRAINER_DEFAULTS = {
    "inference_mode": False,  # chains need gradients in test as in training
    "num_sanity_val_steps": 0,  # `check` runs the parts on a real batch before anything is written
    "log_every_n_steps": 10,
    "enable_model_summary": False,
}


class CommandLine(LightningCLI):
    """LightningCLI with eblvm's flags, loggers and run folders.

    Arguments:
        recipe: The name under which runs are filed.
        continued: The run folder to go on in; a new one if None.
    """

    def __init__(self, recipe: str, continued: Path | None = None, **settings: Any) -> None:
        self.recipe = recipe
        self.continued = continued
        self.run_dir: Path | None = None
        self.claimed: Path | None = None
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            parser_kwargs=dict(PARSER),
            save_config_kwargs={"overwrite": True},
            **settings,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--runs", type=str, default="runs", help="folder for runs")
        parser.add_argument("--wandb", type=bool, default=False, help="log to W&B too")
        parser.add_argument(
            "--ema", type=float, default=0.0, help="decay of averaged weights, 0: off"
        )
        parser.add_argument(
            "--compile", type=bool, default=False, help="torch.compile the networks"
        )
        parser.add_argument(
            "--weights", type=str, default=None, help="checkpoint whose weights `fit` starts from"
        )
        parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
        parser.add_argument(
            "--monitor", type=str, default="val/loss", help="metric that names the best checkpoint"
        )
        parser.add_argument("--monitor_mode", type=str, default="min", help="min or max")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            subcommand = sys.argv[1] if args is None and len(sys.argv) > 1 else None
            known = options_of(parser, subcommand)
            raise UserError(retell(str(error), known)) from error

    def _parse_ckpt_path(self) -> None:
        """The configuration comes from the recipe or the run folder, never from the checkpoint."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config[self.subcommand] if self.subcommand else self.config
        if self.subcommand != "fit":
            self.save_config_callback = None  # config.yaml stays the one that made the run
            kwargs.setdefault("logger", False)
            kwargs["default_root_dir"] = str(evaluation_dir(options, self.recipe))
            return super().instantiate_trainer(**kwargs)
        # Ranks that Lightning launches inherit the folder. Under torchrun each names its own, but
        # only the first rank writes, and callbacks ask it where.
        launched = int(os.environ.get("LOCAL_RANK", 0)) > 0
        inherited = os.environ.get(RUN_DIR) if launched else None
        if getattr(rank_zero_only, "rank", 0) == 0 and not self.continued:
            self.run_dir = self.claimed = claim_run_dir(options.runs, self.recipe)
        else:
            known = inherited or self.continued or next_run_dir(options.runs, self.recipe)
            self.run_dir = Path(known)
        os.environ[RUN_DIR] = str(self.run_dir)
        if self._get(self.config_init, "trainer").get("logger") in (None, True):
            kwargs["logger"] = loggers(self.run_dir, self.recipe, options.wandb)
        kwargs["default_root_dir"] = str(self.run_dir)
        settings = self._get(self.config_init, "trainer")
        if 0 < (settings.max_epochs or 0) < (settings.check_val_every_n_epoch or 1):
            kwargs["check_val_every_n_epoch"] = settings.max_epochs  # a short run ends with a look
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        bars = (RichProgressBar, TQDMProgressBar)
        callbacks[:] = [Progress(options.monitor) if type(c) in bars else c for c in callbacks]
        folder = self.run_dir / "checkpoints"
        callbacks += [RandomState(), Cost()]
        if options.ema:  # before what saves within an epoch: a step that is saved is averaged
            callbacks.append(AveragedWeights(options.ema))
        callbacks.append(Interrupt(str(folder / "last.ckpt")))
        if options.compile:
            callbacks.append(CompileNetworks())
        if trainer.checkpoint_callbacks:
            callbacks[:] = [c for c in callbacks if type(c) is not ModelCheckpoint]
            callbacks += checkpoints(folder, options.monitor, options.monitor_mode)
        return trainer

    def instantiate_classes(self) -> None:
        threads = self._get(self.config, "threads")
        if threads:
            torch.set_num_threads(threads)
        try:
            super().instantiate_classes()
        except MENDABLE as error:
            self._discard()
            raise UserError(retell(str(error))) from error

    def fit(self, **arguments: Any) -> None:
        """`Trainer.fit`, after a look at the parts and the checkpoint; errors say what to do.

        When chains are compiled and which routine multiplies their matrices depends on measured
        time, and rounding on that: a run that is to be repeated exactly measures nothing, unless
        asked by `--compile`.
        """
        with compilation("auto" if self._get(self.config, "compile") else "never"):
            self._fit(arguments)

    def _fit(self, arguments: dict[str, Any]) -> None:
        try:
            if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # the others wait for its downloads
                check(self.model, self.datamodule)
            self._check_weights(arguments.get("ckpt_path"))
            self._start_from(self._get(self.config, "weights"))
            if self.trainer.is_global_zero:
                make_folder(Path(str(self.run_dir)), "--runs")
                if hasattr(self.datamodule, "keep"):
                    self.datamodule.keep(Path(str(self.run_dir)))
                self._keep_rows(arguments.get("ckpt_path"))
                sys.stderr.write(unvalidated(self.trainer))
            with mendable():
                self.trainer.fit(**arguments)
        except SystemExit:  # Lightning's answer to Ctrl-C
            if self.trainer.is_global_zero:
                sys.stderr.write(self._how_to_resume())
            sys.exit(130)
        except UserError as error:
            if isinstance(error.__cause__, NonFiniteError) and self._last().exists():
                kept = f"The last good checkpoint is {display(self._last())}."
                raise UserError(f"{error}\n{kept}") from error
            raise
        finally:
            os.environ.pop(RUN_DIR, None)
            self._finish_run()
        if self.trainer.is_global_zero:
            print(self._summary())

    def _start_from(self, weights: str | None) -> None:
        """Take the weights of another run; all else begins anew."""
        if weights is not None:
            found = read_checkpoint(weights)
            check_weights(self.model, found, weights)
            self.model.load_state_dict(found["state_dict"])

    def _keep_rows(self, ckpt: str | None) -> None:
        for logger in self.trainer.loggers:
            if ckpt and self.continued and isinstance(logger, CSVLogger):
                keep_rows(logger, Path(str(self.run_dir)) / "metrics.csv", ckpt)

    def _evaluate(self, name: str, arguments: dict[str, Any]) -> Any:
        self._check_weights(arguments.get("ckpt_path"))
        if arguments.get("ckpt_path") is None:
            sys.stderr.write("eblvm: no --ckpt_path, so the weights are untrained.\n")
        with mendable(), compilation("never"):
            return getattr(self.trainer, name)(**arguments)

    def validate(self, **arguments: Any) -> None:
        """`Trainer.validate`; the metrics go to `validate.json` in the run folder, too."""
        self._evaluate("validate", arguments)
        self._write_metrics("validate.json")

    def test(self, **arguments: Any) -> None:
        """`Trainer.test`; the metrics go to `test.json` in the run folder, too."""
        self._evaluate("test", arguments)
        self._write_metrics("test.json")

    def _write_metrics(self, name: str) -> None:
        if self.trainer.is_global_zero:
            metrics: dict[str, Any] = {
                k: float(v) for k, v in self.trainer.callback_metrics.items()
            }
            callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            split, seed = SPLITS[Path(name).stem], int(os.environ.get("PL_GLOBAL_SEED", 0))
            metrics["protocol"] = protocols(callbacks, split, seed)
            path = Path(self.trainer.default_root_dir) / name
            path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
            print(f"metrics: {display(path)}")

    def predict(self, **arguments: Any) -> None:
        """`Trainer.predict`; the predictions go to `predictions.pt` in the run folder."""
        predictions = interleave(torch.cat(self._evaluate("predict", arguments)))
        if self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir) / "predictions.pt"
            torch.save(predictions, path)
            print(f"predictions: {display(path)}")

    def _check_weights(self, path: str | None) -> None:
        """Refuse a checkpoint that is not one, or another model's, before anything is written."""
        if path is None or not Path(path).suffix:  # Lightning's keywords: best, last …
            return
        check_weights(self.model, read_checkpoint(path), path)

    def _last(self) -> Path:
        return Path(str(self.run_dir)) / "checkpoints" / "last.ckpt"

    def _how_to_resume(self) -> str:
        if not self._last().exists():
            return "\neblvm: interrupted before the first step; nothing is kept.\n"
        step = read_checkpoint(str(self._last()))["global_step"]
        return (
            f"\neblvm: interrupted at step {self.trainer.global_step}; the state of step {step} is "
            f"kept. Resume with\n  eblvm fit --ckpt_path {display(self._last())}\n"
        )

    def _summary(self) -> str:
        """Where everything is, and what to type next."""
        lines = [f"run:      {display(self.run_dir)}"]
        monitored = [c for c in checkpoint_callbacks(self.trainer) if c.monitor]
        best = Path(monitored[0].best_model_path) if monitored else self._last()
        if monitored and best.is_file():
            score: Any = monitored[0].best_model_score  # None if a resumed run did not validate
            value = "" if score is None else f" ({monitored[0].monitor} {float(score):.4g})"
            lines.append(f"best:     {display(best)}{value}")
        if (pictures := Path(str(self.run_dir)) / "pictures").is_dir():
            lines.append(f"pictures: {display(pictures)}")
        ckpt = best if best.is_file() else self._last()
        if ckpt.is_file():
            lines.append(f"next:     eblvm test --ckpt_path {display(ckpt)}")
            if hasattr(self.model, "sample"):
                out = "samples.txt" if hasattr(self.datamodule, "vocabulary") else "samples.png"
                lines.append(f"          eblvm sample --ckpt {display(ckpt)} --out {out}")
        return "\n".join(lines)

    def _finish_run(self) -> None:
        """Close what is open; a run that failed before its first checkpoint leaves no folder."""
        if not self.trainer.is_global_zero or self.run_dir is None:
            return
        if (wandb := sys.modules.get("wandb")) and wandb.run:
            wandb.run.finish()
        failed = sys.exc_info()[0] is not None or self.trainer.global_step == 0
        if failed and not any(self.run_dir.rglob("*.ckpt")):
            self._discard()

    def _discard(self) -> None:
        """Remove the folder that this process made, and what it made above it."""
        if self.claimed is None:
            return
        shutil.rmtree(self.claimed, ignore_errors=True)
        top = Path(self._get(self.config, "runs")).absolute()
        for folder in self.claimed.parents:
            if not folder.is_relative_to(top) or any(folder.iterdir()):
                break
            folder.rmdir()
        self.claimed = None


@contextmanager
def mendable() -> Iterator[None]:
    """Errors that settings, files or the machine cause become `UserError`s.

    `EBLVM_TRACEBACK=1` shows where they come from.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"{error} Lower --data.batch_size or the number of samples.") from error
    except NonFiniteError as error:
        raise UserError(str(error)) from error
    except MENDABLE as error:
        where = "" if str(error) else f" {type(error).__name__}; EBLVM_TRACEBACK=1 shows where"
        raise UserError(f"{error}{where}") from error
    except Exception as error:
        if not type(error).__module__.startswith("wandb"):
            raise
        hint = "Log in with `wandb login`, or set WANDB_MODE=offline, or leave out --wandb."
        raise UserError(f"Weights & Biases says: {error} {hint}") from error


def protocols(callbacks: Sequence[Callback], split: str, seed: int) -> dict[str, Any]:
    """How callbacks made their figures, by the names of their classes, with split and seed.

    Arguments:
        callbacks: Those with an attribute `protocol` that is not empty count.
        split: `val` or `test`.
        seed: Of the noise.
    """
    found = {type(c).__name__: getattr(c, "protocol", None) for c in callbacks}
    return {name: {**p, "split": split, "seed": seed} for name, p in found.items() if p}


def unvalidated(trainer: Trainer) -> str:
    """A line about epochs at the end that no validation will see; empty if there are none."""
    every, last = trainer.check_val_every_n_epoch, trainer.max_epochs or 0
    if not every or last <= 0 or last % every == 0 or not trainer.limit_val_batches:
        return ""
    return (
        f"eblvm: the last {last % every} of {last} epochs come after the last validation, so they "
        f"cannot become the best checkpoint; let --trainer.check_val_every_n_epoch (now {every}) "
        "divide --trainer.max_epochs.\n"
    )


def interleave(share: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks in the order of the data set, of which rank r has places r, r + R, …"""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return share
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, share.cpu())
    rows = share.cpu().new_empty((sum(map(len, shares)), *share.shape[1:]))
    for rank, part in enumerate(shares):
        rows[rank :: len(shares)] = part
    return rows


def check(model: Any, data: LightningDataModule) -> None:
    """Run the model's loss on two rows of real data before anything is written.

    Raises:
        UserError: If the data are missing, or the parts do not fit together.
    """
    try:
        data.prepare_data()
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        batch = data.on_after_batch_transfer(batch, 0)
    except MENDABLE as error:
        raise UserError(str(error)) from error
    if not hasattr(model, "terms"):  # a module that is no Learner has nothing to try
        return
    x, label = (part[:2] for part in batch)
    try:
        with torch.random.fork_rng(), torch.no_grad():
            model.terms((x, label), model.generator())
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise UserError(
            f"the recipe's parts do not fit the data or each other. A batch has shape "
            f"{tuple(x.shape)}; the first failing part says: {error}"
        ) from error


def build(recipe: str, *overrides: str) -> tuple[LightningModule, LightningDataModule]:
    """The model and the data of a recipe, untrained: the library's way into a recipe.

    Arguments:
        recipe: A name such as `image/lebm_digits`, or a file.
        overrides: As on the command line, such as `--data.batch_size=32`.
    """
    line = parse(recipe, *overrides)
    return line.model, line.datamodule


def parse(recipe: str, *overrides: str) -> CommandLine:
    """The objects of a recipe, arguments as of `build`: `model`, `datamodule`, `trainer`."""
    path = resolve_recipe(recipe)
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        return CommandLine(recipe_name(path), run=False, args=["--config", str(path), *overrides])
    finally:
        sys.argv = argv


def options_of(parser: LightningArgumentParser, subcommand: str | None) -> list[str]:
    """The names of all options, for near names."""
    for action in parser._actions:
        if subcommand and isinstance(action.choices, dict) and subcommand in action.choices:
            parser = action.choices[subcommand]
            break
    flags = [flag.removeprefix("--") for a in parser._actions for flag in a.option_strings]
    return [flag for flag in flags if not flag.endswith((".help", "+"))]


def quiet() -> None:
    """Drop what Lightning says that no user of a recipe can act on."""
    noise = ("💡", "TPU available", "GPU available", "HPU available", "Seed set to")
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(name).addFilter(lambda r: not r.getMessage().lstrip().startswith(noise))
    for message in (
        "Experiment logs directory",  # TensorBoard's events lie in the same folder, on purpose
        ".*isinstance\\(treespec, LeafSpec",
        ".*does not have many workers",
        "Be aware that when using `ckpt_path`",  # evaluation needs none of fit's callbacks
        "The dirpath has changed from",  # a new run from an old run's state has its own best
        "Checkpoint directory .* exists and is not empty",  # a run that goes on
        ".*could not find the monitored key",  # where steps end before the first validation
        "The number of training batches",
    ):
        warnings.filterwarnings("ignore", message)


def run(arguments: Sequence[str]) -> None:
    """`eblvm fit|validate|test|predict`.

    Raises:
        UserError: On what the user can mend.
    """
    quiet()
    arguments, recipe, run_dir = resolve_arguments(arguments)
    sys.argv = [sys.argv[0], *arguments]  # Lightning launches other ranks with these
    CommandLine(recipe, run_dir, run=True)


def resolve_arguments(arguments: Sequence[str]) -> tuple[list[str], str, Path | None]:
    """Recipe names become files; a checkpoint without a recipe brings its run's own.

    Returns:
        The arguments, the name under which the run is filed, and the folder of the run that goes
        on; None for a new run.
    """
    resolved: list[str] = []
    recipe = ckpt = None
    flags = iter(arguments)
    for argument in flags:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-c", "--ckpt_path", "--ckpt") and not equals:
            value = next(flags, "")
        if flag in ("--config", "-c"):
            path = resolve_recipe(value)
            recipe = recipe or recipe_name(path)
            argument = f"--config={path}"
        elif flag in ("--ckpt_path", "--ckpt"):
            ckpt = value
            argument = f"--ckpt_path={value}"
        resolved.append(argument)
    if ckpt and recipe is None:
        read_checkpoint(ckpt)
        path = Path(ckpt).absolute().parent.parent / "config.yaml"
        if not path.is_file():
            raise UserError(f"no config.yaml beside {ckpt}; add --config RECIPE.")
        resolved.insert(1, f"--config={path}")
        return resolved, run_recipe(path.parent), path.parent
    return resolved, recipe or "custom", None
