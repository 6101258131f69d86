"""Data: images, text and densities on the plane, as Lightning data modules.

Every module yields `(x, label)`. Images are floats in [−1, 1], `(B, C, H, W)`; text is int64
tokens, `(B, L)`, right-padded; points of the plane are `(B, 2)`.
"""

from .images import ImageDataModule
from .loader import ResumableLoader, ResumableSampler, TensorRows, seeded_generator
from .module import DataModule
from .synthetic import (
    Checkerboard,
    Density2D,
    DensityDataModule,
    EightGaussians,
    GaussianGrid,
    GaussianRings,
    Moons,
    Pinwheel,
    Rings,
    SwissRoll,
    TwoMoons,
)
from .text import TextDataModule
from .vocabulary import Vocabulary

__all__ = [
    "Checkerboard",
    "DataModule",
    "Density2D",
    "DensityDataModule",
    "EightGaussians",
    "GaussianGrid",
    "GaussianRings",
    "ImageDataModule",
    "Moons",
    "Pinwheel",
    "ResumableLoader",
    "ResumableSampler",
    "Rings",
    "SwissRoll",
    "TensorRows",
    "TextDataModule",
    "TwoMoons",
    "Vocabulary",
    "seeded_generator",
]
