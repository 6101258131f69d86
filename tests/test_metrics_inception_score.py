"""The Inception score of samples whose classes are known."""

import math

import pytest
import torch

from eblvm.data import ImageDataModule
from eblvm.metrics import ClassifierFeatures, InceptionScore
from eblvm.metrics.features import FeatureExtractor


class Sure(FeatureExtractor):
    """Of one pixel v in [−1, 1]: class 0 with log-odds 20 v."""

    name, num_features = "sure", 1

    def extract(self, images):
        return images.flatten(1)

    def logits(self, features):
        return torch.cat([10 * features, -10 * features], 1)


def score(images, num_splits=1):
    metric = InceptionScore(Sure(), num_splits)
    for part in images.split(3):
        metric.update(part)
    return {name: float(value) for name, value in metric.compute().items()}


def test_it_counts_clear_classes():
    sign = torch.tensor([1.0, -1.0] * 6).view(12, 1, 1, 1)
    assert score(sign)["inception_score"] == pytest.approx(2, rel=1e-6)
    assert score(torch.ones(12, 1, 1, 1))["inception_score"] == pytest.approx(1)
    assert score(torch.zeros(12, 1, 1, 1))["inception_score"] == pytest.approx(1)  # unclear
    uneven = torch.tensor([1.0] * 9 + [-1.0] * 3).view(12, 1, 1, 1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert score(uneven)["inception_score"] == pytest.approx(math.exp(entropy), rel=1e-6)


def test_parts_are_dealt_in_turn_whatever_the_batches():
    sign = torch.tensor([1.0, -1.0] * 6).view(12, 1, 1, 1)  # each part has one class only
    found = score(sign, num_splits=2)
    assert found == {
        "inception_score": pytest.approx(1),
        "inception_score_std": pytest.approx(0, abs=1e-9),
    }
    halves = torch.tensor([1.0, 1.0, -1.0, 1.0] * 3).view(12, 1, 1, 1)  # one part has both
    assert score(halves, num_splits=2)["inception_score_std"] > 0.3


def test_too_few_images_for_the_parts_are_refused():
    with pytest.raises(ValueError, match="2 images for 10 parts"):
        score(torch.ones(2, 1, 1, 1), num_splits=10)
    with pytest.raises(ValueError, match="num_splits is 0"):
        InceptionScore(Sure(), 0)


def test_digits_have_nearly_ten_classes():
    data = ImageDataModule("Digits", 8, 1, 300)
    data.setup("test")
    metric = InceptionScore(ClassifierFeatures("digits"), num_splits=1)
    metric.update(next(data.batches("test"))[0])
    assert 9 < float(metric.compute()["inception_score"]) <= 10
