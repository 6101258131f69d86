r"""Block Gibbs sampling between visible and hidden units."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .chain import Chain, energies_along, kept_states, room
from .frozen import frozen
from .kernel import check_count
from .noise import chain_generator

__all__ = ["Conditionals", "Gibbs"]


class Conditionals(Protocol):
    """A joint density whose two conditionals can be sampled."""

    def __call__(self, v: Tensor) -> Tensor:
        """The energy of the visible states `(B, N)` alone, `(B,)`; only `Gibbs.run` asks for it."""
        ...

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
            x: Visible starts, with shape `(B, N)`; not modified.
            generator: Source of the noise, on the device of `x`; the global one if None.

        Returns:
            The last visible states, detached, with the shape of `x`.

        Raises:
            TypeError: If the energy lacks a conditional.
        """
        return self._run(energy, x, generator)

    def run(
        self,
        energy: Conditionals,
        x: Tensor,
        generator: torch.Generator | None = None,
        every: int = 1,
    ) -> Chain:
        """Run the chains, same states as a plain call, and keep what they did.

        Arguments:
            energy: As in a call, and callable: `(B, N) -> (B,)`, the energy of visible states.
            x: As in a call.
            generator: As in a call.
            every: Keep one state in `every` sweeps.

        Returns:
            Visible states and their energies. Everything is accepted.
        """
        kept = room(kept_states(self.num_steps, every), x)
        x = self._run(energy, x, generator, kept, every)
        return Chain(x, kept, energies_along(energy, kept))

    def _run(
        self,
        energy: Conditionals,
        x: Tensor,
        generator: torch.Generator | None,
        kept: Tensor | None = None,
        every: int = 1,
    ) -> Tensor:
        if not (hasattr(energy, "sample_hidden") and hasattr(energy, "sample_visible")):
            raise TypeError(
                f"{type(energy).__name__} has no `sample_hidden` and `sample_visible`; Gibbs needs "
                "both conditionals. Use Langevin, MALA or HMC for an energy alone."
            )
        generator = chain_generator(generator, x)
        with frozen(energy), torch.no_grad():
            x = x.clone()
            for step in range(1, self.num_steps + 1):
                x = energy.sample_visible(energy.sample_hidden(x, generator), generator)
                if kept is not None and step % every == 0:
                    kept[step // every - 1] = x
        return x.detach()
