"""Images: bytes to floats, splits, two equal paths, files read in place, errors that name them."""

import gzip
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from eblvm.data import ImageDataModule
from eblvm.data.sources import synthetic_images

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def synthetic(image_size=8, channels=3, batch_size=10, dataset="Synthetic", **kwargs):
    return ImageDataModule(dataset, image_size, channels, batch_size, **kwargs)


def write_idx(path, array, magic=b"\x00\x00\x08"):
    header = magic + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.fixture
def mnist(tmp_path):
    """A tiny MNIST in the original files; its root, images and labels."""
    draws = np.random.RandomState(1)
    images = draws.randint(0, 256, (60, 28, 28)).astype(np.uint8)
    labels = (np.arange(60) % 10).astype(np.uint8)
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    write_idx(raw / "train-images-idx3-ubyte.gz", images[:40])
    write_idx(raw / "train-labels-idx1-ubyte.gz", labels[:40])
    write_idx(raw / "t10k-images-idx3-ubyte.gz", images[40:])
    write_idx(raw / "t10k-labels-idx1-ubyte.gz", labels[40:])
    return tmp_path, images, labels


@pytest.fixture
def folder(tmp_path):
    """JPEG-free pictures of several shapes in two class folders."""
    draws = np.random.RandomState(2)
    for i in range(24):
        path = tmp_path / "pictures" / ("cat", "dog")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (20 + i, 30, 3) if i % 3 else (20, 26)
        Image.fromarray(draws.randint(0, 256, shape).astype(np.uint8)).save(path)
    return tmp_path / "pictures"


def data_root(name):
    root = os.environ.get("EBLVM_DATA")
    if root is None or not (Path(root) / name).is_dir():
        pytest.skip(f"EBLVM_DATA names no folder with {name}")
    return root


# From bytes to floats


def test_bytes_become_floats_from_minus_one_to_one(mnist):
    root, images, labels = mnist
    module = synthetic(28, 1, 20, "MNIST", root=str(root))
    ((x, label),) = module.batches("test")
    truth = torch.from_numpy(images[40:, None] / 127.5 - 1)
    torch.testing.assert_close(x.double(), truth, atol=1e-6, rtol=0)
    assert label.tolist() == labels[40:].tolist()
    assert label.dtype == torch.int64
    assert x.shape[1:] == module.event_shape == (1, 28, 28)


def test_dequantizing_stays_within_one_gray_level():
    module = synthetic(dequantize=True)
    v = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(-1, 1, 40, 25)
    x, _ = module.finish((v, torch.zeros(256)), "train", 0, 0)
    u = (x + 1) * 128 - v
    assert x.abs().max() <= 1
    assert u.min() >= -1e-4
    assert u.max() <= 1 + 1e-4
    mean = float(u.double().mean())
    assert mean == pytest.approx(0.5, abs=5 * (1 / 12) ** 0.5 / u.numel() ** 0.5)  # 5 σ
    middle, _ = module.finish((v, torch.zeros(256)), "test", 0, 0)
    torch.testing.assert_close((middle + 1) * 128 - v, torch.full_like(x, 0.5), atol=1e-4, rtol=0)


def test_flips_mirror_about_half_of_the_training_images_and_no_others():
    module = synthetic(horizontal_flip=True)
    v = torch.zeros(4000, 1, 1, 2, dtype=torch.uint8)
    v[..., 1] = 255
    x, _ = module.finish((v, torch.zeros(4000)), "train", 0, 0)
    flipped = (x[:, 0, 0, 0] > 0).double()
    assert float(flipped.mean()) == pytest.approx(0.5, abs=0.04)  # 5 σ
    assert torch.equal(x[:, 0, 0, 0], -x[:, 0, 0, 1])
    x, _ = module.finish((v, torch.zeros(4000)), "val", 0, 0)
    assert (x[:, 0, 0, 0] < 0).all()


def test_random_transforms_depend_on_seed_rank_epoch_and_batch(monkeypatch):
    v = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)

    def x(seed=0, rank=0, epoch=0, index=0):
        monkeypatch.setattr(ImageDataModule, "rank", rank)
        module = synthetic(dequantize=True, seed=seed)
        return module.finish((v, torch.zeros(2)), "train", epoch, index)[0]

    assert torch.equal(x(), x())
    draws = [x(), x(seed=1), x(rank=1), x(epoch=1), x(index=1)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 5


# Shape


def test_digits_are_scaled_exactly_and_split_as_stated():
    from sklearn.datasets import load_digits

    module = synthetic(8, 1, 300, "Digits")
    assert [len(module.dataset(split)) for split in ("train", "val", "test")] == [1297, 200, 300]
    seen = torch.cat([x for s in ("train", "val", "test") for x, _ in _whole(module, s)])
    levels = torch.from_numpy(load_digits().images)
    truth = (levels * 255 / 16).round().flatten(1)
    ours = ((seen + 1) * 127.5).round().flatten(1)
    assert sorted(ours.tolist()) == sorted(truth.tolist())  # every image once, in some split


def _whole(module, split):
    data = module.dataset(split)
    yield module.finish(data.__getitems__(list(range(len(data)))), "test", 0, 0)


def test_both_paths_give_the_same_batches(folder):
    options = {"dataset": "ImageFolder", "image_size": 16, "root": str(folder), "batch_size": 4}
    for channels in (1, 3):
        in_memory, decoded, workers = (
            list(synthetic(channels=channels, **options, **kwargs).batches("train"))
            for kwargs in (
                {"in_memory": True, "horizontal_flip": True},
                {"in_memory": False, "horizontal_flip": True},
                {"in_memory": False, "horizontal_flip": True, "num_workers": 1},
            )
        )
        assert len(in_memory) == 5
        for a, b, c in zip(in_memory, decoded, workers, strict=True):
            for one, two, three in zip(a, b, c, strict=True):
                assert torch.equal(one, two)
                assert torch.equal(one, three)


def test_resizing_equals_torchvision(folder):
    functional = pytest.importorskip("torchvision.transforms.functional")
    module = synthetic(16, 3, 1, "ImageFolder", root=str(folder), center_crop=18)
    ((x, _), *_rest) = module.batches("test")
    data = module._images("all")
    order = np.random.RandomState(0).permutation(24)
    path = sorted(folder.glob("*/*.png"))[order[-2]]  # 24 // 10 test images, the first of two
    picture = functional.center_crop(Image.open(path).convert("RGB"), [18])
    picture = functional.resize(picture, [16])
    truth = functional.pil_to_tensor(picture).float() / 127.5 - 1
    torch.testing.assert_close(x[0], truth, atol=1e-6, rtol=0)
    assert len(data) == 24


def test_gray_becomes_rgb_and_back(mnist):
    root, *_ = mnist
    gray = _first(synthetic(14, 1, 20, "MNIST", root=str(root)))
    rgb = _first(synthetic(14, 3, 20, "MNIST", root=str(root)))
    assert rgb.shape == (20, 3, 14, 14)
    assert torch.equal(rgb, gray.expand(-1, 3, -1, -1))
    bright = _first(synthetic(8, 3))
    luma = (bright * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    module = synthetic(8, 1)
    module._opened["all"] = _decoded(synthetic(8, 3), module)
    assert (_first(module) - luma).abs().max() < 1.01 / 127.5  # rounding to a gray level


def _first(module):
    return next(module.batches("test"))[0]


def _decoded(source, target):
    from eblvm.data.images import DecodedImages, Shape

    pool = synthetic_images(source.num_synthetic, source.event_shape)
    return DecodedImages(pool, Shape(target.image_size, target.channels))


# Splits


def test_splits_are_disjoint_whole_and_do_not_depend_on_the_seed():
    one, two = synthetic(seed=0), synthetic(seed=1)
    rows = [one.dataset(s).rows for s in ("train", "val", "test")]
    assert sorted(torch.cat(rows).tolist()) == list(range(1000))
    assert [len(r) for r in rows] == [800, 100, 100]
    for split, row in zip(("train", "val", "test"), rows, strict=True):
        assert torch.equal(two.dataset(split).rows, row)
    # numpy has frozen this stream, so these numbers hold on every machine
    assert rows[2][-5:].tolist() == [835, 192, 629, 559, 684]


def test_a_limited_set_is_a_random_subset_and_always_the_same(monkeypatch):
    """Of CelebA, too, whose parts its authors made: its first images would be a sequence."""
    sizes = {"train": 200, "val": 20, "test": 20}
    monkeypatch.setattr(
        "eblvm.data.images.open_pool", lambda _, pool, *a: synthetic_images(sizes[pool], (3, 8, 8))
    )
    chosen = []
    for seed in (0, 1):
        data = ImageDataModule("CelebA", 8, 3, 4, limit=50, seed=seed)
        data.setup("fit")
        chosen.append(data.dataset("train").rows)
        assert torch.equal(data.dataset("val").rows, torch.arange(20))
    assert torch.equal(*chosen)
    rows = chosen[0].double()
    assert len(rows.unique()) == 50
    # uniform on 0 … 199: mean 99.5, deviation 58, of 50 draws 8; the first 50 have 24.5
    assert 70 < float(rows.mean()) < 130


def test_limit_and_classes_choose_among_the_same_images():
    whole = synthetic()
    assert torch.equal(synthetic(limit=30).dataset("train").rows, whole.dataset("train").rows[:30])
    some = synthetic(classes=[2, 7])
    for split in ("train", "val", "test"):
        labels = torch.cat([label for _, label in some.batches(split)])
        assert set(labels.tolist()) == {2, 7}
        assert set(some.dataset(split).rows.tolist()) < set(whole.dataset(split).rows.tolist())


def test_no_validation_where_its_size_is_zero():
    module = synthetic(val_size=0)
    assert module.val_dataloader() == []
    assert len(module.dataset("train")) == 900
    with pytest.raises(ValueError, match="val_size is 0; give it a size"):
        module.dataset("val")


def test_folders_named_train_and_test_are_the_splits(folder, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "parts").mkdir(exist_ok=True)
        (tmp_path / "parts" / split).symlink_to(folder)
    module = synthetic(8, 3, 4, "ImageFolder", root=str(tmp_path / "parts"), val_size=4)
    assert [len(module.dataset(s)) for s in ("train", "val", "test")] == [20, 4, 24]


# Under a Trainer


class Watcher(LightningModule):
    """Keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[0].clone())
        return self.net(batch[0].mean().view(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch[0])

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch[0])

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].append(batch[0])
        return batch_idx

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def trainer(path, **kwargs):
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        **kwargs,
    )


def test_a_trainer_shows_the_same_batches_as_a_loop(tmp_path):
    options = {"horizontal_flip": True, "dequantize": True, "num_synthetic": 100, "seed": 3}
    alone = synthetic(**options)
    loader = alone.train_dataloader()
    epochs = [x for _ in range(2) for x, _ in loader]
    model, module = Watcher(), synthetic(**options)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, datamodule=module)
    assert len(epochs) == 16
    assert all(torch.equal(a, b) for a, b in zip(model.seen["train"], epochs, strict=True))
    assert torch.equal(model.seen["val"][0], next(alone.batches("val"))[0])
    run.test(model, datamodule=module, verbose=False)
    run.predict(model, datamodule=module)
    for kind in ("test", "predict"):
        assert torch.equal(
            torch.cat(model.seen[kind]), torch.cat([x for x, _ in alone.batches("test")])
        )
    assert torch.equal(next(module.batches("test"))[0], next(alone.batches("test"))[0])


def test_pixels_of_a_resumed_run_are_those_of_an_uninterrupted_one(tmp_path):
    options = {"horizontal_flip": True, "dequantize": True, "num_synthetic": 100}
    whole, half, rest = Watcher(), Watcher(), Watcher()
    trainer(tmp_path, max_steps=16).fit(whole, datamodule=synthetic(**options))
    run = trainer(tmp_path, max_steps=11)
    run.fit(half, datamodule=synthetic(**options))
    run.save_checkpoint(tmp_path / "half.ckpt")
    run = trainer(tmp_path, max_steps=16)
    run.fit(rest, datamodule=synthetic(**options), ckpt_path=tmp_path / "half.ckpt")
    seen = half.seen["train"] + rest.seen["train"]
    assert len(seen) == 16
    assert all(torch.equal(a, b) for a, b in zip(seen, whole.seen["train"], strict=True))


# Files in place


@pytest.mark.parametrize(
    ("dataset", "size", "channels", "pools"),
    [
        ("MNIST", 28, 1, (55000, 5000, 10000)),
        ("FashionMNIST", 28, 1, (55000, 5000, 10000)),
        ("CIFAR10", 32, 3, (45000, 5000, 10000)),
        ("KMNIST", 28, 1, (None, None, 10000)),
        ("CIFAR100OOD", 32, 3, (None, None, 10000)),
    ],
)
def test_public_data_sets_are_read_in_place(dataset, size, channels, pools):
    names = {"FashionMNIST": "fashion_mnist", "CIFAR100OOD": "cifar100_ood"}
    root = data_root(names.get(dataset, dataset.lower()))
    before = sorted(os.listdir(root))
    module = synthetic(size, channels, 100, dataset, root=root)
    for split, num in zip(("train", "val", "test"), pools, strict=True):
        if num is not None:
            assert len(module.dataset(split)) == num
            x, label = next(module.batches(split))
            assert x.shape == (100, channels, size, size)
            assert len(label.unique()) > 5
    assert sorted(os.listdir(root)) == before


def test_cifar_channel_means_are_the_published_ones():
    module = synthetic(32, 3, 100, "CIFAR10", root=data_root("cifar10"))
    images = module._images("train").columns[0]
    means = images.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)


def test_stacks_hold_each_digit_once_in_each_channel_and_their_labels_say_which():
    root = data_root("mnist")
    stacks = synthetic(28, 3, 100, "StackedMNIST", root=root)
    single = synthetic(28, 1, 100, "MNIST", root=root)._images("test")
    images, labels = stacks._images("test").columns
    by_image = {x.numpy().tobytes(): int(y) for x, y in zip(*single.columns, strict=True)}
    for channel, place in enumerate((100, 10, 1)):
        found = [by_image[x.numpy().tobytes()] for x in images[:, channel]]
        assert found == (labels // place % 10).tolist()
        assert len({x.numpy().tobytes() for x in images[:, channel]}) == len(by_image)
    assert len(labels.unique()) > 990  # 10,000 draws leave out e^{-10} of 1,000
    # a batch has the channels of one stack
    assert len(stacks.dataset("train")) == 55000 and stacks.event_shape == (3, 28, 28)


# Errors


def test_missing_files_are_named_with_what_to_do(tmp_path, monkeypatch):
    root = tmp_path / "nothing"
    root.mkdir()
    root.chmod(0o555)
    for option in ({"root": str(root)}, {}):
        monkeypatch.setenv("EBLVM_DATA", str(root))
        with pytest.raises(FileNotFoundError) as caught:
            synthetic(28, 1, 10, "FashionMNIST", **option).setup("test")
        message = str(caught.value)
        assert "FashionMNIST/raw/t10k-images-idx3-ubyte.gz" in message
        assert f"{root}/fashion_mnist and {root}" in message
        assert "read-only" in message
        assert "`root` or in the environment variable EBLVM_DATA" in message


def test_a_failed_download_is_one_clear_message(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")

    def offline(self):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.KMNIST, "download", offline)
    with pytest.raises(FileNotFoundError, match=r"Downloading into .* failed: no route to host"):
        synthetic(28, 1, 10, "KMNIST", root=str(tmp_path)).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"images_00.webp … and fine_labels.npy not found"):
        synthetic(32, 3, 10, "CIFAR100OOD", root=str(tmp_path)).setup("test")


def test_a_download_is_read_afterwards(tmp_path, monkeypatch):
    """Stands for torchvision's classes: fetched once, and opened without the network."""
    datasets = pytest.importorskip("torchvision.datasets")
    calls = []

    def download(self):
        if not self._check_integrity():
            calls.append(self.split)
            (Path(self.root) / f"{self.split}.done").touch()

    def init(self, root, split="train", transform=None, target_transform=None, download=False):
        super(datasets.SVHN, self).__init__(root)
        self.split = split
        if download:
            self.download()
        if not self._check_integrity():
            raise RuntimeError("Dataset not found or corrupted.")
        self.data = np.zeros((20, 3, 32, 32), np.uint8)
        self.labels = np.arange(20)

    monkeypatch.setattr(datasets.SVHN, "__init__", init)
    monkeypatch.setattr(datasets.SVHN, "download", download)
    monkeypatch.setattr(
        datasets.SVHN, "_check_integrity", lambda s: (Path(s.root) / f"{s.split}.done").exists()
    )
    for _ in range(2):
        module = synthetic(32, 3, 10, "SVHN", root=str(tmp_path))
        module.prepare_data()
        module.setup()
        assert [len(module.dataset(s)) for s in ("train", "val", "test")] == [18, 2, 20]
    assert calls == ["train", "test"]


def test_damaged_files_are_named(mnist, folder):
    root, images, _ = mnist
    path = root / "mnist" / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()

    def fails(message):
        with pytest.raises(ValueError, match=message):
            synthetic(28, 1, 10, "MNIST", root=str(root)).setup("test")

    path.write_bytes(whole[: len(whole) // 2])
    fails(r"t10k-images-idx3-ubyte.gz is damaged or cut short")
    path.write_bytes(b"something else")
    fails(r"t10k-images-idx3-ubyte.gz is damaged or cut short")
    write_idx(path, images[40:], magic=b"abc")
    fails(r"t10k-images-idx3-ubyte.gz is not a whole idx file")
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    fails(r"not a whole idx file of bytes: its header states shape \(20, 28, 28\) and 15679 bytes")
    write_idx(path, images[:7])
    fails(r"do not belong together: images have shape \(7, 28, 28\), labels \(20,\)")
    picture = sorted(folder.glob("*/*.png"))[3]
    picture.write_bytes(picture.read_bytes()[:500])
    with pytest.raises(ValueError, match=rf"{picture.name} is damaged or cut short"):
        synthetic(8, 3, 10, "ImageFolder", root=str(folder)).setup()


def test_unknown_names_get_a_suggestion():
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=r"no data set 'FashionMnist'.*FashionMNIST"):
        synthetic(dataset="FashionMnist").setup()
    with pytest.raises(ValueError, match=r"variant is 'x', but SVHN has none"):
        synthetic(dataset="SVHN", variant="x").setup("fit")
    with pytest.raises(ValueError, match=r"CIFAR100OOD has no train images .* only test"):
        synthetic(dataset="CIFAR100OOD").setup("fit")


def test_impossible_shapes_and_sizes_are_refused(mnist, folder):
    root, *_ = mnist
    with pytest.raises(ValueError, match="channels is 2; expected 1"):
        synthetic(channels=2)
    for name in ("image_size", "center_crop", "limit", "num_synthetic"):
        with pytest.raises(ValueError, match=f"{name} is 0; expected"):
            synthetic(**{name: 0})
    for name in ("num_workers", "seed", "val_size"):
        with pytest.raises(ValueError, match=f"{name} is -1; expected 0 or more"):
            synthetic(**{name: -1})
    with pytest.raises(ValueError, match="batch_size is 0; expected 1 or more"):
        synthetic(batch_size=0)
    with pytest.raises(ValueError, match=r"center_crop is 29, but an image has 28 × 28 pixels"):
        synthetic(28, 1, 10, "MNIST", root=str(root), center_crop=29).setup("test")
    with pytest.raises(ValueError, match=r"val_size is 40, but MNIST has 40 images"):
        synthetic(28, 1, 10, "MNIST", root=str(root), val_size=40).dataset("train")
    with pytest.raises(
        ValueError, match=r"The train split of Synthetic is empty \(classes: \[11\]"
    ):
        synthetic(classes=[11]).dataset("train")
    with pytest.raises(ValueError, match=r"batch_size is 900, but each of 1 devices has 800"):
        synthetic(batch_size=900).train_dataloader()
    with pytest.raises(ValueError, match="split is 'tset'; expected one of"):
        synthetic().loader("tset")


def test_missing_packages_and_variants_are_explained(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    with pytest.raises(ValueError, match=r"EMNIST cannot be opened .* name one with `variant`"):
        synthetic(dataset="EMNIST", root=str(tmp_path)).setup("fit")

    def init(self, root, classes="train", **kwargs):
        assert classes == ["church_outdoor_train"]
        raise ModuleNotFoundError("No module named 'lmdb'", name="lmdb")

    monkeypatch.setattr(datasets.LSUN, "__init__", init)
    options = {"dataset": "LSUN", "variant": "church_outdoor", "root": str(tmp_path)}
    with pytest.raises(RuntimeError, match=r"LSUN needs a package .* `pip install lmdb`"):
        synthetic(**options, val_size=9).setup("fit")


def test_an_unfit_torchvision_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(RuntimeError, match="install both together from the same place"):
        synthetic(dataset="SVHN").setup()
