"""The weight of the prior's term in the course of training."""

import math
from abc import ABC, abstractmethod

__all__ = ["ConstantWeight", "CyclicWeight", "KLWeight", "LogisticWeight"]


class KLWeight(ABC):
    """A weight for each optimizer step.

    Attributes:
        value: The full weight, which validation and test take at any step.
    """

    value: float = 1.0

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The weight at a step, counted from 0. While it is 0 the model is an autoencoder."""


class ConstantWeight(KLWeight):
    """The same weight throughout.

    Arguments:
        value: The weight; 1 is the evidence lower bound.
    """

    def __init__(self, value: float = 1.0) -> None:
        if not value >= 0:
            raise ValueError(f"value is {value}; expected 0 or more.")
        self.value = value

    def __call__(self, step: int) -> float:
        return self.value


class CyclicWeight(KLWeight):
    """Cycles of nothing, a rise, and the full weight.

    References:
        Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing (Fu et al., 2019);
        with a phase of zero weight first, as in the released code of the symbol-vector model.

    Arguments:
        num_steps: Steps of all cycles together. Later steps begin further cycles.
        num_cycles: Cycles.
        value: The full weight.
        zero_ratio: Share of a cycle at weight 0.
        rise_ratio: Share of a cycle in which the weight rises, linearly.
    """

    def __init__(
        self,
        num_steps: int,
        num_cycles: int = 10,
        value: float = 1.0,
        zero_ratio: float = 0.5,
        rise_ratio: float = 0.25,
    ) -> None:
        if not 1 <= num_cycles <= num_steps:
            raise ValueError(
                f"num_cycles is {num_cycles} for {num_steps} steps; expected 1 to {num_steps}."
            )
        if zero_ratio < 0 or rise_ratio <= 0 or zero_ratio + rise_ratio > 1:
            raise ValueError(
                f"zero_ratio is {zero_ratio} and rise_ratio {rise_ratio}; expected shares of a "
                "cycle, the second above 0, together at most 1."
            )
        self.period = num_steps / num_cycles
        self.value = value
        self.zero_ratio = zero_ratio
        self.rise_ratio = rise_ratio

    def __call__(self, step: int) -> float:
        place = (step % self.period) / self.period
        return self.value * min(1.0, max(0.0, (place - self.zero_ratio) / self.rise_ratio))


class LogisticWeight(KLWeight):
    r"""A smooth rise from 0 to the full weight, :math:`v / (1 + e^{-k (n - n_0)})`.

    References:
        Generating Sentences from a Continuous Space (Bowman et al., 2016); constants of the
        released code of Shi et al. (ICML 2020).

    Arguments:
        rate: k, per step.
        midpoint: n_0, the step of half the weight.
        value: v, the full weight.
    """

    def __init__(self, rate: float = 0.0025, midpoint: int = 2500, value: float = 1.0) -> None:
        self.rate = rate
        self.midpoint = midpoint
        self.value = value

    def __call__(self, step: int) -> float:
        return self.value / (1 + math.exp(min(700.0, -self.rate * (step - self.midpoint))))
