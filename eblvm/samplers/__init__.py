"""Markov chain Monte Carlo on any energy: functions and frozen settings, `torch` only."""

from . import diagnostics
from .annealed import AIS, LogNormalizer
from .chain import Chain, ChainSetup, Sampler
from .frozen import frozen
from .gibbs import Gibbs
from .hmc import HMC
from .kernel import Kernel
from .kinds import compilation_report
from .langevin import Langevin
from .mala import MALA
from .mode import compilation
from .noise import noise_like
from .score import EnergyFn, score, squared_gradient, value_and_squared_gradient
from .tempering import ParallelTempering
from .underdamped import Underdamped

__all__ = [
    "EnergyFn",
    "score",
    "squared_gradient",
    "value_and_squared_gradient",
    "frozen",
    "Sampler",
    "Chain",
    "ChainSetup",
    "Kernel",
    "Langevin",
    "MALA",
    "HMC",
    "Underdamped",
    "ParallelTempering",
    "AIS",
    "LogNormalizer",
    "Gibbs",
    "diagnostics",
    "compilation",
    "compilation_report",
    "noise_like",
]
