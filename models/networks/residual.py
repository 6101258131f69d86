"""The residual network of time-conditioned energies of vectors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .spectral import spectral_linear

__all__ = ["ResidualTimeNet", "sinusoidal_table"]

SLOPE = 0.2  # of every leaky ReLU


def sinusoidal_table(num: int, dim: int) -> Tensor:
    r"""Embeddings of 0 … num − 1, with shape `(num, dim)`.

    Even columns are sin(t ω_k), odd ones cos(t ω_k), with :math:`\omega_k = 10000^{-2k/dim}`.

    References:
        Attention Is All You Need (Vaswani et al., 2017), Sec. 3.5.
    """
    if dim % 2:
        raise ValueError(f"dim is {dim}; expected an even number, half sines and half cosines.")
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(num, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).to(torch.get_default_dtype())


class ResidualTimeNet(nn.Module):
    """Logits of vectors at a level of noise, `(B, D), (B,) -> (B, K)`; spectral norms throughout.

    A branch for the vector, one for the time, and one for the context where there is one, are
    fused by a layer and go through residual blocks. A chain for which the module is frozen
    normalizes the weights once, and the sampler's analytic gradient evaluates the branches of time
    and context once and folds them into the bias of the fusing layer.

    References:
        Latent Diffusion Energy-Based Model for Interpretable Text Modelling (Yu et al., 2022),
        released code: width 200, 12 blocks.

    Arguments:
        in_dim: D.
        out_dim: K, the number of symbols; 1 for a plain energy.
        num_timesteps: T; levels are 0 … T − 1.
        width: Numbers per hidden layer.
        num_blocks: Residual blocks.
        context_dim: C, of contexts `(B, C)`; 0 for a network without.
    """

    table: Tensor

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_timesteps: int = 6,
        width: int = 200,
        num_blocks: int = 12,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.register_buffer("table", sinusoidal_table(num_timesteps, width), persistent=False)
        self.context_dim = context_dim

        def branch(dim: int) -> nn.Sequential:
            return nn.Sequential(
                spectral_linear(dim, width), nn.LeakyReLU(SLOPE), spectral_linear(width, width)
            )

        self.latent = branch(in_dim)
        self.time = branch(width)
        self.context = branch(context_dim) if context_dim else None
        self.fusion = spectral_linear((3 if context_dim else 2) * width, width)
        self.blocks = nn.ModuleList(spectral_linear(width, width) for _ in range(num_blocks))
        self.head = spectral_linear(width, out_dim)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """The logits, with shape `(B, K)`.

        Arguments:
            x: Vectors, with shape `(B, D)`.
            t: Levels in 0 … T − 1, int64 `(B,)`.
            context: Contexts, with shape `(B, C)`.

        Raises:
            ValueError: If there is a context and no branch for it, or the reverse.
        """
        if (context is None) != (self.context is None):
            has = "a context branch" if self.context is not None else "no context branch"
            got = "none" if context is None else "one"
            raise ValueError(
                f"the network has {has} (context_dim={self.context_dim}), but was given {got}; set "
                "context_dim to the width of what the posterior hands on."
            )
        branches = [self.latent(x), self.time(self.table[t])]
        if self.context is not None:
            branches.append(self.context(context))
        h = self.fusion(F.leaky_relu(torch.cat(branches, dim=1), SLOPE))
        for block in self.blocks:
            h = h + block(F.leaky_relu(h, SLOPE))
        return self.head(F.leaky_relu(h, SLOPE))
