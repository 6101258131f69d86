"""Network architectures: what stands inside a posterior, a likelihood or an energy."""

from .bag import BagOfWordsDecoder, BagOfWordsEncoder
from .conv import ConvDecoder, ConvEncoder
from .dialogue import DialogueDecoder, DialogueEncoder
from .limited import LimitedEnergy
from .mlp import MLP, MLPEnergy
from .residual import ResidualTimeNet
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
    "LimitedEnergy",
    "MLPEnergy",
    "ResidualTimeNet",
    "SentenceDecoder",
    "SentenceEncoder",
    "settle_spectral_norms",
]
