"""Network architectures: what stands inside a posterior, a likelihood or an energy."""

from .conditional import (
    ConditionalDecoder,
    ConditionalEncoder,
    ConditionalEnergy,
    LabelMap,
    TranslationDecoder,
)
from .conv import ConvDecoder, ConvEncoder
from .energy import ConvEnergy, ResidualEnergy
from .mlp import MLP, MLPEnergy
from .same import SameDecoder, SameEncoder

__all__ = [
    "MLP",
    "ConditionalDecoder",
    "ConditionalEncoder",
    "ConditionalEnergy",
    "ConvDecoder",
    "ConvEncoder",
    "ConvEnergy",
    "LabelMap",
    "MLPEnergy",
    "ResidualEnergy",
    "SameDecoder",
    "SameEncoder",
    "TranslationDecoder",
]
