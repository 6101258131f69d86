"""Behind `eblvm sample|reconstruct|interpolate|inpaint`: what a trained model is good for.

Data are the first of the run's own test split; its `config.yaml` says which. Pictures have a row
for each kind of image, or for each path; sentences are lines, with an empty one after each pair or
path; `.pt` keeps the tensor.
"""

import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from omegaconf import OmegaConf
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.nn import functional as F

from eblvm.checkpoint import load, read_checkpoint, vocabulary_of
from eblvm.cli import UserError
from eblvm.data.images import read_folder
from eblvm.data.loader import seeded_generator
from eblvm.data.text import TextDataModule
from eblvm.data.vocabulary import Vocabulary
from eblvm.decoding import Decoding
from eblvm.latent import LatentVariableModel
from eblvm.latent import interpolate as paths
from eblvm.likelihoods import DialogueLikelihood
from eblvm.pictures import image_grid, save_image, save_samples
from eblvm.training import mendable

__all__ = [
    "draw",
    "draw_shares",
    "inpaint",
    "interpolate",
    "reconstruct",
    "refined_samples",
    "score",
]

CHUNK = 1000
"""Samples that are drawn at once."""


def portions(num: int, width: int = 1) -> list[int]:
    """How many samples are drawn at a time, `num` in all, where each follows `width` prefixes."""
    most = max(1, CHUNK // width)
    return [min(most, num - start) for start in range(0, num, most)]


def opened(
    ckpt: str, seed: int, device: str | None, *abilities: str
) -> tuple[Any, torch.Generator]:
    """The model of a checkpoint and a source of noise.

    Raises:
        UserError: If the model lacks one of the methods `abilities`.
    """
    model: Any = load(ckpt, device)
    if missing := [name for name in abilities if not hasattr(model, name)]:
        raise UserError(f"{ckpt} is of a {type(model).__name__}, which cannot {missing[0]}.")
    return model, torch.Generator(model.device).manual_seed(seed)


def run_data(ckpt: str, **changes: Any) -> Any:
    """The data module of the run, ready to test on; arguments and errors as of `make_data`.

    Raises:
        ValueError: If text has another vocabulary now than the checkpoint's.
    """
    data = make_data(ckpt, **changes)
    data.prepare_data()
    data.setup("test")
    if (state := read_checkpoint(ckpt).get(type(data).__qualname__)) is not None:
        data.load_state_dict(state)
    return data


def make_data(ckpt: str, **changes: Any) -> Any:
    """The data module of the run, of which nothing is read yet.

    Arguments:
        ckpt: The checkpoint, beside whose folder the run's `config.yaml` lies.
        changes: Arguments of the data module that differ from the run's; None drops one.

    Raises:
        UserError: If there is no `config.yaml`.
    """
    config = Path(ckpt).absolute().parent.parent / "config.yaml"
    if not config.is_file():
        raise UserError(f"no config.yaml beside {ckpt}, which would say what the data are.")
    section: Any = OmegaConf.to_container(OmegaConf.load(config), resolve=True)["data"]  # type: ignore
    arguments = section["init_args"] | changes
    section["init_args"] = {name: value for name, value in arguments.items() if value is not None}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False)
    return parser.instantiate_classes(parser.parse_object({"data": section})).data


def first_rows(data: Any, num: int, device: Any) -> tuple[Tensor, Tensor]:
    """The first `num` test data of a data module and their labels."""
    found: list[tuple[Tensor, Tensor]] = []
    for batch in data.batches("test"):
        found.append(batch)
        if sum(len(x) for x, _ in found) >= num:
            break
    x, label = (together(part)[:num].to(device) for part in zip(*found, strict=True))
    return x, label


def together(parts: Sequence[Tensor]) -> Tensor:
    """Batches as one; those of tokens, which are as wide as their longest sentence, are padded."""
    if parts[0].is_floating_point():
        return torch.cat(list(parts))
    widest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        missing = [most - size for most, size in zip(widest, part.shape[1:], strict=True)]
        margins = [side for size in reversed(missing) for side in (0, size)]
        padded.append(F.pad(part, margins, value=Vocabulary.PAD))
    return torch.cat(padded)


def test_data(ckpt: str, num: int, model: Any) -> tuple[Tensor, Tensor | None]:
    """The first `num` test data of the run, on the model's device, and their conditions.

    Raises:
        UserError: If the run's `config.yaml` is not where it should be.
    """
    x, label = first_rows(run_data(ckpt), num, model.device)
    condition = getattr(model, "condition", None)
    return x, None if condition is None else condition(x, label)


def words_of(ckpt: str, x: Tensor) -> Vocabulary | None:
    """The vocabulary of a checkpoint whose data or samples `x` are tokens; None if they are not."""
    return None if x.is_floating_point() else vocabulary_of(read_checkpoint(ckpt))


def save(rows: Tensor, out: str, vocabulary: Vocabulary | None = None) -> None:
    """Write `(R, N, *event)` as R rows of N images, as R blocks of N sentences, or as a tensor.

    Raises:
        UserError: If the suffix does not go with what there is, or nothing can be written.
    """
    path = Path(out)
    try:
        if path.suffix == ".png" and rows.dim() == 5 and rows.shape[2] in (1, 3):
            save_image(image_grid(rows.cpu().flatten(0, 1), rows.shape[1]), path)
        elif path.suffix == ".txt" and vocabulary is not None:
            blocks = [[" ".join(words) for words in vocabulary.sentences(row)] for row in rows]
            lines = [line for block in blocks for line in (*block, "")]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        elif path.suffix == ".pt":
            torch.save(rows.cpu(), path)
        else:
            save_samples(rows.cpu().flatten(0, 1), path)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def chain_of(model: Any, what: str) -> None:
    """Raise a `UserError` unless the model has a chain on data."""
    if not hasattr(model, "refine"):
        raise UserError(
            f"{what} is for energies of data (DataEBM), and this is a {type(model).__name__}."
        )


def refined_samples(
    ckpt: str,
    num: int,
    out: str,
    seed: int,
    device: str | None = None,
    steps: int | None = None,
    label: int | None = None,
    strip: bool = False,
) -> str:
    """Samples after a number of steps, of one class, or their chains as a film strip."""
    with mendable():
        model, generator = opened(ckpt, seed, device, "sample")
        chain_of(model, "--steps, --label or --strip")
        condition = None
        if label is not None:
            if model.condition is None or getattr(model.condition, "num_classes", 0) <= label:
                raise UserError(f"--label is {label}, but the model knows no such class.")
            condition = torch.tensor([label], device=model.device)
        settings: dict[str, Any] = {"num_steps": steps, "condition": condition}
        settings["generator"] = generator
        if strip:
            films = [model.film(n, **settings).transpose(0, 1).cpu() for n in portions(num)]
        else:
            samples = torch.cat([model.sample(n, **settings).cpu() for n in portions(num)])
    if not strip:
        try:
            save_samples(samples, Path(out))
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error
        return f"{num} samples of {ckpt}: {out}"
    save(torch.cat(films), out)
    return f"{num} chains of {ckpt}, a row each, from start to end: {out}"


def draw(
    ckpt: str,
    num: int,
    out: str | None,
    seed: int,
    device: str | None = None,
    noise: bool = False,
    symbol: int | None = None,
    how: dict[str, Any] | None = None,
) -> str:
    """Draw samples of a checkpoint into a file; the sentence that says so.

    Images become a grid, 2-D points a scatter plot, sentences lines of words; `.pt` keeps the
    tensor.

    Arguments:
        ckpt: The checkpoint.
        num: How many.
        out: The file; `samples.txt` for sentences and `samples.png` for all else if None.
        seed: Of the noise.
        device: Where to compute.
        noise: Whether to draw from p(x|z) instead of taking its mean.
        symbol: The symbol of all samples.
        how: Arguments of `eblvm.decoding.Decoding`.
    """
    with mendable():
        vocabulary = vocabulary_of(read_checkpoint(ckpt))
        model: Any = load(ckpt, device)
        if not hasattr(model, "sample"):
            raise UserError(f"{ckpt} is of a {type(model).__name__}, which draws no samples.")
        generator = torch.Generator(model.device).manual_seed(seed)
        decoding = Decoding(**how) if how else None
        if symbol is not None:
            check_symbol(model, symbol)
        if (decoding is not None or symbol is not None) and not hasattr(model, "latent"):
            raise UserError(
                f"{ckpt} is of a {type(model).__name__}; --symbol, --temperature, --top-k, --top-p "
                "and --beam are for latent-variable models of text."
            )
        begin = time.perf_counter()
        parts = []
        for n in portions(num, 1 if decoding is None else decoding.beam):
            if decoding is None and symbol is None:
                parts.append(model.sample(n, generator, noise).cpu())
                continue
            label = None if symbol is None else torch.full((n,), symbol, device=model.device)
            parts.append(model.latent.sample(n, generator, noise, label, decoding).cpu())
        samples = torch.cat(parts)
    seconds = time.perf_counter() - begin
    words = vocabulary is not None and not samples.is_floating_point()
    path = Path(out or ("samples.txt" if words else "samples.png"))
    try:
        if vocabulary is not None and words and path.suffix == ".txt":
            lines = [" ".join(words) for words in vocabulary.sentences(samples)]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            save_samples(samples.cpu(), path)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    return f"{num} samples of {ckpt} in {seconds:.3g} s: {path}"


def draw_shares(
    devices: int,
    ckpt: str,
    num: int,
    out: str | None,
    seed: int,
    device: str | None = None,
    noise: bool = False,
    symbol: int | None = None,
) -> str:
    """Draw with a process for each device, a share each, into one file; the sentence that says so.

    Shares differ in size by one at most and follow each other in the file; process r draws with a
    seed made of `seed` and r, so that the file depends on the number of processes.

    Arguments:
        devices: How many processes: on as many GPUs where there are enough, else all on `device`.
        ckpt: As in `draw`.
        num: Samples of all processes.
        out: As in `draw`, and `.pt` for sentences.
        seed: As in `draw`.
        device: Where to compute; a GPU each if None and there are enough, else the processor.
        noise: As in `draw`.
        symbol: As in `draw`.

    Raises:
        UserError: If a process fails, with its own words, or nothing can be written.
    """
    if num < devices:
        raise UserError(f"--num is {num}; expected a sample or more for each of {devices} devices.")
    gpus = torch.cuda.device_count() if device is None else 0
    places = [f"cuda:{r}" if gpus >= devices else device or "cpu" for r in range(devices)]
    options = ["--noise"] * noise + ([] if symbol is None else ["--symbol", str(symbol)])
    path = Path(out or "samples.png")
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.resolve().parent) as folder:
        parts = [Path(folder) / f"{r}.pt" for r in range(devices)]
        running = []
        for r, (part, place) in enumerate(zip(parts, places, strict=True)):
            share = num // devices + (r < num % devices)
            own = torch.randint(2**31, (), generator=seeded_generator(seed, r))
            command = [sys.executable, "-c", "from eblvm.cli import main; main()", "sample"]
            command += ["--ckpt", ckpt, "--num", str(share), "--out", str(part)]
            command += ["--seed", str(int(own)), "--device", place, *options]
            pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
            running.append(subprocess.Popen(command, text=True, **pipes))
        errors = [process.communicate()[1] for process in running]
        for r, process in enumerate(running):
            if process.returncode:
                last = (errors[r].strip().splitlines() or ["it said nothing"])[-1]
                raise UserError(f"process {r} of {devices} failed: {last}")
        samples = torch.cat([torch.load(part, weights_only=True) for part in parts])
    seconds = time.perf_counter() - begin
    try:
        save_samples(samples, path)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    return f"{num} samples of {ckpt} by {devices} processes in {seconds:.3g} s: {path}"


def check_symbol(model: Any, symbol: int) -> None:
    """Raise a `UserError` if the model has no such symbol."""
    prior: Any = getattr(getattr(model, "latent", None), "prior", None)
    try:
        if prior is None:
            raise TypeError(f"{type(model).__name__} has no prior, and so no symbols.")
        if isinstance(model.latent.likelihood, DialogueLikelihood):
            raise TypeError(str(DialogueLikelihood.unheard()))
        with torch.no_grad():
            count = prior.symbol_logits(prior.origin[None]).shape[1]
    except TypeError as error:
        raise UserError(f"--symbol {symbol}: {error}") from error
    if not 0 <= symbol < count:
        raise UserError(f"--symbol is {symbol}; this model has 0 to {count - 1}.")


def reconstruct(
    ckpt: str, num: int, out: str | None, steps: int | None, seed: int, device: str | None
) -> str:
    """Rows: test data, decoded encodings and, where there is a chain, these refined.

    Of text they are pairs of lines, a sentence and what is decoded of its latent, and of dialogues
    the responses.
    """
    with mendable():
        model, generator = opened(ckpt, seed, device, "reconstruct")
        x, condition = test_data(ckpt, num, model)
        settings: dict[str, Any] = {}
        rows = [x]
        if hasattr(model, "refine"):
            settings = {"condition": condition}
            z = model.encode(x, generator, condition)
            rows.append(model.decode(z, condition))
            rows.append(model.refine(rows[-1], generator, steps, condition))
        else:
            rows.append(model.reconstruct(x, generator, **settings))
        vocabulary = words_of(ckpt, x)
        if vocabulary is not None:
            rows[0] = x[:, 0] if x.dim() == 3 else x
            rows = list(together([row[None].cpu() for row in rows]))
    if vocabulary is not None:
        out = out or "reconstruct.txt"
        save(torch.stack(rows, 1), out, vocabulary)
        same = int((rows[0] == rows[1]).all(1).sum())
        return f"{len(x)} sentences and what is decoded of them, {same} as they were: {out}"
    out = out or "reconstruct.png"
    errors = [float((row - x).square().mean()) for row in rows[1:]]
    save(torch.stack(rows), out)
    words = ("decoded", "refined")
    figures = ", ".join(f"{w} {e:.4g}" for w, e in zip(words, errors, strict=False))
    return f"mean squared error per number: {figures}; rows data, {', '.join(words)}: {out}"


def interpolate(
    ckpt: str,
    num: int,
    out: str | None,
    points: int,
    data: bool,
    linear: bool,
    steps: int | None,
    seed: int,
    device: str | None,
) -> str:
    """A row for each path, of sentences a block; where there is a chain, every point is refined.

    A path has one condition from end to end. Between draws of the prior it is the next of the
    model's examples; between data it is theirs, so that these are pairs of one class.

    Raises:
        UserError: If the model has no latents, or the data are too few, or cannot be paired because
            each has a condition of its own.
    """
    with mendable():
        model, generator = opened(ckpt, seed, device)
        latent = getattr(model, "latent", None)
        if not isinstance(latent, LatentVariableModel):
            chain_of(model, "interpolate")
        condition: Tensor | None = None
        if data:
            x, condition = pairs(ckpt, num, model)
            if latent is not None:
                z = latent.infer(x, generator).at_mean().z
            else:
                twice = None if condition is None else condition.repeat(2)
                z = model.encode(x, generator, twice)
        else:
            prior = latent.prior if latent is not None else getattr(model.negatives, "prior", None)
            if prior is None:
                raise UserError(
                    f"the chains of {type(model.negatives).__name__} do not start from latents; "
                    "there is nothing to walk between."
                )
            z = prior.sample(2 * num, generator)
        if condition is None and getattr(model, "condition", None) is not None:
            condition = model.condition.examples(num)
        first, last = z.detach().split(num)
        path = paths(first, last, points, not linear).flatten(0, 1)
        if latent is not None:
            with torch.no_grad():
                images = latent.likelihood.mean(path)
        else:
            if condition is not None:
                condition = condition.repeat_interleave(points, 0)
            images = model.refine(model.decode(path, condition), generator, steps, condition)
        vocabulary = words_of(ckpt, images)
    out = out or ("interpolate.png" if vocabulary is None else "interpolate.txt")
    save(images.unflatten(0, (num, points)), out, vocabulary)
    return f"{num} paths of {points} points, a row each: {out}"


def pairs(ckpt: str, num: int, model: Any) -> tuple[Tensor, Tensor | None]:
    """Test data to walk between, `(2 num, *event)`, and the class that both ends of a path have.

    The first half are where the paths begin, the second where they end. The classes are `(num,)`,
    or None for a model without a condition.
    """
    conditional = getattr(model, "condition", None)
    num_classes = getattr(conditional, "num_classes", 0)
    if conditional is not None and not num_classes:
        raise UserError(
            "test data have a condition each, so there are no two to walk between under one; drop "
            "--data to walk between draws of the prior."
        )
    # however the classes fall, at most one datum of each is left without a partner
    x, label = test_data(ckpt, 2 * num + num_classes, model)
    waiting: dict[int, int] = {}
    found: list[tuple[int, int]] = []
    for i in range(len(x)):
        key = 0 if label is None else int(label[i])
        if key in waiting:
            found.append((waiting.pop(key), i))
        else:
            waiting[key] = i
    if len(found) < num:
        raise UserError(
            f"--num is {num}, but the test data make {len(found)} pairs"
            f"{' of one class' if num_classes else ''}."
        )
    first, last = torch.tensor(found[:num], device=x.device).T
    return torch.cat([x[first], x[last]]), None if label is None else label[first]


def inpaint(
    ckpt: str,
    num: int,
    out: str | None,
    hide: str,
    steps: int | None,
    seed: int,
    device: str | None,
) -> str:
    """Rows: test images, what is left of them, and four ways to fill in the rest."""
    with mendable():
        model, generator = opened(ckpt, seed, device)
        chain_of(model, "inpaint")
        x, condition = test_data(ckpt, num, model)
        if x.dim() != 4:
            raise UserError("inpaint needs images, and the run's data have none.")
        visible = ~hidden(hide, x.shape[2], x.shape[3]).to(x.device)
        rows = [x, torch.where(visible, x, 0)]
        rows += [model.inpaint(x, visible, generator, steps, condition) for _ in range(4)]
    out = out or "inpaint.png"
    save(torch.stack(rows), out)
    missing = (~visible).expand_as(x)
    error = torch.stack([(row - x)[missing].square().mean() for row in rows[2:]]).mean()
    return (
        f"mean squared error per hidden number {float(error):.4g}; rows data, seen, four times "
        f"filled in: {out}"
    )


def hidden(part: str, height: int, width: int) -> Tensor:
    """Where an image is hidden, boolean `(H, W)`."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = slice(None), slice(None)
    if part == "center":
        rows, columns = (
            slice(height // 4, -(-3 * height // 4)),
            slice(width // 4, -(-3 * width // 4)),
        )
    elif part in ("lower", "upper"):
        rows = slice(height // 2, None) if part == "lower" else slice(0, height // 2)
    else:
        columns = slice(0, width // 2) if part == "left" else slice(width // 2, None)
    mask[rows, columns] = True
    return mask


def score(ckpt: str, out: str, data: str | None, num: int, seed: int, device: str | None) -> str:
    """Every score of test data, a line each, into a table of comma-separated values.

    Of a folder all images are scored, in the order of their names, and lines say which is which.
    """
    with mendable():
        model, generator = opened(ckpt, seed, device, "scores")
        first: dict[str, list] = {}
        if data is not None and Path(data).is_dir():
            module = make_data(ckpt)
            if not hasattr(module, "image_size"):
                raise UserError(f"{ckpt} was not trained on images, and {data} is a folder.")
            x, first["file"] = read_folder(data, num, module.image_size, module.channels)
            x = x.to(model.device)
        else:
            changes: dict[str, Any] = {}
            if data is not None and isinstance(make_data(ckpt), TextDataModule):
                raise UserError(
                    "--data names images or densities, and this model is of text; its test split "
                    "is scored without --data."
                )
            if data is not None:  # what is said of the run's own data does not hold for others
                changes = dict.fromkeys(("val_size", "limit", "classes", "center_crop", "variant"))
                changes["dataset"] = data
            x, label = first_rows(run_data(ckpt, **changes), num, model.device)
            if label.dim() == 1:
                first["label"] = label.tolist()
        parts = [model.scores(part, generator) for part in x.split(100)]
    scores = {name: torch.cat([part[name] for part in parts]).tolist() for name in parts[0]}
    table = first | scores
    try:
        with open(out, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", *table])
            writer.writerows([i, *row] for i, row in enumerate(zip(*table.values(), strict=True)))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}.") from error
    names = ", ".join(parts[0])
    return f"{len(x)} rows of scores ({names}; high means in-distribution): {out}"
