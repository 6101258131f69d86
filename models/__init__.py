"""What learns: network architectures and the Lightning modules that train them."""

from .bidvl import BiDVL
from .classifier import ImageClassifier
from .latent_ebm import LatentEBM

__all__ = ["LatentEBM", "BiDVL", "ImageClassifier"]
