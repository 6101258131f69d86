"""Data: images, text and two-dimensional densities, as Lightning data modules.

Every module yields `(x, label)`. Images are floats in [−1, 1], `(B, C, H, W)`; text is int64
tokens, `(B, L)`, right-padded; points of a plane are `(B, 2)`.
"""

from .images import ImageDataModule
from .loader import ResumableLoader, ResumableSampler, seeded_generator
from .module import DataModule

__all__ = [
    "DataModule",
    "ImageDataModule",
    "ResumableLoader",
    "ResumableSampler",
    "seeded_generator",
]
