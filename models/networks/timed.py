"""Multilayer perceptrons of a state and its level of noise: the plane, and very small images.

Data of any shape are flattened, and what is generated has the shape of the noisy state.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eblvm.energies import GaussianReference, TimeEnergy

from .residual import sinusoidal_table
from .waves import waves

__all__ = ["TimedMLP", "TimedMLPEncoder", "TimedMLPEnergy", "TimedMLPGenerator"]

MAX_TIMESTEPS = 1000


class Slope(nn.PReLU):
    """`nn.PReLU` with one slope, in operations that are vectorized on a CPU also backwards."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x.relu(), x, self.weight)


def dense(in_dim: int, out_dim: int, norm: bool, statistics: bool, act: bool = True) -> list:
    """A linear layer, a normalization over the batch, an activation."""
    layers: list[nn.Module] = [nn.Linear(in_dim, out_dim)]
    if norm:
        layers.append(nn.BatchNorm1d(out_dim, track_running_stats=not statistics))
    return layers + [Slope()] * act


class TimedMLP(nn.Module):
    """A branch for vectors and one for their level, joined by a trunk: `(B, D), (B,) -> (B, K)`.

    The activations have a slope each, which is learned.

    References:
        Improving Adversarial Energy-Based Model via Diffusion Process (Geng et al., 2024), released
        code for 2-D data, whose numbers of parameters these networks have at their defaults.

    Arguments:
        in_dim: D.
        out_dim: K.
        hidden_dims: Widths of the trunk.
        time_dim: Width of the embedding of levels.
        batch_norm: Whether layers of the vectors' branch and of the trunk, the last one included,
            are normalized over the batch.
        batch_statistics: Whether the batch's own statistics normalize it in evaluation, too. A
            batch of training mixes levels and one of sampling does not, so the statistics differ.
        branch_dims: Widths of the vectors' branch.
    """

    table: Tensor

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dims: Sequence[int] = (300, 300),
        time_dim: int = 16,
        batch_norm: bool = False,
        batch_statistics: bool = False,
        branch_dims: Sequence[int] = (16, 32),
    ) -> None:
        super().__init__()
        table = sinusoidal_table(MAX_TIMESTEPS, time_dim)
        self.register_buffer("table", table, persistent=False)
        norm, own = batch_norm, batch_statistics
        self.time = nn.Sequential(*dense(time_dim, 16, False, False), *dense(16, 32, False, False))
        branch: list[nn.Module] = []
        width = in_dim
        for hidden in branch_dims:
            branch += dense(width, hidden, norm, own)
            width = hidden
        self.vector = nn.Sequential(*branch)
        trunk: list[nn.Module] = [Slope()]
        width += 32
        for hidden in hidden_dims:
            trunk += dense(width, hidden, norm, own)
            width = hidden
        self.trunk = nn.Sequential(*trunk, *dense(width, out_dim, norm, own, act=False))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """With shape `(B, K)`, of vectors `(B, D)` at levels int64 `(B,)`."""
        return self.trunk(torch.cat([self.vector(x), self.time(self.table[t])], dim=1))


class TimedMLPEnergy(TimeEnergy):
    """An energy for each level, `(B, *event), (B,) -> (B,)`; 111,516 parameters at D = 2.

    Arguments:
        in_dim: D.
        context_dim: Width of the context that comes as a third argument, such as the noisier state
            for the critic of a denoising diffusion GAN; 0 for none.
        hidden_dims: Widths of the trunk.
        time_dim: Width of the embedding of levels.
        branch_dims: As in `TimedMLP`.
        num_waves: The network sees sin and cos of 2ʲ times each coordinate, too, j = 0 … num_waves
            − 1, which a density with small features needs; none by default.
        reference_scale: σ of an energy ‖x‖²/2σ² that the network's adds to, so that the density
            falls off where there are neither data nor samples to teach it; none if None.

    Raises:
        ValueError: If `reference_scale` is not positive.
    """

    def __init__(
        self,
        in_dim: int,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (300, 300),
        time_dim: int = 16,
        branch_dims: Sequence[int] = (16, 32),
        num_waves: int = 0,
        reference_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.num_waves = num_waves
        self.reference = None if reference_scale is None else GaussianReference(reference_scale)
        width = (in_dim + context_dim) * (1 + 2 * num_waves)
        self.net = TimedMLP(width, 1, hidden_dims, time_dim, branch_dims=branch_dims)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        x = seen = x.flatten(1)
        if context is not None:
            seen = torch.cat([x, context.flatten(1)], dim=1)
        energy = self.net(waves(seen, self.num_waves), t).squeeze(1)
        return energy if self.reference is None else energy + self.reference(x)


class TimedMLPGenerator(nn.Module):
    """The clean datum from its noisy state and a latent; 113,149 parameters as published.

    `(x_next, t, z) -> x`, both `(B, *event)`; the published one has `batch_norm` and, in sampling,
    `batch_statistics`.

    Arguments:
        data_dim: D.
        latent_dim: Width of z.
        hidden_dims: Widths of the trunk.
        time_dim: Width of the embedding of levels.
        batch_norm: As in `TimedMLP`.
        batch_statistics: As in `TimedMLP`.
        branch_dims: As in `TimedMLP`.
        num_waves: As in `TimedMLPEnergy`, of the noisy state.
        bounded: Whether the datum lies in [−1, 1], by tanh.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        hidden_dims: Sequence[int] = (300, 300),
        time_dim: int = 16,
        batch_norm: bool = False,
        batch_statistics: bool = False,
        branch_dims: Sequence[int] = (16, 32),
        num_waves: int = 0,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        self.num_waves = num_waves
        self.bounded = bounded
        width = data_dim * (1 + 2 * num_waves) + latent_dim
        sizes = (width, data_dim, hidden_dims, time_dim)
        self.net = TimedMLP(*sizes, batch_norm, batch_statistics, branch_dims)

    def forward(self, x_next: Tensor, t: Tensor, z: Tensor) -> Tensor:
        seen = waves(x_next.flatten(1), self.num_waves)
        x = self.net(torch.cat([seen, z], dim=1), t).view_as(x_next)
        return x.tanh() if self.bounded else x


class TimedMLPEncoder(nn.Module):
    """Mean and log-variance of the latent behind a step; 117,459 parameters as published.

    `(x, x_next, t) -> (B, 2 Z)`; the published one has `batch_norm`.

    Arguments:
        data_dim: D.
        latent_dim: Z.
        hidden_dims: Widths of the trunk.
        time_dim: Width of the embedding of levels.
        feature_dim: Width of what the two linear heads share.
        batch_norm: As in `TimedMLP`.
        batch_statistics: As in `TimedMLP`.
        branch_dims: As in `TimedMLP`.
        num_waves: As in `TimedMLPEnergy`, of both states.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        hidden_dims: Sequence[int] = (300, 300),
        time_dim: int = 16,
        feature_dim: int = 16,
        batch_norm: bool = False,
        batch_statistics: bool = False,
        branch_dims: Sequence[int] = (16, 32),
        num_waves: int = 0,
    ) -> None:
        super().__init__()
        self.num_waves = num_waves
        sizes = (2 * data_dim * (1 + 2 * num_waves), feature_dim, hidden_dims, time_dim)
        self.net = TimedMLP(*sizes, batch_norm, batch_statistics, branch_dims)
        self.head = nn.Linear(feature_dim, 2 * latent_dim)

    def forward(self, x: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
        both = torch.cat([x.flatten(1), x_next.flatten(1)], dim=1)
        return self.head(self.net(waves(both, self.num_waves), t))
