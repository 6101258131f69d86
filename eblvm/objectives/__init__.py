"""Objectives: pure functions, tensors in, `(B,)` out, in nats."""

from .contrastive import contrastive_divergence, hinge
from .divergence import (
    Cycle,
    Divergence,
    ForwardDivergence,
    GaussianCycle,
    ReverseDivergence,
    SquaredCycle,
    SymmetricDivergence,
    density_ratio,
)
from .information import mutual_information
from .jeffrey import gaussian_jeffrey, gaussian_nll
from .sequences import linear_cross_entropy
from .variational import gaussian_kl, importance_bound, negative_entropy

__all__ = [
    "Cycle",
    "Divergence",
    "ForwardDivergence",
    "GaussianCycle",
    "ReverseDivergence",
    "SquaredCycle",
    "SymmetricDivergence",
    "contrastive_divergence",
    "density_ratio",
    "gaussian_jeffrey",
    "gaussian_kl",
    "gaussian_nll",
    "hinge",
    "importance_bound",
    "linear_cross_entropy",
    "mutual_information",
    "negative_entropy",
]
