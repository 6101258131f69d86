"""What a benchmark is: a YAML file of tables, each of recipes, seeds, a budget and metrics.

    about: Every method on the digits.
    seeds: [0, 1, 2]
    tables:
      - name: digits
        title: Handwritten digits, 8×8
        metrics: {frechet: lower, coverage: higher}
        budget: {minutes: 1}
        cells:
          - image/vae_digits
          - {recipe: image/lebm_digits, label: latent EBM, options: [--ema=0.99]}
          - {recipe: my_method.yaml, label: mine}
        published:
          - {label: someone's, source: "Someone et al., 2020, Tab. 1", metrics: {frechet: 1.0}}

A recipe is a name that `eblvm recipes` lists, or a file, relative to the suite's own folder. A
budget holds for all cells of a table, a cell's own goes before it.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from eblvm.cli import UserError, print_table, recipe_root, resolve_recipe

__all__ = ["Budget", "Cell", "Suite", "Table", "load_suite", "print_suites", "suite_names"]

DIRECTIONS = ("lower", "higher")


@dataclass(frozen=True)
class Budget:
    """The most that a cell may train; a recipe that is done earlier ends earlier.

    Arguments:
        steps: Training steps.
        epochs: Passes over the data.
        minutes: Of wall-clock time.

    Raises:
        UserError: Unless all that are given are positive.
    """

    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            kind: Any = float | int if name == "minutes" else int
            if value is not None and not (isinstance(value, kind) and value > 0):
                whole = "" if name == "minutes" else " whole"
                raise UserError(
                    f"a budget of {name} is {value!r}; expected a positive{whole} number."
                )

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """`200steps`, `3epochs`, `30s`, `5m` or `2h`.

        Raises:
            UserError: If it is nothing of that kind.
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(steps?|epochs?|s|m|h)", text.strip())
        if not match:
            raise UserError(
                f"--budget is {text!r}; expected something like 200steps, 3epochs, 30s, 5m or 2h."
            )
        number, unit = float(match[1]), match[2]
        if unit in ("s", "m", "h"):
            return cls(minutes=number * {"s": 1 / 60, "m": 1, "h": 60}[unit])
        if number != int(number):
            raise UserError(f"--budget is {text!r}; expected a whole number of {unit}.")
        return cls(**{unit.rstrip("s") + "s": int(number)})

    def arguments(self) -> list[str]:
        """Options of `eblvm fit`."""
        found = []
        if self.steps is not None:
            found.append(f"--trainer.max_steps={self.steps}")
        if self.epochs is not None:
            found.append(f"--trainer.max_epochs={self.epochs}")
        if self.minutes is not None:
            seconds = max(1, round(60 * self.minutes))
            hours, seconds = divmod(seconds, 3600)
            days, hours = divmod(hours, 24)
            clock = f"{days:02d}:{hours:02d}:{seconds // 60:02d}:{seconds % 60:02d}"
            found.append(f"--trainer.max_time={clock}")
        return found

    def __str__(self) -> str:
        parts = [
            f"{value:g} {name.removesuffix('s') if value == 1 else name}"
            for name, value in asdict(self).items()
            if value is not None
        ]
        return ", ".join(parts) or "the recipe's own"


@dataclass(frozen=True)
class Cell:
    """One run: a recipe with a seed and a budget.

    Arguments:
        table: The name of the table that it stands in.
        label: What the table calls it.
        recipe: A recipe's name or its absolute file.
        seed: Of the run and of its data module.
        budget: How long it may train.
        options: Further options of `eblvm fit`.
    """

    table: str
    label: str
    recipe: str
    seed: int
    budget: Budget = field(default_factory=Budget)
    options: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """A name for files: table, label and seed, without a way out of their folder."""
        label = re.sub(r"[^\w.+-]+", "_", self.label)
        return f"{self.table}/{label if label.strip('.') else '_'}/seed_{self.seed}"


@dataclass(frozen=True)
class Table:
    """What is compared with what.

    Arguments:
        name: For files and for `--tables`.
        title: For readers.
        metrics: Names as in `test.json` without `test/`, each with `lower` or `higher`, the better.
            The first one stands on the axis of quality against cost.
        cells: Of all seeds.
        published: Figures of others: dictionaries of `label`, `source` and `metrics`.
        note: What a reader must know about these figures.
    """

    name: str
    title: str
    metrics: dict[str, str]
    cells: tuple[Cell, ...]
    published: tuple[dict[str, Any], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Suite:
    """Tables, in order.

    Arguments:
        name: The file's stem.
        about: A paragraph for readers.
        tables: What is compared.
        jobs: Cells at a time, unless the command line says otherwise.
    """

    name: str
    about: str
    tables: tuple[Table, ...]
    jobs: int = 1

    @property
    def cells(self) -> list[Cell]:
        """All cells, one seed after the other, so that an interrupted suite has whole rows."""
        cells = [cell for table in self.tables for cell in table.cells]
        seeds = list(dict.fromkeys(cell.seed for cell in cells))
        return sorted(cells, key=lambda cell: seeds.index(cell.seed))

    def to_json(self) -> str:
        """All that a report needs beside the results."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Suite":
        """The inverse of `to_json`."""
        content = json.loads(text)
        tables = [
            Table(
                **{
                    **table,
                    "published": tuple(table["published"]),
                    "cells": tuple(
                        Cell(
                            **{
                                **cell,
                                "budget": Budget(**cell["budget"]),
                                "options": tuple(cell["options"]),
                            }
                        )
                        for cell in table["cells"]
                    ),
                }
            )
            for table in content["tables"]
        ]
        return cls(**{**content, "tables": tuple(tables)})


def suite_root() -> Path:
    """The folder of the installed suites."""
    return Path(str(files("eblvm.benchmarks"))) / "suites"


def suite_names() -> list[str]:
    """The names of the installed suites."""
    return sorted(path.stem for path in suite_root().glob("*.yaml"))


def print_suites() -> None:
    """What there is: name, cells and purpose."""
    from rich.table import Table as RichTable

    table = RichTable("suite", "cells", "about", box=None, header_style="bold")
    for name in suite_names():
        suite = load_suite(name)
        table.add_row(name, str(len(suite.cells)), suite.about.strip())
    print_table(table)


def load_suite(
    name: str,
    seeds: Sequence[int] | None = None,
    budget: Budget | None = None,
    tables: Sequence[str] | None = None,
) -> Suite:
    """The suite of a name or a file.

    Arguments:
        name: A name that `eblvm bench` alone lists, or a YAML file.
        seeds: In place of the suite's.
        budget: In place of all budgets of the suite.
        tables: Names of those that are wanted; all if None.

    Raises:
        UserError: If there is no such suite, or something in it is not understood.
    """
    path = Path(name) if Path(name).is_file() else suite_root() / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, suite_names(), n=2, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {suite_names()}."
        raise UserError(f"there is no suite or file {name!r}. {hint}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    content = checked(content, path, {"tables"}, {"about", "seeds", "jobs"})
    seeds = list(seeds if seeds is not None else listed(content, "seeds", path, int) or [0])
    known = [read_table(t, path, seeds, budget) for t in listed(content, "tables", path, dict)]
    names = [table.name for table in known]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path} has two tables {twice[0]}; name them differently.")
    if unknown := [name for name in tables or () if name not in names]:
        raise UserError(f"{path} has no table {unknown[0]!r}; it has {', '.join(names)}.")
    chosen = tuple(table for table in known if tables is None or table.name in tables)
    jobs = content.get("jobs", 1)
    if not isinstance(jobs, int) or jobs < 1:
        raise UserError(f"{path}: jobs is {jobs!r}; expected a whole number, 1 or more.")
    suite = Suite(path.stem, worded(content, "about", path), chosen, jobs)
    ids = [cell.id for cell in suite.cells]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise UserError(f"{path} has {twice[0]} twice; give the cells different labels.")
    return suite


def read_table(content: Any, path: Path, seeds: Sequence[int], budget: Budget | None) -> Table:
    """One entry of `tables`."""
    content = checked(
        content,
        path,
        {"name", "metrics", "cells"},
        {"title", "budget", "options", "published", "note"},
    )
    name, metrics = str(content["name"]), content["metrics"]
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(
            f"{path}: a table has the name {name!r}, which is that of a folder, too; expected "
            "letters, numbers, _, -, + and dots."
        )
    if not isinstance(metrics, Mapping) or not metrics:
        raise UserError(
            f"{path}, table {name}: metrics are {metrics!r}; expected names with lower or higher, "
            "such as {frechet: lower}."
        )
    metrics = dict(metrics)
    if wrong := [m for m, better in metrics.items() if better not in DIRECTIONS]:
        raise UserError(
            f"{path}, table {name}: the metric {wrong[0]} has {metrics[wrong[0]]!r}; expected "
            "lower or higher, whichever is better."
        )
    common = Budget(
        **checked(content.get("budget", {}), path, set(), {"steps", "epochs", "minutes"})
    )
    cells = []
    for entry in listed(content, "cells", path, str | dict):
        entry = {"recipe": entry} if isinstance(entry, str) else entry
        entry = checked(entry, path, {"recipe"}, {"label", "budget", "options"})
        own = checked(entry.get("budget", {}), path, set(), {"steps", "epochs", "minutes"})
        recipe = find_recipe(str(entry["recipe"]), path)
        options = (*listed(content, "options", path, str), *listed(entry, "options", path, str))
        chosen = budget or (Budget(**own) if own else common)
        label = str(entry.get("label", entry["recipe"]))
        cells += [Cell(name, label, recipe, int(s), chosen, tuple(options)) for s in seeds]
    published = []
    for row in listed(content, "published", path, dict):
        row = checked(row, path, {"label", "source", "metrics"}, set())
        if unknown := set(row["metrics"]) - set(metrics):
            raise UserError(f"{path}, table {name}: a published {unknown.pop()} has no column.")
        if wrong := [m for m, v in row["metrics"].items() if not isinstance(v, int | float)]:
            raise UserError(
                f"{path}, table {name}: a published {wrong[0]} is {row['metrics'][wrong[0]]!r}; "
                "expected a number."
            )
        published.append(row)
    title, note = str(content.get("title", name)), worded(content, "note", path)
    return Table(name, title, metrics, tuple(cells), tuple(published), note)


def find_recipe(recipe: str, path: Path) -> str:
    """A name of ours as it is, a file as an absolute path."""
    beside = path.parent / recipe
    if beside.is_file():
        return str(beside.resolve())
    found = resolve_recipe(recipe)
    return recipe if found.is_relative_to(recipe_root()) else str(found)


def listed(content: Mapping[str, Any], key: str, path: Path, kind: Any) -> list[Any]:
    """The list of a key, empty where there is none.

    Raises:
        UserError: If it is no list, or of other things.
    """
    found = content.get(key, [])
    if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
        what = {int: "numbers", str: "texts"}.get(kind, "entries")
        raise UserError(f"{path}: {key} is {found!r}; expected a list of {what}.")
    return found


def worded(content: Mapping[str, Any], key: str, path: Path) -> str:
    """The text of a key, empty where there is none.

    Raises:
        UserError: If it is something else.
    """
    found = content.get(key, "")
    if not isinstance(found, str):
        raise UserError(f"{path}: {key} is {found!r}; expected a text.")
    return found


def checked(content: Any, path: Path, needed: set[str], optional: set[str]) -> dict[str, Any]:
    """The mapping itself, if it has all the keys that it needs and no unknown ones.

    Raises:
        UserError: If not.
    """
    known = sorted(needed | optional)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected the keys {known}, found {content!r}.")
    if missing := needed - set(content):
        raise UserError(f"{path}: {sorted(missing)[0]} is missing in {dict(content)!r}.")
    if unknown := set(content) - set(known):
        key = str(sorted(unknown)[0])
        near = difflib.get_close_matches(key, known, n=1)
        raise UserError(
            f"{path}: there is no {key!r}; {f'{near[0]}?' if near else f'known: {known}'}"
        )
    return dict(content)
