"""Networks of BiDVL: published sizes, ranges, and what their normalization does."""

import pytest
import torch
from torch import nn

from eblvm.models.networks import (
    MLP,
    JointCriticEnergy,
    LimitedEnergy,
    MLPEnergy,
    ResnetDecoder,
    ResnetEncoder,
    ResnetEnergy,
    StridedDecoder,
    StridedEncoder,
    StridedEnergy,
)
from eblvm.models.networks.critic import WholeConv2d
from eblvm.models.networks.sngan import DownBlock

WIDE = [64, 128, 256, 512, 1024]


def test_a_filter_as_large_as_its_maps_is_a_convolution():
    torch.manual_seed(0)
    whole = WholeConv2d(3, 5, 4).double()
    for size in (4, 6):
        x = torch.randn(2, 3, size, size).double()
        torch.testing.assert_close(whole(x), nn.functional.conv2d(x, whole.weight, whole.bias))


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: StridedEnergy(3, 32), 7_385_665),
        (lambda: StridedEnergy(3, 64), 29_670_977),
        (lambda: StridedEnergy(3, 128), 118_806_081),
        (lambda: StridedEncoder(3, 32, 100), 2_780_024),
        (lambda: StridedEncoder(3, 64, 100), 8_728_952),
        (lambda: StridedEncoder(3, 128, 100), 30_063_992),
        (lambda: StridedDecoder(100, 3, [384, 384, 192, 96]), 4_452_963),
        (lambda: StridedDecoder(100, 3, [768, 768, 384, 192, 96]), 16_866_147),
        (lambda: StridedDecoder(100, 3, [1536, 1536, 768, 384, 192, 96]), 65_285_475),
        (lambda: StridedEnergy(1, 32, 32), 1_847_009),
        (lambda: StridedEncoder(1, 32, 64, 24), 781_352),
        (lambda: StridedDecoder(64, 1, [192, 192, 96, 48]), 1_156_561),
        (lambda: StridedEnergy(1, 8, 32), 105_057),
        (lambda: StridedEncoder(1, 8, 16, 32), 66_048),
        (lambda: StridedDecoder(16, 1, [64, 32]), 49_633),
        (lambda: ResnetEnergy(3, [128] * 4, 2), 1_053_825),
        (lambda: ResnetEncoder(3, [128] * 4, 128, 2), 1_086_720),
        (lambda: ResnetDecoder(128, 3, [256] * 4), 4_276_739),
        (lambda: ResnetEnergy(3, WIDE), 10_141_441),
        (lambda: ResnetEnergy(3, [*WIDE, 1024], 5), 29_017_857),
        (lambda: ResnetEncoder(3, [*WIDE, 1024], 128, 5, bias=False), 29_278_976),
        (lambda: ResnetDecoder(128, 3, [1024, *WIDE[::-1]]), 32_150_787),
        (lambda: JointCriticEnergy(3, 32, 100).image, 7_122_496),
        (lambda: JointCriticEnergy(3, 32, 100).latent, 528_512),
        (lambda: JointCriticEnergy(3, 32, 100), 8_701_633),
        (lambda: MLPEnergy(2, [128, 128, 128], spectral_norm=True), 33_537),
        (lambda: MLP(2, [128, 128], 2, batch_norm=True), 17_666),
    ],
)
def test_parameter_counts_are_the_published_ones(make, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


@pytest.mark.parametrize("size", [8, 16, 32])
def test_strided_networks_fit_together(size):
    widths = {8: [8, 4], 16: [8, 8, 4], 32: [8, 8, 8, 4]}[size]
    x = StridedDecoder(5, 3, widths)(torch.randn(4, 5))
    assert x.shape == (4, 3, size, size)
    assert float(x.detach().abs().max()) <= 1
    assert StridedEncoder(3, size, 5, 4)(x).shape == (4, 10)
    assert StridedEnergy(3, size, 4)(x).shape == (4,)
    assert JointCriticEnergy(3, size, 5, 4).joint(x, torch.randn(4, 5)).shape == (4,)


def test_residual_networks_fit_together_and_keep_the_variance_below_one():
    x = ResnetDecoder(5, 3, [8, 8, 4])(torch.randn(4, 5))
    assert x.shape == (4, 3, 16, 16)
    encoder = ResnetEncoder(3, [8, 8, 8], 5, 2)
    assert encoder(x).shape == (4, 10)
    assert float(encoder(x)[:, 5:].max().detach()) <= 0
    assert ResnetEnergy(3, [8, 8], 2)(x).shape == (4,)


def test_a_size_that_is_no_power_of_two_times_four_is_refused():
    with pytest.raises(ValueError, match="image_size is 28; expected 4 times a power of 2"):
        StridedEnergy(1, 28)


def test_the_shortcut_sees_rectified_input_but_not_of_images():
    block = DownBlock(4, 4, halve=False)
    assert isinstance(block.shortcut, nn.Identity)
    with torch.no_grad():
        for layer in (block.inner, block.outer):
            layer.bias.zero_()
    x = -torch.rand(2, 4, 6, 6)
    assert float(block(x).detach().abs().max()) == 0  # nothing passes
    assert float(DownBlock(4, 4, halve=False, first=True)(x).detach().abs().max()) > 0


def test_a_normalized_energy_of_vectors_is_one_lipschitz():
    energy = MLPEnergy(2, [64, 64, 64], lambda: nn.LeakyReLU(0.1), spectral_norm=True)
    for _ in range(200):
        energy(torch.zeros(1, 2))  # power iterations
    energy.eval()
    x = 5 * torch.randn(500, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(energy(x).sum(), x)
    assert float(slope.norm(dim=1).max()) <= 1 + 1e-3
    steep = LimitedEnergy(energy, nn.Identity, scale=7.0)
    torch.testing.assert_close(steep(x), 7 * energy(x))


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [(nn.Softplus, 0, None), (nn.Sigmoid, 0, 1), (nn.Tanh, -1, 1)],
)
def test_an_activation_bounds_the_energy_and_keeps_its_order(activation, low, high):
    energy = LimitedEnergy(MLPEnergy(2, [16]), activation)
    x = 10 * torch.randn(200, 2)
    limited, raw = energy(x).detach(), energy.raw(x).detach()
    assert float(limited.min()) >= low
    assert high is None or float(limited.max()) <= high
    assert bool((limited[raw.argsort()].diff() >= 0).all())


def test_batch_statistics_serve_in_evaluation_where_asked():
    z = torch.randn(16, 5)
    faithful = StridedDecoder(5, 1, [8, 4], batch_statistics=True)
    torch.testing.assert_close(faithful.train()(z), faithful.eval()(z))
    usual = StridedDecoder(5, 1, [8, 4])
    assert not torch.allclose(usual.train()(z), usual.eval()(z), atol=1e-3)
