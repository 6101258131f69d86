"""`eblvm bench report DIR…`: tables, curves and samples of finished suites, for people.

`report.md` goes with a repository, its pictures beside it; `report.html` is one file that needs
nothing else.
"""

import csv
import io
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from eblvm.benchmarks.page import page
from eblvm.benchmarks.protocols import groups, protocols_of, worded
from eblvm.benchmarks.run import last_line, read_results
from eblvm.benchmarks.statistics import LEGEND, Comparison, Summary, compare, summarize
from eblvm.benchmarks.suite import Cell, Suite, Table
from eblvm.cli import UserError, print_table

__all__ = ["Part", "gather", "write_report"]

MARKS = {"best": " *", "tied": " ≈", "untested": " ?", "other": " †", "": "", "label": ""}
"""What stands behind a figure on a terminal."""

ARROWS = {"lower": "↓", "higher": "↑"}


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
        for label in self.labels:
            for record in self.done(label):
                if metric in record["metrics"]:
                    known.setdefault(label, {}).update(protocols_of(record, metric))
        return groups(known)

    def compared(self, metric: str) -> tuple[str | None, dict[str, Comparison]]:
        """The best row in a metric, and the others of the same protocol against it."""
        alike = self.alike(metric)
        rows = {label: self.summary(label, metric) for label in (alike[0] if alike else [])}
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
    """Suites and their tables; tables of one name and equal metrics become one.

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


def write_report(folders: Sequence[Path], out: Path) -> tuple[Path, Path]:
    """Print the tables; write `report.md`, its pictures, and `report.html`; both paths.

    Arguments:
        folders: That `eblvm bench` made.
        out: Where to write.
    """
    suites, parts = gather(folders)
    out.mkdir(parents=True, exist_ok=True)
    sections = [Section(part) for part in parts]
    for section in sections:
        table = RichTable(*section.header, box=None, header_style="bold", title=section.title)
        for row in section.rows():
            table.add_row(*(f"{text}{MARKS[kind]}" for text, kind in row))
        print_table(table)
    markdown, html = out / "report.md", out / "report.html"
    markdown.write_text(as_markdown(suites, sections, out), encoding="utf-8")
    html.write_text(page(suites, sections), encoding="utf-8")
    return markdown, html


class Section:
    """A part with its pictures drawn.

    Arguments:
        part: The part.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.name, self.title = part.table.name, part.table.title
        self.figures: dict[str, bytes] = {}
        """SVG files by name."""
        if drawn := pareto(part):
            self.figures["cost"] = drawn
        if drawn := curves(part):
            self.figures["curves"] = drawn
        self.samples = [(label, path) for label in part.labels if (path := self._sample(label))]
        """Pictures or texts of samples, of the first seed of each row."""

    def _sample(self, label: str) -> Path | None:
        for record in self.part.done(label):
            if (
                record.get("samples")
                and (path := Path(record["folder"]) / record["samples"]).is_file()
            ):
                return path
        return None

    @property
    def header(self) -> list[str]:
        """Names of the columns."""
        arrows = [f"{name} {ARROWS[better]}" for name, better in self.part.table.metrics.items()]
        return ["method", *arrows, "seeds", self.part.clock[1], "steps/s", "MiB"]

    def rows(self) -> list[list[tuple[str, str]]]:
        """Cells as text and kind: `best`, `tied` (not told from the best), `untested` (against the
        best), `other` (another protocol than most), or nothing."""
        part, found = self.part, []
        compared = {metric: part.compared(metric) for metric in part.table.metrics}
        apart = {
            metric: {label for group in part.alike(metric)[1:] for label in group}
            for metric in part.table.metrics
        }
        for label in part.labels:
            row = [(label, "label")]
            for metric, (best, others) in compared.items():
                kind = others[label].kind if label in others else ""
                kind = "best" if label == best else "other" if label in apart[metric] else kind
                row.append((str(part.summary(label, metric)), kind))
            row.append((str(len(part.done(label))), ""))
            for name in (part.clock[0], "steps_per_s"):
                cost = part.cost(label, name)
                row.append((f"{cost.mean:.3g}" if cost.values else "–", ""))
            memory = part.cost(label, "peak_gpu_memory_mib")
            memory = memory if memory.values else part.cost(label, "peak_memory_mib")
            row.append((f"{max(memory.values.values()):.0f}" if memory.values else "–", ""))
            found.append(row)
        return found

    def tests(self) -> list[str]:
        """A sentence for each metric: the best row, how sure that is, and what was not tested."""
        said = []
        for metric in self.part.table.metrics:
            best, others = self.part.compared(metric)
            if best is None:
                continue
            known = {o: c for o, c in others.items() if not math.isnan(c.p)}
            untested = [o for o in others if o not in known]
            counts = [len(self.part.summary(label, metric).values) for label in (best, *others)]
            words = f"{metric}: best {best}"
            if max(counts) == 1:
                said.append(f"{words}; one seed, so no test.")
                continue
            if known:
                worded = [f"{o} p = {c.p:.2g} ({c.test})" for o, c in known.items()]
                words += ", against " + ", ".join(worded)
            if untested:
                words += f"; not tested, for want of seeds or of spread: {', '.join(untested)}"
            said.append(f"{words}.")
        return said

    def published(self) -> list[list[str]]:
        """Rows of others' figures: label, each metric, source."""
        metrics = self.part.table.metrics
        return [
            [
                str(p["label"]),
                *(f"{p['metrics'][m]:g}" if m in p["metrics"] else "–" for m in metrics),
                str(p["source"]),
            ]
            for p in self.part.table.published
        ]

    def notes(self) -> list[str]:
        """What a reader must know: budgets, checkpoints, protocols, what is not there."""
        part = self.part
        budgets: dict[str, list[str]] = {}
        for cell in part.table.cells:
            labels = budgets.setdefault(str(cell.budget), [])
            labels += [cell.label] * (cell.label not in labels)
        said = [part.table.note] if part.table.note else []
        said += self.recipes()
        if len(budgets) == 1:
            said.append(f"Budget of each cell: {next(iter(budgets))}.")
        else:
            said += [f"Budget of {', '.join(labels)}: {b}." for b, labels in budgets.items()]
        taken: dict[str, set[int]] = {}
        for record in part.records:
            if (steps := record.get("cost", {}).get("steps")) is not None:
                taken.setdefault(record["label"], set()).add(steps)
        if taken:
            spans = (
                f"{label}: {min(n)}" + (f" to {max(n)}" if len(n) > 1 else "")
                for label, n in taken.items()
            )
            said.append(f"Steps of training: {'; '.join(spans)}.")
        last = sorted({r["label"] for r in part.records if r.get("checkpoint") == "last"})
        if last:
            said.append(
                f"{', '.join(last)}: the state at the end of training was tested, for the budget "
                "ended before the first validation; of all others the best by validation."
            )
        said += self.protocols()
        if part.missing:
            said.append(f"{part.missing} cells have not been run.")
        return said

    def recipes(self) -> list[str]:
        """What each row ran: a line of the recipes, and those of the options."""
        cells = list({cell.label: cell for cell in self.part.table.cells}.values())
        if not cells:
            return []
        # of a file outside the package, its name and its folder's
        files = {cell.label: "/".join(Path(cell.recipe).parts[-2:]) for cell in cells}
        said = ["Recipes: " + "; ".join(f"{label}: {file}" for label, file in files.items()) + "."]
        common = [o for o in cells[0].options if all(o in cell.options for cell in cells)]
        if common:
            said.append(f"Options of each cell: {' '.join(common)}")
        rows: dict[str, list[str]] = {}
        for cell in cells:
            if own := " ".join(o for o in cell.options if o not in common):
                rows.setdefault(own, []).append(cell.label)
        said += [f"Options of {'; '.join(labels)}: {own}" for own, labels in rows.items()]
        hashes: dict[str, set[str]] = {}
        for record in self.part.records:
            if record.get("config_sha256"):
                hashes.setdefault(record["label"], set()).add(record["config_sha256"])
        if mixed := [label for label, found in hashes.items() if len(found) > 1]:
            said.append(
                f"The seeds of {'; '.join(mixed)} differ in more than their seeds: recipes or "
                "options changed between their runs."
            )
        return said

    def protocols(self) -> list[str]:
        """A line for each way in which figures were made; whose, where rows differ."""
        found: dict[str, dict[str, list[str]]] = {}
        for record in self.part.records:
            for name, protocol in record.get("protocol", {}).items():
                labels = found.setdefault(name, {}).setdefault(worded(protocol), [])
                labels += [record["label"]] * (record["label"] not in labels)
        said = []
        for name, ways in sorted(found.items()):
            for way, labels in ways.items():
                whose = f" of {', '.join(labels)}" if len(ways) > 1 else ""
                said.append(f"{name}{whose}: {way}")
        return said

    def environments(self) -> list[str]:
        """Machines and versions of all records, each once."""
        found = []
        for record in self.part.records:
            if not (e := record.get("environment")):
                continue
            if "packages" not in e:  # a cell that failed before it could say
                continue
            packages = ", ".join(f"{name} {v}" for name, v in e["packages"].items())
            devices = ", ".join(e["devices"]) or "no GPU"
            found.append(
                f"{e['machine']}, {devices}, {e['threads']} thread(s) per cell, "
                f"Python {e['python']}, {packages}, commit {e['commit'] or 'unknown'}"
            )
        return list(dict.fromkeys(found))


def as_markdown(suites: Sequence[Suite], sections: Sequence[Section], out: Path) -> str:
    """The report as Markdown; pictures go to `out`."""
    lines = [f"# {', '.join(suite.name for suite in suites)}", ""]
    lines += [line for suite in suites if suite.about for line in (suite.about.strip(), "")]
    lines += [f"**Bold**: the best mean. {LEGEND}", ""]
    assets = out / "report_files"
    assets.mkdir(exist_ok=True)
    for section in sections:
        lines += [f"## {section.title}", "", row_of(section.header)]
        lines.append("|---" * len(section.header) + "|")
        for row in section.rows():
            lines.append(row_of([marked(text, kind) for text, kind in row]))
        lines.append("")
        if published := section.published():
            header = ["published", *section.part.table.metrics, "source"]
            lines += [row_of(header), "|---" * len(header) + "|", *map(row_of, published), ""]
        lines += [f"- {said}" for said in (*section.tests(), *section.notes())]
        for record in section.part.failed:
            lines.append(f"- failed: {record['id']}: {last_line(record)}")
        lines.append("")
        for name, svg in section.figures.items():
            path = assets / f"{section.name}_{name}.svg"
            path.write_bytes(svg)
            lines += [f"![{section.title}: {name}](report_files/{path.name})", ""]
        pictures = [(label, path) for label, path in section.samples if path.suffix == ".png"]
        for i, (label, path) in enumerate(pictures):
            copied = assets / f"{section.name}_{i}.png"
            shutil.copyfile(path, copied)
            pictures[i] = label, copied
        for start in range(0, len(pictures), 4):
            group = pictures[start : start + 4]
            lines += [row_of([label for label, _ in group]), "|---" * len(group) + "|"]
            lines += [row_of([f"![{label}](report_files/{p.name})" for label, p in group]), ""]
        for label, path in section.samples:
            if path.suffix == ".txt":
                text = path.read_text(encoding="utf-8").splitlines()[:8]
                lines += [f"{label}:", "", *(f"    {line}" for line in text), ""]
    environments = dict.fromkeys(e for section in sections for e in section.environments())
    lines += ["Made on:", "", *(f"- {environment}" for environment in environments), ""]
    return "\n".join(lines)


def row_of(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def marked(text: str, kind: str) -> str:
    """A cell of the table with its mark."""
    return f"**{text}**" if kind == "best" else f"{text}{MARKS[kind]}"


def pareto(part: Part) -> bytes | None:
    """The first metric against the time of training, a point per row of the commonest protocol.

    Points that none beats in both are joined.
    """
    metric, better = next(iter(part.table.metrics.items()))
    clock, _, axis = part.clock
    points = {
        label: (part.cost(label, clock).mean, part.summary(label, metric))
        for label in (part.alike(metric) or [[]])[0]
        if part.cost(label, clock).values and part.summary(label, metric).values
    }
    if len(points) < 2:
        return None
    figure, axes = canvas()
    sign = 1 if better == "lower" else -1
    front: list[tuple[float, float]] = []
    for cost, summary in sorted(points.values(), key=lambda p: (p[0], sign * p[1].mean)):
        if not front or sign * summary.mean < sign * front[-1][1]:
            front.append((cost, summary.mean))
    axes.plot(*zip(*front, strict=True), color="0.5", linewidth=1, linestyle=":", zorder=0)
    for i, (label, (cost, summary)) in enumerate(points.items()):
        error = 0.0 if math.isnan(summary.deviation) else summary.deviation
        axes.errorbar(cost, summary.mean, error, fmt="o", color=color(i), capsize=3, label=label)
    axes.set_xlabel(axis)
    axes.set_ylabel(f"{metric} ({better} is better)")
    axes.set_xscale("log")
    axes.legend(fontsize=8, framealpha=0)
    return svg_of(figure)


def curves(part: Part) -> bytes | None:
    """The first metric at each validation, a line per row and seed."""
    metric = next(iter(part.table.metrics))
    lines = []
    for i, label in enumerate(part.labels):
        for record in part.done(label):
            if "curve" not in record:
                continue
            points = read_curve(Path(record["folder"]) / record["curve"], f"val/{metric}")
            if len(points) > 1:
                lines.append((i, label, points))
    if not lines:
        return None
    figure, axes = canvas()
    named: set[str] = set()
    for i, label, points in lines:
        own = None if label in named else label
        named.add(label)
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker=".", color=color(i), alpha=0.8, label=own)
    axes.set_xlabel("training step")
    axes.set_ylabel(f"validation {metric}")
    axes.legend(fontsize=8, framealpha=0)
    return svg_of(figure)


def read_curve(path: Path, name: str) -> list[tuple[int, float]]:
    """Steps and finite values of a column of `metrics.csv`."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = [(int(row["step"]) + 1, row.get(name)) for row in csv.DictReader(file)]
    found = [(step, float(value)) for step, value in rows if value]
    return [(step, value) for step, value in found if math.isfinite(value)]


def color(i: int) -> Any:
    """The i-th of twenty colors."""
    from matplotlib import colormaps

    return colormaps["tab20"](2 * i % 20 + (i // 10) % 2)


def canvas() -> tuple[Any, Any]:
    """A figure that can be read on light and on dark ground, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    gray = "#808080"
    axes.tick_params(colors=gray, which="both", labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(gray)
    axes.xaxis.label.set_color(gray)
    axes.yaxis.label.set_color(gray)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def svg_of(figure: Any) -> bytes:
    """The figure as SVG that is the same bytes at each drawing."""
    import matplotlib

    for legend in (axes.get_legend() for axes in figure.axes):
        for text in legend.get_texts() if legend else ():
            text.set_color("#808080")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "eblvm", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
