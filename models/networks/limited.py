"""An energy network with a last activation, to keep it within bounds."""

from collections.abc import Callable

from torch import Tensor, nn

from eblvm.energies import Energy

__all__ = ["LimitedEnergy"]


class LimitedEnergy(Energy):
    """a(c · E(x)) for an activation a: softplus bounds from below, sigmoid and tanh on both sides.

    Spectrally normalized networks change by at most 1 per unit of x; `scale` lets them be steeper.

    Arguments:
        energy: E.
        activation: Class of a, built without arguments, increasing: `torch.nn.Softplus`,
            `Sigmoid`, `Tanh` or `Identity`.
        scale: c.
    """

    def __init__(
        self,
        energy: Energy,
        activation: Callable[[], nn.Module] = nn.Softplus,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a positive number.")
        self.energy = energy
        self.activation = activation()
        self.scale = scale

    def raw(self, x: Tensor) -> Tensor:
        """c · E(x), of the same order as the energy but never saturated, `(B,)`."""
        return self.scale * self.energy(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.raw(x))
