"""Plain convolutional encoders and decoders."""

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["ConvDecoder", "ConvEncoder"]


def _xavier(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_normal_(module.weight)


class ConvDecoder(nn.Module):
    """Transposed convolutions from a vector to an image, `(B, D) -> (B, C, H, W)` in (−1, 1).

    A `start_size`² kernel makes the first map; each further width doubles the side with a 4×4
    kernel; a last layer makes the channels, doubling the side once more if `last_stride` is 2.
    LeakyReLU 0.2 between, tanh at the end, no normalization.

    References:
        Learning Latent Space Energy-Based Prior Model (Pang et al., 2020), the generators of its
        released code: SVHN is `start_size=4, widths=[8n, 4n, 2n]`; CelebA-64 has one width more;
        CIFAR-10 is `start_size=8, widths=[8n, 4n, 2n], last_stride=1`; MNIST likewise with 7.

    Arguments:
        latent_dim: D.
        widths: Channels of the maps, first to last.
        channels: C.
        start_size: Side of the first map.
        last_stride: 2 for a doubling last layer (4×4), 1 for one that keeps the size (3×3).
    """

    def __init__(
        self,
        latent_dim: int,
        widths: Sequence[int],
        channels: int,
        start_size: int = 4,
        last_stride: int = 2,
    ) -> None:
        super().__init__()
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride is {last_stride}; expected 1 or 2.")
        first, *rest = widths
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_dim, first, start_size)]
        width = first
        for wider in rest:
            layers += [nn.LeakyReLU(0.2), nn.ConvTranspose2d(width, wider, 4, 2, 1)]
            width = wider
        last = (4, 2, 1) if last_stride == 2 else (3, 1, 1)
        layers += [nn.LeakyReLU(0.2), nn.ConvTranspose2d(width, channels, *last), nn.Tanh()]
        self.net = nn.Sequential(*layers)
        self.image_size = start_size * 2 ** len(rest) * last_stride
        _xavier(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z[:, :, None, None])


class ConvEncoder(nn.Module):
    """Strided 4×4 convolutions from an image to a vector, `(B, C, H, W) -> (B, out_dim)`.

    Each width halves the side; LeakyReLU 0.2 between.

    Arguments:
        channels: C.
        image_size: H and W; divisible by 2 to the number of widths.
        widths: Channels of the maps, first to last.
        out_dim: Numbers coming out; twice the latent dimension for a Gaussian posterior.
    """

    def __init__(self, channels: int, image_size: int, widths: Sequence[int], out_dim: int) -> None:
        super().__init__()
        if image_size % 2 ** len(widths):
            raise ValueError(
                f"image_size {image_size} cannot be halved {len(widths)} times; use fewer widths."
            )
        layers: list[nn.Module] = []
        width = channels
        for wider in widths:
            layers += [nn.Conv2d(width, wider, 4, 2, 1), nn.LeakyReLU(0.2)]
            width = wider
        side = image_size // 2 ** len(widths)
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side**2, out_dim))
        _xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
