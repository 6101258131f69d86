"""Objectives: pure functions, tensors in, `(B,)` out, in nats."""

from .contrastive import contrastive_divergence
from .jeffrey import forward_kl, gaussian_jeffrey, gaussian_nll, reverse_kl
from .sequences import linear_cross_entropy
from .variational import gaussian_kl, importance_bound

__all__ = [
    "contrastive_divergence",
    "forward_kl",
    "gaussian_jeffrey",
    "gaussian_kl",
    "gaussian_nll",
    "importance_bound",
    "linear_cross_entropy",
    "reverse_kl",
]
