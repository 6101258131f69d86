"""Networks of pixels: published sizes, exact adjoints, and energies that leave no trace."""

import pytest
import torch
from torch import nn

from eblvm.conditions import EdgeCondition, GrayCondition, LabelCondition, LowResolutionCondition
from eblvm.models.networks import (
    MLP,
    ClassEnergy,
    ConditionalDecoder,
    ConditionalEncoder,
    ConditionalEnergy,
    ConvEnergy,
    LabelMap,
    ResidualEnergy,
    SameDecoder,
    SameEncoder,
    TranslationDecoder,
)
from eblvm.models.networks.same import SameConv2d, SameConvTranspose2d
from eblvm.samplers import Langevin

F64 = torch.float64

CIFAR = {
    "energy": lambda: ConvEnergy(3, 32, [64, 128, 256, 256], [3, 4, 4, 4], [1, 2, 2, 2]),
    "encoder": lambda: SameEncoder(3, 32, [64, 128, 256, 512], [3, 4, 4, 4], [1, 2, 2, 2], 200),
    "decoder": lambda: SameDecoder(
        100, 3, [4, 8, 16, 32, 32], [256, 128, 64, 64], [4, 4, 4, 3, 3], num_normalized=3
    ),
}
MNIST = {
    "energy": lambda: ConvEnergy(1, 28, [64, 128, 256], [5, 3, 3], [2, 2, 1], units=100),
    "encoder": lambda: SameEncoder(1, 28, [64, 64, 64], [4, 4, 4], [2, 2, 1], 200, dropout=0.2),
    "decoder": lambda: SameDecoder(
        100, 1, [4, 7, 14, 28], [256, 128, 64], [4, 3, 3, 3], 3, activation=nn.ReLU
    ),
}


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (CIFAR["energy"], 1_710_465),
        (CIFAR["decoder"], 1_104_515),
        (CIFAR["encoder"], 4_393_800),
        (MNIST["energy"], 1_625_188),
        (MNIST["decoder"], 779_713),
        (MNIST["encoder"], 759_688),
    ],
)
def test_published_networks_have_the_published_numbers_of_parameters(build, count):
    assert sum(p.numel() for p in build().parameters()) == count


@pytest.mark.parametrize("networks", [CIFAR, MNIST], ids=["cifar", "mnist"])
def test_published_networks_have_the_stated_shapes(networks):
    size, channels = (32, 3) if networks is CIFAR else (28, 1)
    x = torch.rand(2, channels, size, size)
    assert networks["energy"]()(x).shape == (2,)
    assert networks["encoder"]()(x).shape == (2, 200)
    image = networks["decoder"]()(torch.randn(2, 100))
    assert image.shape == x.shape and image.abs().max() < 1


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "pads"),
    [
        (3, 2, 32, (0, 1)),
        (4, 2, 32, (1, 1)),
        (5, 2, 28, (1, 2)),
        (4, 1, 7, (1, 2)),
        (3, 2, 7, (1, 1)),
    ],
)
def test_padding_and_its_adjoint(kernel, stride, size, pads):
    down = SameConv2d(2, 3, kernel, stride, size).to(F64)
    up = SameConvTranspose2d(3, 2, kernel, stride, size).to(F64)
    nn.init.zeros_(down.bias)
    nn.init.zeros_(up.bias)
    up.weight = nn.Parameter(down.weight.detach().clone())
    x = torch.randn(2, 2, size, size, dtype=F64)
    low, high = pads
    by_hand = nn.functional.conv2d(
        nn.functional.pad(x, (low, high, low, high)), down.weight, stride=stride
    )
    torch.testing.assert_close(down(x), by_hand)
    y = torch.randn_like(by_hand)
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum())  # ⟨Ax, y⟩ = ⟨x, Aᵀy⟩


def test_many_units_equal_one_summed_head():
    many = ConvEnergy(1, 8, [4], [3], [2], units=7)
    one = ConvEnergy(1, 8, [4], [3], [2], units=1)
    one.net[:-1].load_state_dict(many.net[:-1].state_dict())
    one.net[-1].weight = nn.Parameter(many.net[-1].weight.sum(0, keepdim=True))
    one.net[-1].bias = nn.Parameter(many.net[-1].bias.sum(0, keepdim=True))
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(many(x), one(x))


def test_single_images_and_batches_agree_unless_statistics_are_the_batch_s():
    z = torch.randn(6, 4)
    for batch_statistics in (False, True):
        net = SameDecoder(4, 1, [4, 7], [8], [4, 3], 1, batch_statistics)
        net.train()
        for _ in range(20):
            net(torch.randn(64, 4))
        net.eval()
        alone = torch.cat([net(row[None]) for row in z])
        assert torch.allclose(alone, net(z), atol=1e-6) != batch_statistics


@pytest.mark.parametrize("spectral", [False, True])
def test_residual_energies_leave_their_state_as_found_by_chains(spectral):
    energy = ResidualEnergy(1, 8, [4, 8], spectral_norm=spectral)
    before = {n: v.clone() for n, v in energy.state_dict().items()}
    x = torch.randn(3, 1, 8, 8)
    assert energy(x).shape == (3,)
    before = {n: v.clone() for n, v in energy.state_dict().items()}
    Langevin(3, 0.1)(energy, x)
    assert all(torch.equal(v, before[n]) for n, v in energy.state_dict().items())
    if spectral:  # after enough iterations each weight has norm at most 1
        for _ in range(200):
            energy(x)
        energy.eval()
        for module in energy.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                norm = torch.linalg.matrix_norm(module.weight.flatten(1), 2)
                assert norm < 1.01


def test_another_class_is_another_energy_encoding_and_image():
    embedding = LabelMap(10, [4, 7, 14, 28], [8, 8, 4])
    energy = ConditionalEnergy(ConvEnergy(2, 28, [8], [4], [4]), embedding)
    encoder = ConditionalEncoder(SameEncoder(2, 28, [8], [4], [4], 6), embedding)
    decoder = ConditionalDecoder(SameDecoder(13, 1, [4, 7], [8], [4, 3]), 10)
    x, c = torch.randn(5, 1, 28, 28), torch.arange(5)
    for net, given in ((energy, x), (encoder, x), (decoder, torch.randn(5, 3))):
        one, other = net(given, c), net(given, (c + 1) % 10)
        assert not torch.isclose(one, other).flatten(1 if one.dim() > 1 else 0).all()
        swapped = net(given.flip(0), c.flip(0))
        torch.testing.assert_close(swapped.flip(0), one)  # rows keep their own condition
    with pytest.raises(ValueError, match="without its condition"):
        energy(x)


def test_an_energy_of_classes_picks_the_output_of_the_class():
    network = MLP(12, [7], 4)
    energy = ClassEnergy(network, 4)
    x, c = torch.randn(5, 1, 3, 4), torch.tensor([3, 0, 0, 2, 1])
    torch.testing.assert_close(energy(x, c), network(x)[torch.arange(5), c])
    with pytest.raises(ValueError, match="without its condition"):
        energy(x)


def test_translation_follows_the_condition_and_the_latent():
    net = TranslationDecoder(8, 1, 3, [4, 8], num_blocks=1)
    z, c = torch.randn(2, 8), torch.rand(2, 1, 16, 16)
    image = net(z, c)
    assert image.shape == (2, 3, 16, 16) and image.abs().max() <= 1
    assert not torch.allclose(image, net(z, c.flip(3)))
    assert TranslationDecoder(5, 1, 3, [4, 8], 1)(torch.randn(2, 5), c).shape == image.shape


def test_conditions_are_what_they_say():
    label = torch.tensor([3, 1])
    assert torch.equal(LabelCondition(10)(torch.zeros(2, 1, 4, 4), label), label)
    with pytest.raises(ValueError, match=r"a label is -1, which is none; .* classes 0 to 9"):
        LabelCondition(10)(torch.zeros(2, 1, 4, 4), torch.tensor([3, -1]))
    assert LabelCondition(3).examples(5).tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match="one class per image"):
        LabelCondition(10)(torch.zeros(2, 1, 4, 4), torch.zeros(2, 5))

    red = -torch.ones(1, 3, 4, 4)
    red[:, 0] = 1
    gray = GrayCondition(4)(red, label)
    torch.testing.assert_close(gray, torch.full((1, 1, 4, 4), 2 * 0.299 - 1))

    x = torch.arange(16.0).view(1, 1, 4, 4) / 15
    low = LowResolutionCondition(4, 1, 2)(x, label)
    assert low.shape == x.shape
    assert low[0, 0, 0, 0] == x[0, 0, :2, :2].mean() == low[0, 0, 1, 1]

    step = -torch.ones(1, 1, 6, 6)
    step[..., 3:] = 1
    edges = EdgeCondition(6)(step, label)
    assert (edges[..., 2:4] == 1).all() and (edges[..., [0, 1, 4, 5]] == -1).all()
    assert EdgeCondition(6)(torch.zeros(1, 3, 6, 6), label).unique().tolist() == [-1.0]


def test_examples_of_image_conditions_are_those_last_seen():
    condition = GrayCondition(4)
    seen = torch.rand(10, 1, 4, 4)
    condition.remember(seen)
    assert torch.equal(condition.examples(10), seen)
    assert torch.equal(condition.examples(70)[64:], seen[:6])
    twin = GrayCondition(4)
    twin.load_state_dict(condition.state_dict())
    assert torch.equal(twin.examples(3), seen[:3])
