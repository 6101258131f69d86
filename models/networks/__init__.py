"""Network architectures: what stands inside a posterior, a likelihood or an energy."""

from .bag import BagOfWordsDecoder, BagOfWordsEncoder
from .conditional import (
    ConditionalDecoder,
    ConditionalEncoder,
    ConditionalEnergy,
    LabelMap,
    TranslationDecoder,
)
from .conv import ConvDecoder, ConvEncoder
from .dialogue import DialogueDecoder, DialogueEncoder
from .down import DownNet, StepCritic, StepEncoder, StridedStepEncoder
from .energy import ConvEnergy, ResidualEnergy
from .mlp import MLP, MLPEnergy
from .residual import ResidualTimeNet
from .same import SameDecoder, SameEncoder
from .spectral import settle_spectral_norms
from .text import SentenceDecoder, SentenceEncoder
from .timed import TimedMLP, TimedMLPEncoder, TimedMLPEnergy, TimedMLPGenerator
from .unet import UNet, UNetEnergy, UNetGenerator

__all__ = [
    "MLP",
    "BagOfWordsDecoder",
    "BagOfWordsEncoder",
    "ConditionalDecoder",
    "ConditionalEncoder",
    "ConditionalEnergy",
    "ConvDecoder",
    "ConvEncoder",
    "ConvEnergy",
    "DialogueDecoder",
    "DialogueEncoder",
    "DownNet",
    "LabelMap",
    "MLPEnergy",
    "ResidualEnergy",
    "ResidualTimeNet",
    "SameDecoder",
    "SameEncoder",
    "SentenceDecoder",
    "SentenceEncoder",
    "StepCritic",
    "StepEncoder",
    "StridedStepEncoder",
    "TimedMLP",
    "TimedMLPEncoder",
    "TimedMLPEnergy",
    "TimedMLPGenerator",
    "TranslationDecoder",
    "UNet",
    "UNetEnergy",
    "UNetGenerator",
    "settle_spectral_norms",
]
