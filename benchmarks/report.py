"""`eblvm bench report DIR…`: tables, curves and samples of finished suites, for people.

`report.md` goes with a repository, its pictures beside it; `report.html` is one file that needs
nothing else.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table as RichTable

from eblvm.benchmarks.page import page
from eblvm.benchmarks.parts import Part, gather
from eblvm.benchmarks.plots import curves, pareto
from eblvm.benchmarks.protocols import worded
from eblvm.benchmarks.run import last_line
from eblvm.benchmarks.statistics import LEGEND
from eblvm.benchmarks.suite import Suite
from eblvm.cli import print_table

__all__ = ["Section", "write_report"]

MARKS = {"best": " *", "tied": " ≈", "untested": " ?", "other": " †", "": "", "label": ""}
"""What stands behind a figure on a terminal."""

ARROWS = {"lower": "↓", "higher": "↑"}


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

    def drawn(self, label: str) -> bool:
        """Whether a row has samples, or is of other code, whose samples are not ours to show."""
        done = self.part.done(label)
        return any(r.get("samples") or "outside" in r for r in done)

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
                words += "; against " + "; ".join(worded)
            if untested:
                words += f"; not tested, for want of seeds or of spread: {'; '.join(untested)}"
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
            said += [f"Budget of {'; '.join(labels)}: {b}." for b, labels in budgets.items()]
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
        if seeds := sorted({record["seed"] for record in part.records if "seed" in record}):
            said.append(f"Seeds: {', '.join(map(str, seeds))}.")
        if bare := [b for b in part.labels if part.done(b) and not self.drawn(b)]:
            said.append(f"No samples were drawn of {'; '.join(bare)}; the cells' log.txt says why.")
        last = sorted({r["label"] for r in part.records if r.get("checkpoint") == "last"})
        if last:
            said.append(
                f"{'; '.join(last)}: the state at the end of training was tested, for the budget "
                "ended before the first validation; of all others what the recipe monitors: the "
                "best by validation, or, with `monitor: step`, the last."
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
                whose = f" of {'; '.join(labels)}" if len(ways) > 1 else ""
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
