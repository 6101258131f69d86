"""Objectives: pure functions, tensors in, `(B,)` out, in nats."""

from .contrastive import contrastive_divergence
from .information import mutual_information
from .jeffrey import forward_kl, gaussian_jeffrey, gaussian_nll, reverse_kl
from .sequences import linear_cross_entropy
from .variational import gaussian_kl, importance_bound, negative_entropy

__all__ = [
    "contrastive_divergence",
    "forward_kl",
    "gaussian_jeffrey",
    "gaussian_kl",
    "gaussian_nll",
    "importance_bound",
    "linear_cross_entropy",
    "mutual_information",
    "negative_entropy",
    "reverse_kl",
]
