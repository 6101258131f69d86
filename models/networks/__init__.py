"""Network architectures: what stands inside a posterior, a likelihood or an energy."""

from .conv import ConvDecoder, ConvEncoder
from .mlp import MLP, MLPEnergy

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "MLPEnergy"]
