"""Objectives: pure functions, tensors in, `(B,)` out, in nats."""

from .contrastive import contrastive_divergence
from .sequences import linear_cross_entropy
from .variational import gaussian_kl, importance_bound

__all__ = ["contrastive_divergence", "gaussian_kl", "importance_bound", "linear_cross_entropy"]
