"""Network architectures: what stands inside a posterior, a likelihood or an energy."""

from .conv import ConvDecoder, ConvEncoder
from .mlp import MLP, MLPEnergy
from .residual import ResidualTimeNet
from .spectral import settle_spectral_norms

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "MLPEnergy",
    "ResidualTimeNet",
    "settle_spectral_norms",
]
