"""Quadrature on the plane, against the closed forms of Gaussians."""

import math

import pytest
import torch

from eblvm.metrics import grid_points, histogram_kl, kl_on_grid, log_normalizer

BOX = ((-8.0, 8.0), (-7.0, 9.0))


def gaussian(mean, scale):
    def log_prob(x):
        z = (x - x.new_tensor(mean)) / x.new_tensor(scale)
        return -0.5 * z.square().sum(1) - math.log(2 * math.pi * scale[0] * scale[1])

    return log_prob


def gaussian_kl(mean1, scale1, mean2, scale2):
    return sum(
        math.log(b / a) + (a**2 + (m - n) ** 2) / (2 * b**2) - 0.5
        for m, a, n, b in zip(mean1, scale1, mean2, scale2, strict=True)
    )


def test_points_are_the_midpoints_with_the_second_coordinate_fastest():
    points = grid_points(((0, 2), (10, 14)), 2)
    assert points.tolist() == [[0.5, 11], [0.5, 13], [1.5, 11], [1.5, 13]]


@pytest.mark.parametrize("chunk", [65536, 1000])
def test_log_normalizer_of_a_gaussian(like, chunk, monkeypatch):
    monkeypatch.setattr("eblvm.metrics.grid._CHUNK", chunk)
    energy = lambda x: 0.5 * (x - 1).square().sum(1) + 5.0  # noqa: E731
    result = log_normalizer(energy, BOX, 120, **like)
    assert float(result.log_z) == pytest.approx(math.log(2 * math.pi) - 5, abs=1e-6)
    assert 0 < float(result.boundary_mass) < 1e-8


def test_midpoint_rule_is_of_second_order():
    energy = lambda x: x.sum(1)  # noqa: E731  exp(-x-y) does not vanish at the border
    exact = 2 * math.log(1 - math.exp(-1))
    box = ((0, 1), (0, 1))
    errors = [
        abs(float(log_normalizer(energy, box, n, 1.0, dtype=torch.float64).log_z) - exact)
        for n in (10, 20)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)


def test_boundary_mass_is_the_fraction_in_the_outermost_ring():
    flat = lambda x: torch.zeros(len(x))  # noqa: E731
    result = log_normalizer(flat, ((0, 1), (0, 1)), 10, max_boundary_mass=1)
    assert float(result.boundary_mass) == pytest.approx(36 / 100)
    with pytest.raises(ValueError, match=r"fraction 0\.36 of the mass.*Widen the bounds"):
        log_normalizer(flat, ((0, 1), (0, 1)), 10)


def test_kl_of_gaussians_is_the_closed_form(like):
    first, second = ((0.5, 1.0), (0.8, 1.0)), ((-0.2, 0.3), (1.1, 0.7))
    value = kl_on_grid(gaussian(*first), gaussian(*second), BOX, 150, **like)
    assert float(value) == pytest.approx(gaussian_kl(*first, *second), abs=1e-5)
    same = kl_on_grid(gaussian(*first), gaussian(*first), BOX, 150, **like)
    assert float(same) == 0


def test_kl_is_infinite_where_q_vanishes_and_ignores_where_p_does():
    def half(x):
        return torch.where(x[:, 0] > 0, gaussian((0, 0), (1, 1))(x) + math.log(2), -math.inf)

    normal = gaussian((0, 0), (1, 1))
    assert float(kl_on_grid(half, normal, BOX, 160)) == pytest.approx(math.log(2), abs=1e-4)
    assert float(kl_on_grid(normal, half, BOX, 160)) == math.inf


def test_kl_refuses_what_is_not_normalized():
    normal = gaussian((0, 0), (1, 1))
    with pytest.raises(ValueError, match="p integrates to 2 and q to 1"):
        kl_on_grid(lambda x: normal(x) + math.log(2), normal, BOX, 100)
    with pytest.raises(ValueError, match="normalize with `log_normalizer`"):
        kl_on_grid(normal, lambda x: normal(x) + 1, BOX, 100)


def test_histogram_kl_of_the_datas_own_samples_is_the_documented_bias():
    bins, num = 10, 20000
    uniform = lambda x: torch.zeros(len(x))  # noqa: E731
    box = ((0, 1), (0, 1))
    values = [float(histogram_kl(torch.rand(num, 2), uniform, box, bins)) for _ in range(10)]
    expected = (bins**2 - 1) / (2 * num)
    # 2n KL is about chi-squared with bins² - 1 degrees: relative deviation sqrt(2/99/10) = 4.5 %;
    # the empty outside cell adds alpha/n
    assert sum(values) / 10 == pytest.approx(expected, rel=0.15)
    assert min(values) >= 0


def test_histogram_kl_of_a_shifted_gaussian_is_near_the_closed_form():
    samples = torch.randn(200_000, 2) + torch.tensor([0.5, 0.0])
    value = histogram_kl(samples, gaussian((0, 0), (1, 1)), ((-4, 4), (-4, 4)), 24)
    assert float(value) == pytest.approx(0.125, abs=0.01)  # bias at most 576 / 400,000


def test_histogram_kl_counts_what_falls_outside():
    # all samples outside: q is alpha/(n + 5 alpha) in each of 4 cells, where the data are uniform
    samples = torch.full((10, 2), 5.0)
    value = histogram_kl(samples, lambda x: torch.zeros(len(x)), ((0, 1), (0, 1)), 2)
    assert float(value) == pytest.approx(math.log(0.25 * (10 + 2.5) / 0.5))


def test_errors_name_the_remedy():
    flat = lambda x: torch.zeros(len(x))  # noqa: E731
    box = ((0, 1), (0, 1))
    with pytest.raises(ValueError, match="each low below its high"):
        grid_points(((1, 0), (0, 1)), 3)
    with pytest.raises(ValueError, match="resolution is 0"):
        grid_points(box, 0)
    with pytest.raises(ValueError, match=r"energy returned shape \(9, 2\) for 9 points"):
        log_normalizer(lambda x: x, box, 3)
    with pytest.raises(ValueError, match="energy is nan or infinitely likely at 9 of 9"):
        log_normalizer(lambda x: flat(x) * math.nan, box, 3)
    with pytest.raises(ValueError, match=r"samples have shape \(3,\)"):
        histogram_kl(torch.zeros(3), flat, box, 3)
    with pytest.raises(ValueError, match="1 of 2 samples are not finite"):
        histogram_kl(torch.tensor([[0, 0], [math.inf, 0]]), flat, box, 3)
    with pytest.raises(ValueError, match="pseudocount is 0"):
        histogram_kl(torch.zeros(3, 2), flat, box, 3, pseudocount=0)
    with pytest.raises(ValueError, match="log_prob integrates to 2"):
        histogram_kl(torch.zeros(3, 2), lambda x: flat(x) + math.log(2), box, 3)
