"""Networks of adversarially trained images: strided trunks, batch-normalized pairs, joint energies.

Every energy is spectrally normalized throughout; filters start N(0, 0.02²) and are normalized after
that. Batch normalization in encoders and generators can use each batch's own statistics in
evaluation, too (`batch_statistics`), as the released code does for samples and reconstructions.

References:
    Bi-level Doubly Variational Learning for Energy-based Latent Variable Models (Kan et al., 2022),
    released code.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from eblvm.energies import Energy, JointEnergy

__all__ = ["JointCriticEnergy", "StridedDecoder", "StridedEncoder", "StridedEnergy"]

SLOPE = 0.1


def start(net: nn.Module) -> None:
    """Filters N(0, 0.02²); batch normalization at scale 1 and shift 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)


def normalize(net: nn.Module) -> None:
    """Divide every filter bank by its largest singular value, by one power iteration a pass."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            spectral_norm(module)


def doublings(image_size: int, start_size: int = 4) -> int:
    """How often `start_size` doubles to `image_size`.

    Raises:
        ValueError: If it does not.
    """
    count = (image_size // start_size).bit_length() - 1
    if count < 1 or start_size * 2**count != image_size:
        raise ValueError(
            f"image_size is {image_size}; expected {start_size} times a power of 2, at least "
            f"{2 * start_size}. Resize or pad the images."
        )
    return count


class WholeConv2d(nn.Conv2d):
    """A filter as large as the maps that leaves one pixel: a matrix product, computed as one."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self.kernel_size:
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


def critic_trunk(channels: int, width: int, num_halvings: int) -> tuple[list[nn.Module], int]:
    """3×3 convolutions that widen and 4×4 ones that halve, down to one pixel; and its channels."""
    layers: list[nn.Module] = []
    for i in range(num_halvings + 1):
        wider = width * 2**i
        layers += [nn.Conv2d(channels, wider, 3, 1, 1), nn.LeakyReLU(SLOPE)]
        last = i == num_halvings
        halving = WholeConv2d(wider, wider, 4) if last else nn.Conv2d(wider, wider, 4, 2, 1)
        layers.append(halving)
        layers += [] if last else [nn.LeakyReLU(SLOPE)]
        channels = wider
    return layers, channels


class StridedEnergy(Energy):
    """Pairs of a 3×3 and a strided 4×4 convolution, then two 1×1; `(B, C, H, H) -> (B,)`.

    The first width is `width`, and each further pair doubles it while the side halves, down to 4;
    a last 4×4 filter leaves one pixel. There is no activation between it and the head.

    Arguments:
        channels: C.
        image_size: H: 8, 16, 32, 64, 128 …
        width: Channels of the first maps; 64 in the released code.
    """

    def __init__(self, channels: int, image_size: int, width: int = 64) -> None:
        super().__init__()
        trunk, features = critic_trunk(channels, width, doublings(image_size))
        head = [nn.Conv2d(features, features, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(features, 1, 1)]
        self.net = nn.Sequential(*trunk, *head)
        start(self)
        normalize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).flatten(1).sum(1)


class StridedEncoder(nn.Module):
    """A 3×3 convolution and strided 4×4 ones with batch normalization; `(B, C, H, H) -> (B, 2 D)`.

    LeakyReLU 0.2 after each; two 4×4 filters give mean and log-variance.

    Arguments:
        channels: C.
        image_size: H: 8, 16, 32 …
        latent_dim: D.
        width: Channels of the first maps, doubled by all further ones but the first.
        batch_statistics: Normalize by the batch's own statistics in evaluation, too.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        latent_dim: int,
        width: int = 48,
        batch_statistics: bool = False,
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, track_running_stats=not batch_statistics)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False)]
        layers += [norm(width), nn.LeakyReLU(0.2)]
        for _ in range(doublings(image_size)):
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False)]
            layers += [norm(2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        self.net = nn.Sequential(*layers)
        self.mean = nn.Conv2d(width, latent_dim, 4)
        self.log_variance = nn.Conv2d(width, latent_dim, 4)
        start(self)

    def forward(self, x: Tensor) -> Tensor:
        features = self.net(x)
        return torch.cat([self.mean(features), self.log_variance(features)], 1).flatten(1)


class StridedDecoder(nn.Module):
    """Transposed 4×4 convolutions with batch normalization; `(B, D) -> (B, C, H, H)` in (−1, 1).

    The first makes 4×4 maps, each further one doubles the side; ReLU between; a 3×3 convolution
    and tanh end it.

    Arguments:
        latent_dim: D.
        channels: C.
        widths: Channels of the maps, one for each side 4, 8, 16 …; for 32×32 the released code has
            [384, 384, 192, 96], for 64×64 [768, 768, 384, 192, 96].
        batch_statistics: Normalize by the batch's own statistics in evaluation, too.
    """

    def __init__(
        self, latent_dim: int, channels: int, widths: Sequence[int], batch_statistics: bool = False
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, track_running_stats=not batch_statistics)
        first, *rest = widths
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_dim, first, 4, bias=False)]
        layers += [norm(first), nn.ReLU()]
        width = first
        for narrower in rest:
            layers += [nn.ConvTranspose2d(width, narrower, 4, 2, 1, bias=False)]
            layers += [norm(narrower), nn.ReLU()]
            width = narrower
        layers += [nn.ConvTranspose2d(width, channels, 3, 1, 1), nn.Tanh()]
        self.net = nn.Sequential(*layers)
        start(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z[:, :, None, None])


class JointCriticEnergy(JointEnergy):
    """The energy of an image and a latent: features of either, joined by a dense head.

    Arguments:
        channels: C.
        image_size: H: 8, 16, 32 …
        latent_dim: D.
        width: Channels of the first maps of the image; latents go through layers of as many units,
            doubled as the image's.
    """

    def __init__(self, channels: int, image_size: int, latent_dim: int, width: int = 64) -> None:
        super().__init__()
        num_halvings = doublings(image_size)
        trunk, features = critic_trunk(channels, width, num_halvings)
        self.image = nn.Sequential(*trunk, nn.Flatten())
        layers: list[nn.Module] = []
        units = latent_dim
        for i in range(num_halvings + 1):
            for _ in range(2):
                layers += [nn.Linear(units, width * 2**i), nn.LeakyReLU(SLOPE)]
                units = width * 2**i
        self.latent = nn.Sequential(*layers[:-1])
        self.head = nn.Sequential(
            nn.Linear(2 * features, 2 * features), nn.LeakyReLU(SLOPE), nn.Linear(2 * features, 1)
        )
        start(self)
        normalize(self)

    def joint(self, x: Tensor, z: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(x), self.latent(z)], 1)).squeeze(1)
