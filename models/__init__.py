"""What learns: network architectures and the Lightning modules that train them."""

from .classifier import ImageClassifier
from .data_ebm import DataEBM
from .denoising_ebm import DenoisingEBM
from .guard import DivergenceGuard
from .latent_ebm import LatentEBM

__all__ = ["LatentEBM", "DataEBM", "DenoisingEBM", "DivergenceGuard", "ImageClassifier"]
