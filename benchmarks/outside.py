"""`eblvm evaluate`: samples that any code has made, under the metrics of a recipe.

The samples stand in for a learner, and the recipe's own callbacks judge them on the recipe's own
test split; so the figures can stand in one table with those of our methods.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from eblvm.benchmarks.cell import NUM_SAMPLES, environment
from eblvm.benchmarks.protocols import difference, protocols_of
from eblvm.benchmarks.run import keep, read_results
from eblvm.benchmarks.suite import Cell, Suite
from eblvm.cli import UserError, print_table, recipe_root
from eblvm.data import ImageDataModule, TextDataModule
from eblvm.data.corpora import TextFiles
from eblvm.data.vocabulary import Vocabulary
from eblvm.evaluation import GridDensity, Modes, SampleDensity, SampleQuality, StackedModes
from eblvm.metrics.features import PACKAGED, ClassifierFeatures, PixelFeatures, features_for
from eblvm.pictures import save_samples
from eblvm.refining import ProposalQuality
from eblvm.text_evaluation import Sentences, WrittenLanguage
from eblvm.training import mendable, parse, protocols, quiet

__all__ = ["GivenSamples", "evaluate", "read_samples"]

JUDGES = (SampleQuality, SampleDensity, Modes, StackedModes, Sentences, WrittenLanguage)
"""Callbacks that ask for samples and nothing else; but for those that ask for a starter's."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm")

Rows = Tensor | list[list[str]]


class GivenSamples(LightningModule):
    """Hands over samples that lie there already, as a learner would draw them.

    Arguments:
        rows: Data, with shape `(N, *event)`.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows
        self._place = 0

    def generator(self, batch_idx: int = 0, offset: int = 0) -> torch.Generator:
        """A source of noise that nobody uses; the first of a series starts from the first row."""
        if batch_idx == 0:
            self._place = 0
        return torch.Generator()

    def sample(
        self, num: int, generator: torch.Generator | None = None, noise: bool = False
    ) -> Tensor:
        """The next `num` rows.

        Raises:
            ValueError: If there are not so many.
        """
        rows = self.rows[self._place : self._place + num]
        self._place += num
        if len(rows) < num:
            raise ValueError(
                f"there are {len(self.rows)} samples, and more are asked for. Give more, or say "
                f"--num {len(self.rows)} (figures of other numbers of samples do not compare)."
            )
        return rows.to(self.device)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """The callbacks look at the data."""


@dataclass
class Trial:
    """What samples are compared with, and by what.

    Arguments:
        data: A data module or a loader.
        judges: Callbacks.
        given: The samples as the data are: images, points or tokens.
    """

    data: Any
    judges: list[Any]
    given: Tensor


def evaluate(
    samples: str,
    reference: str,
    num: int | None = None,
    features: str | None = None,
    unit: bool = False,
    out: str | None = None,
    bench: Path | None = None,
    table: str | None = None,
    label: str | None = None,
    seed: int = 0,
) -> str:
    """Score samples; a table on the standard output, and where the figures went.

    Arguments:
        samples: A folder of images; `.pt`, `.npy` or `.npz`; or `.txt`, a sentence per line.
        reference: A recipe; a data set such as `MNIST`; or data as `samples`.
        num: How many samples to take, in place of the number that the recipe's metrics take.
        features: For images, where the recipe does not say: a packaged classifier, `pixels`, or the
            weights file of a classifier.
        unit: Whether floating-point images are in [0, 1] in place of [−1, 1].
        out: A JSON file for figures and protocols.
        bench: Folder of a finished suite that the figures join.
        table: The table there.
        label: What the table calls the method.
        seed: Under which seed the figures count.

    Raises:
        UserError: If something does not go together.
    """
    quiet()
    place = None if bench is None else place_for(bench, table, label or Path(samples).stem, seed)
    with mendable():
        rows = read_samples(Path(samples), unit)
        trial = trial_for(reference, rows, features, unit)
        judges = [
            judge
            for judge in trial.judges
            if isinstance(judge, JUDGES) and not isinstance(judge, ProposalQuality)
        ]
        if not judges:
            raise UserError(f"{reference} has no metric that samples alone can be scored by.")
        for judge in judges:
            judge.num = num or judge.num
        kind = "dataloaders" if isinstance(trial.data, DataLoader) else "datamodule"
        with tempfile.TemporaryDirectory() as folder:  # where callbacks put pictures
            trainer = quiet_trainer(judges, folder)
            trainer.test(GivenSamples(trial.given), verbose=False, **{kind: trial.data})
    found = trainer.callback_metrics.items()
    metrics = {name.removeprefix("test/"): float(value) for name, value in found}
    nums = {type(judge).__name__: judge.num for judge in judges}
    protocol = {
        name: {**found, "num_samples": nums[name], "reference": reference}
        for name, found in protocols(judges, "test", seed).items()
    }
    figures = Table("metric", "value", box=None, header_style="bold")
    for name, value in metrics.items():
        figures.add_row(name, f"{value:.5g}")
    print_table(figures)
    record = {"samples": samples, "metrics": metrics, "protocol": protocol}
    said = []
    if out is not None:
        text = json.dumps({**record, "environment": environment()}, indent=2) + "\n"
        Path(out).write_text(text, encoding="utf-8")
        said.append(f"metrics: {out}")
    if place is not None and bench is not None:
        said.append(join(bench, place, record, rows))
    return "\n".join(said)


def quiet_trainer(judges: Sequence[Callback], folder: str) -> Trainer:
    """A trainer that only tests, on one device."""
    return Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        inference_mode=False,  # judges of sentences train
        callbacks=[*judges],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )


def read_samples(path: Path, unit: bool = False) -> Rows:
    """Images `(N, C, H, W)` in [−1, 1], points `(N, 2)`, or sentences.

    Arguments:
        path: A folder of images, `.pt`, `.npy`, `.npz` or `.txt`.
        unit: Whether floating-point images are in [0, 1].

    Raises:
        UserError: If the file is no such thing.
    """
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise UserError(f"there is no file or folder {path}.")
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line.split() for line in lines if line.strip()]
    if path.suffix == ".pt":
        found = torch.load(path, map_location="cpu", weights_only=True)
    elif path.suffix in (".npy", ".npz"):
        import numpy as np

        array = np.load(path, allow_pickle=False)
        array = array[array.files[0]] if path.suffix == ".npz" else array
        found = torch.from_numpy(np.ascontiguousarray(array))
    else:
        raise UserError(f"{path} is not a folder of images, .pt, .npy, .npz or .txt.")
    if not isinstance(found, Tensor) or found.dim() not in (2, 4) or not len(found):
        shape = tuple(getattr(found, "shape", ()))
        raise UserError(
            f"{path} holds {type(found).__name__} {shape}; expected a tensor of images "
            "(N, C, H, W) or of points (N, 2)."
        )
    if found.dim() == 4 and found.shape[1] not in (1, 3) and found.shape[3] in (1, 3):
        found = found.permute(0, 3, 1, 2)  # as image libraries keep them
    return scaled(found, path, unit) if found.dim() == 4 else found.float()


def scaled(images: Tensor, path: Path, unit: bool) -> Tensor:
    """Images in [−1, 1], from bytes or from what they are said to be.

    Raises:
        UserError: If the range is not what it is said to be, or cannot be told.
    """
    if images.dtype == torch.uint8:
        return images.float() / 127.5 - 1
    if not images.is_floating_point() or not images.isfinite().all():
        raise UserError(f"{path} holds {images.dtype}; expected bytes, or finite numbers.")
    least, most = images.min().item(), images.max().item()
    low = 0.0 if unit else -1.0
    if least < low - 1e-3 or most > 1 + 1e-3:
        raise UserError(
            f"{path} has values from {least:.4g} to {most:.4g}; expected [{low:g}, 1]. Give bytes, "
            "or numbers in [-1, 1], or in [0, 1] with --unit."
        )
    if not unit and least >= 0:
        raise UserError(
            f"{path} has values from {least:.4g} to {most:.4g}, so they may be meant for [0, 1]: "
            "say --unit; or give bytes, which leave no doubt."
        )
    return images.float() * 2 - 1 if unit else images.float()


def read_folder(folder: Path) -> Tensor:
    """All images of a folder and of those below it, in the order of their names.

    Raises:
        UserError: If there are none, or they differ in size.
    """
    import numpy as np
    from PIL import Image

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES)
    if not paths:
        raise UserError(f"there are no images in {folder}; expected {', '.join(IMAGES)}.")
    if any(p.suffix.lower() in (".jpg", ".jpeg") for p in paths):
        sys.stderr.write("eblvm: JPEG files; their losses change the figures, prefer PNG.\n")
    arrays = []
    for path in paths:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16 bits; `convert` would cut off what is above 255
                arrays.append(np.asarray(image).astype(np.float32) / 257)  # 65535 becomes 255
            else:
                gray = image.mode in ("1", "L")
                arrays.append(np.asarray(image.convert("L" if gray else "RGB"), np.float32))
        if arrays[-1].shape != arrays[0].shape:
            raise UserError(
                f"{path} is an image of {arrays[-1].shape}, {paths[0]} one of {arrays[0].shape}; "
                "expected images of one size and kind."
            )
    images = torch.from_numpy(np.stack(arrays))
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return images / 127.5 - 1


def trial_for(reference: str, rows: Rows, features: str | None, unit: bool) -> Trial:
    """What the reference means for samples of this kind."""
    recipe = recipe_root() / f"{reference.removesuffix('.yaml')}.yaml"
    path = Path(reference)
    if recipe.is_file() or path.suffix == ".yaml":
        return recipe_trial(reference, rows)
    if isinstance(rows, list):
        if path.suffix != ".txt":
            raise UserError(
                f"sentences are compared with a .txt file or a recipe, not {reference}."
            )
        return text_trial(path, rows)
    if rows.dim() != 4:
        raise UserError("points of the plane are compared with a recipe, such as toy/vae_pinwheel.")
    shape = tuple(rows.shape[1:])
    judges = [SampleQuality(chosen_features(features, shape), num=len(rows))]
    if not path.exists():
        return Trial(ImageDataModule(reference, shape[1], shape[0], 500), judges, rows)
    real = read_samples(path, unit)
    if isinstance(real, list) or real.shape[1:] != rows.shape[1:]:
        raise UserError(f"the samples have shape {shape}; {reference} holds others.")
    labels = torch.zeros(len(real), dtype=torch.long)
    return Trial(DataLoader(TensorDataset(real, labels), batch_size=500), judges, rows)


def chosen_features(name: str | None, shape: tuple[int, ...]) -> Any:
    """The feature space of a name."""
    if name is None:
        return features_for(shape)
    if name == "pixels":
        return PixelFeatures(shape)
    if name not in PACKAGED and not Path(name).is_file():
        raise UserError(
            f"--features is {name!r}; expected {', '.join(PACKAGED)}, pixels or a file."
        )
    return ClassifierFeatures(name)


def recipe_trial(reference: str, rows: Rows) -> Trial:
    """The recipe's data and its callbacks; a density that needs a model is left out."""
    line = parse(reference, "--trainer.accelerator=cpu", "--trainer.devices=1")
    trainer: Any = line.trainer
    judges = [
        SampleDensity(c.num, c.bins) if isinstance(c, GridDensity) else c for c in trainer.callbacks
    ]
    data: Any = line.datamodule
    if not isinstance(rows, list):
        return Trial(data, judges, rows)
    data.prepare_data()
    data.setup("test")
    return Trial(data, judges, data.encode(rows))


def text_trial(path: Path, rows: list[list[str]]) -> Trial:
    """A file of sentences, as training and as test text."""
    file = str(path.absolute())
    real = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    longest = max(map(len, [*rows, *real]))
    size = len(Vocabulary.SPECIAL) + len({word for words in real for word in words})
    corpus = TextFiles(file, file, file)
    data: Any = TextDataModule(corpus, vocab_size=size, max_length=longest + 2, batch_size=100)
    data.prepare_data()
    data.setup("test")
    judges = [Sentences(len(rows)), WrittenLanguage(len(rows), compare=False)]
    return Trial(data, judges, data.encode(rows))


def place_for(bench: Path, table: str | None, label: str, seed: int) -> Cell:
    """The cell of a table that samples of others may fill.

    Raises:
        UserError: If there is no such suite or table, or the label is a method's of the suite.
    """
    described = bench / "suite.json"
    if not described.is_file():
        raise UserError(f"{bench} holds no suite.json; give a folder that `eblvm bench` made.")
    suite = Suite.from_json(described.read_text(encoding="utf-8"))
    names = [t.name for t in suite.tables]
    if table not in names:
        raise UserError(f"--table is {table!r}; {bench} has {', '.join(names)}.")
    cell = Cell(str(table), label, "", seed)
    taken = {c.label: replace(c, seed=seed).id for c in suite.cells if c.table == table}
    for record in read_results(bench / "results.jsonl"):
        same = "outside" in record and record["label"] == label  # they may be given again
        if record["table"] == table and not same:
            taken[record["label"]] = Cell(record["table"], record["label"], "", seed).id
    if known := [own for own, place in taken.items() if place == cell.id]:
        raise UserError(
            f"--label is {label!r}, and {bench} has {known[0]!r} in the table {table}. Choose "
            "another label for these samples."
        )
    return cell


def require_alike(bench: Path, cell: Cell, record: dict[str, Any]) -> None:
    """Refuse figures that were made unlike those which they would stand beside.

    Raises:
        UserError: If for a metric of the table all records that tell their protocol have another.
    """
    suite = Suite.from_json((bench / "suite.json").read_text(encoding="utf-8"))
    (table,) = (t for t in suite.tables if t.name == cell.table)
    others = [r for r in read_results(bench / "results.jsonl") if r["table"] == cell.table]
    for metric in table.metrics:
        own = protocols_of(record, metric)
        known = [
            (r["label"], found)
            for r in others
            if metric in r.get("metrics", {}) and (found := protocols_of(r, metric))
        ]
        differ = [(label, found, difference(own, found)) for label, found in known]
        if metric in record["metrics"] and differ and all(key for _, _, key in differ):
            label, found, key = differ[0]
            raise UserError(
                f"{metric} of these samples does not compare with that of {label} in {bench}: "
                f"{key} is {own[str(key)]}, there {found[str(key)]}. Give --reference the recipe "
                "of a row of this table, --features its features, and as many samples as it has."
            )


def join(bench: Path, cell: Cell, record: dict[str, Any], rows: Rows) -> str:
    """Put figures beside those of a suite.

    Raises:
        UserError: If they do not compare.
    """
    require_alike(bench, cell, record)
    folder = bench / "cells" / cell.id
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(rows, list):
        name = "samples.txt"
        lines = [" ".join(words) for words in rows[:NUM_SAMPLES]]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        name = "samples.png"
        save_samples(rows[: NUM_SAMPLES if rows.dim() == 4 else 3000], folder / name)
    here = {"id": cell.id, "table": cell.table, "label": cell.label, "seed": cell.seed}
    more = {"status": "done", "outside": record["samples"], "environment": environment()}
    keep(bench / "results.jsonl", {**here, **record, **more, "samples": name})
    return f"joined:  {bench}, table {cell.table}; `eblvm bench report {bench}` shows it"
