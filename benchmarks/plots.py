"""Pictures of a report: quality against cost, and learning curves, as SVG."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eblvm.benchmarks.parts import Part

__all__ = ["curves", "pareto"]


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
    front = frontier([(cost, summary.mean) for cost, summary in points.values()], better)
    axes.plot(*zip(*front, strict=True), color="0.5", linewidth=1, linestyle=":", zorder=0)
    for i, (label, (cost, summary)) in enumerate(points.items()):
        error = 0.0 if math.isnan(summary.deviation) else summary.deviation
        axes.errorbar(cost, summary.mean, error, fmt="o", color=color(i), capsize=3, label=label)
    axes.set_xlabel(axis)
    axes.set_ylabel(f"{metric} ({better} is better)")
    axes.set_xscale("log")
    axes.legend(fontsize=8, framealpha=0)
    return svg_of(figure)


def frontier(points: Sequence[tuple[float, float]], better: str) -> list[tuple[float, float]]:
    """Those of the points (cost, figure) that none beats in both, by their costs.

    Arguments:
        points: One or more.
        better: Whether a `lower` or a `higher` figure is; a lower cost always is.
    """
    sign = 1 if better == "lower" else -1
    found: list[tuple[float, float]] = []
    for cost, figure in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not found or sign * figure < sign * found[-1][1]:
            found.append((cost, figure))
    return found


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
