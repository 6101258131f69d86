"""Objectives: pure functions, tensors in, `(B,)` out, in nats."""

from .contrastive import contrastive_divergence
from .information import mutual_information
from .variational import gaussian_kl, importance_bound, negative_entropy

__all__ = [
    "contrastive_divergence",
    "gaussian_kl",
    "importance_bound",
    "mutual_information",
    "negative_entropy",
]
