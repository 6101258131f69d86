"""Feature extractors: what they accept, what identifies them, where weights come from."""

import pickle
import subprocess
import sys
import types
from importlib.resources import files

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from eblvm.data import ImageDataModule
from eblvm.metrics import (
    ClassifierFeatures,
    ConvClassifier,
    FrechetDistance,
    InceptionFeatures,
    PixelFeatures,
    features_for,
)
from eblvm.metrics.features import PACKAGED, export_classifier, main
from eblvm.models import ImageClassifier

SHAPES = {"digits": (1, 8, 8), "fashion_mnist": (1, 28, 28), "mnist": (1, 28, 28)}
LENGTHS = {"digits": 32, "fashion_mnist": 64, "mnist": 64}


@pytest.fixture
def checkpoint(tmp_path):
    """What Lightning saves, without a trainer."""
    learner = ImageClassifier(image_size=8, num_classes=3, width=4)
    path = tmp_path / "run.ckpt"
    content = {"state_dict": learner.state_dict(), "hyper_parameters": dict(learner.hparams)}
    torch.save(content | {"epoch": 3}, path)
    return learner, path


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_features_have_the_stated_shapes(name):
    features = ClassifierFeatures(name)
    images = torch.rand(5, *SHAPES[name]) * 2 - 1
    assert features.name == f"classifier:{name}"
    assert features.num_features == LENGTHS[name]
    assert features(images).shape == (5, LENGTHS[name])
    torch.testing.assert_close(features(images.flip(0)), features(images).flip(0))


def test_images_of_a_stated_size_are_resized_and_the_protocol_says_so():
    features = ClassifierFeatures("fashion_mnist", image_size=32)
    smooth = torch.linspace(-1, 1, 32).expand(2, 1, 32, 32).clone()
    small = torch.linspace(-1, 1, 28).expand(2, 1, 28, 28).clone()  # but for borders
    plain = ClassifierFeatures("fashion_mnist")
    assert float((features(smooth) - plain(small)).abs().max()) < 0.05 * float(plain(small).max())
    assert features.protocol["resizing"] == "antialiased bilinear, 32 to 28"
    assert plain.protocol["resizing"] == "none"
    with pytest.raises(ValueError, match=r"expect \(B, 1, 32, 32\)"):
        features(small)


def test_packaged_digits_classifier_knows_the_test_images_it_has_not_seen():
    data = ImageDataModule("Digits", 8, 1, 300)
    data.setup("test")
    images, label = next(data.batches("test"))
    accuracy = (ClassifierFeatures("digits").network(images).argmax(1) == label).double().mean()
    assert len(label) == 300
    assert accuracy >= 0.97


def test_frechet_distance_orders_same_noisy_and_collapsed_samples():
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    first, second = images[::2], images[1::2]
    distances = {}
    for name, other in {
        "same": second,
        "noisy": (second + 0.3 * torch.randn_like(second)).clamp(-1, 1),
        "one class": images[torch.tensor(data.target) == 3],
    }.items():
        metric = FrechetDistance(ClassifierFeatures("digits"))
        metric.update(first, real=True)
        metric.update(other, real=False)
        distances[name] = float(metric.compute())
    assert distances["same"] < 0.2 * distances["noisy"] < distances["one class"]


def test_features_are_float32_in_evaluation_mode_without_gradients(checkpoint):
    features = ClassifierFeatures(checkpoint[1])
    before = features.weights_hash()
    images = (torch.rand(4, 1, 8, 8, dtype=torch.float64) * 2 - 1).requires_grad_()
    expected = features(images.detach())
    for module in (features.train(), nn.Sequential(features).train()):
        assert not any(m.training for m in features.modules())
        assert module(images).dtype == torch.float32
        assert not module(images).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features(images), expected)  # a trainer's precision changes no figure
    assert features.weights_hash() == before
    assert not any(p.requires_grad for p in features.parameters())


def test_checkpoint_and_its_export_give_the_networks_features(checkpoint, tmp_path):
    learner, path = checkpoint
    exported = tmp_path / "small.pt"
    main([str(path), str(exported)])
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    learner.eval()
    features = [ClassifierFeatures(path), ClassifierFeatures(str(exported), name="mine")]
    for each in features:
        torch.testing.assert_close(each(images), learner.network.features(images))
    assert features[0].weights_hash() == features[1].weights_hash()
    assert [each.name for each in features] == ["classifier:run", "mine"]


def test_hash_depends_on_every_parameter_and_buffer(checkpoint):
    features = ClassifierFeatures(checkpoint[1])
    hashes = {features.weights_hash()}
    for value in features.state_dict().values():
        value += 1
        hashes.add(features.weights_hash())
    assert len(hashes) == 1 + len(features.state_dict())


def test_pixels_are_the_image():
    images = 5 * torch.randn(3, 2, 4, 4)  # any range
    assert torch.equal(PixelFeatures((2, 4, 4))(images), images.flatten(1))


def test_logits_are_linear_in_the_features():
    network = ConvClassifier(image_size=32, channels=3, num_classes=7, width=4).eval()
    x = torch.randn(2, 3, 32, 32)
    assert network.num_features == 4 * 2**3  # 32, 16, 8, 4
    torch.testing.assert_close(network(x), network.head(network.features(x)))


def test_logits_of_features_are_the_classifier_s_and_pixels_have_none():
    features = features_for((1, 8, 8))
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    torch.testing.assert_close(features.logits(features(images)), features.network(images))
    with pytest.raises(TypeError, match="'pixels' are no classifier's"):
        PixelFeatures((1, 8, 8)).logits(torch.zeros(1, 64))


def test_features_for_chooses_by_shape_and_repairs_nothing():
    assert features_for((1, 8, 8)).name == "classifier:digits"
    assert features_for((1, 28, 28)).name == "classifier:fashion_mnist"
    with pytest.raises(ValueError, match="InceptionFeatures"):
        features_for((3, 32, 32))


def test_images_are_checked_at_the_border():
    features = features_for((1, 8, 8))
    good = torch.zeros(2, 1, 8, 8)
    with pytest.raises(TypeError, match=r"torch.uint8.*/ 127\.5 - 1"):
        features(good.byte())
    with pytest.raises(ValueError, match="unsqueeze"):
        features(good[:, 0])
    with pytest.raises(ValueError, match=r"\(B, 1, 9, 9\).*'classifier:digits'.*\(B, 1, 8, 8\)"):
        features(torch.zeros(2, 1, 9, 9))
    with pytest.raises(ValueError, match=r"lie in \[0, 255\].*clamp\(-1, 1\)"):
        features(torch.linspace(0, 255, 64).view(1, 1, 8, 8))
    with pytest.raises(ValueError, match="nan"):
        features(good * float("nan"))
    features(torch.full((1, 1, 8, 8), 1.0005))  # rounding of half precision is no error


def test_errors_about_weights_name_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="packaged names digits, fashion_mnist, mnist"):
        ClassifierFeatures("digit")
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"energy.weight": torch.zeros(2)}}, other)
    with pytest.raises(ValueError, match="is not a classifier"):
        ClassifierFeatures(other)
    with pytest.raises(ValueError, match="is not a classifier"):
        export_classifier(other, tmp_path / "out.pt")
    with pytest.raises(ValueError, match="all positive"):
        PixelFeatures((1, 0, 2))
    with pytest.raises(ValueError, match="4 pixels or more"):
        ConvClassifier(image_size=2)
    with pytest.raises(ValueError, match="positive numbers"):
        ConvClassifier(image_size=8, channels=0)


def test_inception_says_what_to_install(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights-inception-2015-12-05-6726825d\.pth"):
        InceptionFeatures(tmp_path / "missing.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'eblvm\[fidelity\]'.*path"):
        InceptionFeatures()


def test_inception_hands_over_bytes_of_three_channels(monkeypatch, tmp_path):
    seen = []

    class Network(nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            seen.extend([name, features_list, feature_extractor_weights_path])
            self.fc = nn.Linear(2048, 1008)

        def forward(self, x):
            seen.append(x)
            return (torch.ones(len(x), 2048),)

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Network
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    weights = tmp_path / "inception.pth"
    torch.save({}, weights)
    features = InceptionFeatures(weights)
    assert seen == ["inception-v3-compat", ["2048"], str(weights)]
    level = torch.arange(256.0).view(1, 1, 16, 16)
    assert features(level / 127.5 - 1).shape == (1, 2048)
    assert seen[-1].dtype == torch.uint8
    assert torch.equal(seen[-1].float(), level.expand(1, 3, 16, 16))  # every byte comes back
    logits = features.logits(torch.ones(1, 2048))  # without the bias
    torch.testing.assert_close(logits[0], features.network.fc.weight.sum(1))
    torch.save({"network": subprocess.run}, weights)  # unpickling may run code
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        InceptionFeatures(weights)
    with pytest.raises(ValueError, match="2 channels"):
        features(torch.zeros(1, 2, 16, 16))


def test_import_is_light():
    code = (
        "import sys, eblvm.metrics\n"
        "import eblvm.metrics.grid, eblvm.metrics.features\n"
        "heavy = {'torchvision', 'torch_fidelity', 'matplotlib', 'torchmetrics', 'sklearn'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_name_of_the_package_can_be_reached():
    import eblvm.metrics as metrics

    assert sorted(metrics._HOME) == sorted(metrics.__all__)
    for name in metrics.__all__:
        assert getattr(metrics, name).__name__ == name
        assert name in dir(metrics)
    with pytest.raises(AttributeError, match="no attribute 'FID'"):
        _ = metrics.FID


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_are_small_and_documented(name):
    folder = files("eblvm.metrics") / "weights"
    assert len((folder / f"{name}.pt").read_bytes()) < 600_000
    assert f"| `{name}` | {' × '.join(map(str, SHAPES[name]))} |" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
