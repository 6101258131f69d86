"""Out-of-distribution evaluation: artificial sets, the callback, and `eblvm score`."""

import csv
import json
import re

import pytest
import torch
import yaml
from PIL import Image

from eblvm.checkpoint import load
from eblvm.data import ImageDataModule
from eblvm.outliers import OutOfDistribution, artificial


def test_artificial_sets_are_what_they_say():
    x = 2 * torch.rand(2000, 1, 4, 4) - 1
    sets = artificial(x)
    assert all(other.shape == x.shape for other in sets.values())
    # U(−1, 1): mean 0, variance 1/3; 32,000 numbers
    assert float(sets["uniform"].mean()) == pytest.approx(0, abs=0.02)
    assert float(sets["uniform"].var()) == pytest.approx(1 / 3, abs=0.01)
    constant = sets["constant"].flatten(1)
    assert float(constant.std(1).max()) == 0
    assert float(constant[:, 0].var()) == pytest.approx(1 / 3, abs=0.03)
    # means of two independent numbers have half the variance
    assert float(sets["interpolation"].var()) == pytest.approx(float(x.var()) / 2, rel=0.05)
    assert torch.equal(artificial(x)["uniform"], sets["uniform"])
    wide = artificial(x, scale=4.0)
    assert torch.equal(wide["uniform"], 4 * sets["uniform"])
    assert torch.equal(wide["constant"], 4 * sets["constant"])
    assert torch.equal(wide["interpolation"], sets["interpolation"])


def test_no_others_at_all_are_refused():
    with pytest.raises(ValueError, match="there are no others"):
        OutOfDistribution(built_in=False)


def test_sets_that_are_missing_are_left_out_with_one_warning(eblvm, tmp_path, tiny):
    recipe = yaml.safe_load(tiny.read_text())
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o555)  # nothing is downloaded into a folder that is read-only
    settings = {"image_size": 8, "channels": 1, "batch_size": 4}
    others = {
        name: {
            "class_path": "eblvm.data.ImageDataModule",
            "init_args": {"dataset": dataset, **settings, "root": str(empty)},
        }
        for name, dataset in (("m", "MNIST"), ("c", "CIFAR100OOD"), ("d", "Digits"))
    }
    arguments = {"others": others, "num": 20}
    recipe["trainer"]["callbacks"] = [
        {"class_path": "eblvm.outliers.OutOfDistribution", "init_args": arguments}
    ]
    path = tmp_path / "missing.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = eblvm("fit", "--config", path, "--trainer.max_epochs=1")
    assert done.status == 0, done.err
    (warning,) = re.findall(r"eblvm: left out of .*\n(?:  .*\n)*", done.err)
    named = dict(re.findall(r"^  (\w+): (\w+)", warning, re.MULTILINE))
    assert named == {"m": "MNIST", "c": "CIFAR100OOD"}
    (table,) = tmp_path.rglob("metrics.csv")
    assert {"val/ood/d", "val/ood/uniform"} <= set(table.read_text().partition("\n")[0].split(","))
    assert "ood/m/" not in table.read_text()

    del others["d"]
    arguments["built_in"] = False
    path.write_text(yaml.safe_dump(recipe))
    done = eblvm("fit", "--config", path, "--trainer.max_epochs=1", "--runs=none")
    assert done.status == 2  # nothing is left to tell data from, before any training
    assert "CIFAR100OOD" in done.err and "not found" in done.err
    assert not list((tmp_path / "none").rglob("*.ckpt"))


@pytest.fixture
def run(eblvm, tmp_path, tiny):
    """A tiny run whose recipe has the callback."""
    recipe = yaml.safe_load(tiny.read_text())
    data = recipe["data"]
    recipe["trainer"]["callbacks"] = [
        {
            "class_path": "eblvm.outliers.OutOfDistribution",
            "init_args": {"num": 20, "num_bootstrap": 10, "others": {"same": data}},
        }
    ]
    path = tmp_path / "ood.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = eblvm("fit", "--config", path, "--trainer.max_epochs=1")
    assert done.status == 0, done.err
    (last,) = tmp_path.rglob("last.ckpt")
    return last


def test_a_test_prints_writes_and_draws(run, eblvm):
    done = eblvm("test", "--ckpt_path", run)
    assert done.status == 0, done.err
    assert "AUROC" in done.out
    folder = run.parents[1]
    report = json.loads((folder / "ood.json").read_text())
    assert {"uniform", "constant", "interpolation", "same"} == report["figures"].keys()
    for score in ("bound", "reconstruction"):
        value, low, high = report["figures"]["same"][score]["auroc"]
        assert low <= value <= high
        assert 0.2 < value < 0.8  # the data themselves, up to the noise of a bound's draw
    metrics = json.loads((folder / "test.json").read_text())
    assert 0 <= metrics["test/ood/uniform/bound"] <= 1
    assert metrics["test/ood/uniform"] == metrics["test/ood/uniform/bound"]
    areas = [metrics[f"test/ood/{name}"] for name in report["figures"]]
    assert metrics["test/ood/mean"] == pytest.approx(sum(areas) / 4, abs=1e-6)
    protocol = metrics["protocol"]["OutOfDistribution"]
    for name in ("ood/mean", "ood/mean/reconstruction"):
        assert set(protocol[name]["sets"].split(", ")) == report["figures"].keys()
    assert re.search(r"mean +bound +0\.\d+", done.out)
    assert (protocol["score"], protocol["split"]) == ("bound", "test")
    assert protocol["num_others"].keys() == report["figures"].keys()
    assert list((folder / "pictures").glob("ood_test.png"))


def test_a_recipe_chooses_the_score_that_stands_for_the_method(eblvm, tmp_path, tiny):
    recipe = yaml.safe_load(tiny.read_text())
    arguments = {"num": 20, "score": "reconstruction"}
    recipe["trainer"]["callbacks"] = [
        {"class_path": "eblvm.outliers.OutOfDistribution", "init_args": arguments}
    ]
    path = tmp_path / "chosen.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = eblvm("fit", "--config", path, "--trainer.max_epochs=1")
    assert done.status == 0, done.err
    (table,) = tmp_path.rglob("metrics.csv")
    with open(table) as file:
        (row,) = [r for r in csv.DictReader(file) if r["val/ood/mean"]]
    for name in ("uniform", "constant", "interpolation", "mean"):
        assert row[f"val/ood/{name}"] == row[f"val/ood/{name}/reconstruction"]
    assert row["val/ood/mean"] != row["val/ood/mean/bound"]

    arguments["score"] = "joint"
    path.write_text(yaml.safe_dump(recipe))
    done = eblvm("fit", "--config", path, "--trainer.max_epochs=1", "--runs=none")
    assert done.status != 0
    assert "no score joint, but bound, reconstruction" in done.err


def test_no_set_takes_the_name_of_the_mean():
    with pytest.raises(ValueError, match="rename it"):
        OutOfDistribution({"mean": ImageDataModule("Digits", 8, 1, 4)})


def test_scores_of_the_run_s_own_data_become_a_table(run, eblvm, tmp_path):
    done = eblvm("score", "--ckpt", run, "--num", 5, "--out", tmp_path / "s.csv")
    assert done.status == 0, done.err
    with open(tmp_path / "s.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert {"index", "bound", "reconstruction"} <= rows[0].keys()
    assert float(rows[0]["reconstruction"]) <= 0


def test_a_folder_of_one_s_own_images_is_scored_whole_and_by_name(eblvm, tmp_path):
    small = ["--trainer.max_steps=1", "--trainer.max_epochs=-1", "--trainer.callbacks=[]"]
    small += ["--monitor=val/loss", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=1"]
    done = eblvm("fit", "--config", "image/bidvl_digits", *small)
    assert done.status == 0, done.err
    (last,) = tmp_path.rglob("last.ckpt")
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    for name, level in (("b.png", 255), ("a.png", 0), ("deep/c.jpg", 128)):
        Image.new("RGB", (12, 20), (level,) * 3).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    done = eblvm("score", "--ckpt", last, "--data", folder, "--out", tmp_path / "s.csv")
    assert done.status == 0, done.err
    with open(tmp_path / "s.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["a.png", "b.png", "deep/c.jpg"]
    images = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    expected = load(str(last)).scores(images)["energy"].tolist()
    assert [float(row["energy"]) for row in rows[:2]] == pytest.approx(expected, abs=1e-5)
    (folder / "d.png").write_text("no image either")
    done = eblvm("score", "--ckpt", last, "--data", folder, "--out", tmp_path / "s.csv")
    assert done.status == 2 and "d.png cannot be read as an image" in done.err
    done = eblvm("score", "--ckpt", last, "--data", empty(tmp_path), "--out", tmp_path / "s.csv")
    assert done.status == 2 and "there are no images" in done.err


def empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"
