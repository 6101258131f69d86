"""Network architectures: what stands inside a posterior, a likelihood or an energy."""

from .bag import BagOfWordsDecoder, BagOfWordsEncoder
from .conditional import (
    ClassEnergy,
    ConditionalDecoder,
    ConditionalEncoder,
    ConditionalEnergy,
    LabelMap,
    TranslationDecoder,
)
from .conv import ConvDecoder, ConvEncoder
from .critic import JointCriticEnergy, StridedDecoder, StridedEncoder, StridedEnergy
from .dialogue import DialogueDecoder, DialogueEncoder
from .down import DownNet, StepCritic, StepEncoder, StridedStepEncoder
from .energy import ConvEnergy, ResidualEnergy
from .limited import LimitedEnergy
from .mlp import MLP, MLPEnergy
from .residual import ResidualTimeNet
from .same import SameDecoder, SameEncoder
from .sngan import ResnetDecoder, ResnetEncoder, ResnetEnergy
from .spectral import settle_spectral_norms
from .text import SentenceDecoder, SentenceEncoder
from .timed import TimedMLP, TimedMLPEncoder, TimedMLPEnergy, TimedMLPGenerator
from .unet import UNet, UNetEnergy, UNetGenerator

__all__ = [
    "MLP",
    "BagOfWordsDecoder",
    "BagOfWordsEncoder",
    "ClassEnergy",
    "ConditionalDecoder",
    "ConditionalEncoder",
    "ConditionalEnergy",
    "ConvDecoder",
    "ConvEncoder",
    "ConvEnergy",
    "DialogueDecoder",
    "DialogueEncoder",
    "DownNet",
    "JointCriticEnergy",
    "LabelMap",
    "LimitedEnergy",
    "MLPEnergy",
    "ResidualEnergy",
    "ResidualTimeNet",
    "ResnetDecoder",
    "ResnetEncoder",
    "ResnetEnergy",
    "SameDecoder",
    "SameEncoder",
    "SentenceDecoder",
    "SentenceEncoder",
    "StepCritic",
    "StepEncoder",
    "StridedDecoder",
    "StridedEncoder",
    "StridedEnergy",
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
