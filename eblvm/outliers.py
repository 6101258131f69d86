"""Out-of-distribution evaluation, as a callback: the scores of a learner on data from elsewhere.

A learner says what scores it has (`scores(x) -> {name: (B,)}`, high means in-distribution). Each is
judged by how well it tells the test data from other sets. Three of those need no files: uniform
noise, images of one random gray level (`constant`), and means of two test data (`interpolation`).
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from eblvm.cli import print_table
from eblvm.data import DataModule
from eblvm.data.loader import seeded_generator
from eblvm.evaluation import Evaluation, gather, log, publish, require
from eblvm.metrics import aupr, auroc, fpr_at_95_tpr

__all__ = ["OutOfDistribution", "artificial"]


@runtime_checkable
class Scoring(Protocol):
    """A learner that scores data."""

    def scores(self, x: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Name to scores `(B,)`; high means in-distribution."""


def artificial(x: Tensor, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """Noise, constants and interpolations, each as many as there are data, in the shape of `x`.

    Arguments:
        x: Data in [−scale, scale], with shape `(B, *event)`.
        seed: Of the noise.
        scale: Noise and levels are uniform on [−scale, scale].
    """
    generator = seeded_generator(seed, 1)
    noise = scale * (torch.rand(x.shape, generator=generator).to(x) * 2 - 1)
    level = torch.rand(len(x), *[1] * (x.dim() - 1), generator=generator).to(x) * 2 - 1
    level = scale * level
    order = torch.randperm(len(x), generator=generator).to(x.device)
    return {
        "uniform": noise,
        "constant": level.expand_as(x).clone(),
        "interpolation": (x + x[order]) / 2,
    }


class OutOfDistribution(Evaluation):
    """Areas under curves for every score of the learner and every other set.

    Logs `ood/SET/SCORE`, the area under the receiver operating characteristic (in-distribution is
    positive, 0.5 is chance), and as `ood/SET` that of one score, by which learners are compared;
    `ood/mean/SCORE` and `ood/mean` are the means over the sets. At tests it prints a table with
    intervals, writes `ood.json` into the run folder, with areas under precision-recall curves and
    false positive rates, too, and draws histograms. The intervals are for the choice of data: seeds
    differ by more, so run several.

    Sets whose files are missing are left out, and named before training begins; that is all of them
    but noise, constants and interpolations where nothing has been fetched.

    Arguments:
        others: Name to data module, whose test split is taken; its x has the shape of the data's.
        num: Data of each set.
        num_bootstrap: Resamples for the intervals.
        built_in: Whether noise, constants and interpolations are among the sets.
        every_n_epochs: Epochs between looks.
        scale: Noise and gray levels are uniform on [−scale, scale]; 1 for images.
        score: The one that `ood/SET` is of; the learner's first if None.

    Raises:
        ValueError: If there are no other sets, or one is named `mean`; or, at the first look, if
            the learner has no such score.
        FileNotFoundError: When a run starts, if the files of all are missing and none is built in.
    """

    def __init__(
        self,
        others: dict[str, DataModule] | None = None,
        num: int = 1000,
        num_bootstrap: int = 200,
        built_in: bool = True,
        every_n_epochs: int = 1,
        scale: float = 1.0,
        score: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs)
        if not others and not built_in:
            raise ValueError("there are no others to tell data from; name one, or set built_in.")
        self.others = dict(others or {})
        if "mean" in self.others:
            raise ValueError("a set is named mean, as is the mean over the sets; rename it.")
        self.score = score
        self.num = num
        self.num_bootstrap = num_bootstrap
        self.built_in = built_in
        self.scale = scale
        self._data: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the other sets: what is wrong or missing is known before any training."""
        missing: dict[str, FileNotFoundError] = {}
        for name, module in self.others.items():
            try:
                module.setup("test")
            except FileNotFoundError as error:
                missing[name] = error
        if missing and not self.built_in and len(missing) == len(self.others):
            raise next(iter(missing.values()))
        for name in missing:
            del self.others[name]
        if missing and trainer.is_global_zero:
            reasons = "".join(f"\n  {name}: {error}" for name, error in missing.items())
            sys.stderr.write(f"eblvm: left out of out-of-distribution detection:{reasons}\n")

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        if sum(map(len, self._data)) < self.num:
            self._data.append(batch[0])

    def sets(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The other sets by name."""
        if self.built_in:
            yield from artificial(x, scale=self.scale).items()
        for name, module in self.others.items():
            module.setup("test")
            found: list[Tensor] = []
            for batch in module.batches("test"):
                found.append(batch[0])
                if sum(map(len, found)) >= self.num:
                    break
            other = torch.cat(found)[: self.num].to(x)
            if other.shape[1:] != x.shape[1:]:
                raise ValueError(
                    f"the data of {name} have shape {tuple(other.shape[1:])} and those of the "
                    f"model {tuple(x.shape[1:])}; set image_size and channels of {name} alike."
                )
            yield name, other

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        model: Any = require(learner, Scoring, "OutOfDistribution")
        size = min(100, len(self._data[0]))  # what the model is used to, or less
        x = gather(learner, torch.cat(self._data))[: self.num]
        self._data = []

        def scores(data: Tensor) -> dict[str, Tensor]:
            generator = model.generator(0, 7)
            parts = [model.scores(part, generator) for part in data.split(size)]
            return {name: torch.cat([p[name] for p in parts]).cpu() for name in parts[0]}

        inside = scores(x)
        first = self.score or next(iter(inside))
        if first not in inside:
            raise ValueError(
                f"{type(model).__name__} has no score {first}, but {', '.join(inside)}; name "
                "one of these, or none for the first."
            )
        outside = {name: scores(other) for name, other in self.sets(x)}
        bootstrap = self.num_bootstrap if stage == "test" else 0
        report: dict[str, dict[str, dict[str, list[float]]]] = {}
        for name, found in outside.items():
            report[name] = {
                score: {
                    figure.__name__: list(figure(inside[score], found[score], bootstrap))
                    for figure in (auroc, aupr, fpr_at_95_tpr)
                }
                for score in inside
            }
        areas = {
            f"ood/{name}/{score}": torch.tensor(figures["auroc"][0])
            for name, row in report.items()
            for score, figures in row.items()
        }
        means = {score: mean_area(report, score) for score in inside}
        areas |= {f"ood/mean/{score}": torch.tensor(mean) for score, mean in means.items()}
        chosen = {f"ood/{name}": areas[f"ood/{name}/{first}"] for name in (*report, "mean")}
        log(learner, stage, areas | chosen)
        self.protocol = {
            "score": first,
            "num_data": len(x),
            "num_bootstrap": bootstrap,
            "num_others": {name: len(found[first]) for name, found in outside.items()},
            **{f"ood/mean/{score}": {"sets": ", ".join(report)} for score in means},
            "ood/mean": {"sets": ", ".join(report)},
            "dtype": "areas float64",
        }
        publish(trainer, "ood", histograms({"data": inside, **outside}, first))
        if stage == "test" and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            text = json.dumps({"num": len(x), "figures": report}, indent=2)
            (folder / "ood.json").write_text(text + "\n", encoding="utf-8")
            show(report)


def mean_area(report: dict[str, dict[str, dict[str, list[float]]]], score: str) -> float:
    """The mean over the sets of a score's area under the receiver operating characteristic."""
    return sum(row[score]["auroc"][0] for row in report.values()) / len(report)


def show(report: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    """Print a line for each set and score, and the mean over the sets."""
    from rich.table import Table

    table = Table("other", "score", "AUROC", "interval", "AUPR", "FPR95", box=None)
    for name, row in report.items():
        for score, figures in row.items():
            area, low, high = figures["auroc"]
            precision, false = figures["aupr"][0], figures["fpr_at_95_tpr"][0]
            interval = f"{low:.3f}–{high:.3f}"
            cells = (f"{area:.3f}", interval, f"{precision:.3f}", f"{false:.3f}")
            table.add_row(name, score, *cells)
    for score in next(iter(report.values())):
        table.add_row("mean", score, f"{mean_area(report, score):.3f}", "", "", "")
    print_table(table)


def histograms(scores: dict[str, dict[str, Tensor]], score: str) -> Any:
    """One score's histogram on each set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    every = torch.cat([row[score] for row in scores.values()])
    low, high = (float(every.quantile(q)) for q in (0.005, 0.995))
    for name, row in scores.items():
        values = row[score].clamp(low, high).numpy()
        axes.hist(values, bins=60, range=(low, high), density=True, histtype="step", label=name)
    axes.set_xlabel(f"{score} (high means in-distribution)")
    axes.legend()
    return figure
