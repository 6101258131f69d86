"""Where images come from: the name of a data set, and its pools as bytes or as files to decode.

A *pool* is a part that the authors of the data set apart (`train`, `val`, `test`), or `all` where
they did not. Files are read where they lie, also from a folder that is read-only, and otherwise
fetched by torchvision into `root`. For `FashionMNIST` the folder `<root>/fashion_mnist/` is tried
before `<root>/` itself. torchvision is imported only when one of its classes is needed.
"""

import difflib
import gzip
import inspect
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .sheets import read_labels, read_sheets

__all__ = ["Pool", "open_pool", "pool_names", "synthetic_images"]


@dataclass
class Pool:
    """Images and their labels, either as one array or read one by one.

    Arguments:
        images: Bytes with shape `(N, C, H, W)`, or a sequence of `(PIL image, label)`.
        labels: Integers with shape `(N,)`; None where they are known only by reading each item.
    """

    images: Any
    labels: np.ndarray | None

    @property
    def is_array(self) -> bool:
        return isinstance(self.images, np.ndarray)

    def __len__(self) -> int:
        return len(self.images)


def pool_names(dataset: str, root: Path) -> tuple[str, ...]:
    """The pools that a data set has.

    Raises:
        ValueError: If there is no data set of that name.
    """
    if dataset in ("Digits", "Synthetic"):
        return ("all",)
    if dataset == "CIFAR100OOD":
        return ("test",)
    if dataset == "ImageFolder":
        return _subfolders(root) or ("all",)
    if dataset in _IDX or dataset in ("CIFAR10", "StackedMNIST"):
        return ("train", "test")
    parameters = inspect.signature(_torchvision_class(dataset)).parameters
    if "train" not in parameters and "split" not in parameters and dataset != "LSUN":
        return ("all",)
    return ("train", "val", "test") if dataset in _VAL_NAMES else ("train", "test")


def open_pool(
    dataset: str, pool: str, root: Path, variant: str | None = None, download: bool = False
) -> Pool:
    """Read a pool of a data set, `Synthetic` excepted.

    Arguments:
        dataset: `Digits`, `CIFAR100OOD`, `StackedMNIST`, or the name of a class of
            `torchvision.datasets`.
        pool: One of `pool_names`.
        root: The folder of all data sets.
        variant: LSUN's category, EMNIST's split.
        download: Whether to fetch what is missing.

    Raises:
        FileNotFoundError: If the files are missing and cannot be fetched.
        ValueError: If a file is damaged.
    """
    if dataset == "Digits":
        return _digits()
    if dataset == "StackedMNIST":
        return _stacked(open_pool("MNIST", pool, root, variant, download))
    if dataset in _IDX:
        for folder in _folders(dataset, root):
            raw = folder / dataset / "raw"
            if all(_idx_path(raw / name) is not None for name in _IDX_FILES[pool]):
                images, labels = (_read_idx(_idx_path(raw / name)) for name in _IDX_FILES[pool])
                return _checked_idx(raw, images, labels)
    if dataset in _SHEETS:
        for folder in _folders(dataset, root):
            prefix, labels_name = _SHEETS[dataset][pool]
            if any(folder.glob(f"{prefix}_[0-9]*.webp")):
                images = read_sheets(folder, prefix, tile_size=32)
                return Pool(images, read_labels(folder / labels_name, len(images)))
    if dataset == "CIFAR100OOD":
        raise FileNotFoundError(_missing(dataset, root, "images_00.webp … and fine_labels.npy"))
    return _torchvision_pool(dataset, pool, root, variant, download)


def synthetic_images(num: int, shape: tuple[int, ...]) -> Pool:
    """Smooth random images of ten classes: a template of 4 × 4 values each, and as much noise."""
    channels, size, _ = shape
    draws = np.random.RandomState(0)
    templates = draws.standard_normal((10, channels, 4, 4))
    labels = np.arange(num, dtype=np.int64) % 10
    coarse = templates[labels] + 0.7 * draws.standard_normal((num, channels, 4, 4))
    place = np.linspace(0, 3, size)[:, None] if size > 1 else np.full((1, 1), 1.5)
    spread = np.clip(1 - np.abs(place - np.arange(4)), 0, None)  # linear interpolation, (size, 4)
    smooth = np.einsum("hi,ncij,wj->nchw", spread, coarse, spread, optimize=True)
    return Pool(np.rint(255 / (1 + np.exp(-1.5 * smooth))).astype(np.uint8), labels)


_IDX = ("MNIST", "FashionMNIST", "KMNIST")
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_SHEETS = {
    "CIFAR10": {"train": ("train", "train_labels.npy"), "test": ("test", "test_labels.npy")},
    "CIFAR100OOD": {"test": ("images", "fine_labels.npy")},
}
_VAL_NAMES = {  # what torchvision's classes call the validation split
    "CelebA": "valid",
    "Country211": "valid",
    "DTD": "val",
    "FGVCAircraft": "val",
    "Flowers102": "val",
    "Imagenette": "val",
    "LSUN": "val",
    "PCAM": "val",
    "RenderedSST2": "val",
}


def _folders(dataset: str, root: Path) -> list[Path]:
    """Where the files of a data set may lie, the most particular first."""
    special = {"CIFAR100OOD": "cifar100_ood", "CelebA": "celeba"}
    snake = special.get(dataset) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", dataset).lower()
    return [root / snake, root]


def _may_write(root: Path) -> bool:
    """Whether files may be put there; a folder without write permission is left alone, always."""
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    return os.access(existing, os.W_OK) and bool(existing.stat().st_mode & 0o222)


def _missing(dataset: str, root: Path, what: str, why: str = "") -> str:
    places = " and ".join(str(folder) for folder in _folders(dataset, root))
    return (
        f"{dataset}: {what} not found; looked in {places}.{why} Put the files there, or name the "
        "folder that holds them with `root` or in the environment variable EBLVM_DATA."
    )


def _digits() -> Pool:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)  # 0 … 16, part of scikit-learn
    scaled = np.rint(images * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    return Pool(scaled, labels.astype(np.int64))


def _stacked(pool: Pool) -> Pool:
    """Three gray images as one of three channels; the label reads their labels as digits.

    Each image is once in each channel: the second and third channels are permutations.
    """
    assert pool.is_array and pool.labels is not None
    draws = np.random.RandomState(0)
    rows = [np.arange(len(pool)), draws.permutation(len(pool)), draws.permutation(len(pool))]
    images = np.stack([pool.images[chosen, 0] for chosen in rows], axis=1)
    hundreds, tens, ones = (pool.labels[chosen] for chosen in rows)
    return Pool(images, 100 * hundreds + 10 * tens + ones)


def _idx_path(path: Path) -> Path | None:
    for candidate in (path.with_name(path.name + ".gz"), path):
        if candidate.is_file():
            return candidate
    return None


def _read_idx(path: Path | None) -> np.ndarray:
    """An array of bytes in the idx format of MNIST, gzipped or not."""
    assert path is not None
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}): copy it again.") from error
    num_axes = data[3] if data[:3] == b"\x00\x00\x08" and len(data) > 3 else 0
    header = 4 + 4 * num_axes
    shape = tuple(np.frombuffer(data[4:header], ">u4").tolist()) if len(data) >= header else ()
    if not num_axes or len(shape) != num_axes or len(data) - header != int(np.prod(shape)):
        raise ValueError(
            f"{path} is not a whole idx file of bytes: its header states shape {shape} and "
            f"{max(len(data) - header, 0)} bytes follow. Copy it again."
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _checked_idx(raw: Path, images: np.ndarray, labels: np.ndarray) -> Pool:
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"The idx files in {raw} do not belong together: images have shape {images.shape}, "
            f"labels {labels.shape}; expected (N, H, W) and (N,)."
        )
    return Pool(images[:, None], labels.astype(np.int64))


def _import_torchvision() -> ModuleType:
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"torchvision cannot be imported ({error}). It must match torch: install both together "
            "from the same place, e.g. `pip install --force-reinstall torch torchvision`."
        ) from error
    return torchvision


def _torchvision_class(dataset: str) -> Callable[..., Any]:
    datasets = _import_torchvision().datasets
    classes = {name: getattr(datasets, name) for name in datasets.__all__}
    known = [
        n
        for n, c in classes.items()
        if isinstance(c, type) and issubclass(c, datasets.VisionDataset)
    ]
    if dataset not in known:
        own = ["Digits", "Synthetic", "CIFAR100OOD"]
        near = difflib.get_close_matches(dataset, known + own, n=3, cutoff=0.5)
        raise ValueError(
            f"There is no data set {dataset!r}. Expected {', '.join(own)} or a class of "
            f"torchvision.datasets, e.g. {', '.join(near or ['MNIST', 'CIFAR10', 'ImageFolder'])}."
        )
    return classes[dataset]


def _subfolders(root: Path) -> tuple[str, ...]:
    return tuple(name for name in ("train", "val", "test") if (root / name).is_dir())


def _pool_arguments(dataset: str, pool: str, variant: str | None) -> dict[str, Any]:
    """Which part of the data, in the words of the data set's class."""
    parameters = inspect.signature(_torchvision_class(dataset)).parameters
    name = _VAL_NAMES.get(dataset, "val") if pool == "val" else pool
    if dataset == "LSUN":
        return {"classes": [f"{variant}_{name}"] if variant else name}
    chosen: dict[str, Any] = {}
    if variant is not None:
        if "train" not in parameters or "split" not in parameters:
            raise ValueError(f"variant is {variant!r}, but {dataset} has none; leave it out.")
        chosen["split"] = variant
    if "train" in parameters:
        chosen["train"] = pool == "train"
    elif "split" in parameters:
        chosen["split"] = name
    return chosen


def _torchvision_pool(
    dataset: str, pool: str, root: Path, variant: str | None, download: bool
) -> Pool:
    make = _torchvision_class(dataset)
    chosen = _pool_arguments(dataset, pool, variant)
    if dataset == "ImageFolder":
        folders = [root / pool] if pool != "all" else [root]
    else:
        folders = [folder for folder in _folders(dataset, root) if folder.is_dir()]
    why = ""
    for folder in folders:
        try:
            return _as_pool(make(str(folder), **chosen))
        except ImportError as error:
            raise RuntimeError(
                f"{dataset} needs a package that is not installed ({error}). Install it, e.g. with "
                f"`pip install {error.name}`."
            ) from error
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"torchvision's {dataset} cannot be opened with {chosen} ({error}). If it comes in "
                "several variants, name one with `variant`."
            ) from error
        except (RuntimeError, OSError) as error:  # RuntimeError is how torchvision says "not here"
            why = f" torchvision says: {str(error).rstrip('.')}."
    if download and not _may_write(root):
        why += f" Nothing was downloaded, since {root} is read-only."
    elif download and "download" in inspect.signature(make).parameters:
        try:
            return _as_pool(make(str(root), **chosen, download=True))
        except Exception as error:  # whatever the network, the disk or a missing package raise
            why = f" Downloading into {root} failed: {' '.join(str(error).split()).rstrip('.')}."
    files = f"the {pool} files"
    if dataset in _IDX:
        files = " and ".join(f"{dataset}/raw/{name}.gz" for name in _IDX_FILES[pool])
    raise FileNotFoundError(_missing(dataset, root, files, why))


def _as_pool(data: Any) -> Pool:
    labels = getattr(data, "targets", getattr(data, "labels", None))
    labels = None if labels is None else np.asarray(labels)
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        labels = None
    images = getattr(data, "data", None)
    if images is None or labels is None or not hasattr(images, "shape"):
        return Pool(data, labels)
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    return Pool(np.ascontiguousarray(images), labels.astype(np.int64))
