r"""Block Gibbs sampling between visible and hidden units."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .kernel import check_count
from .noise import chain_generator

__all__ = ["Conditionals", "Gibbs"]


class Conditionals(Protocol):
    """A joint density whose two conditionals can be sampled."""

    def sample_hidden(self, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """h ~ p(h | v), for v `(B, N)`."""
        ...

    def sample_visible(self, h: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """v ~ p(v | h), for h `(B, H)`."""
        ...


@dataclass(frozen=True)
class Gibbs:
    """Alternate h ~ p(h | v) and v ~ p(v | h); exact for any number of steps.

    Arguments:
        num_steps: Sweeps per call.
    """

    num_steps: int

    def __post_init__(self) -> None:
        check_count("num_steps", self.num_steps)

    def __call__(
        self, energy: Conditionals, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Run the chains.

        Arguments:
            energy: A model with both conditionals, e.g. :class:`eblvm.rbm.GaussianBernoulliRBM`.
            x: Visible starts, with shape `(B, N)`.
            generator: Source of the noise, on the device of `x`; the global one if None.

        Returns:
            The last visible states, detached, with the shape of `x`.

        Raises:
            TypeError: If the energy lacks a conditional.
        """
        if not (hasattr(energy, "sample_hidden") and hasattr(energy, "sample_visible")):
            raise TypeError(
                f"{type(energy).__name__} has no `sample_hidden` and `sample_visible`; Gibbs needs "
                "both conditionals. Use Langevin, MALA or HMC for an energy alone."
            )
        generator = chain_generator(generator, x)
        with torch.no_grad():
            x = x.clone()
            for _ in range(self.num_steps):
                x = energy.sample_visible(energy.sample_hidden(x, generator), generator)
        return x.detach()
