"""Energies of images."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalized

from eblvm.energies import Energy

from .same import LEAKY, downward, initialize

__all__ = ["ConvEnergy", "ResidualEnergy"]


class ConvEnergy(Energy):
    """Convolutions down to `units` numbers, whose sum is the energy, `(B, C, H, H) -> (B,)`.

    References:
        Learning Energy-Based Model with Variational Auto-Encoder as Amortized Sampler (Xie, Zheng
        and Li, 2021), released code, where f = −E. CIFAR-10: `widths=[64, 128, 256, 256],
        kernels=[3, 4, 4, 4], strides=[1, 2, 2, 2]`; MNIST: `widths=[64, 128, 256], kernels=[5, 3,
        3], strides=[2, 2, 1], units=100`.

    Arguments:
        channels: C.
        image_size: H.
        widths: Channels of the maps.
        kernels: Sides of the filters.
        strides: Their strides.
        units: Numbers that are summed.
        activation: Class of the activation, built without arguments; LeakyReLU 0.2 if None. A
            smooth one, such as SiLU, gives chains a continuous gradient.
        init_scale: Standard deviation of the first filters; PyTorch's choice if None.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        widths: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        units: int = 1,
        activation: Callable[[], nn.Module] | None = None,
        init_scale: float | None = None,
    ) -> None:
        super().__init__()
        layers, side = downward(channels, image_size, widths, kernels, strides, activation or LEAKY)
        self.net = nn.Sequential(*layers, nn.Conv2d(widths[-1], units, side))
        initialize(self, init_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).flatten(1).sum(1)


class _Residual(nn.Module):
    """Two 3×3 convolutions beside a 1×1 one, then a mean over 2×2 blocks."""

    def __init__(self, channels: int, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            activation(),
            nn.Conv2d(channels, width, 3, padding=1),
            activation(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.skip = nn.Conv2d(channels, width, 1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.branch(x) + self.skip(x))


class ResidualEnergy(Energy):
    """Residual blocks, each halving the side, and a sum over what is left; `(B, C, H, H) -> (B,)`.

    References:
        Implicit Generation and Modeling with Energy-Based Models (Du and Mordatch, 2019): residual
        blocks without batch normalization, with spectral normalization.

    Arguments:
        channels: C.
        image_size: H; divisible by 2 to the number of widths.
        widths: Channels of the blocks.
        spectral_norm: Divide each weight by its largest singular value, by power iteration. At odds
            with a narrow reference, whose quadratic the energy must cancel.
        activation: Class of the activation, built without arguments.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        widths: Sequence[int],
        spectral_norm: bool = False,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        if image_size % 2 ** len(widths):
            raise ValueError(
                f"image_size {image_size} cannot be halved {len(widths)} times; use fewer widths."
            )
        first, *_ = widths
        layers: list[nn.Module] = [nn.Conv2d(channels, first, 3, padding=1)]
        for width_in, width_out in zip([first, *widths], widths, strict=False):
            layers.append(_Residual(width_in, width_out, activation))
        self.net = nn.Sequential(*layers, activation())
        self.head = nn.Linear(widths[-1], 1)
        if spectral_norm:
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    normalized(module)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x).sum((2, 3))).squeeze(1)
