r"""Images of any torchvision data set, as floats in [−1, 1] with shape `(B, C, H, W)`.

Every image is first brought to bytes of the stated shape: center crop, resize of the shorter side
with a crop to a square, gray or RGB. Bytes that fit are kept in memory and a batch is one indexing
operation; other images are read and decoded one by one, in worker processes if asked. From there
the two paths are one: a batch of bytes v becomes

.. math:: x = v / 127.5 - 1 \qquad\text{or, dequantized,}\qquad x = (v + u) / 128 - 1,
    \quad u \sim U[0, 1)

on the device where it lies. Flips and u are drawn in training only, from a generator seeded by
(seed, rank, epoch, batch), so ranks differ and a resumed run sees the same pixels; in evaluation a
dequantized model is shown u = ½.

Splits do not depend on `seed`, the machine or `classes`: a pool of N images is permuted by
`numpy.random.RandomState(0)`, whose stream numpy has frozen. From its end a test part is cut, where
the authors of the data made none, then a validation part; training is the rest. Digits is split
into 1,297 / 200 / 300, without stratification.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .loader import ResumableLoader, TensorRows, seeded_generator
from .module import DataModule, Split
from .sources import Pool, open_pool, pool_names, synthetic_images

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["ImageDataModule"]

_MEMORY_LIMIT = 2**28
"""Bytes up to which image files are decoded once and kept."""


class ImageDataModule(DataModule):
    """Images in batches of `(x, label)`: x in [−1, 1], `(B, C, H, W)`, and label int64, `(B,)`.

    Arguments:
        dataset: The name of a class of `torchvision.datasets` (`MNIST`, `CIFAR10`, `CelebA`,
            `ImageFolder`, …); `Digits`, scikit-learn's 1,797 images of 8 × 8; `CIFAR100OOD`, 10,000
            CIFAR-100 images for testing; `StackedMNIST`, three images of MNIST as the channels of
            one, 1,000 classes; or `Synthetic`, smooth random images for quick trials.
        image_size: H and W in pixels; images of another size are resized.
        channels: C: 1 is gray, 3 is RGB.
        batch_size: Images per batch and device.
        root: The folder of all data sets (of the images for `ImageFolder`, either in `train`, `val`
            and `test` or in folders named for classes). None takes the environment variable
            EBLVM_DATA, else `./data`.
        num_workers: Processes that decode images which are not in memory.
        in_memory: Whether to decode all images once and keep them. None does where they come as an
            array or take less than 256 MiB.
        horizontal_flip: Mirror half of the training images.
        dequantize: Add uniform noise of one gray level in training.
        center_crop: Side in pixels of the square that is cut from the middle before resizing.
        limit: Train on so many images only: a random subset of the training split, the same for
            every seed and machine (the first of its permutation).
        val_size: Images in the validation split. None takes the validation part that the data set
            has, else 5,000 or a tenth, whichever is smaller; with 0 there is no validation.
        classes: Keep images with these labels only, in all splits. Labels are not renumbered.
        variant: The category of LSUN (e.g. `church_outdoor`) or the split of EMNIST.
        num_synthetic: How many images `Synthetic` has in all.
        seed: Determines the order of training and the random transforms.

    Raises:
        ValueError: If an argument is out of range, or there is no such data set.
    """

    def __init__(
        self,
        dataset: str,
        image_size: int,
        channels: int,
        batch_size: int,
        root: str | None = None,
        num_workers: int = 0,
        in_memory: bool | None = None,
        horizontal_flip: bool = False,
        dequantize: bool = False,
        center_crop: int | None = None,
        limit: int | None = None,
        val_size: int | None = None,
        classes: list[int] | None = None,
        variant: str | None = None,
        num_synthetic: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; expected 1 (gray) or 3 (RGB).")
        for name, value, least in (
            ("image_size", image_size, 1),
            ("center_crop", center_crop, 1),
            ("limit", limit, 1),
            ("val_size", val_size, 0),
            ("num_synthetic", num_synthetic, 10),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected {least} or more.")
        self.dataset_name = dataset
        self.image_size = image_size
        self.channels = channels
        self.root = Path(root or os.environ.get("EBLVM_DATA") or "data").expanduser()
        self.in_memory = in_memory
        self.horizontal_flip = horizontal_flip
        self.dequantize = dequantize
        self.center_crop = center_crop
        self.limit = limit
        self.val_size = val_size
        self.classes = classes
        self.variant = variant
        self.num_synthetic = num_synthetic
        self._opened: dict[str, TensorImages | DecodedImages] = {}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return (self.channels, self.image_size, self.image_size)

    def prepare_data(self) -> None:
        """Fetch missing files, if that can be done; the trainer calls this in one process only."""
        stage = None if self.trainer is None else self.trainer.state.fn
        for pool in self._pools_of_stage(stage):
            self._images(pool, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Open the pools that a stage needs.

        Arguments:
            stage: `fit`, `validate`, `test`, `predict`, or None for all.

        Raises:
            FileNotFoundError: If files are missing and cannot be fetched.
            ValueError: If a file is damaged, or the images cannot take the stated shape.
        """
        for pool in self._pools_of_stage(stage):
            self._images(pool, download=self.trainer is None)  # a trainer has called prepare_data

    def dataset(self, split: Split) -> "TensorImages | DecodedImages":
        """The images of a split."""
        pool, rows = self._rows(split)
        images = self._images(pool)
        if self.classes is not None:
            if images.labels is None or images.labels.ndim != 1:
                raise ValueError(
                    f"{self.dataset_name} does not list one label for each image, so `classes` "
                    "cannot choose. Leave it out, or sort the files into folders for ImageFolder."
                )
            rows = rows[np.isin(images.labels.numpy()[rows], self.classes)]
        if split == "train" and self.limit is not None:
            rows = rows[: self.limit]
        if not len(rows):
            raise ValueError(
                f"The {split} split of {self.dataset_name} is empty (classes: {self.classes}, "
                f"val_size: {self.val_size}). Choose labels that occur, or a val_size above 0."
            )
        return images.pick(rows)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:  # type: ignore[override]
        """The validation loader, or an empty list where `val_size` is 0."""
        return [] if self.val_size == 0 else self.loader("val")

    def finish(
        self, batch: tuple[Tensor, Tensor], split: Split, epoch: int, index: int
    ) -> tuple[Tensor, Tensor]:
        """From bytes to floats, with the random transforms in training; floats are left alone."""
        x, label = batch
        if x.dtype != torch.uint8:
            return x, label
        draws = seeded_generator(self.seed, self.rank, epoch, index, device=x.device)
        if self.horizontal_flip and split == "train":
            flip = torch.rand(len(x), 1, 1, 1, generator=draws, device=x.device) < 0.5
            x = torch.where(flip, x.flip(-1), x)
        if not self.dequantize:
            return x.float() / 127.5 - 1, label
        if split == "train":
            noise = torch.rand(x.shape, generator=draws, device=x.device)
            return ((x + noise) / 128 - 1).clamp(max=1), label  # 255 + u may round to 256
        return (x + 0.5) / 128 - 1, label

    def _pools_of_stage(self, stage: str | None) -> list[str]:
        names = pool_names(self.dataset_name, self.root)
        if stage is None:
            return list(names)
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        wanted = [self._pool_of(split) for split in splits.get(stage, ("test",))]
        return [pool for pool in dict.fromkeys(wanted) if pool is not None]

    def _pool_of(self, split: Split) -> str | None:
        """The pool that a split is taken from; None if validation is not wanted."""
        names = pool_names(self.dataset_name, self.root)
        if split == "val" and self.val_size == 0:
            return None
        if split == "val" and (self.val_size is not None or "val" not in names):
            split = "train"
        pool = "all" if "all" in names else split
        if pool not in names:
            raise ValueError(
                f"{self.dataset_name} has no {split} images in {self.root}, only "
                f"{', '.join(names)}. Use it where those are asked for, or choose another data set."
            )
        return pool

    def _rows(self, split: Split) -> tuple[str, np.ndarray]:
        """The pool of a split and its rows there."""
        pool = self._pool_of(split)
        if pool is None:
            raise ValueError("There is no validation split, because val_size is 0; give it a size.")
        num = len(self._images(pool))
        if pool in ("test", "val"):
            return pool, np.arange(num)
        num_test = 0 if pool == "train" else 300 if self.dataset_name == "Digits" else num // 10
        num_val = self.val_size
        if num_val is None:
            own = "val" in pool_names(self.dataset_name, self.root)
            num_val = 0 if own else 200 if self.dataset_name == "Digits" else min(5000, num // 10)
        if num_val + num_test >= num:
            raise ValueError(
                f"val_size is {num_val}, but {self.dataset_name} has {num - num_test} images for "
                "training and validation. Expected fewer."
            )
        order = np.random.RandomState(0).permutation(num)  # frozen by numpy, unlike default_rng
        parts = np.split(order, [num - num_test - num_val, num - num_test])
        return pool, parts[("train", "val", "test").index(split)]

    def _images(self, name: str, download: bool = False) -> "TensorImages | DecodedImages":
        """A pool in the stated shape, opened once."""
        if name not in self._opened:
            if self.dataset_name == "Synthetic":
                pool = synthetic_images(self.num_synthetic, self.event_shape)
            else:
                pool = open_pool(self.dataset_name, name, self.root, self.variant, download)
            shape = Shape(self.image_size, self.channels, self.center_crop)
            keep = self.in_memory
            if keep is None:
                keep = pool.is_array or len(pool) * shape.num_bytes <= _MEMORY_LIMIT
            images = DecodedImages(pool, shape)
            self._opened[name] = TensorImages.read(images) if keep else images
        return self._opened[name]


def read_folder(
    folder: str | Path, num: int, image_size: int, channels: int
) -> tuple[Tensor, list[str]]:
    """The first `num` images of a folder and its subfolders, by name; class folders do not count.

    Arguments:
        folder: Where they lie.
        num: At most so many.
        image_size: H and W; as by `ImageDataModule`, the shorter side is resized, the middle kept.
        channels: 1 or 3.

    Returns:
        Images in [−1, 1], with shape `(N, C, H, W)`, and their paths within the folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a file is no image.
    """
    from PIL import Image

    root, shape = Path(folder), Shape(image_size, channels)
    known = Image.registered_extensions()
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in known and p.is_file())[:num]
    if not paths:
        raise FileNotFoundError(f"there are no images in {root} or below it.")
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(shape(image))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} cannot be read as an image ({error}).") from error
    names = [path.relative_to(root).as_posix() for path in paths]
    return torch.stack(images).float() / 127.5 - 1, names


class Shape:
    """The stated shape, and how an image comes to have it.

    Arguments:
        size: H and W.
        channels: C.
        center_crop: Side of the square that is cut out first.
    """

    def __init__(self, size: int, channels: int, center_crop: int | None = None) -> None:
        self.size, self.channels, self.center_crop = size, channels, center_crop

    @property
    def num_bytes(self) -> int:
        return self.channels * self.size**2

    def holds(self, images: np.ndarray) -> bool:
        """Whether an array `(N, C, H, W)` has this shape already."""
        crops = self.center_crop not in (None, self.size)
        return images.shape[1:] == (self.channels, self.size, self.size) and not crops

    def __call__(self, image: "np.ndarray | Picture") -> Tensor:
        """Bytes `(C, size, size)` from a PIL image or from bytes `(C, H, W)`.

        Raises:
            ValueError: If the image is smaller than the center crop.
        """
        from PIL import Image

        if isinstance(image, np.ndarray):
            image = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        if image.mode != "L":  # gray stays gray until the end: a third of the work
            image = image.convert("L" if self.channels == 1 else "RGB")
        if self.center_crop is not None:
            if min(image.size) < self.center_crop:
                raise ValueError(
                    f"center_crop is {self.center_crop}, but an image has {image.height} × "
                    f"{image.width} pixels. Expected at most {min(image.size)}."
                )
            image = _crop(image, self.center_crop)
        if min(image.size) != self.size:
            scale = self.size / min(image.size)
            width, height = (max(self.size, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(_crop(image, self.size), dtype=np.uint8))
        pixels = pixels.view(self.size, self.size, -1).permute(2, 0, 1)
        return pixels.expand(self.channels, -1, -1).contiguous()


def _crop(image: "Picture", side: int) -> "Picture":
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


class TensorImages(TensorRows):
    """Images in memory.

    Arguments:
        images: Bytes with shape `(N, C, H, W)`.
        labels: int64, with shape `(N,)` or `(N, K)`.
        rows: Which of them belong to the set, and in which order; None for all.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        super().__init__(images, labels, rows=rows)
        self.labels = labels

    @classmethod
    def read(cls, decoded: "DecodedImages") -> "TensorImages":
        """Decode all images and keep them."""
        pool = decoded.pool
        if pool.is_array and pool.labels is not None and decoded.shape.holds(pool.images):
            images = torch.from_numpy(np.require(pool.images, requirements=["C", "W"]))
            return cls(images, torch.from_numpy(pool.labels))
        items = [decoded[i] for i in range(len(decoded))]
        return cls(torch.stack([x for x, _ in items]), torch.stack([label for _, label in items]))

    def pick(self, rows: np.ndarray) -> "TensorImages":
        return TensorImages(self.columns[0], self.labels, torch.from_numpy(rows))


class DecodedImages(Dataset):
    """Images that are read and brought to shape one by one.

    Arguments:
        pool: Where they are.
        shape: What they become.
        rows: Which of them belong to the set, and in which order; None for all.
    """

    def __init__(self, pool: Pool, shape: Shape, rows: np.ndarray | None = None) -> None:
        self.pool, self.shape, self.rows = pool, shape, rows
        self.labels = None if pool.labels is None else torch.from_numpy(pool.labels)

    def pick(self, rows: np.ndarray) -> "DecodedImages":
        return DecodedImages(self.pool, self.shape, rows)

    def __len__(self) -> int:
        return len(self.pool) if self.rows is None else len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        i = i if self.rows is None else int(self.rows[i])
        if self.pool.is_array:
            assert self.pool.labels is not None
            image, label = self.pool.images[i], self.pool.labels[i]
        else:
            image, label = self._read(i)
        return self.shape(image), torch.as_tensor(label).long()

    def _read(self, i: int) -> tuple[Any, Any]:
        try:
            return self.pool.images[i]
        except (OSError, SyntaxError) as error:
            samples = getattr(self.pool.images, "samples", None)
            name = f"image {i}" if samples is None else str(samples[i][0])
            raise ValueError(f"{name} is damaged or cut short ({error}): copy it again.") from error
