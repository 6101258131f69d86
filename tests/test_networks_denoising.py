"""Networks of diffusion steps: published sizes, resampling, and derivatives of derivatives."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eblvm.divergences import GradientPenalty, Jeffrey, Jump, NonSaturating
from eblvm.models.networks import (
    DownNet,
    StepCritic,
    StepEncoder,
    StridedStepEncoder,
    TimedMLPEncoder,
    TimedMLPEnergy,
    TimedMLPGenerator,
    UNet,
    UNetEnergy,
    UNetGenerator,
)
from eblvm.models.networks.resample import Resample, StridedConv
from eblvm.models.networks.timed import Slope, waves
from eblvm.models.networks.unet import level_embedding
from eblvm.schedules import VariancePreservingSchedule


def size(module):
    return sum(p.numel() for p in module.parameters())


PUBLISHED = {
    "CIFAR-10": (
        {"image_size": 32, "width": 128, "multipliers": (1, 2, 2, 2)},
        lambda: StridedStepEncoder(3, 32, 100),
        (48_432_515, 40_279_171, 4_772_872),
    ),
    "CelebA": (
        {"image_size": 64, "width": 64, "multipliers": (1, 1, 2, 2, 4)},
        lambda: StridedStepEncoder(3, 64, 100, num_halvings=4),
        (25_651_843, 19_693_955, 15_063_048),
    ),
    "LSUN": (
        {"image_size": 128, "width": 64, "multipliers": (1, 2, 2, 4, 4), "smooth": False},
        lambda: StepEncoder(3, 100),
        (37_902_403, 30_273_347, 27_839_304),
    ),
}
"""U-Net and encoder; parameters of generator, energy and encoder in the released code."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_images_have_the_published_numbers_of_parameters(name):
    settings, encoder, expected = PUBLISHED[name]
    with torch.device("meta"):
        generator = UNetGenerator(UNet(3, **settings, style_dim=256))
        assert (size(generator), size(UNetEnergy(UNet(3, **settings))), size(encoder())) == expected


def test_the_plane_has_the_published_numbers_of_parameters():
    networks = (
        TimedMLPGenerator(2, 2, batch_norm=True),
        TimedMLPEnergy(2),
        TimedMLPEncoder(2, 2, batch_norm=True),
    )
    assert [size(network) for network in networks] == [113_149, 111_516, 117_459]


def naive(x, up, pad):
    """Zeros between the pixels or none, padding, [1, 3, 3, 1], every pixel or every second."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 4, 4)
    if up:
        spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        spread[:, :, ::2, ::2] = x
        x = 4 * spread
    h = F.conv2d(F.pad(x, (pad[0], pad[1], pad[0], pad[1])), kernel, groups=x.shape[1])
    return h if up else h[:, :, ::2, ::2]


def test_slopes_are_those_of_prelu_and_of_its_derivatives():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    found = []
    for make in (Slope, nn.PReLU):
        module = make().double()
        y = module(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        second = torch.autograd.grad(gradient.square().sum(), [x, module.weight])
        found.append([y, gradient, *second])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_waves_double_their_frequency():
    x = torch.randn(5, 2)
    columns = [x, *((2**j * x).sin() for j in range(3)), *((2**j * x).cos() for j in range(3))]
    torch.testing.assert_close(waves(x, 3), torch.cat(columns, 1))
    assert waves(x, 0) is x
    settings = {"hidden_dims": [8], "branch_dims": [8], "num_waves": 3}
    t = torch.zeros(5, dtype=torch.long)
    x_next = x + 2 * torch.pi  # seen by the state itself only
    energy = TimedMLPEnergy(2, **settings)
    with torch.no_grad():
        energy.net.vector[0].weight[:, :2] = 0
        torch.testing.assert_close(energy(x, t), energy(x_next, t), rtol=1e-4, atol=1e-5)
        assert TimedMLPGenerator(2, 3, **settings)(x, t, torch.randn(5, 3)).shape == (5, 2)
        assert TimedMLPEncoder(2, 3, **settings)(x, x_next, t).shape == (5, 6)


def test_a_reference_adds_to_the_energy():
    x, x_next, t = torch.randn(5, 2), torch.randn(5, 2), torch.arange(5)
    bare = TimedMLPEnergy(2, 2, hidden_dims=[8])
    tied = TimedMLPEnergy(2, 2, hidden_dims=[8], reference_scale=0.5)
    tied.load_state_dict(bare.state_dict())
    expected = bare(x, t, x_next) + 2 * x.square().sum(1)  # the condition takes no part
    torch.testing.assert_close(tied(x, t, x_next), expected)
    with pytest.raises(ValueError, match="scale is 0"):
        TimedMLPEnergy(2, reference_scale=0)


def test_smooth_resampling_is_filtering_of_spread_pixels():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    up, down = Resample(True).double(), Resample(False).double()
    torch.testing.assert_close(up(x), naive(x, True, (2, 1)))
    torch.testing.assert_close(down(x), naive(x, False, (1, 1)))
    ones = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(up(ones)[..., 2:-2, 2:-2], torch.ones(1, 1, 12, 12).double())
    torch.testing.assert_close(down(ones)[..., 1:-1, 1:-1], torch.ones(1, 1, 2, 2).double())
    conv = StridedConv(3, 5).double()
    assert conv(x).shape == (2, 5, 4, 4)


def test_rough_resampling_repeats_and_averages():
    x = torch.randn(2, 3, 4, 4)
    up, down = Resample(True, smooth=False), Resample(False, smooth=False)
    assert torch.equal(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(down(up(x)), x)


@pytest.mark.parametrize("make", [lambda: Resample(True), lambda: Resample(False)])
def test_resampling_is_twice_differentiable(make):
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    layer = make().double()
    assert torch.autograd.gradgradcheck(lambda x: layer(x).square().sum((1, 2, 3)), (x,))


def test_levels_are_embedded_as_published():
    e = level_embedding(torch.tensor([0, 3]), 8)
    torch.testing.assert_close(e[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    frequencies = 10000 ** -(torch.arange(4) / 3)
    torch.testing.assert_close(e[1, :4], (3 * frequencies).sin())


SMALL = {"width": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_sizes": (8,)}


@pytest.mark.parametrize("smooth", [True, False])
def test_energy_starts_as_a_standard_normal(smooth):
    torch.manual_seed(0)
    x, t = torch.randn(3, 2, 16, 16), torch.tensor([0, 1, 3])
    energy = UNetEnergy(UNet(2, 16, **SMALL, smooth=smooth))
    torch.testing.assert_close(energy(x, t), 0.5 * x.square().flatten(1).sum(1), rtol=1e-4, atol=0)


def louder(module):
    """With the layers that start near zero at work, so that a test sees them."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d) and float(m.weight.detach().abs().max()) < 1e-4:
            nn.init.normal_(m.weight, std=0.1)
    return module


def test_images_depend_on_state_level_and_latent():
    torch.manual_seed(0)
    generator = louder(UNetGenerator(UNet(1, 8, **SMALL, style_dim=16), 4, 16, 1)).eval()
    x, z, t = torch.randn(2, 1, 8, 8), torch.randn(2, 4), torch.tensor([1, 2])
    made = generator(x, t, z)
    assert made.shape == x.shape and made.abs().max() < 1
    for other in ((x + 1, t, z), (x, t + 1, z), (x, t, z.flip(1))):
        assert not torch.allclose(generator(*other), made)
    torch.testing.assert_close(generator(x, t, 3 * z), made)  # only the latent's direction counts
    torch.testing.assert_close(generator(x[1:], t[1:], z[1:]), made[1:])


def step_networks(width, image_size, channels, smooth, latent_dim=8):
    settings = {"width": width, "multipliers": (1, 2, 2, 2), "dropout": 0.1, "smooth": smooth}
    unet = UNet(channels, image_size, **settings, style_dim=16)
    encoder = StridedStepEncoder(channels, image_size, latent_dim, 8, time_dim=16)
    if not smooth:
        encoder = StepEncoder(channels, latent_dim, (8, 16, 16), 16)
    energy = UNetEnergy(UNet(channels, image_size, **settings))
    return energy, UNetGenerator(unet, latent_dim, 16), encoder


@pytest.mark.parametrize("smooth", [True, False])
def test_every_branch_learns_at_width_16(smooth):
    """Both players of one step, with the second derivative of the penalty, on a CPU."""
    torch.manual_seed(0)
    energy, generator, encoder = (louder(m) for m in step_networks(16, 32, 3, smooth))
    s, x, z = VariancePreservingSchedule(4), torch.randn(4, 3, 32, 32), torch.randn(4, 8)
    t = torch.arange(4)
    x_t, x_next = s.sample_pair(x, t)

    def mean(z):
        return s.reverse(generator(x_next, t, z), x_next, t).mean

    fake = mean(z)
    jump = Jump(t, x_t, x_next, z, fake, fake)
    divergence = Jeffrey(encoder, penalty=GradientPenalty(0.02, total=True))
    sum(v.mean() for v in divergence.critic_terms(energy, s, jump, 0).values()).backward()
    sum(v.mean() for v in divergence.player_terms(energy, s, jump, mean).values()).backward()
    for module in (energy, generator, encoder):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0 or name.endswith("inward.1.bias"), name


def test_the_critic_of_steps_learns_with_its_penalty():
    torch.manual_seed(0)
    critic = louder(StepCritic(1, (8, 8, 16), (False, True), 16))
    s, x, t = VariancePreservingSchedule(2), torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    jump = Jump(t, *s.sample_pair(x, t), torch.randn(4, 2), x, x)
    terms = NonSaturating(GradientPenalty(0.1)).critic_terms(critic, s, jump, 0)
    sum(v.mean() for v in terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critic.parameters())
    with pytest.raises(ValueError, match="needs x_next"):
        critic(x, t)


def test_spread_is_the_deviation_within_groups():
    net = DownNet(1, (4, 4), time_dim=8)
    h = torch.randn(8, 4, 2, 2)
    spread = net.spread(h)
    assert spread.shape == (8, 1, 2, 2)
    group = h[[1, 3, 5, 7]]  # as StyleGAN2 takes them: every second image
    expected = group.std(0, correction=0).mean()
    torch.testing.assert_close(spread[[1, 3]], expected.expand(2, 1, 2, 2), rtol=1e-4, atol=1e-5)


def test_encoders_bound_variances_where_published_and_take_single_images():
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([2])
    encoder = StepEncoder(1, 3, (4, 8), 8)
    assert encoder(x, x, t).shape == (1, 6) and (encoder(x, x, t)[:, 3:] < 0).all()
    assert StridedStepEncoder(1, 8, 3, 4, 2, 8)(x, x, t).shape == (1, 6)


def test_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="expected a multiple of 8"):
        UNet(1, 28)
    with pytest.raises(ValueError, match="expected a multiple of 8"):
        StridedStepEncoder(1, 28, 4)
    with pytest.raises(ValueError, match="halves has 1 entries; expected 2"):
        DownNet(1, (4, 4, 4), [True])
