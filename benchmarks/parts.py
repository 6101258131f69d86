"""Tables of suites with what was found, from the folders that `eblvm bench` made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eblvm.benchmarks.protocols import difference, groups, protocols_of
from eblvm.benchmarks.run import read_results
from eblvm.benchmarks.statistics import Comparison, Summary, compare, summarize
from eblvm.benchmarks.suite import Cell, Suite, Table
from eblvm.cli import UserError

__all__ = ["Part", "gather"]


@dataclass(frozen=True)
class Part:
    """A table of a suite with what was found.

    Arguments:
        table: What was to be compared.
        records: Of its cells, each with `folder`, where its files lie.
        suite: The folder of the suite.
    """

    table: Table
    records: tuple[dict[str, Any], ...]
    suite: str = ""

    @property
    def labels(self) -> list[str]:
        """Rows in the order of the suite; then those that joined later."""
        planned = [cell.label for cell in self.table.cells]
        return list(dict.fromkeys([*planned, *(r["label"] for r in self.records)]))

    def done(self, label: str) -> list[dict[str, Any]]:
        """The finished records of a row."""
        return [r for r in self.records if r["label"] == label and r["status"] == "done"]

    def summary(self, label: str, metric: str) -> Summary:
        """A figure of a row."""
        done = self.done(label)
        found = {r["seed"]: r["metrics"][metric] for r in done if metric in r["metrics"]}
        if not found:
            return summarize({})
        wanted = len({cell.seed for cell in self.table.cells})
        return summarize(found, wanted, pairs=not any("outside" in r for r in done))

    def cost(self, label: str, name: str) -> Summary:
        """A cost of a row; outside methods may have told none."""
        found = {r["seed"]: r["cost"][name] for r in self.done(label) if name in r.get("cost", {})}
        return summarize(found)

    @property
    def clock(self) -> tuple[str, str, str]:
        """The cost that counts, its column and its axis: wall time where a GPU worked."""
        costs = [r.get("cost", {}) for r in self.records if r["status"] == "done"]
        if any("peak_gpu_memory_mib" in cost for cost in costs):
            return "train_wall_s", "wall s", "wall time of training, s"
        return "train_cpu_s", "CPU s", "processor time of training, s"

    def alike(self, metric: str) -> list[list[str]]:
        """Rows with a figure, those whose protocols agree together, the largest group first."""
        known: dict[str, dict[str, Any]] = {}
        mixed: list[str] = []
        for label in self.labels:
            for record in self.done(label):
                if metric in record["metrics"]:
                    own = protocols_of(record, metric)
                    if difference(known.setdefault(label, {}), own) and label not in mixed:
                        mixed.append(label)
                    known[label].update(own)
        alone = [[label] for label in mixed]  # seeds made in different ways compare with nothing
        return (groups({n: p for n, p in known.items() if n not in mixed}) or [[]]) + alone

    def compared(self, metric: str) -> tuple[str | None, dict[str, Comparison]]:
        """The best row in a metric, and the others of the same protocol against it.

        None is the best where all are the same.
        """
        alike = self.alike(metric)
        rows = {label: self.summary(label, metric) for label in (alike[0] if alike else [])}
        means = {row.mean for row in rows.values() if row.values}
        if len(rows) > 1 and len(means) == 1:
            return None, {}
        return compare(rows, self.table.metrics[metric])

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Records of cells that failed."""
        return [r for r in self.records if r["status"] != "done"]

    @property
    def missing(self) -> int:
        """Cells of which there is no record."""
        return len({cell.id for cell in self.table.cells} - {r["id"] for r in self.records})


def gather(folders: Sequence[Path]) -> tuple[list[Suite], list[Part]]:
    """Suites, each once, and their tables; tables of one name and equal metrics become one.

    Rows of one label become one, too, if they are the same recipe, budget and options with other
    seeds. Where they are not, each is named after its folder, too.

    Raises:
        UserError: If a folder holds no suite.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    suites: list[Suite] = []
    parts: dict[str, list[Part]] = {}
    for folder in folders:
        described = folder / "suite.json"
        if not described.is_file():
            raise UserError(f"{folder} holds no suite.json; give folders that `eblvm bench` made.")
        suite = Suite.from_json(described.read_text(encoding="utf-8"))
        if (suite.name, suite.about) not in [(known.name, known.about) for known in suites]:
            suites.append(suite)
        records = read_results(folder / "results.jsonl")
        for table in suite.tables:
            own = tuple(
                {**r, "folder": str(folder / "cells" / r["id"])}
                for r in records
                if r["table"] == table.name
            )
            parts.setdefault(table.name, []).append(Part(table, own, str(folder)))
    names = [folder.resolve().name for folder in folders]
    called = {
        str(folder): name if names.count(name) == 1 else str(folder)
        for folder, name in zip(folders, names, strict=True)
    }
    return suites, [joined(found, called) for found in parts.values()]


def joined(parts: Sequence[Part], called: dict[str, str]) -> Part:
    """The tables of one name as one.

    Arguments:
        parts: One or more.
        called: What to call a folder.

    Raises:
        UserError: If they have different metrics.
    """
    first = parts[0].table
    if any(part.table.metrics != first.metrics for part in parts):
        raise UserError(
            f"two folders have a table {first.name} with different metrics; report each on its own."
        )
    labels = [label for part in parts for label in part.labels]
    for label in {label for label in labels if labels.count(label) > 1}:
        having = [part for part in parts if label in part.labels]
        if clash(having, label):
            parts = [renamed(part, label, called) if part in having else part for part in parts]
    tables = [part.table for part in parts]
    published = [row for table in tables for row in table.published]
    table = replace(
        first,
        cells=tuple(dict.fromkeys(cell for table in tables for cell in table.cells)),
        published=tuple(row for i, row in enumerate(published) if row not in published[:i]),
        note=" ".join(dict.fromkeys(t.note.strip() for t in tables if t.note)),
    )
    return Part(table, tuple(record for part in parts for record in part.records))


def clash(parts: Sequence[Part], label: str) -> bool:
    """Whether rows of one label are not of one method, or hold one seed twice."""
    seeds = [record["seed"] for part in parts for record in part.done(label)]
    kinds = [
        {(c.recipe, c.budget, c.options) for c in part.table.cells if c.label == label}
        for part in parts
    ]
    return len(seeds) > len(set(seeds)) or any(kind != kinds[0] for kind in kinds)


def renamed(part: Part, label: str, called: dict[str, str]) -> Part:
    """The part with a row named after its folder, too."""
    name = f"{label} ({called[part.suite]})"

    def cell_of(cell: Cell) -> Cell:
        return replace(cell, label=name) if cell.label == label else cell

    def record_of(record: dict[str, Any]) -> dict[str, Any]:
        if record["label"] != label:
            return record
        cell = Cell(record["table"], name, "", record["seed"])
        return {**record, "label": name, "id": cell.id}

    cells = tuple(map(cell_of, part.table.cells))
    records = tuple(map(record_of, part.records))
    return Part(replace(part.table, cells=cells), records, part.suite)
