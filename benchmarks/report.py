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
from eblvm.benchmarks.run import read_results
from eblvm.benchmarks.statistics import LEGEND, LEVEL, Comparison, Summary, compare, summarize
from eblvm.benchmarks.suite import Suite, Table
from eblvm.cli import UserError, print_table

__all__ = ["Part", "gather", "write_report"]

MARKS = {"best": " *", "tied": " ≈"} | dict.fromkeys(("", "label"), "")
"""What stands behind a figure on a terminal."""

ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True)
class Part:
    """A table of a suite with what was found.

    Arguments:
        table: What was to be compared.
        records: Of its cells, each with `folder`, where its files lie.
    """

    table: Table
    records: tuple[dict[str, Any], ...]

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
        found = {
            r["seed"]: r["metrics"][metric] for r in self.done(label) if metric in r["metrics"]
        }
        return summarize(found)

    def cost(self, label: str, name: str) -> Summary:
        """A cost of a row; outside methods may have told none."""
        found = {r["seed"]: r["cost"][name] for r in self.done(label) if name in r.get("cost", {})}
        return summarize(found)

    def compared(self, metric: str) -> tuple[str | None, dict[str, Comparison]]:
        """The best row in a metric, and the others against it."""
        rows = {label: self.summary(label, metric) for label in self.labels}
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

    Raises:
        UserError: If a folder holds no suite.
    """
    suites: list[Suite] = []
    parts: dict[str, Part] = {}
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
            if table.name not in parts:
                parts[table.name] = Part(table, own)
                continue
            first = parts[table.name]
            if first.table.metrics != table.metrics:
                raise UserError(
                    f"two folders have a table {table.name} with different metrics; report each on "
                    "its own."
                )
            cells = (*first.table.cells, *table.cells)
            parts[table.name] = Part(replace(first.table, cells=cells), first.records + own)
    return suites, list(parts.values())


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
        return ["method", *arrows, "seeds", "CPU s", "steps/s", "MiB"]

    def rows(self) -> list[list[tuple[str, str]]]:
        """Cells as text and kind: `best`, `tied` (not told from the best), or nothing."""
        part, found = self.part, []
        compared = {metric: part.compared(metric) for metric in part.table.metrics}
        for label in part.labels:
            row = [(label, "label")]
            for metric, (best, others) in compared.items():
                tied = label in others and others[label].p >= LEVEL
                kind = "best" if label == best else "tied" if tied else ""
                row.append((str(part.summary(label, metric)), kind))
            row.append((str(len(part.done(label))), ""))
            for name in ("train_cpu_s", "steps_per_s"):
                cost = part.cost(label, name)
                row.append((f"{cost.mean:.3g}" if cost.values else "–", ""))
            memory = part.cost(label, "peak_gpu_memory_mib")
            memory = memory if memory.values else part.cost(label, "peak_memory_mib")
            row.append((f"{max(memory.values.values()):.0f}" if memory.values else "–", ""))
            found.append(row)
        return found

    def tests(self) -> list[str]:
        """A sentence for each metric: the best row, and how sure that is."""
        said = []
        for metric in self.part.table.metrics:
            best, others = self.part.compared(metric)
            known = {o: c for o, c in others.items() if not math.isnan(c.p)}
            if best is None:
                continue
            if not known:
                said.append(f"{metric}: best {best}; one seed, so no test.")
                continue
            worded = [f"{o} p = {c.p:.2g} ({c.test})" for o, c in known.items()]
            said.append(f"{metric}: best {best}, against " + ", ".join(worded) + ".")
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
        if len(budgets) == 1:
            said.append(f"Budget of each cell: {next(iter(budgets))}.")
        else:
            said += [f"Budget of {', '.join(labels)}: {b}." for b, labels in budgets.items()]
        last = sorted({r["label"] for r in part.records if r.get("checkpoint") == "last"})
        if last:
            said.append(
                f"{', '.join(last)}: the state at the end of training was tested, for the budget "
                "ended before the first validation; of all others the best by validation."
            )
        protocols = {
            f"{name}: " + ", ".join(f"{k} {v}" for k, v in protocol.items())
            for r in part.records
            for name, protocol in r.get("protocol", {}).items()
        }
        said += sorted(protocols)
        if part.missing:
            said.append(f"{part.missing} cells have not been run.")
        return said

    def environments(self) -> list[str]:
        """Machines and versions of all records, each once."""
        found = []
        for record in self.part.records:
            if not (e := record.get("environment")):
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
            lines.append(f"- failed: {record['id']}: {record['error'].splitlines()[-1]}")
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
    return {"best": f"**{text}**", "tied": f"{text} ≈"}.get(kind, text)


def pareto(part: Part) -> bytes | None:
    """The first metric against processor time, a point per row; those that none beats in both are
    joined."""
    metric, better = next(iter(part.table.metrics.items()))
    points = {
        label: (part.cost(label, "train_cpu_s").mean, part.summary(label, metric))
        for label in part.labels
        if part.cost(label, "train_cpu_s").values and part.summary(label, metric).values
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
    axes.set_xlabel("processor time of training, s")
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
