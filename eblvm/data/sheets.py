"""Image sheets: many equal tiles in one lossless image file, in reading order.

A folder holds `<prefix>_00.webp`, `<prefix>_01.webp`, … (any format that Pillow reads) and beside
them labels as `.npy`. Tile i of sheet k is image k·(tiles per sheet) + i. A sheet of a thousand
small images takes a fraction of the space of separate files, and opens once, not a thousand times.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

__all__ = ["read_labels", "read_sheet", "read_sheets"]

_SUFFIXES = (".webp", ".png")


def read_sheet(path: Path, tile_size: int) -> np.ndarray:
    """Cut one sheet into its tiles.

    Arguments:
        path: An RGB or gray image file.
        tile_size: Height and width of a tile in pixels.

    Returns:
        Bytes with shape `(N, C, H, W)`; C is 1 for a gray sheet and 3 otherwise.

    Raises:
        ValueError: If the file is not an image, is damaged, or does not hold whole tiles.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            sheet = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({error}). It seems damaged or cut short: "
            "copy or download it again."
        ) from error
    height, width, *channels = sheet.shape
    if height % tile_size or width % tile_size:
        raise ValueError(
            f"{path} is {height} × {width} pixels; expected tiles of {tile_size} × {tile_size}."
        )
    grid = sheet.reshape(height // tile_size, tile_size, width // tile_size, tile_size, -1)
    tiles = grid.transpose(0, 2, 4, 1, 3)  # (rows, columns, C, H, W)
    return np.ascontiguousarray(tiles).reshape(-1, *channels or (1,), tile_size, tile_size)


def read_sheets(folder: Path, prefix: str, tile_size: int) -> np.ndarray:
    """All tiles of the sheets `<prefix>_*` of a folder.

    The decoded array is kept as `.npy` in the user's cache folder where that is writable.

    Arguments:
        folder: Where the sheets lie.
        prefix: What their names begin with, e.g. `train`.
        tile_size: Height and width of a tile in pixels.

    Returns:
        Bytes with shape `(N, C, H, W)`.

    Raises:
        FileNotFoundError: If there are no such sheets, or one of the numbered sheets is missing.
        ValueError: If a file is damaged.
    """
    paths = sorted(p for s in _SUFFIXES for p in folder.glob(f"{prefix}_[0-9]*{s}"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no image sheets named {prefix}_00.webp, {prefix}_01.webp, …"
        )
    numbers = [int(p.stem.removeprefix(f"{prefix}_")) for p in paths]
    if missing := sorted(set(range(numbers[-1] + 1)) - set(numbers)):
        raise FileNotFoundError(
            f"{folder} holds {paths[-1].name} but not sheet {missing[0]} of {prefix}. "
            "All sheets are needed, since they number the images: copy them again."
        )
    cache = _cache_path(paths, tile_size)
    if (images := _read_cache(cache)) is not None:
        return images
    images = np.concatenate([read_sheet(path, tile_size) for path in paths])
    _write_cache(cache, images)
    return images


def read_labels(path: Path, num: int) -> np.ndarray:
    """Labels from a `.npy` file, as int64 with shape `(num,)`.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged or does not hold `num` integers.
    """
    try:
        labels = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; it holds the labels of the sheets.") from None
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npy file ({error}): copy it again.") from error
    if labels.shape != (num,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path} has shape {labels.shape} and type {labels.dtype}; expected ({num},) integers, "
            "one for each image."
        )
    return labels.astype(np.int64)


def _cache_path(paths: list[Path], tile_size: int) -> Path:
    """Where the decoded sheets are kept; a file that changed gives another name."""
    import hashlib

    home = os.environ.get("XDG_CACHE_HOME")
    folder = Path(home) if home else Path("~/.cache").expanduser()
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {tile_size}\n".encode())
    return folder / "eblvm" / f"sheets-{digest.hexdigest()}.npy"


def _read_cache(path: Path) -> np.ndarray | None:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # absent or unreadable: decode again
        return None


def _write_cache(path: Path, images: np.ndarray) -> None:
    """Write to a temporary neighbor, then rename: readers see a whole file or none."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = file.name
            np.save(file, images, allow_pickle=False)
        os.replace(temporary, path)
    except OSError:  # read-only or full: the cache is never required
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
