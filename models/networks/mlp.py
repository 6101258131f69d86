"""Multilayer perceptrons."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from eblvm.energies import Energy

from .spectral import spectral_linear
from .waves import waves

__all__ = ["MLP", "MLPEnergy"]


class MLP(nn.Sequential):
    """Linear layers with an activation between, `(B, *event) -> (B, *out)`.

    Arguments:
        in_dim: Numbers per row going in; events of several axes are flattened.
        hidden_dims: Widths of the hidden layers.
        out_dim: Numbers per row coming out.
        activation: Class of the activation, built without arguments.
        out_shape: Shape of a row coming out, with `out_dim` entries; a vector if None.
        out_activation: Class of a last activation, such as `torch.nn.Tanh` for images.
        batch_norm: Whether hidden layers are normalized over the batch, before the activation.
        spectral_norm: Whether all weights have spectral norm 1.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        activation: Callable[[], nn.Module] = nn.GELU,
        out_shape: Sequence[int] | None = None,
        out_activation: Callable[[], nn.Module] | None = None,
        batch_norm: bool = False,
        spectral_norm: bool = False,
    ) -> None:
        if out_shape is not None and math.prod(out_shape) != out_dim:
            raise ValueError(
                f"out_shape {tuple(out_shape)} holds {math.prod(out_shape)} numbers, but out_dim "
                f"is {out_dim}; they must agree."
            )
        linear = spectral_linear if spectral_norm else nn.Linear
        layers: list[nn.Module] = [nn.Flatten()]
        width = in_dim
        for hidden in hidden_dims:
            layers.append(linear(width, hidden))
            layers += [nn.BatchNorm1d(hidden)] * batch_norm
            layers.append(activation())
            width = hidden
        layers.append(linear(width, out_dim))
        if out_activation is not None:
            layers.append(out_activation())
        if out_shape is not None:
            layers.append(nn.Unflatten(1, tuple(out_shape)))
        super().__init__(*layers)


class MLPEnergy(Energy):
    """An energy of vectors, `(B, D) -> (B,)`.

    References:
        Learning Latent Space Energy-Based Prior Model (Pang et al., 2020), appendix: two hidden
        layers of 200 and GELU; its released code offers a tanh at the end.

    Arguments:
        in_dim: D.
        hidden_dims: Widths of the hidden layers.
        activation: Class of the activation, built without arguments.
        bound: b, for an energy b tanh(net(x)/b) in (−b, b). As a tilt of a Gaussian it can then not
            run away from its base, however far short chains lag behind; None leaves it unbounded.
        spectral_norm: Whether all weights have spectral norm 1.
        num_waves: The network sees sin and cos of 2ʲ times each coordinate, too, j = 0 … num_waves
            − 1, which a density with small features needs; none by default.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int] = (200, 200),
        activation: Callable[[], nn.Module] = nn.GELU,
        bound: float | None = None,
        spectral_norm: bool = False,
        num_waves: int = 0,
    ) -> None:
        super().__init__()
        if bound is not None and not bound > 0:
            raise ValueError(f"bound is {bound}; expected a positive number, or None.")
        width = in_dim * (1 + 2 * num_waves)
        self.net = MLP(width, hidden_dims, 1, activation, spectral_norm=spectral_norm)
        self.bound = bound
        self.num_waves = num_waves

    def forward(self, x: Tensor) -> Tensor:
        if self.num_waves:
            x = waves(x.flatten(1), self.num_waves)
        e = self.net(x).squeeze(1)
        return e if self.bound is None else self.bound * torch.tanh(e / self.bound)
