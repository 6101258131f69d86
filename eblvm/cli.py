"""The `eblvm` command.

Nothing heavy is imported before the arguments are known: `--version`, `--help` and `recipes` answer
without torch. The subcommands of Lightning live in `training`, the others in their own functions
below.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eblvm import __version__

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["main", "print_table", "recipe_names", "resolve_recipe"]

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")

DESCRIPTION = """\
Train, compare and invent energy-based latent-variable models.

  eblvm recipes                                  list the recipes
  eblvm fit --config image/lebm_digits           train one; any value can be overridden
  eblvm test --ckpt_path RUN/checkpoints/best.ckpt
  eblvm sample --ckpt RUN/checkpoints/best.ckpt --num 64 --out samples.png
  eblvm reconstruct|interpolate|inpaint --ckpt RUN/checkpoints/best.ckpt --out picture.png
  eblvm score --ckpt RUN/checkpoints/best.ckpt --data MNIST   how likely are other data?
  eblvm diagnose --ckpt RUN/checkpoints/best.ckpt  have the chains of training converged?
  eblvm bench quick                              compare methods; `eblvm bench` lists the suites
  eblvm evaluate SAMPLES --reference Digits      score what any code has made
"""


class UserError(Exception):
    """Something the user can mend; printed without a traceback, exit status 2."""


def recipe_root() -> Path:
    """The folder of the installed recipes."""
    return Path(str(files("eblvm.recipes")))


def recipe_names() -> list[str]:
    """The names of the installed recipes, such as `image/lebm_digits`."""
    root = recipe_root()
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.glob("*/*.yaml"))


def resolve_recipe(name: str) -> Path:
    """The file of a recipe, given by its name or as a file.

    Raises:
        UserError: If there is neither; with the nearest names.
    """
    if Path(name).is_file():
        return Path(name).resolve()
    path = recipe_root() / f"{name.removesuffix('.yaml')}.yaml"
    if path.is_file():
        return path
    names = recipe_names()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else "`eblvm recipes` lists them."
    raise UserError(f"there is no recipe or file {name!r}. {hint}")


def recipe_head(path: Path) -> dict[str, str]:
    """The `# Key: value` lines at the head of a recipe, keys in lower case."""
    head: dict[str, str] = {}
    key = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line[1:]
        name, colon, value = text.strip().partition(": ")
        if colon and name.isalpha() and name[0].isupper():
            key = name.lower()
            head[key] = value.strip()
        elif key and text.startswith("   "):
            head[key] += " " + text.strip()
    return head


def recipes(arguments: Sequence[str]) -> None:
    """`eblvm recipes [show NAME]`."""
    parser = argparse.ArgumentParser("eblvm recipes", description="List the installed recipes.")
    actions = parser.add_subparsers(dest="action")
    show = actions.add_parser("show", help="print one recipe")
    show.add_argument("name", help="such as image/lebm_digits")
    options = parser.parse_args(arguments)
    if options.action == "show":
        sys.stdout.write(resolve_recipe(options.name).read_text(encoding="utf-8"))
        return

    from rich.table import Table

    table = Table("recipe", "method", "data", "paper", box=None, header_style="bold")
    for name in recipe_names():
        head = recipe_head(recipe_root() / f"{name}.yaml")
        table.add_row(name, *(head.get(key, "") for key in ("method", "data", "paper")))
    print_table(table)


def print_table(table: "Table") -> None:
    """The table as the terminal's width allows; without line breaks into pipes and files."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(table)
    else:
        sys.stdout.write(_wide(table))


def _wide(table: "Table") -> str:
    """The table without line breaks, for pipes and `grep`."""
    from rich.console import Console

    console = Console(width=1000)
    with console.capture() as capture:
        console.print(table)
    return "".join(f"{line.strip()}\n" for line in capture.get().splitlines())


def sample(arguments: Sequence[str]) -> None:
    """`eblvm sample --ckpt FILE --num 64 --out samples.png`."""
    parser = argparse.ArgumentParser("eblvm sample", description="Draw from a trained model.")
    parser.add_argument("--ckpt", "--ckpt_path", required=True, help="checkpoint file of a run")
    parser.add_argument("--num", type=int, default=64, help="number of samples (64)")
    parser.add_argument(
        "--out", default=None, help=".png, .txt, or .pt for a tensor (samples.png or samples.txt)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", action="store_true", help="draw from p(x|z), not its mean")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 … (cuda where there is)")
    parser.add_argument(
        "--devices", type=int, default=1, help="processes that draw a share each, into one file (1)"
    )
    text = parser.add_argument_group("sentences")
    text.add_argument("--symbol", type=int, default=None, help="draw latents given this symbol")
    text.add_argument(
        "--temperature", type=float, default=None, help="draw words; 0 takes the likeliest (0)"
    )
    text.add_argument("--top-k", type=int, default=None, help="draw among so many words")
    text.add_argument("--top-p", type=float, default=None, help="draw among so much probability")
    text.add_argument("--beam", type=int, default=None, help="follow so many prefixes")
    chain = parser.add_argument_group("energies of data", "starts that a chain refines")
    chain.add_argument("--steps", type=int, help="steps of refinement (as in training); 0: none")
    chain.add_argument("--label", type=int, help="the class, for models of classes (all in turn)")
    chain.add_argument("--strip", action="store_true", help="a film strip: a chain in each row")
    options = vars(parser.parse_args(arguments))
    check_drawing(parser, options)
    refined = {name: options.pop(name) for name in ("steps", "label", "strip")}
    how = {name: options.pop(name) for name in ("temperature", "top_k", "top_p", "beam")}
    how = {name: value for name, value in how.items() if value is not None}
    if ("top_k" in how or "top_p" in how) and "temperature" not in how:
        how["temperature"] = 1.0

    devices = options.pop("devices")
    if devices > 1:
        if refined != {"steps": None, "label": None, "strip": False} or how:
            raise UserError("--devices goes with plain samples only; drop the other options.")
        from eblvm.using import draw_shares

        print(draw_shares(devices, **options))
        return

    from eblvm.using import draw, refined_samples

    if refined == {"steps": None, "label": None, "strip": False}:
        print(draw(**options, how=how))
        return
    if how or options["symbol"] is not None:
        raise UserError(
            "--steps, --label and --strip are for energies of data, and --symbol, --temperature, "
            "--top-k, --top-p and --beam for latent-variable models; give one kind."
        )
    out = options.pop("out") or "samples.png"
    print(
        refined_samples(
            out=out, **{n: options[n] for n in ("ckpt", "num", "seed", "device")}, **refined
        )
    )


def check_drawing(parser: argparse.ArgumentParser, options: dict[str, Any]) -> None:
    """Refuse numbers and files that cannot be, before anything heavy is imported."""
    for name, least in (("num", 1), ("steps", 0), ("points", 2), ("devices", 1)):
        value = options.get(name)
        if value is not None and value < least:
            parser.error(f"--{name} is {value}; expected {least} or more")
    folder = Path(options["out"] or "samples").resolve().parent
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to the folder {folder}; choose another --out.")


def use(command: str, arguments: Sequence[str]) -> None:
    """`eblvm reconstruct|interpolate|inpaint --ckpt FILE --out picture.png`."""
    about = {
        "reconstruct": "Encode test data and decode them, with and without refinement.",
        "interpolate": "Walk between latents, and refine what is between.",
        "inpaint": "Fill in hidden parts of test images by chains.",
    }
    parser = argparse.ArgumentParser(f"eblvm {command}", description=about[command])
    parser.add_argument("--ckpt", "--ckpt_path", required=True, help="checkpoint file of a run")
    parser.add_argument("--num", type=int, default=8, help="number of data, or of paths (8)")
    kinds = f".png ({command}.png), .txt for sentences, or .pt for a tensor"
    parser.add_argument("--out", help=kinds)
    parser.add_argument("--steps", type=int, help="steps of refinement (as in training); 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 … (cuda where there is)")
    if command == "interpolate":
        parser.add_argument("--points", type=int, default=9, help="points on each path (9)")
        parser.add_argument("--data", action="store_true", help="between test data (of one class)")
        parser.add_argument("--linear", action="store_true", help="a straight line, not an arc")
    if command == "inpaint":
        choices = ("lower", "upper", "left", "right", "center")
        parser.add_argument("--hide", choices=choices, default="lower", help="which part (lower)")
    options = vars(parser.parse_args(arguments))
    check_drawing(parser, options)

    from eblvm import using

    print(getattr(using, command)(**options))


def diagnose(arguments: Sequence[str]) -> None:
    """`eblvm diagnose --ckpt FILE --num-chains 64 --num-steps 2000`."""
    parser = argparse.ArgumentParser(
        "eblvm diagnose", description="Run a trained model's own chains for long: have they mixed?"
    )
    parser.add_argument("--ckpt", required=True, help="checkpoint file of a run")
    parser.add_argument("--num-chains", type=int, default=64, help="chains side by side (64)")
    parser.add_argument(
        "--num-steps", type=int, default=2000, help="steps, those of training first (2000)"
    )
    parser.add_argument("--out", default=None, help="folder of figures and JSON (the run's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 … (cuda where there is)")
    options = parser.parse_args(arguments)
    if options.num_chains < 2:
        parser.error(f"--num-chains is {options.num_chains}; expected 2 or more, to be compared")

    from eblvm.diagnosis import diagnose as run

    run(**vars(options))


def score(arguments: Sequence[str]) -> None:
    """`eblvm score --ckpt FILE --data MNIST --out scores.csv`."""
    parser = argparse.ArgumentParser(
        "eblvm score", description="Score data by a trained model: high means in-distribution."
    )
    parser.add_argument("--ckpt", "--ckpt_path", required=True, help="checkpoint file of a run")
    parser.add_argument(
        "--data", default=None, help="a data set, or a folder of images (the run's test split)"
    )
    parser.add_argument("--num", type=int, default=1000, help="the first so many (1000)")
    parser.add_argument("--out", default="scores.csv", help="comma-separated values")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 … (cuda where there is)")
    options = vars(parser.parse_args(arguments))
    check_drawing(parser, options)

    from eblvm import using

    print(using.score(**options))


def bench(arguments: Sequence[str]) -> None:
    """`eblvm bench [SUITE | report DIR…]`."""
    if arguments[:1] == ["report"]:
        return bench_report(arguments[1:])
    parser = argparse.ArgumentParser(
        "eblvm bench",
        description="Run a suite and report; `eblvm bench report DIR…` only reports.",
    )
    parser.add_argument("suite", nargs="?", help="a name or a YAML file; lists them if left out")
    parser.add_argument("--out", type=Path, help="folder of results (runs/bench/SUITE)")
    parser.add_argument("--seeds", type=int, help="so many seeds: 0, 1, … (the suite's)")
    parser.add_argument(
        "--budget", help="of each cell, as 200steps, 3epochs, 30s, 5m (the suite's)"
    )
    parser.add_argument(
        "--tables", nargs="+", metavar="NAME", help="only these tables of the suite"
    )
    parser.add_argument("--jobs", type=int, help="cells at a time (the suite's)")
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds")
    parser.add_argument("--wandb", action="store_true", help="log to W&B too, as one run group")
    options = parser.parse_args(arguments)
    for name in ("seeds", "jobs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} is {value}; expected 1 or more")

    from eblvm.benchmarks.suite import Budget, load_suite, print_suites

    if options.suite is None:
        print_suites()
        return
    budget = Budget.parse(options.budget) if options.budget else None
    seeds = range(options.seeds) if options.seeds else None
    suite = load_suite(options.suite, seeds, budget, options.tables)
    out = options.out or Path("runs/bench") / suite.name

    from eblvm.benchmarks.run import run_suite

    jobs = options.jobs or suite.jobs
    records = run_suite(suite, out, jobs, options.resume, options.wandb)
    bench_report([str(out)])
    if failed := [r["id"] for r in records if r["status"] != "done"]:
        raise UserError(
            f"{len(failed)} cells failed: {', '.join(failed)}. Their log.txt says why; --resume "
            "tries them again."
        )


def bench_report(arguments: Sequence[str]) -> None:
    """`eblvm bench report DIR… --out DIR`."""
    parser = argparse.ArgumentParser(
        "eblvm bench report", description="Tables, plots and samples of finished suites."
    )
    parser.add_argument("folders", nargs="+", type=Path, help="that `eblvm bench` made")
    parser.add_argument("--out", type=Path, help="folder of the reports (the first folder)")
    options = parser.parse_args(arguments)

    from eblvm.benchmarks.report import write_report

    markdown, html = write_report(options.folders, options.out or options.folders[0])
    print(f"report: {markdown}\n        {html}")


def evaluate(arguments: Sequence[str]) -> None:
    """`eblvm evaluate SAMPLES --reference RECIPE_OR_DATA`."""
    parser = argparse.ArgumentParser(
        "eblvm evaluate",
        description="Score samples that any code has made, as a recipe scores its own.",
    )
    parser.add_argument("samples", help="a folder of images; .pt, .npy, .npz; .txt of sentences")
    parser.add_argument(
        "--reference",
        required=True,
        help="a recipe, a data set such as MNIST, or data like samples",
    )
    parser.add_argument("--num", type=int, help="how many samples (as many as the recipe takes)")
    parser.add_argument(
        "--features", help="digits, mnist, fashion_mnist, pixels, or a weights file"
    )
    parser.add_argument("--unit", action="store_true", help="floating-point images are in [0, 1]")
    parser.add_argument("--out", help="a JSON file of figures and protocols")
    joined = parser.add_argument_group("beside the methods of a suite")
    joined.add_argument("--bench", type=Path, help="folder that `eblvm bench` made")
    joined.add_argument("--table", help="the table there")
    joined.add_argument("--label", help="what the table calls the method (the samples' name)")
    joined.add_argument("--seed", type=int, default=0, help="the seed that these samples are of")
    options = vars(parser.parse_args(arguments))
    if options["num"] is not None and options["num"] < 2:
        parser.error(f"--num is {options['num']}; expected 2 or more")

    from eblvm.benchmarks.outside import evaluate as run

    print(run(**options))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "recipes": recipes,
    "sample": sample,
    "reconstruct": partial(use, "reconstruct"),
    "interpolate": partial(use, "interpolate"),
    "inpaint": partial(use, "inpaint"),
    "score": score,
    "diagnose": diagnose,
    "bench": bench,
    "evaluate": evaluate,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 on what the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments[0] if arguments else "--help"
    try:
        if command in COMMANDS:
            COMMANDS[command](arguments[1:])
        elif command in TRAINER_COMMANDS:
            from eblvm.training import run

            run(arguments)
        else:
            choices = [*TRAINER_COMMANDS, *COMMANDS]
            parser = argparse.ArgumentParser(
                "eblvm",
                description=DESCRIPTION,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            parser.add_argument("--version", action="version", version=f"eblvm {__version__}")
            parser.add_argument("command", choices=choices, help="each has its own --help")
            parser.parse_args([command])
    except UserError as error:
        if os.environ.get("EBLVM_TRACEBACK"):
            raise
        sys.stderr.write(f"eblvm: error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("eblvm: interrupted.\n")
        sys.exit(130)
    except BrokenPipeError:  # `eblvm recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
