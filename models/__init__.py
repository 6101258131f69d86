"""What learns: network architectures and the Lightning modules that train them."""

from .bidvl import BiDVL
from .boltzmann import BoltzmannMachine
from .classifier import ImageClassifier
from .data_ebm import DataEBM
from .denoising_ebm import DenoisingEBM
from .guard import DivergenceGuard
from .joint_bidvl import JointBiDVL
from .latent_ebm import LatentEBM
from .score_matching import ScoreMatchingEBM

__all__ = [
    "LatentEBM",
    "DataEBM",
    "DenoisingEBM",
    "DivergenceGuard",
    "BiDVL",
    "JointBiDVL",
    "BoltzmannMachine",
    "ScoreMatchingEBM",
    "ImageClassifier",
]
