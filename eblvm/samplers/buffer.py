"""Chains that go on from one call to the next."""

import torch
from torch import Tensor, nn

__all__ = ["ReplayBuffer"]


class ReplayBuffer(nn.Module):
    """A store of chain states, from which training draws starts and to which it returns ends.

    The states are buffers: they travel with the module and are kept in checkpoints.

    References:
        Implicit Generation and Modeling with Energy-Based Models (Du and Mordatch, 2019), Sec. 3.

    Arguments:
        states: The first states, with shape `(capacity, *event)`.

    Attributes:
        ages: How often each state was stored since its chain began, int64 `(capacity,)`.
    """

    states: Tensor
    ages: Tensor

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        if len(states) < 1:
            raise ValueError("a replay buffer needs a capacity of 1 or more.")
        self.register_buffer("states", states)
        self.register_buffer("ages", torch.zeros(len(states), dtype=torch.long))

    def __len__(self) -> int:
        return len(self.states)

    def draw(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Places `(num,)` of states, without repetition.

        Raises:
            ValueError: If there are fewer states.
        """
        if num > len(self):
            raise ValueError(
                f"{num} chains are asked of a replay buffer with {len(self)} states; expected at "
                "most as many. Raise capacity, or lower the batch size or num_chains."
            )
        order = torch.randperm(len(self), generator=generator, device=self.states.device)
        return order[:num]

    @torch.no_grad()
    def store(self, places: Tensor, x: Tensor, restarted: Tensor) -> None:
        """Put states back.

        Arguments:
            places: Where they came from, with shape `(B,)`.
            x: The states, with shape `(B, *event)`.
            restarted: Which of these chains began anew, with shape `(B,)`.
        """
        self.states[places] = x.to(self.states.dtype)
        self.ages[places] = self.ages[places].masked_fill(restarted, 0) + 1
