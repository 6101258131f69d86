"""Checkpoints: read without running code, refused with a reason, turned back into models."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningModule

from eblvm.cli import UserError
from eblvm.data.vocabulary import Vocabulary

__all__ = ["check_weights", "load", "read_checkpoint", "vocabulary_of"]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A Lightning checkpoint's contents, without running any code that it may hold.

    Raises:
        UserError: If the file is missing, unreadable, truncated or no Lightning checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; runs keep theirs in checkpoints/.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises what it stumbles over: IndexError, KeyError …
        raise UserError(
            f"{path} is no readable checkpoint: {diagnosis(path, error)}. Another checkpoint of "
            "the run, or a fresh copy of this one, may do."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is no Lightning checkpoint: it has no state_dict.")
    return checkpoint


def vocabulary_of(checkpoint: dict[str, Any]) -> Vocabulary | None:
    """The vocabulary that the data module left in a checkpoint; None where there is none."""
    for part in checkpoint.values():
        if isinstance(part, dict) and "vocabulary" in part:
            return Vocabulary.from_state(part["vocabulary"])
    return None


def diagnosis(path: Path, error: Exception) -> str:
    """What is wrong with a file that cannot be read as a checkpoint."""
    with path.open("rb") as file:
        start = file.read(2)
    if isinstance(error, OSError):
        return str(error)
    if not start:
        return "the file is empty"
    if start == b"PK" and not zipfile.is_zipfile(path):
        return "the file is truncated"
    if start == b"PK" and isinstance(error, pickle.UnpicklingError):
        return "it holds objects of Python, which are not loaded because they can run code"
    return "it was not written by eblvm or Lightning"


def check_weights(model: LightningModule, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raise a `UserError` that names the differences, if the weights are not this model's.

    What the model adds to checkpoints of older versions (`on_load_checkpoint`) is in them then.
    """
    model.on_load_checkpoint(checkpoint)
    own = model.state_dict()
    # `Negatives` reads both: earlier versions had its factor under another name.
    named = checkpoint["state_dict"].items()
    weights = {name.replace("._extra_state", ".factor"): value for name, value in named}
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    sizes = [
        f"{n}: {tuple(weights[n].shape)} in the file, {tuple(own[n].shape)} in the model"
        for n in own.keys() & weights.keys()
        if own[n].shape != weights[n].shape
    ]
    if missing or foreign or sizes:
        counts = f"{len(missing)} missing, {len(foreign)} foreign, {len(sizes)} of other size"
        first = [*sizes, *missing, *foreign][0]
        raise UserError(
            f"{path} does not belong to this model ({counts}; first: {first}). Use the "
            "recipe and overrides of its run: the config.yaml beside its checkpoints folder."
        )


def load(path: str | Path, device: str | torch.device | None = None) -> LightningModule:
    """The trained model of a checkpoint that `eblvm fit` made, in evaluation mode.

    Arguments:
        path: The checkpoint.
        device: Where to; a GPU if there is one and None is given.

    Raises:
        UserError: If the file is no such checkpoint.
    """
    checkpoint = read_checkpoint(path)
    arguments = dict(checkpoint.get("hyper_parameters") or {})
    arguments.pop("_instantiator", None)
    class_path = arguments.pop("_class_path", None)
    if class_path is None:
        raise UserError(f"{path} does not say what model it is of; was it made by `eblvm fit`?")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", fail_untyped=False)
    config = parser.parse_object({"model": {"class_path": class_path, "init_args": arguments}})
    model = parser.instantiate_classes(config).model
    check_weights(model, checkpoint, path)
    model.load_state_dict(checkpoint["state_dict"])
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device)
