"""Network architectures: what stands inside a posterior, a likelihood or an energy."""

from .bag import BagOfWordsDecoder, BagOfWordsEncoder
from .conv import ConvDecoder, ConvEncoder
from .critic import JointCriticEnergy, StridedDecoder, StridedEncoder, StridedEnergy
from .dialogue import DialogueDecoder, DialogueEncoder
from .limited import LimitedEnergy
from .mlp import MLP, MLPEnergy
from .residual import ResidualTimeNet
from .sngan import ResnetDecoder, ResnetEncoder, ResnetEnergy
from .spectral import settle_spectral_norms
from .text import SentenceDecoder, SentenceEncoder

__all__ = [
    "MLP",
    "BagOfWordsDecoder",
    "BagOfWordsEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "DialogueDecoder",
    "DialogueEncoder",
    "JointCriticEnergy",
    "LimitedEnergy",
    "MLPEnergy",
    "ResidualTimeNet",
    "ResnetDecoder",
    "ResnetEncoder",
    "ResnetEnergy",
    "SentenceDecoder",
    "SentenceEncoder",
    "StridedDecoder",
    "StridedEncoder",
    "StridedEnergy",
    "settle_spectral_norms",
]
