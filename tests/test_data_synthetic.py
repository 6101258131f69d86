"""Densities on the plane: normalized, sampled as evaluated, with the published constants."""

import math

import numpy as np
import pytest
import torch

from eblvm.data import (
    Checkerboard,
    DensityDataModule,
    EightGaussians,
    GaussianGrid,
    GaussianRings,
    Moons,
    Pinwheel,
    Rings,
    SwissRoll,
    TwoMoons,
    seeded_generator,
)

VARIANTS = {
    "eight Gaussians, DDAEBM": EightGaussians(),
    "eight Gaussians, LDEBM": EightGaussians(scale=4 / 1.414),
    "ring of 8": EightGaussians(radius=2, std=0.15, scale=1),
    "25 Gaussians, DDAEBM": GaussianGrid(),
    "16 Gaussians, LDEBM": GaussianGrid(num_side=4, spacing=8 / 3, std=0.5, scale=4 / 1.414),
    "grid of 25": GaussianGrid(spacing=1, std=0.05, scale=1),
    "swiss roll": SwissRoll(),
    "moons": Moons(),
    "rings": Rings(),
    "circles": Rings([3, 1.5], 0.24),
    "Gaussian rings": GaussianRings(),
    "two moons": TwoMoons(),
    "checkerboard, BiSM": Checkerboard(),
    "checkerboard, FFJORD": Checkerboard(4, -4, 4),
    "checkerboard, odd": Checkerboard(3, -1, 2),
    "pinwheel, DDAEBM": Pinwheel(),
    "pinwheel, LDEBM": Pinwheel(num_arms=10, scale=8),
}
ENTROPY = {  # published, or by quadrature elsewhere, to the digits shown
    "ring of 8": 1.123078,
    "grid of 25": 0.065288,
    "Gaussian rings": 3.660419,
    "two moons": 2.660013,
    "checkerboard, BiSM": math.log(0.5),
    "checkerboard, FFJORD": math.log(32),
    "checkerboard, odd": math.log(5),
    "25 Gaussians, DDAEBM": math.log(25) + 1 + math.log(2 * math.pi * (0.1 / 2.828) ** 2),
}
SECOND_MOMENTS = {  # E[x₁²], E[x₂²]
    "ring of 8": (2.0225, 2.0225),
    "grid of 25": (2.0025, 2.0025),
    "Gaussian rings": (5.03375, 5.03375),
    "two moons": (3.30350, 1.39528),
}


def grid(density, num):
    """Midpoints of num × num cells on the bounds, and the area of a cell."""
    (x0, x1), (y0, y1) = density.bounds
    place = (torch.arange(num).double() + 0.5) / num
    points = torch.cartesian_prod(x0 + (x1 - x0) * place, y0 + (y1 - y0) * place)
    return points, (x1 - x0) * (y1 - y0) / num**2


@pytest.fixture(scope="module")
def tabulated():
    """Density and log density on a grid, evaluated once for all tests."""
    kept = {}

    def table(name):
        if name not in kept:
            num = 240 if "board" in name or "LDEBM" in name else 260
            points, area = grid(VARIANTS[name], num)
            kept[name] = points, area, VARIANTS[name].log_prob(points), num
        return kept[name]

    return table


@pytest.mark.parametrize("name", VARIANTS)
def test_density_integrates_to_one(name, tabulated):
    """Midpoints are spectrally accurate on smooth densities; the bounds leave out below 1e-6.

    A pinwheel has integrable poles at its folds, more than four standard deviations out.
    """
    _, area, log_prob, _ = tabulated(name)
    tolerance = 1e-4 if "pinwheel" in name else 2e-6
    assert float(log_prob.exp().sum()) * area == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_samples_fall_where_the_density_says(name, tabulated):
    """χ² of the counts in cells; at the fixed seed, a quantile of 1e-6 would be an error."""
    _, area, log_prob, num = tabulated(name)
    blocks, size = 20, 40_000
    mass = log_prob.exp().view(blocks, num // blocks, blocks, num // blocks).sum((1, 3)) * area
    x, label = VARIANTS[name].draw(size, seeded_generator(1))
    low, high = torch.tensor(VARIANTS[name].bounds, dtype=torch.float64).T
    cell = ((x - low) / (high - low) * blocks).long()
    inside = ((cell >= 0) & (cell < blocks)).all(1)
    assert inside.sum() >= size - 2
    assert label.shape == (size,)
    counts = torch.bincount((cell[:, 0] * blocks + cell[:, 1])[inside], minlength=blocks**2)
    expected = size * mass.flatten()
    large = expected >= 5
    chi2 = ((counts - expected).square() / expected)[large].sum()
    degrees = int(large.sum())
    assert counts[~large].sum() <= expected[~large].sum() + 6 * (expected[~large].sum() + 1).sqrt()
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees) + 10


@pytest.mark.parametrize("name", ENTROPY)
def test_entropy_is_the_published_one(name, tabulated):
    _, area, log_prob, _ = tabulated(name)
    entropy = -float(torch.special.xlogy(log_prob.exp(), log_prob.exp()).sum()) * area
    # the mixture of 25 overlaps by about 1e-13, so the closed form of separate ones holds
    assert entropy == pytest.approx(ENTROPY[name], abs=3e-6)


@pytest.mark.parametrize("name", SECOND_MOMENTS)
def test_second_moments_are_the_published_ones(name, tabulated):
    points, area, log_prob, _ = tabulated(name)
    moments = (log_prob.exp()[:, None] * points.square()).sum(0) * area
    assert moments.tolist() == pytest.approx(SECOND_MOMENTS[name], abs=1e-5)


def test_log_normalizers_are_the_published_ones():
    assert TwoMoons().log_normalizer == pytest.approx(1.877502, abs=1e-6)
    assert GaussianRings().log_normalizer == pytest.approx(3.162281, abs=1e-6)


def test_mean_log_density_of_eight_gaussians_is_that_of_the_experiment():
    density = EightGaussians()
    x = density.sample(20_000, seeded_generator(0)).double()
    assert float(density.log_prob(x).mean()) == pytest.approx(-2.83, abs=0.02)  # 3 standard errors


def test_noisy_curve_equals_brute_force_along_the_curve():
    """Swiss roll and moons against a sum over 200,000 points of the curve."""
    for density, scale in ((SwissRoll(), 0.2), (Moons(noise=0.05, scale=2.0), 2.0)):
        curves = density.curves((torch.arange(200_000).double() + 0.5) / 200_000)
        for x in density.sample(5, seeded_generator(3)).double():
            distance = (curves - x).square().sum(-1)
            kernel = (-distance / (2 * density.std**2)).exp().mean()
            truth = (kernel / (2 * math.pi * density.std**2)).log()
            assert float(density.log_prob(x[None])) == pytest.approx(float(truth), abs=1e-8)
        assert density.std == pytest.approx(scale * (1.0 if scale == 0.2 else 0.05))


def test_rings_equal_the_integral_around_a_circle():
    density, angle = Rings(), 2 * math.pi * (torch.arange(20_000).double() + 0.5) / 20_000
    circles = density.radii[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1)
    for x in density.sample(5, seeded_generator(3)).double():
        kernel = (-(circles - x).square().sum(-1) / (2 * 0.08**2)).exp().mean()
        truth = (kernel / (2 * math.pi * 0.08**2)).log()
        assert float(density.log_prob(x[None])) == pytest.approx(float(truth), abs=1e-9)


def test_pinwheel_has_the_mass_of_small_boxes():
    """The mass of a box around a point, integrated in (r, s), where the density is Gaussian."""
    density = Pinwheel(num_arms=3, scale=1.5)
    side = 0.02
    for x, y in ((1.2, 0.5), (-0.9, 1.1), (0.4, -0.3), (2.0, 1.0)):

        def joint(s, r, x=x, y=y):
            total = 0.0
            for j in range(3):
                angle = 2 * math.pi * j / 3 + 0.25 * math.exp(r)
                u = 1.5 * (r * math.cos(angle) + s * math.sin(angle)) - x
                v = 1.5 * (-r * math.sin(angle) + s * math.cos(angle)) - y
                # a Gaussian bump instead of a box: smooth for quadrature
                total += math.exp(-(u**2 + v**2) / (2 * side**2)) / (2 * math.pi * side**2) / 3
            normal = math.exp(-((r - 1) ** 2) / 0.18 - s**2 / 0.02) / (2 * math.pi * 0.03)
            return total * normal

        # the same bump average of log_prob, by midpoints
        offsets = (torch.arange(61).double() - 30) * (6 * side / 30)
        around = torch.cartesian_prod(offsets, offsets)
        bump = (-around.square().sum(1) / (2 * side**2)).exp()
        points = torch.tensor([x, y]).double() + around
        value = float((density.log_prob(points).exp() * bump).sum() / bump.sum())
        r = np.linspace(-0.8, 2.8, 1401)
        s = np.linspace(-0.6, 0.6, 601)
        rr, ss = np.meshgrid(r, s, indexing="ij")
        truth = np.vectorize(joint)(ss[::7, ::3], rr[::7, ::3]).sum() * (7 * 3.6 / 1400)
        truth *= 3 * 1.2 / 600
        assert value == pytest.approx(truth, rel=2e-3, abs=1e-7)


@pytest.mark.parametrize("name", VARIANTS)
def test_log_prob_follows_type_and_rows(name):
    density = VARIANTS[name]
    x = density.sample(50, seeded_generator(2))
    assert x.shape == (50, 2)
    assert x.dtype == torch.float32
    log_prob = density.log_prob(x)
    assert log_prob.shape == (50,)
    assert log_prob.dtype == torch.float32
    order = torch.randperm(50, generator=seeded_generator(0))
    torch.testing.assert_close(density.log_prob(x[order]), log_prob[order])
    assert density.log_prob(x[:0]).shape == (0,)


def test_sampling_takes_the_generator_or_the_global_one():
    density = Pinwheel()
    a, b = (density.sample(9, seeded_generator(5)) for _ in range(2))
    assert torch.equal(a, b)
    torch.manual_seed(1)
    a = density.sample(9)
    torch.manual_seed(1)
    assert torch.equal(a, density.sample(9))


def test_points_outside_a_checkerboard_are_impossible():
    log_prob = Checkerboard().log_prob(
        torch.tensor([[0.2, 0.7], [1.2, 0.2], [-0.1, 0.1], [0.2, 0.3]])
    )
    assert log_prob.tolist() == pytest.approx([-math.inf, -math.inf, -math.inf, math.log(2)])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \(3,\); expected \(N, 2\)"):
        EightGaussians().log_prob(torch.zeros(3))
    with pytest.raises(ValueError, match=r"std is 0; expected a positive number"):
        EightGaussians(std=0)
    with pytest.raises(ValueError, match=r"radii\[1\] is -1; expected a positive number"):
        Rings([1, -1])
    with pytest.raises(ValueError, match=r"high is 0.0 and low is 1.0"):
        Checkerboard(2, 1.0, 0.0)
    with pytest.raises(ValueError, match="num_val is 0"):
        DensityDataModule(Moons(), 10, num_val=0)


def test_the_sixteen_gaussians_of_ldebm_are_the_published_ones():
    density = VARIANTS["16 Gaussians, LDEBM"]
    centers = density.centers
    torch.testing.assert_close(centers.mean(0), torch.zeros(2, dtype=centers.dtype))
    apart = torch.pdist(centers.double())
    assert float(apart.min()) == pytest.approx(7.544, abs=1e-3)
    assert density.std == pytest.approx(1.414, abs=1e-3)


def test_data_module_keeps_its_points():
    module = DensityDataModule(GaussianGrid(), 10, num_train=55, num_val=20, num_test=15, seed=3)
    epochs = [torch.cat([x for x, _ in module.batches("train")]) for _ in range(2)]
    assert epochs[0].shape == (50, 2)
    assert epochs[0].dtype == torch.float32
    assert torch.equal(*epochs)
    sizes = [len(label) for _, label in module.batches("test")]
    assert sizes == [10, 5]
    x, label = next(module.batches("val"))
    centers = GaussianGrid().centers.float()
    assert float((x - centers[label]).norm(dim=1).max()) < 6 * 0.1 / 2.828


def test_seeds_change_training_points_but_not_test_points():
    one, two = (DensityDataModule(Moons(), 10, 100, 10, 10, seed=seed) for seed in (0, 1))
    assert torch.equal(next(one.batches("test"))[0], next(two.batches("test"))[0])
    assert not torch.equal(next(one.batches("train"))[0], next(two.batches("train"))[0])
    assert not torch.equal(next(one.batches("test"))[0], next(one.batches("val"))[0])
