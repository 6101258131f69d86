"""Precision, recall, density, coverage: counted by hand, and against a brute-force count."""

import pytest
import torch

from eblvm.metrics import DensityCoverage, PixelFeatures, PrecisionRecall
from eblvm.metrics.manifold import density_coverage, neighbor_distance, precision_recall


def line(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_neighbor_distance_on_a_line():
    x = line(0, 1, 3, 7)
    assert neighbor_distance(x, 1).tolist() == [1, 1, 2, 4]
    assert neighbor_distance(x, 3).tolist() == [7, 6, 4, 7]


def test_precision_and_recall_counted_by_hand():
    real = line(0, 1, 10)  # balls [-1, 1], [0, 2], [1, 19]
    fake = line(0.5, 2, 30)  # balls [-1, 2], [0.5, 3.5], [2, 58]
    precision, recall = precision_recall(real, fake, k=1)
    assert precision == pytest.approx(2 / 3)  # 0.5 and 2; 30 is in no ball, for 10 reaches to 19
    assert recall == pytest.approx(3 / 3)  # 0 and 1 are in [-1, 2], 10 is in [2, 58]
    _, recall = precision_recall(real, line(0.5, 2), k=1)
    assert recall == pytest.approx(2 / 3)


def test_density_and_coverage_counted_by_hand():
    real = line(0, 1, 10)  # balls (-1, 1), (0, 2), (1, 19)
    fake = line(0.5, 2, 30)  # in 2 balls, in 1 (2 is on the edge of another), in 0
    density, coverage = density_coverage(real, fake, k=1)
    assert density == pytest.approx((2 + 1 + 0) / (1 * 3))
    assert coverage == pytest.approx(3 / 3)
    _, coverage = density_coverage(real, line(-0.5), k=1)
    assert coverage == pytest.approx(1 / 3)


def test_identical_sets_have_every_figure_one():
    x = torch.randn(300, 5)
    assert [float(f) for f in precision_recall(x, x.clone(), k=3)] == [1, 1]
    assert [float(f) for f in density_coverage(x, x.clone(), k=5)] == [1, 1]


def test_sets_far_apart_have_every_figure_zero():
    x = torch.randn(50, 5)
    assert [float(f) for f in precision_recall(x, x + 100)] == [0, 0]
    assert [float(f) for f in density_coverage(x, x + 100)] == [0, 0]


def test_figures_equal_a_brute_force_count_across_chunks(monkeypatch):
    monkeypatch.setattr("eblvm.metrics.manifold._CHUNK", 8)
    real, fake, k = torch.randn(21, 3), torch.randn(17, 3) + 0.7, 2

    def radius(points, i):
        others = [(p - points[i]).double().norm() for j, p in enumerate(points) if j != i]
        return sorted(others)[k - 1]

    def inside(y, points):
        return [bool((y - p).double().norm() < radius(points, i)) for i, p in enumerate(points)]

    precision, recall = precision_recall(real, fake, k)
    density, coverage = density_coverage(real, fake, k)
    in_real = torch.tensor([inside(y, real) for y in fake])  # (N, M)
    in_fake = torch.tensor([inside(x, fake) for x in real])
    assert precision == in_real.any(1).double().mean()
    assert recall == in_fake.any(1).double().mean()
    assert density == pytest.approx(float(in_real.sum()) / (k * 17))
    assert coverage == in_real.any(0).double().mean()
    assert 0 < coverage < 1  # the case is not a trivial one


def test_density_of_samples_from_the_data_is_one_in_expectation():
    real, fake = torch.randn(2, 2000, 2)
    density, coverage = density_coverage(real, fake, k=5)
    assert density == pytest.approx(1, abs=0.1)  # about four standard errors
    # P(a ball of k real neighbors holds none of N samples) is about 2^-k (Naeem et al., Lemma 2)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)


@pytest.mark.parametrize("metric", [PrecisionRecall, DensityCoverage])
def test_metric_collects_batches(metric):
    real, fake = torch.randn(2, 30, 1, 2, 2)
    whole = metric(PixelFeatures((1, 2, 2)), k=2)
    for batch in torch.arange(30).split(7):
        whole.update(real[batch], real=True)
        whole.update(fake[batch], real=False)
    function = precision_recall if metric is PrecisionRecall else density_coverage
    expected = function(real.flatten(1), fake.flatten(1), 2)
    assert tuple(whole.compute().values()) == expected
    assert whole.protocol["k"] == 2
    assert (whole.protocol["num_real"], whole.protocol["num_fake"]) == (30, 30)
    whole.reset()
    assert whole.real == [] and whole.fake == []


def test_errors_name_the_remedy():
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match="k is 4 for a set of 4 points"):
        neighbor_distance(x, 4)
    with pytest.raises(ValueError, match="diverged"):
        neighbor_distance(x * float("nan"), 1)
    with pytest.raises(ValueError, match="no generated points"):
        density_coverage(x, x[:0], 1)
    with pytest.raises(ValueError, match="k is 0; expected 1 or more"):
        PrecisionRecall(PixelFeatures((1, 2, 2)), k=0)
    metric = DensityCoverage(PixelFeatures((1, 2, 2)))
    with pytest.raises(RuntimeError, match="Call `compute"):
        _ = metric.protocol
    metric.update(torch.randn(3, 1, 2, 2), real=True)
    with pytest.raises(ValueError, match="Add samples"):
        metric.compute()
