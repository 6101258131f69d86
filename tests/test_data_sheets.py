"""Image sheets: tiles in reading order, against brute force and published checksums."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from eblvm.data.sheets import read_labels, read_sheet, read_sheets

Image = pytest.importorskip("PIL.Image")

SHA256 = {  # of the decoded arrays, uint8, C order, `(N, C, H, W)`
    ("cifar10", "train"): "d550eaa203f0c17e8ea29b29df8190a82e94c20ebb20d5b6d99da2edd4081484",
    ("cifar10", "test"): "ed893735ff82c0178f2cd31343a1d5ab993eeae4f3b919d9c1436789336729f1",
    ("cifar100_ood", "images"): "576ce1a662da4d97945142d0d4d3d30bd295a846e1a614459703dd64844ec745",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_sheet(path, images, columns):
    """Paste images `(N, C, H, W)` one by one: the other route."""
    num, channels, size, _ = images.shape
    mode = "L" if channels == 1 else "RGB"
    sheet = Image.new(mode, (columns * size, num // columns * size))
    for i, image in enumerate(images):
        tile = image[0] if channels == 1 else image.transpose(1, 2, 0)
        sheet.paste(Image.fromarray(tile), (i % columns * size, i // columns * size))
    sheet.save(path, lossless=True) if path.suffix == ".webp" else sheet.save(path)


def random_images(num, channels, size):
    return np.random.default_rng(0).integers(0, 256, (num, channels, size, size), dtype=np.uint8)


@pytest.mark.parametrize(("channels", "suffix"), [(1, ".png"), (3, ".png"), (3, ".webp")])
def test_tiles_come_in_reading_order(tmp_path, channels, suffix):
    images = random_images(24, channels, 5)
    for k in range(2):
        write_sheet(tmp_path / f"train_0{k}{suffix}", images[12 * k :][:12], columns=4)
    assert np.array_equal(read_sheets(tmp_path, "train", 5), images)


@pytest.mark.parametrize(("name", "prefix"), SHA256)
def test_published_checksums(name, prefix):
    root = os.environ.get("EBLVM_DATA")
    if root is None or not (Path(root) / name).is_dir():
        pytest.skip(f"EBLVM_DATA names no folder with {name}")
    images = read_sheets(Path(root) / name, prefix, 32)
    assert hashlib.sha256(images.tobytes()).hexdigest() == SHA256[name, prefix]


def test_second_reading_comes_from_the_cache_and_a_changed_file_does_not(tmp_path):
    images = random_images(4, 3, 5)
    write_sheet(tmp_path / "test_00.png", images, columns=2)
    read_sheets(tmp_path, "test", 5)
    (cached,) = (tmp_path / "cache" / "eblvm").iterdir()
    np.save(cached, images + 1)
    assert np.array_equal(read_sheets(tmp_path, "test", 5), images + 1)
    cached.write_bytes(b"cut short")
    assert np.array_equal(read_sheets(tmp_path, "test", 5), images)
    write_sheet(tmp_path / "test_00.png", images[::-1], columns=2)
    os.utime(tmp_path / "test_00.png", ns=(0, 0))
    assert np.array_equal(read_sheets(tmp_path, "test", 5), images[::-1])


def test_no_cache_folder_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    images = random_images(4, 3, 5)
    write_sheet(tmp_path / "test_00.png", images, columns=2)
    assert np.array_equal(read_sheets(tmp_path, "test", 5), images)


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no image sheets named train_"):
        read_sheets(tmp_path, "train", 5)
    images = random_images(4, 3, 5)
    write_sheet(tmp_path / "train_01.png", images, columns=2)
    with pytest.raises(FileNotFoundError, match="not sheet 0 of train"):
        read_sheets(tmp_path, "train", 5)
    with pytest.raises(ValueError, match=r"train_01.png is 10 × 10 pixels; expected tiles"):
        read_sheet(tmp_path / "train_01.png", 4)
    whole = (tmp_path / "train_01.png").read_bytes()
    (tmp_path / "train_01.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train_01.png cannot be read as an image"):
        read_sheet(tmp_path / "train_01.png", 5)
    (tmp_path / "train_01.png").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"train_01.png cannot be read as an image"):
        read_sheet(tmp_path / "train_01.png", 5)


def test_labels_are_checked(tmp_path):
    path = tmp_path / "labels.npy"
    with pytest.raises(FileNotFoundError, match=r"labels.npy is missing"):
        read_labels(path, 3)
    np.save(path, np.arange(4, dtype=np.uint8))
    assert read_labels(path, 4).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"has shape \(4,\).*expected \(3,\)"):
        read_labels(path, 3)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"labels.npy is not a readable .npy file"):
        read_labels(path, 3)
