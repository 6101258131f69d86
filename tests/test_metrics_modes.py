"""Modes near and hit, on samples made by hand and on perfect ones."""

import math

import pytest
import torch

from eblvm.data import EightGaussians
from eblvm.metrics import ClassCount, count_classes, count_modes, energy_log_prob


def test_counts_of_points_made_by_hand():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]])
    samples = torch.tensor([[0.1, 0.0]] * 5 + [[10.0, 2.9]] * 3 + [[5.0, 0.0]] * 4)
    count = count_modes(samples, centers, std=1.0, share=0.5)
    assert count.near == pytest.approx(8 / 12)
    assert count.hit == 2
    assert (count.least, count.most) == (0.0, pytest.approx(5 / 4))
    assert count_modes(samples, centers, std=1.0, share=0.8).hit == 1


def test_perfect_samples_are_near_as_often_as_rayleigh_says():
    density = EightGaussians()
    x = density.sample(40_000, torch.Generator().manual_seed(0))
    count = count_modes(x, density.centers, density.std)
    # standard error 0.0005; the tails of neighbors are 4 standard deviations apart at the middle
    assert count.near == pytest.approx(1 - math.exp(-4.5), abs=0.002)
    assert count.hit == 8


def test_dimensions_must_agree():
    with pytest.raises(ValueError, match=r"expected \(N, D\) and \(K, D\)"):
        count_modes(torch.zeros(3, 2), torch.zeros(3, 3), 1.0)


def test_an_energy_of_the_plane_is_normalized():
    bounds = ((-8.0, 8.0), (-8.0, 8.0))
    log_prob = energy_log_prob(
        lambda x: x.square().sum(1) / 2 + 3.0, bounds, 200, dtype=torch.float64
    )
    assert float(log_prob.exp().sum() * (16 / 200) ** 2) == pytest.approx(1, abs=1e-9)
    assert float(log_prob.max()) == pytest.approx(-math.log(2 * math.pi), abs=2e-3)


def test_classes_are_counted_against_the_uniform_distribution():
    labels = torch.arange(1000).repeat(3)
    assert count_classes(labels, 1000) == ClassCount(1000, pytest.approx(0.0, abs=1e-12))
    half = count_classes(labels[labels < 500], 1000)  # half of the classes: log 2
    assert half == ClassCount(500, pytest.approx(math.log(2)))
    draws = torch.randint(1000, (26_000,), generator=torch.Generator().manual_seed(0))
    # 2nKL is χ² with K − 1 degrees of freedom, nearly
    assert count_classes(draws, 1000).kl == pytest.approx(999 / 52_000, rel=4 * (2 / 999) ** 0.5)
    with pytest.raises(ValueError, match="there are no samples"):
        count_classes(draws[:0], 1000)
