"""`eblvm evaluate`: samples of others under the metrics of a recipe."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from eblvm.benchmarks.outside import JUDGES, read_samples
from eblvm.benchmarks.run import keep, read_results
from eblvm.benchmarks.suite import load_suite
from eblvm.cli import UserError
from eblvm.data import ImageDataModule
from eblvm.evaluation import StackedModes
from eblvm.metrics import FrechetDistance, features_for
from eblvm.pictures import save_image


@pytest.fixture(scope="module")
def digits():
    """The test images of the digits recipes, `(300, 1, 8, 8)`."""
    data = ImageDataModule("Digits", image_size=8, channels=1, batch_size=300, val_size=200)
    data.setup("test")
    return next(iter(data.test_dataloader()))[0]


def test_real_images_are_at_no_distance(digits, eblvm, tmp_path):
    torch.save(digits, "real.pt")
    done = eblvm("evaluate", "real.pt", "--reference", "image/vae_digits", "--num", 300, *OUT)
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["metrics"]["frechet"] == pytest.approx(0, abs=1e-6)
    assert found["metrics"]["precision"] == found["metrics"]["coverage"] == 1
    protocol = found["protocol"]["SampleQuality"]
    assert protocol["features"] == "classifier:digits"
    assert len(protocol["weights_sha256"]) == 64
    assert protocol["num_real"] == protocol["num_fake"] == protocol["num_samples"] == 300
    assert protocol["dtype"] == "features float32, statistics float64"
    assert (protocol["split"], protocol["seed"]) == ("test", 0)
    assert protocol["density_coverage"]["k"] == 5


OUT = ("--out", "figures.json")


def test_all_ways_to_hand_over_images_agree(digits, eblvm, tmp_path):
    bytes_ = ((digits + 1) * 127.5).round().to(torch.uint8)[:100]
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(bytes_):
        save_image(image, tmp_path / "folder" / f"{i:03d}.png")
    np.save("images.npy", bytes_.permute(0, 2, 3, 1).numpy())
    np.savez("images.npz", bytes_.numpy())
    torch.save(bytes_ / 255.0, "unit.pt")
    found = []
    for samples in ("folder", "images.npy", "images.npz", "unit.pt"):
        unit = ["--unit"] * (samples == "unit.pt")
        done = eblvm("evaluate", samples, "--reference", "Digits", *unit, *OUT)
        assert done.status == 0, done.err
        found.append(json.loads((tmp_path / "figures.json").read_text())["metrics"])
    assert found[1] == found[0] == found[2]
    assert found[3] == pytest.approx(found[0], rel=1e-4)
    metric = FrechetDistance(features_for((1, 8, 8)))
    metric.update(digits, real=True)
    metric.update(bytes_ / 127.5 - 1, real=False)
    assert found[0]["frechet"] == pytest.approx(float(metric.compute()), rel=1e-4)


def test_folder_against_folder(digits, eblvm, tmp_path):
    for name, images in (("a", digits[:50]), ("b", digits[50:100])):
        torch.save(images, f"{name}.pt")
    options = ("--features", "pixels", *OUT)
    done = eblvm("evaluate", "a.pt", "--reference", "a.pt", *options)
    assert done.status == 0, done.err
    same = json.loads((tmp_path / "figures.json").read_text())["metrics"]
    eblvm("evaluate", "a.pt", "--reference", "b.pt", *options)
    other = json.loads((tmp_path / "figures.json").read_text())["metrics"]
    assert same["frechet"] < 1e-6 < other["frechet"]


def test_points_of_the_plane(eblvm, tmp_path):
    from eblvm.data import Pinwheel

    torch.save(Pinwheel().sample(20_000, torch.Generator().manual_seed(0)), "right.pt")
    torch.save(torch.randn(20_000, 2), "wrong.pt")
    found = {}
    for name in ("right", "wrong"):
        done = eblvm("evaluate", f"{name}.pt", "--reference", "toy/vae_pinwheel", *OUT)
        assert done.status == 0, done.err
        found[name] = json.loads((tmp_path / "figures.json").read_text())["metrics"]["sample_kl"]
    assert found["right"] < 0.1 < 1 < found["wrong"]


def test_sentences(eblvm, tmp_path):
    real = [f"the {a} {b} the {c} ." for a in ("cat", "dog") for b in ("saw", "bit") for c in "xyz"]
    (tmp_path / "real.txt").write_text("\n".join(real) + "\n")
    (tmp_path / "odd.txt").write_text("\n".join(["the the the the cat"] * 12) + "\n")
    found = {}
    for name in ("real", "odd"):
        done = eblvm("evaluate", f"{name}.txt", "--reference", "real.txt", *OUT)
        assert done.status == 0, done.err
        found[name] = json.loads((tmp_path / "figures.json").read_text())["metrics"]
    assert found["real"]["word_kl"] == pytest.approx(0, abs=1e-6)
    assert (found["real"]["novel"], found["odd"]["novel"]) == (0, 1)
    assert found["real"]["reverse_perplexity"] < found["odd"]["reverse_perplexity"]


def test_they_join_the_table_of_a_suite(digits, eblvm, tmp_path):
    table = "{name: digits, metrics: {frechet: lower}, cells: [image/vae_digits]}"
    suite = f"about: a\ntables:\n  - {table}"
    (tmp_path / "s.yaml").write_text(suite)
    folder = tmp_path / "done"
    folder.mkdir()
    (folder / "suite.json").write_text(load_suite(str(tmp_path / "s.yaml")).to_json())
    torch.save(digits, "real.pt")
    where = ("--bench", folder, "--table", "digits", "--label", "theirs")
    done = eblvm("evaluate", "real.pt", "--reference", "Digits", *where)
    assert done.status == 0, done.err
    done = eblvm("bench", "report", folder)
    assert done.status == 0, done.err
    text = (folder / "report.md").read_text()
    assert "| theirs | " in text
    assert "| image/vae_digits | – | 0 |" in text
    assert list((folder / "report_files").glob("digits_*.png"))
    where = ("--bench", folder, "--table", "faces")
    done = eblvm("evaluate", "real.pt", "--reference", "Digits", *where)
    assert (done.status, "has digits" in done.err) == (2, True)


@pytest.fixture
def finished(tmp_path):
    """A suite of two methods, one of which is done, by the features of the digits."""
    table = (
        "{name: digits, metrics: {frechet: lower}, cells: [image/vae_digits, image/lebm_digits]}"
    )
    (tmp_path / "s.yaml").write_text(f"about: a\ntables:\n  - {table}")
    folder = tmp_path / "done"
    folder.mkdir()
    suite = load_suite(str(tmp_path / "s.yaml"))
    (folder / "suite.json").write_text(suite.to_json())
    features = features_for((1, 8, 8)).protocol
    protocol = {"SampleQuality": {"num_real": 300, "num_fake": 300, **features}}
    cell = suite.cells[0]
    own = {"id": cell.id, "table": "digits", "label": cell.label, "seed": 0, "status": "done"}
    keep(folder / "results.jsonl", {**own, "metrics": {"frechet": 1.0}, "protocol": protocol})
    return folder


@pytest.mark.parametrize(
    "label", ["image/vae_digits", "image/lebm_digits", "image vae_digits", "image\u2028vae_digits"]
)
def test_labels_of_the_table_are_taken(label, digits, finished, eblvm):
    torch.save(digits, "real.pt")
    before = (finished / "results.jsonl").read_bytes()
    where = ("--bench", finished, "--table", "digits", "--label", label)
    done = eblvm("evaluate", "real.pt", "--reference", "Digits", *where)
    assert done.status == 2
    assert "Choose another label" in done.err
    assert (finished / "results.jsonl").read_bytes() == before


def test_labels_lead_to_no_other_folder(digits, finished, eblvm, tmp_path):
    torch.save(digits, "real.pt")
    where = ("--bench", finished, "--table", "digits", "--label", "../../../evil")
    for _ in range(2):  # the same samples may be given again
        done = eblvm("evaluate", "real.pt", "--reference", "Digits", *where)
        assert done.status == 0, done.err
    assert not list(tmp_path.rglob("evil"))
    found = read_results(finished / "results.jsonl")
    assert [r["label"] for r in found] == ["image/vae_digits", "../../../evil"]
    assert (finished / "cells" / found[1]["id"] / "samples.png").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--num", 200), "num_fake is 200, there 300"),
        (("--features", "pixels"), "features is pixels"),
    ],
)
def test_figures_of_another_protocol_are_refused(options, said, digits, finished, eblvm):
    torch.save(digits, "real.pt")
    where = ("--bench", finished, "--table", "digits", "--label", "theirs")
    done = eblvm("evaluate", "real.pt", "--reference", "Digits", *options, *where)
    assert done.status == 2
    assert said in done.err
    assert len(read_results(finished / "results.jsonl")) == 1


def test_recipes_with_a_starter_judge_samples_too(digits, eblvm, tmp_path):
    """What asks for the starts of chains is left out."""
    torch.save(digits, "real.pt")
    done = eblvm("evaluate", "real.pt", "--reference", "image/vae_ebm_digits", "--num", 300, *OUT)
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "figures.json").read_text())
    assert set(found["protocol"]) == {"SampleQuality"}
    assert not any(name.startswith("proposal") for name in found["metrics"])


def test_stacked_digits_are_judged_by_their_modes():
    assert StackedModes in JUDGES


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.rand(9, 1, 8, 8), "say --unit"),
        (torch.rand(9, 1, 8, 8) * 255, r"expected \[-1, 1\]"),
        (torch.full((9, 1, 8, 8), torch.nan), "finite"),
        (torch.zeros(9, 8, 8), r"images \(N, C, H, W\)"),
        ({"images": torch.zeros(9, 1, 8, 8)}, "holds dict"),
    ],
)
def test_tensors_that_are_no_samples(content, said, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=said):
        read_samples(tmp_path / "x.pt")


def test_images_of_sixteen_bits_keep_their_grays(tmp_path):
    wide = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray((wide // 257).astype(np.uint8)).save(tmp_path / "b.png")
    images = read_samples(tmp_path)
    assert images.shape == (2, 1, 2, 2)
    torch.testing.assert_close(images[0], images[1])
    torch.testing.assert_close(images[0, 0, 0, 1], torch.tensor(100 / 127.5 - 1))


def test_folders_that_are_no_samples(tmp_path):
    with pytest.raises(UserError, match="no images"):
        read_samples(tmp_path)
    for size in (8, 9):
        Image.new("L", (size, size)).save(tmp_path / f"{size}.png")
    with pytest.raises(UserError, match="one size"):
        read_samples(tmp_path)
    with pytest.raises(UserError, match="no file or folder"):
        read_samples(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--reference", "image/vae_digits"), "--num 50"),
        (("--reference", "Digits", "--features", "eyes"), "expected digits"),
        (("--reference", "toy/vae_pinwheel"), "eblvm: error"),
        (("--reference", "text.txt"), "eblvm: error"),
        (("--reference", "Digitz"), "no data set"),
    ],
)
def test_what_does_not_go_together_is_said(digits, arguments, said, eblvm, tmp_path):
    torch.save(digits[:50], "few.pt")
    (tmp_path / "text.txt").write_text("a b\n")
    done = eblvm("evaluate", "few.pt", *arguments)
    assert done.status == 2
    assert said in done.err
